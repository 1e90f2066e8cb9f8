"""Fitting and predicting with LightGBM."""

import lightgbm as lgb
import numpy as np
import pytest

from tests.unit.train.samples import Rows
from train import fit


@pytest.mark.parametrize("classes", ["binary_rows", "multiclass_rows"])
def test_model_is_the_same_for_any_number_of_threads(
    classes: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "MIN_ROWS_FOR_THREADS", 0)
    X, y, features = request.getfixturevalue(classes)
    params = {"num_leaves": 15, "learning_rate": 0.1, "feature_fraction": 0.5}
    params |= {"bagging_fraction": 0.7, "bagging_freq": 1}
    texts = [
        fit.model_text(fit.fit(X, y, features, params, 30, threads=threads))
        for threads in (1, 2, 1, 2)
    ]
    assert len(set(texts)) == 1
    assert fit.model_text(fit.fit(X, y, features, params, 30, threads=1, seed=2)) != texts[0]

    booster = lgb.Booster(model_str=texts[0])
    assert fit.model_text(booster) == texts[0]
    probabilities = fit.predict(booster, X, 1)
    assert probabilities.shape == ((len(y),) if classes == "binary_rows" else (len(y), 3))
    assert (probabilities == fit.predict(booster, X, 2)).all()
    one_by_one = [fit.predict(booster, X[row : row + 1], 1)[0] for row in range(20)]
    assert (np.array(one_by_one) == probabilities[:20]).all()
    assert fit.predict(booster, X[:0], 1).shape == (0, *probabilities.shape[1:])


def test_fit_refuses_no_rows_and_unknown_classes(binary_rows: Rows) -> None:
    X, y, features = binary_rows
    with pytest.raises(ValueError, match="no rows"):
        fit.fit(X[:0], y[:0], features, {}, 1, threads=1)
    with pytest.raises(ValueError, match="unknown class"):
        fit.fit(X, y - 1, features, {}, 1, threads=1)
