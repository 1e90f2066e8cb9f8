"""The gate scores each row once, with the same results as the model."""

from types import SimpleNamespace
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest

from train import fit, gate
from train.gate import Scores
from utils.feature_tools import FeatureTools
from utils.message_decoder import MessageDecoder, OutcomeDecoder
from utils.model_store.bundle import MODEL, Bundle, sha256


class CountingModel:
    """Wraps a model and counts the rows that it scores."""

    def __init__(self, booster: lgb.Booster) -> None:
        self.booster = booster
        self.rows = 0

    @property
    def text(self) -> str:
        return fit.model_text(self.booster)

    def predict(self, X: np.ndarray, **more: Any) -> Any:
        self.rows += len(X)
        return self.booster.predict(X, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.booster, name)


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_computes_each_row_once_with_exact_results(classes: int) -> None:
    rng = np.random.default_rng(5)
    X = rng.random((400, 4))
    X[rng.random(X.shape) < 0.1] = np.nan
    codes = rng.integers(0, classes, len(X))
    several = {"objective": "multiclass", "num_class": classes}
    params = several if classes > 2 else {"objective": "binary"}
    booster = lgb.train({**params, "verbosity": -1}, lgb.Dataset(X, label=codes), 20)
    model, scores = CountingModel(booster), Scores()

    def count_scored(places: np.ndarray) -> int:
        before = model.rows
        found = scores(model, X[places], 2)  # type: ignore[arg-type]
        assert (found == fit.predict(booster, X[places], 1)).all()
        return model.rows - before

    assert count_scored(np.arange(0)) == 0
    assert count_scored(np.arange(300)) == 300
    assert count_scored(np.arange(300)) == 0
    more = rng.permutation(310)  # new rows anywhere among the old ones
    assert count_scored(more) == 10
    assert count_scored(np.repeat(more[:50], 2)) == 0
    assert count_scored(np.arange(310)) == 260, "only the rows of the last call are cached"


def test_champion_scores_only_the_rows_added_since_it_was_challenger() -> None:
    rng = np.random.default_rng(6)
    frame = pd.DataFrame(rng.random((500, 3)), columns=list("abc"))
    labels = np.where(frame["a"] + rng.random(500) > 1, "yes", "no").astype(object)
    features = FeatureTools().fit(
        frame, target="t", numerical=list("abc"), categorical=[], crosses=[], classes=["no", "yes"]
    )
    champion, rows = None, 300
    for rounds in (3, 4, 5, 6):
        params = {"objective": "binary", "verbosity": -1}
        data = lgb.Dataset(features.transform(frame), label=labels == "yes")
        challenger = CountingModel(lgb.train(params, data, rounds))
        held_out = (frame[:rows], labels[:rows])
        before = 0 if champion is None else champion.rows
        bundle = None if champion is None else bundle_of(champion, features)
        booster: Any = challenger
        verdict = gate.compare(booster, challenger.text, features, bundle, held_out, 1)
        found, ours, theirs = verdict.comparison, verdict.challenger, verdict.champion
        assert challenger.rows == rows == ours.rows
        if champion is not None:
            assert champion.rows - before == 10
            assert found is not None and theirs is not None
            assert found.mean_difference == pytest.approx(ours.log_loss - theirs.log_loss)
        champion, rows = challenger, rows + 10


def bundle_of(model: CountingModel, features: FeatureTools) -> Bundle:
    booster: Any = model
    manifest: Any = SimpleNamespace(sha256={MODEL: sha256(model.text.encode())})
    return Bundle(
        1, booster, features, manifest, MessageDecoder(features), OutcomeDecoder(features)
    )
