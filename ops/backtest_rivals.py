"""Simple rivals of a replay, which learn each label as late as the pipeline does."""

from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.feature_tools import IntegerCodes, Matrix

#: Trees and seed of river's adaptive random forest.
TREES = 10
SEED = 1


def class_shares(codes: IntegerCodes, classes: int, base: IntegerCodes, delay: int) -> Matrix:
    """The share of each class in the base data and the outcomes so far, (rows, classes)."""
    ones = np.eye(classes)
    counts = np.bincount(base, minlength=classes) + 1.0
    seen = np.concatenate([np.zeros((delay + 1, classes)), ones[codes].cumsum(axis=0)])
    shares: Matrix = counts + seen[: len(codes)]
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def last_label(codes: IntegerCodes, majority: int, delay: int) -> IntegerCodes:
    """The last known label before each row, (rows,); the majority without one."""
    early = np.full(min(delay + 1, len(codes)), majority)
    return np.concatenate([early, codes[: len(codes) - len(early)]])


def adaptive_random_forest(
    base: tuple[pd.DataFrame, IntegerCodes],
    stream: tuple[pd.DataFrame, IntegerCodes],
    classes: int,
    delay: int,
) -> Matrix:
    """The probabilities of river's ARFClassifier, (rows, classes).

    It learns from the base data, then from each row of the stream once its label is known.

    Args:
        base: The raw feature columns and the class codes of the base data.
        stream: The same of the stream.
        classes: The number of classes.
        delay: After how many more rows a label is known.

    Raises:
        UserError: river is not installed.
    """
    try:
        forest: Any = import_module("river.forest").ARFClassifier(n_models=TREES, seed=SEED)
    except ImportError:
        raise UserError("--arf needs river: pip install river") from None
    for row, code in zip(_rows(base[0]), base[1].tolist(), strict=True):
        forest.learn_one(row, code)
    rows, codes = _rows(stream[0]), stream[1].tolist()
    found = np.zeros((len(rows), classes))
    for place, row in enumerate(rows):
        if place > delay:
            forest.learn_one(rows[place - delay - 1], codes[place - delay - 1])
        for code, probability in forest.predict_proba_one(row).items():
            found[place, code] = probability
    sums = found.sum(axis=1, keepdims=True)
    return np.where(sums > 0, found / np.where(sums > 0, sums, 1.0), 1.0 / classes)


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows without their missing values."""
    return [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in frame.to_dict("records")
    ]
