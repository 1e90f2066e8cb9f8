"""Searches for hyperparameters by hyperopt, on small data."""

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.unit.train.samples import Rows, encode_rows, search
from train import evaluate, fit
from train.search import RACING_RATE
from train.search_space import defaults, space_of
from utils import settings, splits
from utils.data_set import read_data
from utils.errors import UserError
from utils.settings import Data


def test_search_is_reproducible(binary_rows: Rows) -> None:
    best = search(binary_rows)
    assert search(binary_rows) == best
    assert search(binary_rows, threads=1) == best
    assert search(binary_rows, seed=2) != best
    assert best.evaluations == 4
    assert len(best.trials) == 5
    assert json.loads(json.dumps(asdict(best)))["params"] == best.params


def test_search_evaluates_the_warm_start_first(binary_rows: Rows) -> None:
    parent = {**search(binary_rows, evals=6).params, "num_leaves": 7, "cat_smooth": 11.5}
    best = search(
        binary_rows, evals=2, start_from={**parent, "num_boost_round": 40, "of others": "x"}
    )
    assert best.trials[0].params == {**parent, "learning_rate": RACING_RATE}
    assert search(binary_rows, evals=1, start_from=parent).params == parent
    assert (
        search(binary_rows, evals=2, start_from={"num_leaves": 7}).trials[0].params["num_leaves"]
        == 7
    )


def test_search_reports_progress(binary_rows: Rows) -> None:
    calls: list[tuple[int, int, float]] = []
    best = search(binary_rows, evals=5, progress=lambda *figures: calls.append(figures))
    assert [(done, total) for done, total, _ in calls] == [(done, 5) for done in range(1, 6)]
    losses = [trial.loss for trial in best.trials[:5]]
    assert [least for *_, least in calls] == np.minimum.accumulate(losses).tolist()
    calls.clear()
    search(binary_rows, evals=1, progress=lambda *figures: calls.append(figures))
    assert [(done, total) for done, total, _ in calls] == [(1, 1)]


def test_space_fits_the_number_of_columns() -> None:
    """A tree sees at least two columns, or all of them; on Adult's 15 about five, as before."""
    frame = pd.DataFrame({f"c{n}": [0.0, 1.0] for n in range(200)} | {"y": ["a", "b"]})
    for columns, centre, fewest in ((1, 1, 1), (2, 2, 2), (4, 4, 2), (15, 5, 2), (200, 66, 20)):
        chosen = frame[[*frame.columns[:columns], "y"]]
        _, _, features = encode_rows(chosen, Data(train="", target="y"))
        fraction = space_of(features)["feature_fraction"]
        assert round(fraction.centre * columns) == centre
        assert round(fraction.low * columns) == fewest
        assert fraction.cut(fraction.low - 1) == fraction.low
        assert defaults(space_of(features))["feature_fraction"] == 1.0


def test_search_on_two_columns_is_no_worse_than_the_defaults() -> None:
    """The class depends on both columns together, as in a chessboard."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"a": rng.random(2000), "b": rng.random(2000)})
    odd = (np.floor(frame["a"] * 3) + np.floor(frame["b"] * 3)) % 2
    frame["y"] = np.where(odd == 1, "odd", "even")
    X, y, features = encode_rows(frame, Data(train="", target="y"))
    best = search((X[:1000], y[:1000], features), evals=3)
    booster = fit.fit(X[:1000], y[:1000], features, best.params, best.rounds, threads=1)
    found = evaluate.metrics(fit.predict(booster, X[1000:], 1), y[1000:])
    assert found.accuracy is not None and found.accuracy > 0.9


def test_search_learns_several_classes(multiclass_rows: Rows) -> None:
    X, y, features = multiclass_rows
    assert features.classes == ("barbera", "barolo", "grignolino")
    kept = np.arange(len(y)) % 4 == 0
    best = search((X[~kept], y[~kept], features))
    booster = fit.fit(X[~kept], y[~kept], features, best.params, best.rounds, threads=1)
    found = evaluate.metrics(fit.predict(booster, X[kept], 1), y[kept])
    assert found.accuracy is not None
    assert found.accuracy > 0.9
    assert best.loss < 0.3
    assert "cat_smooth" not in best.params  # there are no categories


def test_search_on_adult_beats_the_original(adult_files: Path) -> None:
    """The original has log loss 0.2865 and accuracy 0.8688. The search does not see test rows."""
    data = settings.load({}).data
    frame = read_data(adult_files / data.train, data).frame
    kept = splits.is_validation_row(frame.drop(columns=data.target))
    X, y, features = encode_rows(frame[~kept], data)
    best = search((X, y, features), evals=10)
    booster = fit.fit(X, y, features, best.params, best.rounds, threads=2)
    test = read_data(adult_files / data.test, data).frame
    probabilities = fit.predict(booster, features.transform(test), 2)
    found = evaluate.metrics(probabilities, features.encode_target(test[data.target]))
    assert found.rows == 16_281
    assert found.log_loss is not None and found.log_loss <= 0.2760
    assert found.accuracy is not None and found.accuracy >= 0.873
    assert abs(best.loss - found.log_loss) < 0.01  # the search's own figure was honest


def test_search_handles_few_rows_and_a_single_class(binary_rows: Rows) -> None:
    X, y, features = binary_rows
    assert search((X[:30], y[:30], features), evals=3).rounds >= 1
    one_class = (X, np.zeros_like(y), features)
    assert math.isfinite(search(one_class, evals=2).loss)
    with pytest.raises(UserError, match="too few"):
        search((X[:2], y[:2], features))


QUIET = """
import numpy as np
import pandas as pd
from train import fit, train_hyperopt
from train.search import SearchSpec, search
from utils.preprocess_data import fit_features
from utils.settings import Data

rng = np.random.default_rng(0)
frame = pd.DataFrame({"a": rng.normal(size=200), "b": rng.choice(list("xyz"), 200)})
frame["y"] = np.where(frame["a"] + rng.normal(size=200) > 0, "1", "0")
types = {"a": "number", "b": "category"}
features = fit_features(frame, Data(train="", target="y"), types)
X, y = features.transform(frame), features.encode_target(frame["y"])
optimise = train_hyperopt.optimise
best = search(optimise, SearchSpec(X=X, y=y, features=features, evals=3, seed=1, threads=2))
fit.fit(X, y, features, best.params, best.rounds, threads=2)
"""


def test_search_and_fit_print_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
