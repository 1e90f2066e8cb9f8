"""Cross-validation of candidates, on the same folds for every optimiser.

LightGBM's parameters are those of the final fit: `train.fit.lightgbm_params` builds both.
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
from utils.errors import UserError
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix
from utils.model_store.manifest import Parameters

MAX_ROUNDS = 3000

#: Boosting rounds between two checks of the folds' mean loss.
CHUNK = 10

#: Called with the mean loss of each round so far; returns whether to stop the candidate.
GiveUp = Callable[[Matrix], bool]


@dataclass(frozen=True)
class Trial:
    """One set of parameters and the result of its validation."""

    loss: float
    rounds: int
    params: Parameters
    given_up: bool  # stopped early (pruned): clearly worse than the best so far
    seconds: float = field(compare=False)


@dataclass
class Folds:
    """Rows binned once and split into folds, which train in parallel on one thread each.

    Threads inside LightGBM would wait for each other at every split. On trees this small
    that costs more than it gains, and far more when other processes use the processor too.
    """

    features: FeatureTools
    seed: int
    pairs: list[tuple[lgb.Dataset, lgb.Dataset]]  # training and validation rows
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
        """Bin the rows and split them into folds, stratified by class.

        Raises:
            UserError: There are fewer rows than folds.
        """
        if len(y) < folds:
            raise UserError(f"{len(y)} rows are too few for {folds} folds")
        binned = fit.dataset(X, y, features, threads=1).construct()
        shuffled = np.random.default_rng(seed).permutation(len(y))
        fold_of_row = np.empty(len(y), dtype=np.int64)
        fold_of_row[shuffled[np.argsort(y[shuffled], kind="stable")]] = np.arange(len(y)) % folds
        pairs = [
            (
                binned.subset(np.flatnonzero(fold_of_row != fold)).construct(),
                binned.subset(np.flatnonzero(fold_of_row == fold)).construct(),
            )
            for fold in range(folds)
        ]
        with ThreadPoolExecutor(threads, initializer=_silence_lightgbm) as pool:
            yield cls(features, seed, pairs, pool)

    def validate(self, params: Parameters, *, folds: int, give_up: GiveUp | None = None) -> Trial:
        """Train and validate on the first `folds` folds, until the loss stops falling.

        Args:
            params: The candidate's parameters.
            folds: How many folds to use.
            give_up: Called every `CHUNK` rounds; returns whether to stop the candidate.
        """
        started = time.perf_counter()
        parameters = fit.lightgbm_params(self.features, params, threads=1, seed=self.seed)
        boosters = []
        for train, valid in self.pairs[:folds]:
            boosters.append(lgb.Booster(parameters, train).add_valid(valid, "valid"))
        early_stopping_rounds = math.ceil(3 / params["learning_rate"])
        losses = np.empty(0)  # by round, the mean over the folds
        given_up = False
        while len(losses) < MAX_ROUNDS and not given_up:
            curves = list(self.pool.map(_train_chunk, boosters))
            losses = np.concatenate([losses, np.mean(curves, axis=0)])
            if len(losses) - losses.argmin() > early_stopping_rounds:
                break
            given_up = give_up is not None and give_up(losses)
        rounds = int(losses.argmin()) + 1
        seconds = time.perf_counter() - started
        return Trial(float(losses.min()), rounds, params, given_up, seconds)


def _silence_lightgbm() -> None:
    """Keep LightGBM from printing in this thread; its verbosity is set per thread."""
    lgb.Dataset(np.zeros((1, 1)), params={**fit.DATASET_PARAMS, "num_threads": 1}).construct()


def _train_chunk(booster: lgb.Booster) -> list[float]:
    losses = []
    for _ in range(CHUNK):
        booster.update()
        losses.append(booster.eval_valid()[0][2])
    return losses


def has_no_chance(losses: Matrix, best_loss: float) -> bool:
    """Whether the loss stays above `best_loss` even if each chunk gains 0.7 times the last one."""
    if len(losses) < 3 * CHUNK or losses.min() <= best_loss:
        return False
    gain = max(losses[-1 - CHUNK] - losses[-1], 0.0)
    return bool(losses[-1] - gain * 0.7 / (1 - 0.7) > best_loss)
