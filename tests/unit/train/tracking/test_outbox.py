"""The bundles that wait for MLflow."""

import shutil

import pytest

from tests.harness import Pipeline
from train import tracking
from train.tracking import outbox
from train.tracking.tracker import Tracker
from utils.model_store import ModelStore


def test_outbox_drops_the_oldest_bundles(home: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "OUTBOX_LIMIT", 2)
    settings = tracking.with_tracking(home.settings, wanted=True)
    store = ModelStore(settings.models_dir)
    for number in (2, 3):
        shutil.copytree(store.path / "1", store.path / str(number))
    for number in (1, 2, 3, 3):
        outbox.enqueue(settings, store, number)
    assert Tracker(settings, print).waiting() == [2, 3]
    assert sorted(path.name for path in (home.home / "mlruns/outbox").iterdir()) == ["2", "3"]


def test_nothing_is_queued_without_tracking(home: Pipeline) -> None:
    outbox.enqueue(home.settings, ModelStore(home.settings.models_dir), 1)
    assert not (home.home / "mlruns").exists()
