"""Fuzzes the decoding and encoding of messages, guided by code coverage.

    python -m tests.tools.fuzz [--runs 1000000] [--seed 1]

`tests.tools.bad_input` mutates real messages and defines what must hold for the result. The
run ends at the first input that breaks a guarantee, and shows its bytes. Needs atheris
(requirements-fuzz.txt).
"""

import argparse
import random
import sys
import time
from typing import Any

from utils import download, preprocess_data, settings
from utils.settings import Settings

#: Number of rows in the initial corpus.
ROWS = 1_000
#: Seconds that one input may take. A thousand inputs take one second.
TIMEOUT = 5


def adult_rows(found: Settings) -> list[dict[str, Any]]:
    """Rows of Adult as messages carry them; downloads the files if they are missing."""
    found.data_dir.mkdir(parents=True, exist_ok=True)
    for data_file in found.data.files:
        download.fetch(data_file, found.data_dir, print)
    return preprocess_data.sample_rows(found.data_dir, found.data)[:ROWS]


def main() -> None:
    """Fuzz until all runs are done or a guarantee is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs (1000000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the inputs (1)")
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install -r requirements-fuzz.txt")
    # Coverage is measured only in modules that are imported here.
    with atheris.instrument_imports(include=["tests.tools.bad_input", "utils.messages"]):
        from tests.tools import bad_input

    found = settings.load()
    real = bad_input.messages_of(adult_rows(found))
    check = bad_input.Checker(bad_input.adult_features(found))
    started = time.monotonic()

    def choose_and_mutate(value: bytes, largest: int, seed: int) -> bytes:
        """Mutate a real message, or an input that reached new code."""
        chance = random.Random(seed)
        if chance.random() < 0.5:
            value = chance.choice(real)
        for _ in range(chance.randrange(3)):
            if chance.random() < 0.25:
                value = bytes(atheris.Mutate(value, largest))
            else:
                value = bad_input.mutate(value, chance, largest)
        return value[:largest]

    def one_input(value: bytes) -> None:
        check(value)
        if check.seen.total() == options.runs:
            check.compare()
            seconds = time.monotonic() - started
            print(f"{options.runs:,} inputs in {seconds:.0f} s, no fault: {check.summary()}")

    libfuzzer = [f"-runs={options.runs}", f"-seed={options.seed}", f"-timeout={TIMEOUT}"]
    libfuzzer += [f"-max_len={bad_input.LARGEST}", "-reduce_inputs=0", "-len_control=0"]
    atheris.Setup([sys.argv[0], *libfuzzer], one_input, custom_mutator=choose_and_mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
