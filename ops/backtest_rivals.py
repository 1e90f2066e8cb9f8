"""Simple rivals of a replay, which learn each label as late as the pipeline does."""

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
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
    frame: pd.DataFrame, codes: IntegerCodes, delay: int
) -> tuple[Matrix, npt.NDArray[np.bool_]]:
    """River's ARFClassifier: each row's log loss, and whether its prediction is right.

    Raises:
        UserError: river is not installed.
    """
    try:
        forest: Any = import_module("river.forest").ARFClassifier(n_models=TREES, seed=SEED)
    except ImportError:
        raise UserError("--arf needs river: pip install river") from None
    rows = [_without_gaps(row) for row in frame.to_dict("records")]
    losses, right = np.zeros(len(rows)), np.zeros(len(rows), bool)
    for place, (row, code) in enumerate(zip(rows, codes.tolist(), strict=True)):
        if place > delay:
            forest.learn_one(rows[place - delay - 1], int(codes[place - delay - 1]))
        made = forest.predict_proba_one(row)
        losses[place] = -np.log(max(made.get(code, 0.0), 1e-15))
        right[place] = bool(made) and max(made, key=made.__getitem__) == code
    return losses, right


def _without_gaps(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items() if not pd.isna(value)}
