"""How far the inputs and the predictions are from those of the training data.

The measure is the population stability index (PSI), the symmetric Kullback-Leibler divergence of
two binned distributions. Bounds: Siddiqi, "Credit Risk Scorecards", Wiley 2006. What chance
alone gives: Yurdakul and Naranjo, "Statistical properties of the population stability index",
Journal of Risk Model Validation 14(4), 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from utils.feature_tools import FeatureTools, Matrix

BINS = 10
#: PSI from which drift is called some or strong.
SOME, STRONG = 0.1, 0.25
#: How many standard deviations above its mean without drift the PSI has to be.
DEVIATIONS = 3.0

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """How far a column, or the probability of a class, is from the training data.

    Attributes:
        name: The column, or "prediction: " and the class.
        psi: The population stability index.
        word: "none", "some" or "strong".
    """

    name: str
    psi: float
    word: str


def column_shift(
    name: str, reference: "pd.Series", recent: "pd.Series", *, is_number: bool
) -> Shift:
    """Compare a column of recent rows with the training data; missing values are a bin.

    >>> shift = column_shift("n", pd.Series(range(1000)), pd.Series(range(500)), is_number=True)
    >>> print(f"{shift.psi:.1f}", shift.word)
    2.6 strong

    Args:
        name: The column's name.
        reference: Its values in the training data.
        recent: Its recent values.
        is_number: Whether to take deciles of `reference` as bins, else its commonest categories.
    """
    if is_number:
        return _shift(name, *_count_numbers(reference, recent))
    return _shift(name, *_count_categories(reference, recent))


def column_shifts(
    reference: pd.DataFrame, recent: pd.DataFrame, features: FeatureTools
) -> list[Shift]:
    """Compare each column of recent rows with the training data.

    Args:
        reference: The raw feature columns of rows of the training data.
        recent: The same of recent rows.
        features: The preprocessor, which knows the columns.
    """
    categorical = set(features.categorical)
    return [
        column_shift(name, reference[name], recent[name], is_number=name not in categorical)
        for name in features.columns
    ]


def prediction_shift(reference: Matrix, recent: Matrix, classes: Sequence[str]) -> list[Shift]:
    """Compare predicted probabilities.

    Args:
        reference: (rows,) of class 1, or (rows, classes), of rows of the training data.
        recent: The same of recent rows.
        classes: The names of the classes.
    """
    columns = {1: 0} if reference.ndim == 1 else {code: code for code in range(len(classes))}
    first, second = reference.reshape(len(reference), -1), recent.reshape(len(recent), -1)
    return [
        column_shift(
            f"prediction: {classes[code]}",
            pd.Series(first[:, place]),
            pd.Series(second[:, place]),
            is_number=True,
        )
        for code, place in columns.items()
    ]


def _count_numbers(reference: "pd.Series", recent: "pd.Series") -> tuple[Counts, Counts]:
    known = reference.dropna().to_numpy(np.float64)
    shares = np.linspace(0, 1, BINS + 1)[1:-1]
    edges = np.unique(np.quantile(known, shares)) if len(known) else np.empty(0)

    def count(values: "pd.Series") -> Counts:
        there = values.dropna().to_numpy(np.float64)
        found = np.bincount(np.searchsorted(edges, there), minlength=len(edges) + 1)
        return np.append(found, len(values) - len(there)).astype(np.float64)

    return count(reference), count(recent)


def _count_categories(reference: "pd.Series", recent: "pd.Series") -> tuple[Counts, Counts]:
    common = reference.value_counts().index[: BINS - 1]

    def count(values: "pd.Series") -> Counts:
        found = values.value_counts().reindex(common, fill_value=0).to_numpy(np.float64)
        missing = float(values.isna().sum())
        return np.append(found, [len(values) - missing - found.sum(), missing])

    return count(reference), count(recent)


def _shift(name: str, reference: Counts, recent: Counts) -> Shift:
    used = reference + recent > 0
    first, second = reference[used], recent[used]
    bins = len(first)
    # Half a row in each bin, so that an empty one is no infinity.
    p, q = ((counts + 0.5) / (counts.sum() + bins / 2) for counts in (first, second))
    psi = float(((q - p) * np.log(q / p)).sum())
    chance = (1 / first.sum() + 1 / second.sum()) * (
        bins - 1 + DEVIATIONS * (2 * (bins - 1)) ** 0.5
    )
    level = "strong" if psi >= STRONG else "some" if psi >= SOME else "none"
    return Shift(name, psi, level if psi > chance else "none")
