"""How a value that training never missed is scored, on public data sets of many shapes.

Wanted is the average of the probabilities over the column's values, with the row's other
values fixed. Each column in turn is removed from test rows, and the distance to that average
is measured, for LightGBM alone and for `train.missing`. The models have the parameters at the
centre of the search space and 100 rounds.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from benchmarks import datasets
from benchmarks.common import Section, Table, Workshop
from benchmarks.datasets import TARGET, Split
from train import evaluate, fit
from train.search_space import space_of
from utils.boosting import lgb
from utils.feature_tools import IntegerCodes, Matrix

NAMES = (
    *("adult", "elec2", "sea", "covtype", "banana", "phishing", "segment", "splice", "german"),
    *("mushroom", "breast_cancer", "digits", "wine", "iris"),
)
ROUNDS = 100


@dataclass(frozen=True)
class Figures:
    """Figures over columns and test rows.

    Attributes:
        mean: The mean distance to the average over the column's values, in probability.
        most: Its 95th percentile.
        outside: Share outside the central 90 % of the scores over the column's values.
        gap_loss: Log loss with one value removed.
        loss: Log loss of complete rows.
    """

    mean: float
    most: float
    outside: float
    gap_loss: float
    loss: float


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--sets", nargs="+", choices=NAMES, default=NAMES[-2:] if quick else NAMES)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of a data set at most")
    parser.add_argument("--scored", type=int, default=60, help="test rows")
    parser.add_argument("--values", type=int, default=40, help="values of each column")


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    table = Table(
        "A value that training never missed: LightGBM alone, then the pipeline's models",
        [
            *("data set", "columns", "classes", "mean distance", "95th percentile", "outside"),
            *("log loss, one value removed", "log loss, complete", "fit, s"),
        ],
    )
    for name in options.sets:
        workshop.say(f"missing: {name}")
        split = datasets.load(name, options.rows)
        columns = _never_missed(split)
        table.add(
            name,
            str(len(columns)),
            str(len(split.features.classes)),
            *_cells(split, columns, options),
        )
    section = Section("Missing values", [table])
    section.notes.append(
        f"Distance: between the probability without the value and the average over "
        f"{options.values} values of the column, of the class where it is largest; over "
        f"{options.scored} test rows and every column without a gap in training. Outside: the "
        "share of those probabilities below the 5th or above the 95th percentile over the "
        "column's values; for several classes, of any of them. Where a column hardly matters "
        f"that range is next to nothing. At most {options.rows:,} rows of a data set. A training "
        "is mostly its search, whose time does not change."
    )
    return section


def _never_missed(split: Split) -> list[str]:
    return [name for name in split.features.columns if not split.train[name].isna().any()]


def _cells(split: Split, columns: list[str], options: argparse.Namespace) -> list[str]:
    seconds, found = [], []
    rows = split.encode(split.train)
    for fit_model in (_fit_plain, _fit_settled):
        started = time.perf_counter()
        booster = fit_model(split, *rows)
        seconds.append(time.perf_counter() - started)
        found.append(_measure(booster, split, columns, options))
    before, after = found
    return [
        f"{before.mean:.4f} / {after.mean:.4f}",
        f"{before.most:.3f} / {after.most:.3f}",
        f"{before.outside:.2f} / {after.outside:.2f}",
        f"{before.gap_loss:.4f} / {after.gap_loss:.4f}",
        f"{before.loss:.5f} / {after.loss:.5f}",
        f"{seconds[0]:.2f} / {seconds[1]:.2f}",
    ]


def _params(split: Split) -> dict[str, float]:
    centres = {name: spec.centre for name, spec in space_of(split.features).items()}
    return {**centres, "learning_rate": 0.1}


def _fit_plain(split: Split, X: Matrix, y: IntegerCodes) -> lgb.Booster:
    params = fit.lightgbm_params(split.features, _params(split), threads=1, seed=1)
    rows = fit.dataset(X, y, split.features, threads=1)
    return lgb.train(params, rows, num_boost_round=ROUNDS)


def _fit_settled(split: Split, X: Matrix, y: IntegerCodes) -> lgb.Booster:
    return fit.fit(X, y, split.features, _params(split), ROUNDS, threads=1)


def _measure(
    booster: lgb.Booster, split: Split, columns: list[str], options: argparse.Namespace
) -> Figures:
    rng = np.random.default_rng(1)
    X, y = split.encode(split.test)
    loss = evaluate.row_losses(fit.predict(booster, X, 1), y).mean()
    rows = split.test.iloc[rng.permutation(len(split.test))[: options.scored]]
    rows = rows.reset_index(drop=True)
    codes = split.features.encode_target(rows[TARGET])
    rows, codes = rows[codes >= 0].reset_index(drop=True), codes[codes >= 0]

    def score(frame: pd.DataFrame) -> Matrix:
        probabilities = fit.predict(booster, split.features.transform(frame), 1)
        return probabilities.reshape(len(frame), -1)

    distances, outside, losses = [], [], []
    for column in columns:
        values = rng.choice(split.train[column].to_numpy(), options.values)
        every = _with_every_value(rows, column, values, score)
        blank = np.nan if column in split.features.numerical else None
        gap = score(rows.assign(**{column: blank}))
        distances.append(np.abs(gap - every.mean(axis=1)).max(axis=1))
        low, high = np.quantile(every, (0.05, 0.95), axis=1)
        outside.append(((gap < low - 1e-12) | (gap > high + 1e-12)).any(axis=1))
        losses.append(evaluate.row_losses(gap[:, 0] if gap.shape[1] == 1 else gap, codes))
    found = np.concatenate(distances)
    return Figures(
        mean=float(found.mean()),
        most=float(np.quantile(found, 0.95)),
        outside=float(np.concatenate(outside).mean()),
        gap_loss=float(np.concatenate(losses).mean()),
        loss=float(loss),
    )


def _with_every_value(
    rows: pd.DataFrame, column: str, values: np.ndarray, score: Callable[[pd.DataFrame], Matrix]
) -> Matrix:
    """The probabilities of each row with each value: (rows, values, classes)."""
    repeated = rows.loc[np.repeat(np.arange(len(rows)), len(values))].reset_index(drop=True)
    found = score(repeated.assign(**{column: np.tile(values, len(rows))}))
    return found.reshape(len(rows), len(values), -1)
