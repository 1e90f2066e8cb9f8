"""Fitting, searching and judging, on small data."""

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine
from sklearn.metrics import log_loss, roc_auc_score

from train import evaluate, fit, train_hyperopt
from train import search as searching
from train.retrain import offsets_by_topic, training_offsets
from train.search import RACING_RATE, Best
from utils import settings
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix
from utils.preprocess_data import fit_features, read_frame
from utils.settings import Data

Rows = tuple[Matrix, IntegerCodes, FeatureTools]


@pytest.fixture(scope="module")
def two() -> Rows:
    """Two classes: numbers, some missing, and a category that matters."""
    rng = np.random.default_rng(7)
    rows = 1500
    frame = pd.DataFrame(
        {
            "a number": rng.normal(size=rows),
            'odd {"name"}: [1,2]'.replace('"', "'"): rng.normal(size=rows),
            "été": rng.choice([f"kind {kind}" for kind in range(12)], size=rows),
        }
    )
    signal = frame["a number"] + (frame["été"].str[-1].isin(["1", "4"])) * 2.0
    noise = rng.logistic(size=rows)
    frame.loc[rng.random(rows) < 0.1, "a number"] = np.nan
    frame["y"] = np.where(signal + noise > 0.5, "yes", "no")
    return _rows(frame, Data(train="", target="y"))


@pytest.fixture(scope="module")
def three() -> Rows:
    """Three classes, numbers alone."""
    wine = load_wine(as_frame=True)
    names = np.array(["barolo", "grignolino", "barbera"])
    frame = wine.data.assign(kind=names[wine.target])
    return _rows(frame, Data(train="", target="kind"))


def _rows(frame: pd.DataFrame, data: Data) -> Rows:
    features = fit_features(frame, data)
    return features.transform(frame), features.encode_target(frame[data.target]), features


def search(rows: Rows, **changes: Any) -> Best:
    arguments = {"evals": 4, "seed": 1, "folds": 3, "start_from": None, "threads": 2, **changes}
    return searching.search(train_hyperopt.optimise, *rows, **arguments)


def test_a_search_is_reproducible(two: Rows) -> None:
    best = search(two)
    assert search(two) == best
    assert search(two, threads=1) == best
    assert search(two, seed=2) != best
    assert best.evaluations == 4
    assert len(best.trials) == 5
    assert json.loads(json.dumps(asdict(best)))["params"] == best.params


def test_a_warm_start_is_the_first_candidate(two: Rows) -> None:
    parent = {**search(two, evals=6).params, "num_leaves": 7, "cat_smooth": 11.5}
    best = search(two, evals=2, start_from={**parent, "num_boost_round": 40, "of others": "x"})
    assert best.trials[0].params == {**parent, "learning_rate": RACING_RATE}
    assert search(two, evals=1, start_from=parent).params == parent
    assert search(two, evals=2, start_from={"num_leaves": 7}).trials[0].params["num_leaves"] == 7


def test_progress_is_told(two: Rows) -> None:
    told: list[tuple[int, int, float]] = []
    best = search(two, evals=5, progress=lambda *figures: told.append(figures))
    assert [(done, total) for done, total, _ in told] == [(done, 5) for done in range(1, 6)]
    losses = [trial.loss for trial in best.trials[:5]]
    assert [least for *_, least in told] == np.minimum.accumulate(losses).tolist()
    told.clear()
    search(two, evals=1, progress=lambda *figures: told.append(figures))
    assert [(done, total) for done, total, _ in told] == [(1, 1)]


@pytest.mark.parametrize("classes", ["two", "three"])
def test_what_is_cross_validated_is_what_is_fitted(
    classes: str, request: pytest.FixtureRequest
) -> None:
    """LightGBM's own cross-validation, told what `fit` tells it, finds the same loss."""
    X, y, features = request.getfixturevalue(classes)
    best = search((X, y, features), evals=2)
    turn = np.empty(len(y), dtype=int)
    shuffled = np.random.default_rng(1).permutation(len(y))
    turn[shuffled[np.argsort(y[shuffled], kind="stable")]] = np.arange(len(y)) % 3
    told = fit.lightgbm_params(features, best.params, threads=1, seed=1)
    curves = lgb.cv(
        told,
        fit.dataset(X, y, features, threads=1),
        num_boost_round=best.rounds,
        folds=[(np.flatnonzero(turn != fold), np.flatnonzero(turn == fold)) for fold in range(3)],
    )
    assert curves[f"valid {told['metric']}-mean"][-1] == pytest.approx(best.loss, abs=1e-9)

    booster = fit.fit(X, y, features, best.params, best.rounds, threads=1, seed=1)
    assert booster.current_iteration() == best.rounds
    assert {name: booster.params[name] for name in told} == told
    objective = f"[objective: {'multiclass' if classes == 'three' else 'binary'}]"
    assert objective in fit.model_text(booster)


@pytest.mark.parametrize("classes", ["two", "three"])
def test_a_model_is_the_same_for_any_threads(
    classes: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "ROWS_WORTH_THREADS", 0)
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
    assert probabilities.shape == ((len(y),) if classes == "two" else (len(y), 3))
    assert (probabilities == fit.predict(booster, X, 2)).all()
    one_by_one = [fit.predict(booster, X[row : row + 1], 1)[0] for row in range(20)]
    assert (np.array(one_by_one) == probabilities[:20]).all()
    assert fit.predict(booster, X[:0], 1).shape == (0, *probabilities.shape[1:])


def test_several_classes_are_learnt(three: Rows) -> None:
    X, y, features = three
    assert features.classes == ("barbera", "barolo", "grignolino")
    kept = np.arange(len(y)) % 4 == 0
    best = search((X[~kept], y[~kept], features))
    booster = fit.fit(X[~kept], y[~kept], features, best.params, best.rounds, threads=1)
    found = evaluate.metrics(fit.predict(booster, X[kept], 1), y[kept])
    assert found["accuracy"] is not None
    assert found["accuracy"] > 0.9
    assert best.loss < 0.3
    assert "cat_smooth" not in best.params  # there are no categories


def test_adult_is_learnt_clearly_better_than_the_original(adult_files: Path) -> None:
    """The original: log loss 0.2865, accuracy 0.8688. The test rows decide nothing here."""
    data = settings.load({}).data
    frame = read_frame(adult_files / data.train, data)
    kept = evaluate.is_validation_row([f"base-{line}" for line in range(len(frame))])
    X, y, features = _rows(frame[~kept], data)
    best = search((X, y, features), evals=10)
    booster = fit.fit(X, y, features, best.params, best.rounds, threads=2)
    test = read_frame(adult_files / data.test, data)
    probabilities = fit.predict(booster, features.transform(test), 2)
    found = evaluate.metrics(probabilities, features.encode_target(test[data.target]))
    assert found["rows"] == 16_281
    assert found["log_loss"] is not None and found["log_loss"] <= 0.2760
    assert found["accuracy"] is not None and found["accuracy"] >= 0.873
    assert abs(best.loss - found["log_loss"]) < 0.01  # the search's own figure was honest


def test_few_rows_and_odd_ones(two: Rows) -> None:
    X, y, features = two
    assert search((X[:30], y[:30], features), evals=3).rounds >= 1
    assert math.isfinite(search((X, np.zeros_like(y), features), evals=2).loss)  # one class only
    with pytest.raises(ValueError, match="too few"):
        search((X[:2], y[:2], features))
    with pytest.raises(ValueError, match="no rows"):
        fit.fit(X[:0], y[:0], features, {}, 1, threads=1)
    with pytest.raises(ValueError, match="unknown class"):
        fit.fit(X, y - 1, features, {}, 1, threads=1)


QUIET = """
import numpy as np
import pandas as pd
from train import fit, train_hyperopt
from train.search import search
from utils.preprocess_data import fit_features, read_frame
from utils.settings import Data

rng = np.random.default_rng(0)
frame = pd.DataFrame({"a": rng.normal(size=200), "b": rng.choice(list("xyz"), 200)})
frame["y"] = np.where(frame["a"] + rng.normal(size=200) > 0, "1", "0")
features = fit_features(frame, Data(train="", target="y"))
X, y = features.transform(frame), features.encode_target(frame["y"])
optimise = train_hyperopt.optimise
best = search(optimise, X, y, features, evals=3, seed=1, folds=3, start_from=None, threads=2)
fit.fit(X, y, features, best.params, best.rounds, threads=2)
"""


def test_nothing_is_printed() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_one_row_in_ten_is_for_validation_for_ever() -> None:
    names = [f"base-{line}" for line in range(20_000)]
    chosen = evaluate.is_validation_row(names)
    assert 0.095 < chosen.mean() < 0.105
    assert (evaluate.is_validation_row(names[::-1])[::-1] == chosen).all()
    # What was validation in a published bundle must be so in every later version.
    assert np.flatnonzero(chosen)[:6].tolist() == [6, 11, 13, 18, 30, 31]
    assert evaluate.is_validation_row([]).shape == (0,)
    assert evaluate.is_validation_row(["é", "日本"]).dtype == np.bool_


def test_offsets_of_a_topic_made_again_say_nothing() -> None:
    offsets = {("app_messages", 0): 5, ("outcomes", 1): 7}
    manifest = {
        "training": {
            "offsets": offsets_by_topic(offsets),
            "topic_ids": {"app_messages": "a", "outcomes": "o"},
        }
    }
    assert training_offsets(manifest) == offsets
    assert training_offsets(manifest, {"app_messages": "a", "outcomes": "o"}) == offsets
    assert training_offsets(manifest, {"app_messages": "b"}) == {("outcomes", 1): 7}
    del manifest["training"]["topic_ids"]  # of a model made before they were noted
    assert training_offsets(manifest, {"app_messages": "b"}) == offsets


@pytest.mark.parametrize(
    ("champion", "challenger", "worse"),
    [
        ([], [], False),
        ([0.1], [5.0], False),
        ([0.3, 0.4, 0.5], [0.3, 0.4, 0.5], False),
        ([0.3, 0.4, 0.5], [0.4, 0.5, 0.6], True),
        ([0.4, 0.5, 0.6], [0.3, 0.4, 0.5], False),
        ([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.1], False),  # a little worse, by chance
        ([0.1, 0.1], [0.2, 0.1], False),  # by just one standard error
    ],
)
def test_the_gate(champion: list[float], challenger: list[float], worse: bool) -> None:
    found = evaluate.paired_comparison(np.array(champion), np.array(challenger))
    assert found.worse is worse
    assert found.rows == len(champion)
    assert json.loads(json.dumps(asdict(found)))["worse"] is worse
    assert math.isfinite(found.standard_error)


def test_metrics_are_the_known_ones() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 2, 500)
    said = np.clip(codes * 0.3 + rng.random(500) * 0.7, 0, 1).round(2)  # with ties
    found = evaluate.metrics(said, codes)
    assert found["log_loss"] == pytest.approx(log_loss(codes, np.clip(said, 1e-15, 1 - 1e-15)))
    assert found["auc"] == pytest.approx(roc_auc_score(codes, said))
    assert found["accuracy"] == ((said > 0.5) == codes).mean()

    several = rng.integers(0, 3, 500)
    table = rng.dirichlet([1, 1, 1], 500) * 0.5 + np.eye(3)[several] * 0.5
    found = evaluate.metrics(table, several)
    assert found["log_loss"] == pytest.approx(log_loss(several, table))
    assert found["auc"] == pytest.approx(roc_auc_score(several, table, multi_class="ovr"))
    assert found["accuracy"] == (table.argmax(axis=1) == several).mean()


def test_calibration() -> None:
    rng = np.random.default_rng(4)
    said = rng.random(100_000)
    happened = (rng.random(100_000) < said).astype(int)
    honest = evaluate.metrics(said, happened)["calibration"]
    boastful = evaluate.metrics(np.where(said > 0.5, 0.99, 0.01), happened)["calibration"]
    assert honest is not None
    assert boastful is not None
    assert honest < 0.01
    assert boastful == pytest.approx(0.24, abs=0.01)
    assert evaluate.metrics(np.array([1.0, 0.0]), np.array([1, 0]))["calibration"] == 0


def test_metrics_of_too_little() -> None:
    none = evaluate.metrics(np.empty(0), np.empty(0, dtype=np.int64))
    assert none == {
        "log_loss": None,
        "auc": None,
        "accuracy": None,
        "calibration": None,
        "rows": 0,
    }
    one = evaluate.metrics(np.array([0.0, 1.0]), np.array([1, 1]))
    assert one["auc"] is None
    assert one["log_loss"] == pytest.approx(-math.log(1e-15) / 2)
    several = evaluate.metrics(np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]), np.array([2, 0]))
    assert several["auc"] == 1
    with pytest.raises(ValueError, match="no class"):
        evaluate.row_losses(np.array([0.5]), np.array([-1]))
