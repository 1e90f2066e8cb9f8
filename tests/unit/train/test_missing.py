"""Values that training never missed: they score near the average over the column's values."""

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine

from tests.unit.train.samples import Rows, encode_rows
from train import fit, missing
from utils.feature_tools import Matrix
from utils.settings import Data

PARAMS = {"num_leaves": 15, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def two_classes() -> Rows:
    """A number and a category that matter and have no gaps; a number that is often missing."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"a": rng.normal(size=1500), "gaps": rng.normal(size=1500)})
    frame["kind"] = rng.choice(list("klmnopqrst"), 1500)
    signal = 2 * frame["a"] + frame["gaps"] + frame["kind"].isin(["k", "p"]) * 3.0
    frame["y"] = np.where(signal + rng.logistic(size=1500) > 0.5, "yes", "no")
    frame.loc[rng.random(1500) < 0.1, "gaps"] = np.nan
    return encode_rows(frame, Data(train="", target="y"))


@pytest.fixture(scope="module")
def three_classes() -> Rows:
    wine = load_wine(as_frame=True)
    frame = wine.data.assign(y=np.array(["a", "b", "c"])[wine.target])
    return encode_rows(frame, Data(train="", target="y"))


def fit_plain(rows: Rows) -> lgb.Booster:
    """The model as LightGBM fits it."""
    X, y, features = rows
    params = fit.lightgbm_params(features, PARAMS, threads=1, seed=1)
    return lgb.train(params, fit.dataset(X, y, features, threads=1), num_boost_round=40)


def fit_settled(rows: Rows) -> lgb.Booster:
    X, y, features = rows
    return fit.fit(X, y, features, PARAMS, 40, threads=1)


def distances(booster: lgb.Booster, rows: Rows, column: int) -> Matrix:
    """By row, from its probability without the value to the average over the column's values."""
    X, _, features = rows
    categorical = features.feature_names[column] in features.categorical_features
    few = X[:: len(X) // 50]
    average = np.mean(
        [booster.predict(with_value(few, column, value)) for value in X[:100, column]], axis=0
    )
    gap = booster.predict(with_value(few, column, 0.0 if categorical else np.nan))
    found: Matrix = np.abs(gap - average).reshape(len(few), -1).max(axis=1)
    return found


def with_value(X: Matrix, column: int, value: float) -> Matrix:
    changed = X.copy()
    changed[:, column] = value
    return changed


@pytest.mark.parametrize("name", ["two_classes", "three_classes"])
def test_rows_without_gaps_score_as_before(name: str, request: pytest.FixtureRequest) -> None:
    rows = request.getfixturevalue(name)
    plain, settled = fit_plain(rows), fit_settled(rows)
    assert (plain.predict(rows[0]) == settled.predict(rows[0])).all()
    assert (
        plain.predict(rows[0], pred_leaf=True) == settled.predict(rows[0], pred_leaf=True)
    ).all()
    assert fit.model_text(plain) != fit.model_text(settled)


@pytest.mark.parametrize(("column", "within"), [(0, 0.08), (2, 0.05)])
def test_missing_value_scores_near_the_average(
    two_classes: Rows, column: int, within: float
) -> None:
    """LightGBM alone is .43 away for the number and .11 for the category."""
    before = distances(fit_plain(two_classes), two_classes, column).mean()
    after = distances(fit_settled(two_classes), two_classes, column).mean()
    assert after < within
    assert after < before / 2


def test_missing_value_of_several_classes_scores_near_the_average(three_classes: Rows) -> None:
    columns = range(three_classes[0].shape[1])
    before, after = (
        np.mean([distances(booster, three_classes, column).mean() for column in columns])
        for booster in (fit_plain(three_classes), fit_settled(three_classes))
    )
    assert after < before / 2


def test_gaps_that_training_had_are_scored_as_learnt(two_classes: Rows) -> None:
    X = with_value(two_classes[0], 1, np.nan)
    assert (fit_plain(two_classes).predict(X) == fit_settled(two_classes).predict(X)).all()


def test_contributions_are_those_of_the_score(two_classes: Rows) -> None:
    booster = fit_settled(two_classes)
    X = with_value(two_classes[0], 0, np.nan)
    raw = booster.predict(X, raw_score=True)
    assert booster.predict(X, pred_contrib=True).sum(axis=1) == pytest.approx(raw)


def test_scores_of_a_parsed_tree_are_lightgbms(two_classes: Rows) -> None:
    """Also of rows with gaps, in columns with and without gaps in training."""
    X = with_value(two_classes[0], 0, np.nan)
    for booster in (fit_plain(two_classes), fit_settled(two_classes)):
        model = missing.ModelText.parse(booster.model_to_string())
        for rows in (two_classes[0], X):
            raw = missing._Scoring.of(booster, model, rows).raw
            assert raw[1] == pytest.approx(booster.predict(rows, raw_score=True), abs=1e-12)


def test_settling_twice_changes_nothing_and_text_is_stable(two_classes: Rows) -> None:
    X, *_ = two_classes
    booster = fit_settled(two_classes)
    text = fit.model_text(booster)
    assert fit.model_text(missing.settle_missing(booster, X, first_code=2)) == text
    assert fit.model_text(lgb.Booster(model_str=text)) == text


def test_trees_without_a_split_are_kept(two_classes: Rows) -> None:
    X, y, features = two_classes
    params = {**PARAMS, "min_data_in_leaf": len(y)}
    booster = fit.fit(X, y, features, params, 3, threads=1)
    assert booster.predict(X) == pytest.approx(y.mean())
