"""Everything LightGBM is told, in one place: how a model is fitted, written and asked.

The same rows, parameters, rounds and seed give the same model, byte for byte, run to run
and with any number of threads (`model_text` says what it leaves out).
"""

import re
from collections.abc import Mapping

import numpy as np

from utils.boosting import lgb
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix

Params = Mapping[str, object]

#: Fewer are fitted by one thread: LightGBM's threads wait for each other at every split,
#: which gains little on few rows, and costs many times the work itself as soon as another
#: process (a predictor, say) wants the processor too.
ROWS_WORTH_THREADS = 100_000

#: Fixed for a Dataset once it is made, so no search may vary it.
DATASET_PARAMS: Params = {"max_bin": 255, "feature_pre_filter": False, "verbosity": -1}


def lightgbm_params(
    features: FeatureTools, params: Params, *, threads: int, seed: int
) -> dict[str, object]:
    """All of LightGBM's parameters: those of a search, and those no search may vary.

    Args:
        features: Say which objective it is: by the number of classes.
        params: What a search has chosen.
        threads: LightGBM's threads.
        seed: Of bagging and of the choice of features.
    """
    several = len(features.classes) > 2
    fixed = {
        "objective": "multiclass" if several else "binary",
        "metric": "multi_logloss" if several else "binary_logloss",
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": threads,
    }
    if several:
        fixed["num_class"] = len(features.classes)
    return {**params, **DATASET_PARAMS, **fixed}


def dataset(X: Matrix, y: IntegerCodes, features: FeatureTools, *, threads: int) -> lgb.Dataset:
    """Rows as LightGBM bins them.

    Columns go by the names f0, f1, ...: LightGBM refuses some characters that a column's
    name may have.

    Args:
        X: (rows, features) of `features`.
        y: (rows,), codes of classes.
        features: Say which columns hold categories.
        threads: LightGBM's threads.

    Raises:
        ValueError: No rows, or a code that is no class.
    """
    if len(y) == 0 or y.min() < 0 or y.max() >= len(features.classes):
        raise ValueError("there are no rows to learn from" if len(y) == 0 else "an unknown class")
    first_code = len(features.feature_names) - len(features.categorical_features)
    return lgb.Dataset(
        X,
        label=y,
        feature_name=[f"f{place}" for place in range(X.shape[1])],
        categorical_feature=list(range(first_code, X.shape[1])),
        params={**DATASET_PARAMS, "num_threads": threads},
        free_raw_data=False,
    )


def fit(
    X: Matrix,
    y: IntegerCodes,
    features: FeatureTools,
    params: Params,
    rounds: int,
    *,
    threads: int,
    seed: int = 1,
) -> lgb.Booster:
    """Fit a model.

    Args:
        X: (rows, features) of `features`.
        y: (rows,), codes of classes.
        features: Say which columns hold categories, and how many classes there are.
        params: What a search has chosen.
        rounds: Boosting rounds (several classes: one tree a class and round).
        threads: LightGBM's threads at most; they do not change the model.
        seed: Of bagging and of the choice of features.

    Raises:
        ValueError: No rows, or a code that is no class.
    """
    threads = threads if len(y) >= ROWS_WORTH_THREADS else 1
    rows = dataset(X, y, features, threads=threads)
    chosen = lightgbm_params(features, params, threads=threads, seed=seed)
    return lgb.train(chosen, rows, num_boost_round=rounds)


def predict(booster: lgb.Booster, X: Matrix, threads: int) -> Matrix:
    """Probabilities: of the positive class, (rows,); of several classes, (rows, classes)."""
    if len(X) == 0:  # LightGBM wants a row
        return np.empty((0, booster.num_model_per_iteration()) if several(booster) else 0)
    return np.asarray(booster.predict(X, num_threads=threads), dtype=np.float64)


def several(booster: lgb.Booster) -> bool:
    """Whether a model knows more than two classes."""
    return bool(booster.num_model_per_iteration() > 1)


def model_text(booster: lgb.Booster) -> str:
    """A model in LightGBM's text format, the same for any number of threads.

    The section that lists the parameters names the number of threads: it says 0 here.
    """
    text: str = booster.model_to_string(num_iteration=-1)
    return re.sub(r"^\[num_threads: \d+\]$", "[num_threads: 0]", text, flags=re.MULTILINE)
