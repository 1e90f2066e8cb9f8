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


@dataclass
class Race:
    """What an optimiser is given; it calls `validate` until none is `left`.

    Attributes:
        X: (rows, features), to tell one training set from another.
        y: (rows,), codes of classes.
        features: Say what the columns are.
        space: Where to look.
        start: The first candidate.
        evals: Candidates to try.
        seed: Of the optimiser; the folds depend on it too.
        memory: A folder for what the optimiser wants to find again at the next search;
            None where there is none. It exists only once the optimiser makes it.
        trials: The candidates so far, in their order.
        learnt_from: For the optimiser to set: how many earlier candidates it remembered.
    """

    X: Matrix
    y: IntegerCodes
    features: FeatureTools
    space: Mapping[str, Range]
    start: dict[str, float]
    evals: int
    seed: int
    memory: Path | None
    folds: Folds
    progress: Progress | None
    trials: list[Trial] = field(default_factory=list)
    learnt_from: int = 0

    @property
    def left(self) -> int:
        """Candidates still to try."""
        return self.evals - len(self.trials)

    @property
    def least(self) -> float:
        """The least loss so far."""
        return min((trial.loss for trial in self.trials), default=math.inf)

    def subject(self) -> str:
        """What is learnt, as a name: candidates of two subjects say nothing of each other."""
        columns = [self.features.classes, self.features.feature_names, list(self.space)]
        told = [*columns, len(self.folds.pairs), RACING_FOLDS, RACING_RATE]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

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
        if self.progress:
            self.progress(len(self.trials), self.evals, self.least)
        return trial


#: What each train/train_*.py has under the name `optimise`.
Optimise = Callable[[Race], None]


def search(
    optimise: Optimise,
    X: Matrix,
    y: IntegerCodes,
    features: FeatureTools,
    *,
    evals: int,
    seed: int,
    folds: int,
    start_from: Parameters | None,
    threads: int,
    memory: Path | None = None,
    progress: Progress | None = None,
) -> Best:
    """Find good parameters.

    The same arguments and the same memory find the same ones, for any `threads`.

    Args:
        optimise: Draws the candidates.
        X: (rows, features) of `features`.
        y: (rows,), codes of classes.
        features: Say which columns hold categories, and how many classes there are.
        evals: Candidates to try.
        seed: Of the folds, of the optimiser and of LightGBM.
        folds: Of the cross-validation.
        start_from: The parameters of an earlier model: the first candidate. What it lacks
            has its default, what the search does not know is left out.
        threads: To work with: so many folds are trained side by side.
        memory: A folder in which the optimiser keeps what it learns, if it is one that
            does; None to forget it.
        progress: Is told after each candidate.

    Returns:
        The best; the last of its trials are the finalists, validated on all folds at the
        learning rate they would be fitted with.

    Raises:
        ValueError: Fewer rows than folds, or a code that is no class.
    """
    began = time.perf_counter()
    space = search_space.space_of(features)
    known = start_from or {}
    start = search_space.cut(
        {name: known.get(name, spec.centre) for name, spec in space.items()}, space
    )
    finalists: list[Parameters] = [start]
    with Folds.of(X, y, features, folds=folds, seed=seed, threads=threads) as rows:
        race = Race(X, y, features, space, start, evals, seed, memory, rows, progress)
        if evals > 1:
            optimise(race)
            ranked = sorted(race.trials, key=lambda trial: trial.loss)
            finalists = [trial.params for trial in ranked[: 1 + evals // CANDIDATES_A_FINALIST]]
        final = [
            rows.validate({**params, "learning_rate": FINAL_RATE}, folds=folds)
            for params in finalists
        ]
    best = min(final, key=lambda trial: trial.loss)
    if progress and not race.trials:
        progress(1, 1, best.loss)
    return Best(
        best.params,
        best.rounds,
        best.loss,
        evals,
        time.perf_counter() - began,
        [*race.trials, *final],
        race.learnt_from,
    )
