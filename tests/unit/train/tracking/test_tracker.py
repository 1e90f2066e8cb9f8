"""What MLflow is told, a real one on SQLite; and that one which hangs costs nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness import Pipeline, adult_in
from train import evaluate, retrain, tracking
from train.results import Result
from train.tracking.tracker import Tracker
from utils.message_store import Batch, MessageStore, StoredMessage
from utils.messages import APP_MESSAGES, PREDICTIONS
from utils.model_store import ModelStore
from utils.preprocess_data import read_frame
from utils.settings import ROOT, Settings

Row = dict[str, Any]
TARGET = "income_bracket"
NAME = TARGET
CONFIG = ROOT / "pipeline.toml"


@pytest.fixture
def small(adult_files: Path, bootstrap: str, tmp_path: Path) -> Pipeline:
    """A home with the first rows of the data set, and no model yet."""
    config = adult_in(tmp_path / "home", adult_files, train=4_000)
    return Pipeline(tmp_path / "home", bootstrap, PIPELINE_CONFIG=str(config))


class Home:
    """Trains and predicts in a home as trainer.py and predictor.py do, without Kafka."""

    def __init__(self, settings: Settings, rows: list[Row]) -> None:
        self.settings = settings
        self.store = ModelStore(settings.models_dir)
        self.features = self.store.load_current().features
        self.said: list[str] = []
        self._rows = rows
        self._offset = 0

    def serve(self, number: int, label: Any = lambda request_id, label: label) -> Any:
        """Predict that many rows, whose outcomes are known at once; (probabilities, codes)."""
        bundle = self.store.load_current()
        first, self._offset = self._offset, self._offset + number
        rows = self._rows[first : self._offset]
        ids = [f"r-{offset}" for offset in range(first, self._offset)]
        values = [{name: row[name] for name in self.features.columns} for row in rows]
        labels = [label(name, row[TARGET]) for name, row in zip(ids, rows, strict=True)]
        said = bundle.score(bundle.features.transform_rows(self._decoded(ids, values)))
        batch = Batch(messages=[], outcomes=[], predictions=[], offsets={})
        decoded = self._decoded(ids, values)
        for place, (name, data) in enumerate(zip(ids, decoded, strict=True)):
            where = (0, first + place, 1000 + first + place)
            packed = self.features.row_values(data)
            batch.messages.append(StoredMessage(name, *where, packed, labels[place]))
            batch.predictions.append((name, bundle.model_id, float(said[place]), *where))
        batch.offsets.update({(APP_MESSAGES, 0): self._offset, (PREDICTIONS, 0): self._offset})
        with MessageStore(self.settings.messages_url, self.features) as messages:
            messages.ingest(batch)
        return said, self.features.encode_target(np.array(labels, dtype=object))

    def _decoded(self, ids: list[str], values: list[Row]) -> list[Any]:
        decoder = self.store.load_current().decoder
        return [
            decoder(json.dumps({"request_id": name, "data": row}).encode()).data
            for name, row in zip(ids, values, strict=True)
        ]

    def train(self) -> Result:
        with MessageStore.open(self.settings.messages_url, self.features) as messages:
            snapshot = messages.snapshot()
        return retrain.train(self.settings, snapshot=snapshot, hyper="hyperopt", evals=1)

    def track(self) -> None:
        Tracker(self.settings, self.said.append).step(thorough=True)


def flipped_for_training(request_id: str, label: str) -> str:
    """Harm that the gate sees: rows kept aside keep their labels."""
    if evaluate.is_validation_row([request_id])[0]:
        return label
    return "<=50K" if label == ">50K" else ">50K"


@pytest.mark.optional
@pytest.mark.timeout(180)
def test_mlflow_is_told_everything(small: Pipeline, adult: list[Row]) -> None:
    done = small.run("initialize.py", "--mlflow", "--evals", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model 1 logged to sqlite:///" in done.stdout

    import mlflow

    settings = tracking.with_tracking(small.settings, wanted=True)
    mlflow.set_tracking_uri(settings.mlflow.tracking_uri)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string=f"name = '{NAME}'")

    def aliases() -> dict[str, int]:
        there = client.get_registered_model(NAME).aliases
        versions = {a: client.get_model_version(NAME, v) for a, v in there.items()}
        return {alias: int(version.tags["model_id"]) for alias, version in versions.items()}

    def run_of(model_id: int) -> Any:
        wanted = f"tags.model_id = '{model_id}' and status = 'FINISHED'"
        (run,) = client.search_runs([experiment.experiment_id], wanted)
        return run

    def check_run(model_id: int, manifest: dict[str, Any]) -> None:
        run = run_of(model_id)
        for name, value in manifest["hyperparameters"].items():
            assert run.data.params[name] == str(value)
        theirs = manifest["metrics"]["challenger"]
        assert run.data.metrics["validation/log_loss"] == pytest.approx(theirs["log_loss"])
        assert run.data.metrics["search/cv_loss"] == manifest["training"]["cv_loss"]
        assert run.data.metrics["seconds/searching"] > 0
        children = client.search_runs(
            [experiment.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run.info.run_id}'",
            order_by=["start_time"],
        )
        trials = manifest["training"]["trials"]
        assert [child.data.metrics["loss"] for child in children] == [t["loss"] for t in trials]
        assert children[0].data.params["num_leaves"] == str(trials[0]["params"]["num_leaves"])
        assert children[0].data.metrics["seconds"] == trials[0]["seconds"]
        best = [m.value for m in client.get_metric_history(run.info.run_id, "search/best_loss")]
        assert best == np.minimum.accumulate([t["loss"] for t in trials]).tolist()

    there = Home(settings, adult)
    check_run(1, there.store.load(1).manifest)
    assert aliases() == {"champion": 1}

    # An accepted one, and a refused one that is pruned at once.
    there.serve(60)
    assert there.train().accepted
    manifest = there.store.load(2).manifest
    served = there.serve(2000, flipped_for_training)
    assert not there.train().accepted
    assert there.store.on_disk() == [1, 2]
    there.track()
    assert there.said == [
        f"model {model_id} logged to {settings.mlflow.tracking_uri}" for model_id in (2, 3)
    ]
    check_run(2, manifest)
    assert aliases() == {"champion": 2, "challenger": 3}
    assert run_of(3).data.tags["gate"] == "refused"
    assert run_of(3).data.metrics["gate/mean_difference"] > 0
    assert not Tracker(settings, print).waiting()

    # Live quality, in steps.
    said, codes = (np.concatenate(both) for both in zip(served, there.serve(50), strict=True))
    there.track()
    history = client.get_metric_history(run_of(2).info.run_id, "live/log_loss")
    assert [point.step for point in history] == [2000, 2050]
    assert history[1].value == pytest.approx(evaluate.metrics(said, codes)["log_loss"])
    last = client.get_metric_history(run_of(2).info.run_id, "live/accuracy_last_50")
    assert last[1].value == pytest.approx(evaluate.metrics(said[-50:], codes[-50:])["accuracy"])
    assert run_of(1).data.metrics["live/outcomes"] == 60
    assert "live/outcomes" not in run_of(3).data.metrics

    # A rollback, and a run that was cut short: it is removed.
    there.store.rollback(1, reason="a test")
    cut = client.create_run(experiment.experiment_id, tags=run_of(3).data.tags)
    there.track()
    assert aliases() == {"champion": 1, "challenger": 3}
    assert client.get_run(cut.info.run_id).info.lifecycle_stage == "deleted"

    # A bundle that was dropped from the outbox.
    there.train()
    shutil.rmtree(small.home / "mlruns" / "outbox" / "4")
    there.said.clear()
    there.track()
    assert there.said == ["never logged, and pruned meanwhile: models 4"]

    # What MLflow gives out is the bundle.
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    frame = read_frame(settings.data_dir / settings.data.train, settings.data).head(20)
    bundle = there.store.load_current()
    assert (loaded.predict(frame) == bundle.score(bundle.features.transform(frame))).all()


def test_errors_and_shown_uri_contain_no_secrets() -> None:
    uri = "https://user:p%40ss@host:1/x?token=abc"
    settings = Settings.model_validate(
        {"home": Path("/h"), "data": {"train": "", "target": ""}, "mlflow": {"tracking_uri": uri}}
    )
    tracker = Tracker(settings, print)
    told = tracker.explained(ValueError(f"at {uri}\n(https://user:***@host) p@ss failed"))
    assert tracker.shown == "https://host:1/x"
    assert not [secret for secret in ("p%40ss", "p@ss", "abc") if secret in told]
