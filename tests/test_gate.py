"""The gate scores each row once, and as the model would."""

from typing import Any

import lightgbm as lgb
import numpy as np
import pytest

from train import fit
from train.gate import Scores


class Counting:
    """A model that counts the rows it scores."""

    def __init__(self, booster: lgb.Booster) -> None:
        self.booster = booster
        self.rows = 0

    def predict(self, X: np.ndarray, **more: Any) -> Any:
        self.rows += len(X)
        return self.booster.predict(X, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.booster, name)


@pytest.mark.parametrize("classes", [2, 3])
def test_each_row_is_scored_once_and_bit_for_bit(classes: int) -> None:
    rng = np.random.default_rng(5)
    X = rng.random((400, 4))
    X[rng.random(X.shape) < 0.1] = np.nan
    codes = rng.integers(0, classes, len(X))
    several = {"objective": "multiclass", "num_class": classes}
    params = several if classes > 2 else {"objective": "binary"}
    booster = lgb.train({**params, "verbosity": -1}, lgb.Dataset(X, label=codes), 20)
    model, scores = Counting(booster), Scores()

    def scored(places: np.ndarray) -> int:
        before = model.rows
        found = scores(model, X[places], 2)  # type: ignore[arg-type]
        assert (found == fit.predict(booster, X[places], 1)).all()
        return model.rows - before

    assert scored(np.arange(0)) == 0
    assert scored(np.arange(300)) == 300
    assert scored(np.arange(300)) == 0
    more = rng.permutation(310)  # the new ones anywhere among the old
    assert scored(more) == 10
    assert scored(np.repeat(more[:50], 2)) == 0
    assert scored(np.arange(310)) == 260, "only what was last asked for is kept"
