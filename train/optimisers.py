"""The optimisers, by the name that `--hyper` takes.

Each is a module train/train_<name>.py with a function `optimise` (`search.Optimise` says
how it is called), and where it needs packages of its own a file requirements-<name>.txt;
nothing else knows of it. It is imported only when it is asked for: not everyone has its
package.
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
    """Every optimiser there is."""
    modules = Path(__file__).parent.glob("train_*.py")
    return sorted(module.stem.removeprefix("train_") for module in modules)


def check(name: str) -> None:
    """See whether an optimiser is there, without importing it.

    Raises:
        OptimiserError: No such optimiser, or a package that it needs is not installed.
    """
    if name not in names():
        raise OptimiserError(f"no optimiser {name!r}; there are {', '.join(names())}")
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
    """An optimiser, for `train.search.search`; imported only now.

    Raises:
        OptimiserError: As `check` says.
    """
    check(name)
    optimise: Optimise = importlib.import_module(f"train.train_{name}").optimise
    return optimise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options `--hyper` and `--evals` of the scripts that train."""
    parser.add_argument(
        "--hyper", choices=names(), default="hyperopt", help="the optimiser (hyperopt)"
    )
    parser.add_argument(
        "--evals", type=process.at_least(1), default=10, help="evaluations of a search (10)"
    )
