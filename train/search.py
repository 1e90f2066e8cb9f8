"""The search for LightGBM's parameters, but for who draws the candidates.

A smaller learning rate is better and dearer, always, so the rate is not searched: an
optimiser's candidates race at a large one, on two of the folds; the first of them are
then cross-validated on all folds at the small rate that they would be fitted with, which
decides, and also says how many rounds the winner needs there.
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
#: One finalist, and one more for so many candidates: the more there are, the likelier is
#: the first of them to be first by luck.
CANDIDATES_A_FINALIST = 20


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
        learnt_from: Candidates of earlier searches that the optimiser remembered.
    """

    params: Parameters
    rounds: int
    loss: float
    evaluations: int
    seconds: float = field(compare=False)
    trials: list[Trial] = field(default_factory=list)
    learnt_from: int = 0


class Progress(Protocol):
    """Is told after each candidate: how many are done, of how many, the least loss so far."""

    def __call__(self, done: int, total: int, best_loss: float, /) -> None:
        """Take note."""


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """What is to be searched. The same specification and memory find the same parameters.

    Attributes:
        X: (rows, features) of `features`.
        y: (rows,), codes of classes.
        features: Say which columns hold categories, and how many classes there are.
        evals: Candidates to try.
        seed: Of the folds, the optimiser and LightGBM.
        n_folds: Folds of the cross-validation.
        start_from: Parameters of an earlier model, tried first. A parameter that is missing
            has its default; parameters that are not searched are ignored.
        threads: As many folds are trained in parallel; they do not change the result.
        memory: Folder in which the optimiser keeps what it learns, if it has a memory; None
            to keep nothing. It exists only once the optimiser makes it.
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
    """What an optimiser is given; it calls `validate` until none is `left`.

    Attributes:
        spec: What is to be searched.
        folds: The rows, binned and split.
        space: The parameters and their ranges.
        start: The first candidate.
        trials: The candidates so far, in their order.
        learnt_from: For the optimiser to set: how many earlier candidates it remembered.
    """

    spec: SearchSpec
    folds: Folds
    space: Mapping[str, Range]
    start: dict[str, float]
    trials: list[Trial] = field(default_factory=list)
    learnt_from: int = 0

    @property
    def left(self) -> int:
        """Candidates still to try."""
        return self.spec.evals - len(self.trials)

    @property
    def least(self) -> float:
        """The least loss so far."""
        return min((trial.loss for trial in self.trials), default=math.inf)

    def subject(self) -> str:
        """What is learnt, as a name: candidates of two subjects say nothing of each other."""
        features = self.spec.features
        columns = [features.classes, features.feature_names, list(self.space)]
        parts = [*columns, len(self.folds.pairs), RACING_FOLDS, RACING_RATE]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def validate(self, drawn: Mapping[str, float], give_up: GiveUp | None = None) -> Trial:
        """Try a candidate.

        Args:
            drawn: A value for each parameter of the space, made a usable one here.
            give_up: Asked again and again whether to stop early; without it, that is when
                the candidate can no longer become the best.
        """
        params = {**search_space.cut(drawn, self.space), "learning_rate": RACING_RATE}
        give_up = give_up or partial(cross_validation.has_no_chance, least=self.least)
        trial = self.folds.validate(params, folds=RACING_FOLDS, give_up=give_up)
        self.trials.append(trial)
        if self.spec.progress:
            self.spec.progress(len(self.trials), self.spec.evals, self.least)
        return trial


#: What each train/train_*.py has under the name `optimise`.
Optimise = Callable[[Race], None]


def search(optimise: Optimise, spec: SearchSpec) -> Best:
    """Find good parameters.

    Args:
        optimise: Draws the candidates.
        spec: What is to be searched.

    Returns:
        The best; the last of its trials are the finalists, validated on all folds at the
        learning rate they would be fitted with.

    Raises:
        ValueError: Fewer rows than folds, or a code that is no class.
    """
    began = time.perf_counter()
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
            n_finalists = 1 + spec.evals // CANDIDATES_A_FINALIST
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
        time.perf_counter() - began,
        [*race.trials, *final],
        race.learnt_from,
    )
