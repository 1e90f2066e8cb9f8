"""Fits LightGBM models, writes them as text and predicts with them.

All of LightGBM's parameters are set here. The same rows, parameters, rounds and seed give
the same `model_text`, byte for byte, in every run and with any number of threads.
"""

import re
from collections.abc import Mapping

import numpy as np

from train.missing import settle_missing
from utils.boosting import lgb
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix

Params = Mapping[str, object]

#: Fewer rows are fitted on one thread. LightGBM's threads wait for each other at every
#: split: on few rows that gains little, and it takes many times as long as soon as another
#: process (such as a predictor) uses the processor too.
MIN_ROWS_FOR_THREADS = 100_000

#: LightGBM fixes these when it creates a Dataset, so a search cannot vary them.
DATASET_PARAMS: Params = {"max_bin": 255, "feature_pre_filter": False, "verbosity": -1}


def lightgbm_params(
    features: FeatureTools, params: Params, *, threads: int, seed: int
) -> dict[str, object]:
    """All of LightGBM's parameters: those of the search and the fixed ones.

    Args:
        features: The number of their classes determines the objective.
        params: The parameters that the search has chosen.
        threads: LightGBM's threads.
        seed: The seed for bagging and for the choice of features.
    """
    multiclass = len(features.classes) > 2
    fixed = {
        "objective": "multiclass" if multiclass else "binary",
        "metric": "multi_logloss" if multiclass else "binary_logloss",
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": threads,
    }
    if multiclass:
        fixed["num_class"] = len(features.classes)
    return {**params, **DATASET_PARAMS, **fixed}


def dataset(
    X: Matrix,
    y: IntegerCodes,
    features: FeatureTools,
    *,
    threads: int,
    weights: Matrix | None = None,
) -> lgb.Dataset:
    """Create LightGBM's Dataset of encoded rows.

    Its columns are named f0, f1, ..., because LightGBM refuses some characters in names.

    Args:
        X: (rows, features), encoded by `features`.
        y: (rows,), the codes of the classes.
        features: The preprocessor; it knows which columns hold categories.
        threads: LightGBM's threads.
        weights: (rows,); None to count all rows alike.

    Raises:
        ValueError: There are no rows, or a code belongs to no class.
    """
    if len(y) == 0 or y.min() < 0 or y.max() >= len(features.classes):
        raise ValueError(
            "there are no rows to train on" if len(y) == 0 else "a row has an unknown class"
        )
    return lgb.Dataset(
        X,
        label=y,
        weight=weights,
        feature_name=[f"f{place}" for place in range(X.shape[1])],
        categorical_feature=list(range(_first_code(features), X.shape[1])),
        params={**DATASET_PARAMS, "num_threads": threads},
        free_raw_data=False,
    )


def fit_unsettled(
    X: Matrix,
    y: IntegerCodes,
    features: FeatureTools,
    params: Params,
    rounds: int,
    *,
    threads: int,
    seed: int = 1,
    weights: Matrix | None = None,
) -> lgb.Booster:
    """Fit a model; `settle` it before it is published.

    Args:
        X: (rows, features), encoded by `features`.
        y: (rows,), the codes of the classes.
        features: The preprocessor; it knows the categorical columns and the classes.
        params: The parameters that the search has chosen.
        rounds: Boosting rounds; with more than two classes, each has a tree per class.
        threads: LightGBM's threads at most; they do not change the model.
        seed: The seed for bagging and for the choice of features.
        weights: (rows,); None to count all rows alike.

    Raises:
        ValueError: There are no rows, or a code belongs to no class.
    """
    threads = threads if len(y) >= MIN_ROWS_FOR_THREADS else 1
    rows = dataset(X, y, features, threads=threads, weights=weights)
    chosen = lightgbm_params(features, params, threads=threads, seed=seed)
    return lgb.train(chosen, rows, num_boost_round=rounds)


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
    """Fit a model as `fit_unsettled` does, and settle it."""
    booster = fit_unsettled(X, y, features, params, rounds, threads=threads, seed=seed)
    return settle(booster, X, features)


def settle(booster: lgb.Booster, X: Matrix, features: FeatureTools) -> lgb.Booster:
    """Settle where values go that are missing in none of the rows, (rows, features)."""
    return settle_missing(booster, X, _first_code(features))


def _first_code(features: FeatureTools) -> int:
    """The first column of the matrix that holds codes; those before it hold numbers."""
    return len(features.feature_names) - len(features.categorical_features)


def predict(booster: lgb.Booster, X: Matrix, threads: int) -> Matrix:
    """Predict probabilities: (rows,) of the positive class, or (rows, classes)."""
    if len(X) == 0:  # LightGBM refuses an empty matrix
        return np.empty((0, booster.num_model_per_iteration()) if is_multiclass(booster) else 0)
    return np.asarray(booster.predict(X, num_threads=threads), dtype=np.float64)


def is_multiclass(booster: lgb.Booster) -> bool:
    """Whether a model predicts more than two classes."""
    return bool(booster.num_model_per_iteration() > 1)


def model_text(booster: lgb.Booster) -> str:
    """A model in LightGBM's text format, the same for any number of threads.

    LightGBM lists the number of threads among the parameters; here it is always 0.
    """
    text: str = booster.model_to_string(num_iteration=-1)
    return re.sub(r"^\[num_threads: \d+\]$", "[num_threads: 0]", text, flags=re.MULTILINE)
