"""Runs all benchmarks, or one of them.

    make bench
    python -m benchmarks [--quick] [NAME [its options]]

Prints tables and writes them to benchmarks/results.md, with the machine, the versions and
the date; a single benchmark replaces only its own section there.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import sklearn  # noqa: F401 - before LightGBM, or it lacks the estimators of rivals.original
from rich.console import Console

from benchmarks import (
    codecs,
    drift,
    freshness,
    growth,
    http,
    inputs,
    latency,
    metrics,
    missing,
    quality,
    report,
    start,
    store,
    streams,
    tables,
    throughput,
)
from benchmarks.common import Workshop

BENCHES: dict[str, ModuleType] = {
    "throughput": throughput,
    "latency": latency,
    "http": http,
    "codecs": codecs,
    "metrics": metrics,
    "freshness": freshness,
    "quality": quality,
    "missing": missing,
    "tables": tables,
    "drift": drift,
    "inputs": inputs,
    "streams": streams,
    "growth": growth,
    "store": store,
    "start": start,
}


def parse(argv: list[str]) -> list[tuple[str, argparse.Namespace]]:
    """Parse the arguments; returns the benchmarks to run with their options."""
    quick = "--quick" in argv
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes; figures mean little")
    parser.add_argument(
        "--evals", type=int, default=2 if quick else 10, help="evaluations of the model's search"
    )
    parser.add_argument("--home", type=_prepared, help="a home that initialize.py has prepared")
    names = parser.add_subparsers(dest="name", metavar="NAME")
    for name, bench in BENCHES.items():
        words = (bench.__doc__ or "").strip()
        one = names.add_parser(name, help=words.splitlines()[0], description=words)
        bench.add_options(one, quick)
    options = parser.parse_args(argv)
    if options.name:
        return [(options.name, options)]
    return [(name, parser.parse_args([*argv, name])) for name in BENCHES]


def _prepared(text: str) -> Path:
    """An argparse type: a home that has a model."""
    home = Path(text)
    if not (home / "models" / "current.json").exists():
        raise argparse.ArgumentTypeError(f"there is no model in {home}")
    return home


def main(argv: list[str]) -> int:
    """Run the requested benchmarks; returns the exit status, 1 if one failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # runs the clean-up, too
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    chosen = parse(argv)
    common = chosen[0][1]

    def say(line: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {line}")

    with Workshop(common.evals, say, common.home) as workshop:
        broken = 0
        for name, options in chosen:
            began = time.monotonic()
            try:
                section = BENCHES[name].run(options, workshop)
            except Exception:  # go on with the other benchmarks
                console.print_exception()
                broken += 1
                continue
            report.show(section, console)
            if not common.quick:
                report.write(section)
            say(f"{name}: {time.monotonic() - began:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
