"""Search for LightGBM's parameters with hyperopt's TPE.

What is cross-validated is what is fitted: `train.fit.settings` makes the parameters of
both. A smaller learning rate is better and dearer, always, so the rate is not searched:
candidates race at a large one, on two of the folds; the first of them are then
cross-validated on all folds at the small rate that they would be fitted with, which
decides, and also says how many rounds the winner needs there.
"""

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightgbm as lgb
import numpy as np
from hyperopt import STATUS_OK, Trials, fmin, hp, tpe
from hyperopt.fmin import generate_trials_to_calculate

from train import fit
from train.optimisers import Best, Progress, Trial
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix

RACING_RATE = 0.2
FINAL_RATE = 0.1
RACING_FOLDS = 2
#: One finalist, and one more for so many candidates: the more there are, the likelier is
#: the first of them to be first by luck.
CANDIDATES_A_FINALIST = 20
MOST_ROUNDS = 3000

#: Rounds between two looks at the folds' mean loss.
CHUNK = 10


@dataclass(frozen=True)
class Range:
    """A parameter's values: normal around `centre` (of its log, if `log`), cut off at the ends."""

    centre: float
    spread: float
    low: float
    high: float
    log: bool = True

    def prior(self, name: str) -> Any:
        """What hyperopt draws from."""
        if self.log:
            return hp.lognormal(name, math.log(self.centre), self.spread)
        return hp.normal(name, self.centre, self.spread)

    def cut(self, value: float) -> float:
        """A drawn value made one that LightGBM takes: inside the ends, whole if they are."""
        value = min(max(value, self.low), self.high)
        return round(value) if isinstance(self.low, int) else float(f"{value:.4g}")


#: Centres are where cross-validation on Adult's training rows was best. No bagging: it
#: was worse there, and slower.
SPACE: Mapping[str, Range] = {
    "num_leaves": Range(15, 0.4, 4, 63),
    "feature_fraction": Range(0.25, 0.12, 0.1, 1.0, log=False),
    "min_data_in_leaf": Range(10, 0.7, 1, 100),
    "lambda_l1": Range(0.01, 1.0, 0.0, 5.0),
    "lambda_l2": Range(0.1, 1.0, 0.0, 30.0),
}
CATEGORY_SPACE: Mapping[str, Range] = {
    "cat_smooth": Range(90, 0.7, 1.0, 500.0),
    "cat_l2": Range(10, 0.8, 0.1, 200.0),
    "max_cat_threshold": Range(4, 0.5, 2, 64),
    "min_data_per_group": Range(40, 0.8, 2, 300),
}


def search(
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
    """Find good parameters, as `optimisers.Search` says.

    `threads` folds are trained side by side. Of the trials the last are the finalists,
    validated on all folds at the learning rate they would be fitted with.
    """
    began = time.perf_counter()
    space = {**SPACE, **(CATEGORY_SPACE if features.categorical_features else {})}
    known = start_from or {}
    start = {name: known.get(name, spec.centre) for name, spec in space.items()}
    race: list[Trial] = []
    finalists = [_cut(start, space)]
    with _Folds.of(X, y, features, folds=folds, seed=seed, threads=threads) as rows:
        if evals > 1:
            race = _race(rows, space, start, evals=evals, seed=seed, progress=progress)
            ranked = sorted(race, key=lambda trial: trial.loss)
            finalists = [trial.params for trial in ranked[: 1 + evals // CANDIDATES_A_FINALIST]]
        final = [
            rows.validate({**params, "learning_rate": FINAL_RATE}, folds=folds)
            for params in finalists
        ]
    best = min(final, key=lambda trial: trial.loss)
    if progress and not race:
        progress(1, 1, best.loss)
    seconds = time.perf_counter() - began
    return Best(best.params, best.rounds, best.loss, evals, seconds, [*race, *final])


def _race(
    rows: "_Folds",
    space: Mapping[str, Range],
    start: Mapping[str, float],
    *,
    evals: int,
    seed: int,
    progress: Progress | None,
) -> list[Trial]:
    """Candidates in their order, `start` first."""
    tried: list[Trial] = []

    def loss_of(drawn: Mapping[str, float]) -> dict[str, Any]:
        least = min((trial.loss for trial in tried), default=math.inf)
        params = {**_cut(drawn, space), "learning_rate": RACING_RATE}
        tried.append(rows.validate(params, folds=RACING_FOLDS, least=least))
        if progress:
            progress(len(tried), evals, min(least, tried[-1].loss))
        return {"loss": tried[-1].loss, "status": STATUS_OK}

    # fmin's points_to_evaluate would be ignored: it wants them as trials.
    trials: Trials = generate_trials_to_calculate([dict(start)])
    trials.refresh()  # else fmin does not count that one
    fmin(
        loss_of,
        {name: spec.prior(name) for name, spec in space.items()},
        algo=partial(tpe.suggest, n_startup_jobs=8),
        max_evals=evals,
        trials=trials,
        rstate=np.random.default_rng(seed),
        show_progressbar=False,
        verbose=False,
    )
    return tried


def _cut(drawn: Mapping[str, float], space: Mapping[str, Range]) -> dict[str, float]:
    return {name: spec.cut(drawn[name]) for name, spec in space.items()}


@dataclass
class _Folds:
    """Rows binned once, split into folds that train side by side, one thread each.

    Threads inside LightGBM instead would wait for each other at every split: on trees
    this small that costs more than it brings, and far more when another process wants
    the processor too.
    """

    features: FeatureTools
    seed: int
    pairs: list[tuple[lgb.Dataset, lgb.Dataset]]  # to train on, to validate with
    pool: ThreadPoolExecutor

    @classmethod
    @contextmanager
    def of(
        cls,
        X: Matrix,
        y: IntegerCodes,
        features: FeatureTools,
        *,
        folds: int,
        seed: int,
        threads: int,
    ) -> Iterator["_Folds"]:
        """Bin and split the rows, each class evenly."""
        if len(y) < folds:
            raise ValueError(f"{len(y)} rows are too few for {folds} folds")
        binned = fit.dataset(X, y, features, threads=1).construct()
        shuffled = np.random.default_rng(seed).permutation(len(y))
        turn = np.empty(len(y), dtype=np.int64)
        turn[shuffled[np.argsort(y[shuffled], kind="stable")]] = np.arange(len(y)) % folds
        pairs = [
            (
                binned.subset(np.flatnonzero(turn != fold)).construct(),
                binned.subset(np.flatnonzero(turn == fold)).construct(),
            )
            for fold in range(folds)
        ]
        with ThreadPoolExecutor(threads, initializer=_quieten) as pool:
            yield cls(features, seed, pairs, pool)

    def validate(self, params: dict[str, Any], *, folds: int, least: float = math.inf) -> Trial:
        """Train and validate on the first `folds` folds, until the loss stops falling.

        Args:
            params: A candidate's.
            folds: How many.
            least: The loss to beat; without a chance to, the candidate is given up.
        """
        began = time.perf_counter()
        told = fit.settings(self.features, params, threads=1, seed=self.seed)
        boosters = []
        for train, valid in self.pairs[:folds]:
            boosters.append(lgb.Booster(told, train).add_valid(valid, "valid"))
        patience = math.ceil(3 / params["learning_rate"])
        losses = np.empty(0)  # by round, the mean over the folds
        given_up = False
        while len(losses) < MOST_ROUNDS and not given_up:
            curves = list(self.pool.map(_train_chunk, boosters))
            losses = np.concatenate([losses, np.mean(curves, axis=0)])
            if len(losses) - losses.argmin() > patience:
                break
            given_up = _has_no_chance(losses, least)
        rounds = int(losses.argmin()) + 1
        seconds = time.perf_counter() - began
        return Trial(float(losses.min()), rounds, params, given_up, seconds)


def _quieten() -> None:
    """Tell LightGBM to print nothing from this thread: it keeps that for each of its own."""
    lgb.Dataset(np.zeros((1, 1)), params={**fit.DATASET_PARAMS, "num_threads": 1}).construct()


def _train_chunk(booster: lgb.Booster) -> list[float]:
    losses = []
    for _ in range(CHUNK):
        booster.update()
        losses.append(booster.eval_valid()[0][2])
    return losses


def _has_no_chance(losses: Matrix, least: float) -> bool:
    """Whether a curve stays above `least` even if each chunk gains 0.7 of the one before."""
    if len(losses) < 3 * CHUNK:
        return False
    gain = max(losses[-1 - CHUNK] - losses[-1], 0.0)
    return bool(losses[-1] - gain * 0.7 / (1 - 0.7) > least)
