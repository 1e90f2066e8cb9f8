"""The search for LightGBM's parameters; an optimiser draws the candidates.

A smaller learning rate is always better and slower, so the rate is not searched. The
candidates race at a large rate on two of the folds. The best of them, the finalists, are
then cross-validated on all folds at the small rate of the final fit. That decides which
candidate wins, and how many rounds it needs.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from train import cross_validation, search_space
from train.cross_validation import Folds, GiveUp, Trial
from train.search_space import Range
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix
from utils.model_store.manifest import Parameters

RACING_RATE = 0.2
FINAL_RATE = 0.1
RACING_FOLDS = 2
#: There is one finalist, and one more for this many candidates: the more candidates there
#: are, the likelier the best of them was lucky.
CANDIDATES_PER_FINALIST = 20


@dataclass(frozen=True)
class Best:
    """The result of a search; the duration does not count for equality.

    Attributes:
        params: LightGBM's parameters, for `fit.fit`.
        rounds: Boosting rounds at the lowest cross-validated loss.
        loss: That loss: log loss in nats, the mean over the folds.
        evaluations: Number of candidates.
        seconds: Duration of the search.
        trials: All validations in their order.
        learnt_from: Number of candidates that the optimiser remembered from earlier searches.
    """

    params: Parameters
    rounds: int
    loss: float
    evaluations: int
    seconds: float = field(compare=False)
    trials: list[Trial] = field(default_factory=list)
    learnt_from: int = 0


class Progress(Protocol):
    """Called after each candidate."""

    def __call__(self, done: int, total: int, best_loss: float, /) -> None:
        """Report the candidates done, the total and the lowest loss so far."""


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """The input of a search; the same input and memory give the same result.

    Attributes:
        X: (rows, features), encoded by `features`.
        y: (rows,), the codes of the classes.
        features: The preprocessor; it knows the categorical columns and the classes.
        evals: Number of candidates to try.
        seed: The seed of the folds, the optimiser and LightGBM.
        n_folds: Folds of the cross-validation.
        start_from: Parameters of an earlier model, tried first. Missing ones have their
            default; those that are not searched are ignored.
        threads: The number of folds trained in parallel; it does not change the result.
        memory: Folder in which the optimiser keeps its memory, if it has one; None to keep
            nothing. The optimiser creates it.
        progress: Called after each candidate.
    """

    X: Matrix
    y: IntegerCodes
    features: FeatureTools
    evals: int
    seed: int
    n_folds: int = 3
    start_from: Parameters | None = None
    threads: int = 1
    memory: Path | None = None
    progress: Progress | None = None


@dataclass
class Race:
    """A race of candidates: the optimiser calls `validate` until none is `left`.

    Attributes:
        spec: The input of the search.
        folds: The rows, binned and split.
        space: The parameters and their ranges.
        start: The first candidate.
        trials: The candidates so far, in their order.
        learnt_from: Set by the optimiser: how many earlier candidates it remembered.
    """

    spec: SearchSpec
    folds: Folds
    space: Mapping[str, Range]
    start: dict[str, float]
    trials: list[Trial] = field(default_factory=list)
    learnt_from: int = 0

    @property
    def left(self) -> int:
        """Number of candidates still to try."""
        return self.spec.evals - len(self.trials)

    @property
    def best_loss(self) -> float:
        """The lowest loss so far."""
        return min((trial.loss for trial in self.trials), default=math.inf)

    def known(self, remembered: Mapping[str, float] | None = None) -> list[dict[str, float]]:
        """The candidates to try first: `start`, the optimiser's best, LightGBM's defaults.

        Args:
            remembered: The best candidate of an earlier search, if the optimiser knows one.
        """
        found = [self.start]
        for params in (remembered, search_space.defaults(self.space)):
            if params is not None and params not in found:
                found.append(dict(params))
        return found[: self.spec.evals]

    def problem_id(self) -> str:
        """An id of the problem; candidates of different problems cannot be compared."""
        features = self.spec.features
        columns = [features.classes, features.feature_names, list(self.space)]
        parts = [*columns, len(self.folds.pairs), RACING_FOLDS, RACING_RATE]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def validate(self, drawn: Mapping[str, float], give_up: GiveUp | None = None) -> Trial:
        """Try a candidate.

        Args:
            drawn: A value for each parameter of the space; it is cut to the range here.
            give_up: Called repeatedly; returns whether to stop (prune) the candidate. By default, a
                candidate is stopped when it can no longer become the best.
        """
        params = {**search_space.cut(drawn, self.space), "learning_rate": RACING_RATE}
        give_up = give_up or partial(cross_validation.has_no_chance, best_loss=self.best_loss)
        trial = self.folds.validate(params, folds=RACING_FOLDS, give_up=give_up)
        self.trials.append(trial)
        if self.spec.progress:
            self.spec.progress(len(self.trials), self.spec.evals, self.best_loss)
        return trial


#: The type of the function `optimise` of each train/train_*.py.
Optimise = Callable[[Race], None]


def search(optimise: Optimise, spec: SearchSpec) -> Best:
    """Find good parameters.

    Args:
        optimise: The optimiser, which draws the candidates.
        spec: The input of the search.

    Returns:
        The result; the last of its trials are the finalists, validated on all folds at the
        learning rate of the final fit.

    Raises:
        ValueError: There are fewer rows than folds, or a code belongs to no class.
    """
    started = time.perf_counter()
    space = search_space.space_of(spec.features)
    known = spec.start_from or {}
    start = search_space.cut(
        {name: known.get(name, value.centre) for name, value in space.items()}, space
    )
    finalists: list[Parameters] = [start]
    with Folds.of(
        spec.X, spec.y, spec.features, folds=spec.n_folds, seed=spec.seed, threads=spec.threads
    ) as folds:
        race = Race(spec, folds, space, start)
        if spec.evals > 1:
            optimise(race)
            ranked = sorted(race.trials, key=lambda trial: trial.loss)
            n_finalists = 1 + spec.evals // CANDIDATES_PER_FINALIST
            finalists = [trial.params for trial in ranked[:n_finalists]]
        final = [
            folds.validate({**params, "learning_rate": FINAL_RATE}, folds=spec.n_folds)
            for params in finalists
        ]
    best = min(final, key=lambda trial: trial.loss)
    if spec.progress and not race.trials:
        spec.progress(1, 1, best.loss)
    return Best(
        best.params,
        best.rounds,
        best.loss,
        spec.evals,
        time.perf_counter() - started,
        [*race.trials, *final],
        race.learnt_from,
    )
