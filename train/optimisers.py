"""The searches for hyperparameters, by the name that `--hyper` takes.

Each is a module of this package with a function `search` (`Search` says how it is
called), imported only when it is asked for: not everyone has its package.
"""

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from utils import process
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix


class OptimiserError(Exception):
    """The optimiser cannot be used; its text is one line meant for the user."""


@dataclass(frozen=True)
class Trial:
    """One set of parameters, and what validating it found."""

    loss: float
    rounds: int
    params: dict[str, Any]
    given_up: bool  # clearly behind the best so far, so not trained to its end
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Best:
    """What a search found. Two are equal if they found the same, however long it took.

    Attributes:
        params: LightGBM's parameters, for `fit.fit`.
        rounds: Boosting rounds, those of the least cross-validated loss.
        loss: That loss: log loss in nats, the mean over the folds.
        evaluations: Candidates tried.
        seconds: The search took.
        trials: Each validation in its order.
    """

    params: dict[str, Any]
    rounds: int
    loss: float
    evaluations: int
    seconds: float = field(compare=False)
    trials: list[Trial] = field(default_factory=list)


class Progress(Protocol):
    """Is told after each candidate: how many are done, of how many, the least loss so far."""

    def __call__(self, done: int, total: int, best_loss: float, /) -> None:
        """Take note."""


class Search(Protocol):
    """How an optimiser is called."""

    def __call__(
        self,
        X: Matrix,
        y: IntegerCodes,
        features: FeatureTools,
        *,
        evals: int,
        seed: int,
        folds: int,
        start_from: Mapping[str, Any] | None,
        threads: int,
        progress: Progress | None = None,
    ) -> Best:
        """Find good parameters; the same arguments find the same ones, for any `threads`.

        Args:
            X: (rows, features) of `features`.
            y: (rows,), codes of classes.
            features: Say which columns hold categories, and how many classes there are.
            evals: Candidates to try.
            seed: Of the folds, of the optimiser and of LightGBM.
            folds: Of the cross-validation.
            start_from: The parameters of an earlier model: the first candidate. What it
                lacks has its default, what the search does not know is left out.
            threads: To work with.
            progress: Is told after each candidate.

        Raises:
            ValueError: Fewer rows than folds, or a code that is no class.
        """


#: Name to (module with a function `search`, file with the packages it needs).
OPTIMISERS: Mapping[str, tuple[str, str]] = {
    "hyperopt": ("train.train_hyperopt", "requirements.txt"),
    "hyperparameterhunter": (
        "train.train_hyperparameterhunter",
        "requirements-hyperparameterhunter.txt",
    ),
    "optuna": ("train.train_optuna", "requirements-optuna.txt"),
}


def get(name: str) -> Search:
    """The search of an optimiser, imported only now.

    Raises:
        OptimiserError: No such optimiser, or its package is not installed.
    """
    if name not in OPTIMISERS:
        raise OptimiserError(f"no optimiser {name!r}; there are {', '.join(OPTIMISERS)}")
    module, requirements = OPTIMISERS[name]
    try:
        search: Search = importlib.import_module(module).search
    except ImportError as error:
        raise OptimiserError(
            f"{name} cannot be used ({error}): pip install -r {requirements}"
        ) from None
    return search


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options `--hyper` and `--evals` of the scripts that train."""
    parser.add_argument(
        "--hyper", choices=list(OPTIMISERS), default="hyperopt", help="the optimiser (hyperopt)"
    )
    parser.add_argument(
        "--evals", type=process.at_least(1), default=10, help="evaluations of a search (10)"
    )
