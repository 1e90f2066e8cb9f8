"""The loss of a search, compared with LightGBM's own cross-validation."""

import lightgbm as lgb
import numpy as np
import pytest

from tests.unit.train.samples import search
from train import fit


@pytest.mark.parametrize("classes", ["binary_rows", "multiclass_rows"])
def test_cross_validation_uses_the_parameters_of_fit(
    classes: str, request: pytest.FixtureRequest
) -> None:
    """LightGBM's own cross-validation finds the same loss with the parameters of `fit`."""
    X, y, features = request.getfixturevalue(classes)
    best = search((X, y, features), evals=2)
    fold_of = np.empty(len(y), dtype=int)
    shuffled = np.random.default_rng(1).permutation(len(y))
    fold_of[shuffled[np.argsort(y[shuffled], kind="stable")]] = np.arange(len(y)) % 3
    params = fit.lightgbm_params(features, best.params, threads=1, seed=1)
    curves = lgb.cv(
        params,
        fit.dataset(X, y, features, threads=1),
        num_boost_round=best.rounds,
        folds=[
            (np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(3)
        ],
    )
    assert curves[f"valid {params['metric']}-mean"][-1] == pytest.approx(best.loss, abs=1e-9)

    booster = fit.fit(X, y, features, best.params, best.rounds, threads=1, seed=1)
    assert booster.current_iteration() == best.rounds
    loaded = {**params, "metric": [params["metric"]]}  # as LightGBM reads it from a model
    assert {name: booster.params[name] for name in params} == loaded
    objective = f"[objective: {'multiclass' if classes == 'multiclass_rows' else 'binary'}]"
    assert objective in fit.model_text(booster)
