"""Throws bytes at what decodes and encodes messages, guided by the code that they reach.

    python -m tests.tools.fuzz [--runs 1000000] [--seed 1]

`tests.tools.bad_input` says how real messages are spoilt and what must hold of the result. What
breaks a promise is named, its bytes in Python's notation, and ends the run. Needs atheris
(requirements-fuzz.txt).
"""

import argparse
import random
import sys
import time
from typing import Any

from utils import download, preprocess_data, settings
from utils.settings import Settings

#: So many rows are begun with.
ROWS = 1_000
#: So long may one input take, seconds. A thousand take one.
TIMEOUT = 5


def adult_rows(found: Settings) -> list[dict[str, Any]]:
    """Rows of the Adult data as messages carry them, fetched where they are not there."""
    found.data_dir.mkdir(parents=True, exist_ok=True)
    for data_file in found.data.files:
        download.fetch(data_file, found.data_dir, print)
    return preprocess_data.sample_rows(found.data_dir, found.data)[:ROWS]


def main() -> None:
    """Fuzz until all runs are done, or something breaks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs (1000000)")
    parser.add_argument("--seed", type=int, default=1, help="of what is sent (1)")
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install -r requirements-fuzz.txt")
    # Only what is imported in here tells the fuzzer which of its code was reached.
    with atheris.instrument_imports(include=["tests.tools.bad_input", "utils.messages"]):
        from tests.tools import bad_input

    found = settings.load()
    real = bad_input.messages_of(adult_rows(found))
    check = bad_input.Checker(bad_input.adult_features(found))
    begun = time.monotonic()

    def mutate(value: bytes, largest: int, seed: int) -> bytes:
        """Something new from a real message, or from what had reached new code."""
        chance = random.Random(seed)
        if chance.random() < 0.5:
            value = chance.choice(real)
        for _ in range(chance.randrange(3)):
            if chance.random() < 0.25:
                value = bytes(atheris.Mutate(value, largest))
            else:
                value = bad_input.mutated(value, chance, largest)
        return value[:largest]

    def one_input(value: bytes) -> None:
        check(value)
        if check.seen.total() == options.runs:
            check.compare()
            seconds = time.monotonic() - begun
            print(f"{options.runs:,} inputs in {seconds:.0f} s, no promise broken: {check.told()}")

    libfuzzer = [f"-runs={options.runs}", f"-seed={options.seed}", f"-timeout={TIMEOUT}"]
    libfuzzer += [f"-max_len={bad_input.LARGEST}", "-reduce_inputs=0", "-len_control=0"]
    atheris.Setup([sys.argv[0], *libfuzzer], one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
