"""Cross-validation of candidates: the folds that every optimiser is judged on.

What is cross-validated is what is fitted: `train.fit.settings` makes the parameters of
both.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from train import fit
from utils.boosting import lgb
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix
from utils.model_store.manifest import Parameters

MOST_ROUNDS = 3000

#: Rounds between two looks at the folds' mean loss.
CHUNK = 10

#: Is told the mean loss of each round so far, and says whether to give the candidate up.
GiveUp = Callable[[Matrix], bool]


@dataclass(frozen=True)
class Trial:
    """One set of parameters, and what validating it found."""

    loss: float
    rounds: int
    params: Parameters
    given_up: bool  # clearly behind the best so far, so not trained to its end
    seconds: float = field(compare=False)


@dataclass
class Folds:
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
    ) -> Iterator["Folds"]:
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

    def validate(self, params: Parameters, *, folds: int, give_up: GiveUp | None = None) -> Trial:
        """Train and validate on the first `folds` folds, until the loss stops falling.

        Args:
            params: A candidate's.
            folds: How many.
            give_up: Asked every `CHUNK` rounds whether the candidate has no chance.
        """
        began = time.perf_counter()
        told = fit.lightgbm_params(self.features, params, threads=1, seed=self.seed)
        boosters = []
        for train, valid in self.pairs[:folds]:
            boosters.append(lgb.Booster(told, train).add_valid(valid, "valid"))
        early_stopping_rounds = math.ceil(3 / params["learning_rate"])
        losses = np.empty(0)  # by round, the mean over the folds
        given_up = False
        while len(losses) < MOST_ROUNDS and not given_up:
            curves = list(self.pool.map(_train_chunk, boosters))
            losses = np.concatenate([losses, np.mean(curves, axis=0)])
            if len(losses) - losses.argmin() > early_stopping_rounds:
                break
            given_up = give_up is not None and give_up(losses)
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


def has_no_chance(losses: Matrix, least: float) -> bool:
    """Whether a curve stays above `least` even if each chunk gains 0.7 of the one before."""
    if len(losses) < 3 * CHUNK:
        return False
    gain = max(losses[-1 - CHUNK] - losses[-1], 0.0)
    return bool(losses[-1] - gain * 0.7 / (1 - 0.7) > least)
