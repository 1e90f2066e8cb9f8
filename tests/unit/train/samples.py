"""Helpers that several tests of training use."""

from typing import Any

import pandas as pd

from tests.unit.utils.samples import fit
from train import search as search_module
from train import train_hyperopt
from train.search import Best, SearchSpec
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix
from utils.settings import Data

Rows = tuple[Matrix, IntegerCodes, FeatureTools]


def encode_rows(frame: pd.DataFrame, data: Data) -> Rows:
    features = fit(frame, data)
    return features.transform(frame), features.encode_target(frame[data.target]), features


def search(rows: Rows, **changes: Any) -> Best:
    return search_module.search(train_hyperopt.optimise, make_spec(rows, **changes))


def make_spec(rows: Rows, **changes: Any) -> SearchSpec:
    X, y, features = rows
    arguments = {"evals": 4, "seed": 1, "threads": 2, **changes}
    return SearchSpec(X=X, y=y, features=features, **arguments)
