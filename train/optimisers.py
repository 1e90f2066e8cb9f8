"""The optimisers, by the name that `--hyper` takes.

Each is a module train/train_<name>.py with a function `optimise` of the type
`search.Optimise`. If it needs packages of its own, requirements-<name>.txt lists them. No
other code names an optimiser. Its module is imported only when it is selected, because its
packages may not be installed.
"""

import argparse
import importlib
import importlib.metadata
import re
from pathlib import Path

from train.search import Optimise
from utils import process
from utils.errors import UserError
from utils.settings import ROOT


class OptimiserError(UserError):
    """The optimiser cannot be used; its text is one line meant for the user."""


def names() -> list[str]:
    """The names of all optimisers."""
    modules = Path(__file__).parent.glob("train_*.py")
    return sorted(module.stem.removeprefix("train_") for module in modules)


def check(name: str) -> None:
    """Check that an optimiser exists and its packages are installed, without importing it.

    Raises:
        OptimiserError: There is no such optimiser, or a package is not installed.
    """
    if name not in names():
        raise OptimiserError(f"no optimiser {name!r}; choose one of {', '.join(names())}")
    requirements = ROOT / f"requirements-{name}.txt"
    if requirements.exists():
        for package in re.findall(r"^[\w.-]+", requirements.read_text("utf-8"), re.M):
            try:
                importlib.metadata.distribution(package)
            except importlib.metadata.PackageNotFoundError:
                raise OptimiserError(
                    f"{name} needs {package}: pip install -r {requirements.name}"
                ) from None


def get(name: str) -> Optimise:
    """Import an optimiser, for `train.search.search`.

    Raises:
        OptimiserError: As for `check`.
    """
    check(name)
    optimise: Optimise = importlib.import_module(f"train.train_{name}").optimise
    return optimise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options `--hyper` and `--evals` to a script that trains."""
    parser.add_argument(
        "--hyper", choices=names(), default="hyperopt", help="the optimiser (hyperopt)"
    )
    parser.add_argument(
        "--evals", type=process.at_least(1), default=10, help="evaluations in each search (10)"
    )
