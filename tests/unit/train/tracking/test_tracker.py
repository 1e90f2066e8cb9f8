"""The tracker, with a real MLflow on SQLite."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness import Pipeline, write_adult
from train import evaluate, retrain, tracking
from train.results import Result
from train.tracking.tracker import Tracker
from utils.broker import Broker
from utils.data_set import read_data
from utils.message_store import Batch, MessageStore, StoredMessage
from utils.messages import APP_MESSAGES, PREDICTIONS
from utils.model_store import ModelStore
from utils.model_store.manifest import Manifest
from utils.settings import Settings

Row = dict[str, Any]
TARGET = "income_bracket"
#: The name of the experiment and of the registered model.
NAME = TARGET


@pytest.fixture
def small_pipeline(adult_files: Path, empty_broker: Broker, tmp_path: Path) -> Pipeline:
    """A home with the first rows of the data set, and no model yet."""
    config = write_adult(tmp_path / "home", adult_files, train=4_000)
    return Pipeline(tmp_path / "home", empty_broker.bootstrap, PIPELINE_CONFIG=str(config))


class OfflinePipeline:
    """Trains and predicts in a home as trainer.py and predictor.py do, without Kafka."""

    def __init__(self, settings: Settings, rows: list[Row]) -> None:
        self.settings = settings
        self.store = ModelStore(settings.models_dir)
        self.features = self.store.load_current().features
        self.reported: list[str] = []
        self._rows = rows
        self._offset = 0

    def serve(self, number: int, label: Callable[[str], str] = str) -> Any:
        """Predict rows whose outcomes are known at once; returns (probabilities, codes)."""
        bundle = self.store.load_current()
        first, self._offset = self._offset, self._offset + number
        rows = self._rows[first : self._offset]
        ids = [f"r-{offset}" for offset in range(first, self._offset)]
        values = [{name: row[name] for name in self.features.columns} for row in rows]
        labels = [label(row[TARGET]) for row in rows]
        scores = bundle.score(bundle.features.transform_rows(self._decoded(ids, values)))
        batch = Batch(messages=[], outcomes=[], predictions=[], offsets={})
        decoded = self._decoded(ids, values)
        for place, (name, data) in enumerate(zip(ids, decoded, strict=True)):
            where = (0, first + place, 1000 + first + place)
            packed = self.features.row_values(data)
            batch.messages.append(StoredMessage(name, *where, packed, labels[place]))
            batch.predictions.append((name, bundle.model_id, float(scores[place]), *where))
        batch.offsets.update({(APP_MESSAGES, 0): self._offset, (PREDICTIONS, 0): self._offset})
        with MessageStore(self.settings.messages_url, self.features) as messages:
            messages.ingest(batch)
        return scores, self.features.encode_target(np.array(labels, dtype=object))

    def _decoded(self, ids: list[str], values: list[Row]) -> list[Any]:
        decoder = self.store.load_current().decoder
        return [
            decoder(json.dumps({"request_id": name, "data": row}).encode()).data
            for name, row in zip(ids, values, strict=True)
        ]

    def train(self) -> Result:
        with MessageStore.open(self.settings.messages_url, self.features) as messages:
            return retrain.train(
                self.settings,
                snapshot=messages.snapshot(),
                hyper="hyperopt",
                evals=2,  # with one there is no search to log
                predictions=messages.predictions_since,
            )

    def track(self) -> None:
        Tracker(self.settings, self.reported.append).step(thorough=True)


def flip(label: str) -> str:
    return "<=50K" if label == ">50K" else ">50K"


class Mlflow:
    """Reads what was logged.

    Args:
        uri: MLflow's tracking URI.
    """

    def __init__(self, uri: str) -> None:
        import mlflow

        mlflow.set_tracking_uri(uri)
        self.client = mlflow.MlflowClient()
        (experiment,) = self.client.search_experiments(filter_string=f"name = '{NAME}'")
        self.experiment_id = experiment.experiment_id

    def aliases(self) -> dict[str, int]:
        """The model ids behind the aliases of the registered model."""
        aliases = self.client.get_registered_model(NAME).aliases
        versions = {a: self.client.get_model_version(NAME, v) for a, v in aliases.items()}
        return {alias: int(version.tags["model_id"]) for alias, version in versions.items()}

    def run_of(self, model_id: int) -> Any:
        """The one finished run of a model."""
        wanted = f"tags.model_id = '{model_id}' and status = 'FINISHED'"
        (run,) = self.client.search_runs([self.experiment_id], wanted)
        return run

    def history(self, model_id: int, metric: str) -> Any:
        return self.client.get_metric_history(self.run_of(model_id).info.run_id, metric)

    def check_run(self, model_id: int, manifest: Manifest) -> None:
        """A model's run holds the parameters, metrics and trials of its manifest."""
        run = self.run_of(model_id)
        for name, value in manifest.hyperparameters.items():
            assert run.data.params[name] == str(value)
        challenger = manifest.metrics.challenger
        assert challenger is not None
        assert run.data.metrics["validation/log_loss"] == pytest.approx(challenger.log_loss)
        assert run.data.metrics["search/cv_loss"] == manifest.training.cv_loss
        assert run.data.metrics["seconds/searching"] > 0
        children = self.client.search_runs(
            [self.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run.info.run_id}'",
            order_by=["start_time"],
        )
        trials = manifest.training.trials
        assert [child.data.metrics["loss"] for child in children] == [t.loss for t in trials]
        assert children[0].data.params["num_leaves"] == str(trials[0].params["num_leaves"])
        assert children[0].data.metrics["seconds"] == trials[0].seconds
        best = [m.value for m in self.history(model_id, "search/best_loss")]
        assert (
            best == np.minimum.accumulate([t.loss for t in trials if t.loss is not None]).tolist()
        )


@pytest.mark.optional
@pytest.mark.timeout(180)
def test_mlflow_mirrors_models_gate_and_live_quality(
    small_pipeline: Pipeline, adult: list[Row]
) -> None:
    """One test, for each act builds on the models of the one before."""
    done = small_pipeline.run("initialize.py", "--mlflow", "--evals", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model 1 logged to sqlite:///" in done.stdout

    settings = tracking.with_tracking(small_pipeline.settings, wanted=True)
    mlflow = Mlflow(settings.mlflow.tracking_uri)
    pipeline = OfflinePipeline(settings, adult)
    mlflow.check_run(1, pipeline.store.load(1).manifest)
    assert mlflow.aliases() == {"champion": 1}

    served = log_accepted_and_refused_model(pipeline, mlflow)
    log_live_quality(pipeline, mlflow, served)
    follow_rollback_and_delete_unfinished_run(pipeline, mlflow)
    report_model_lost_from_the_outbox(pipeline)
    load_the_champion_from_mlflow(pipeline)


def log_accepted_and_refused_model(pipeline: OfflinePipeline, mlflow: Mlflow) -> Any:
    """The refused model is pruned at once; returns what model 2 served.

    It follows swapped labels, which are over again: on the latest outcomes it is worse.
    """
    pipeline.serve(60)
    assert pipeline.train().accepted
    manifest = pipeline.store.load(2).manifest
    parts = [pipeline.serve(1490, flip), pipeline.serve(510)]
    served = [np.concatenate(both) for both in zip(*parts, strict=True)]
    assert not pipeline.train().accepted
    assert pipeline.store.on_disk() == [1, 2]
    pipeline.track()
    assert pipeline.reported == [
        f"model {model_id} logged to {pipeline.settings.mlflow.tracking_uri}" for model_id in (2, 3)
    ]
    mlflow.check_run(2, manifest)
    assert mlflow.aliases() == {"champion": 2, "challenger": 3}
    assert mlflow.run_of(3).data.tags["gate"] == "refused"
    assert mlflow.run_of(3).data.metrics["gate/mean_difference"] > 0
    assert not Tracker(pipeline.settings, print).waiting()
    return served


def log_live_quality(pipeline: OfflinePipeline, mlflow: Mlflow, served: Any) -> None:
    """Live quality is a metric whose steps are numbers of outcomes."""
    scores, codes = (np.concatenate(both) for both in zip(served, pipeline.serve(50), strict=True))
    pipeline.track()
    history = mlflow.history(2, "live/log_loss")
    assert [point.step for point in history] == [2000, 2050]
    assert history[1].value == pytest.approx(evaluate.metrics(scores, codes).log_loss)
    last = mlflow.history(2, "live/accuracy_last_50")
    assert last[1].value == pytest.approx(evaluate.metrics(scores[-50:], codes[-50:]).accuracy)
    assert mlflow.run_of(1).data.metrics["live/outcomes"] == 60
    assert "live/outcomes" not in mlflow.run_of(3).data.metrics


def follow_rollback_and_delete_unfinished_run(pipeline: OfflinePipeline, mlflow: Mlflow) -> None:
    pipeline.store.rollback(1, reason="a test")
    tags = mlflow.run_of(3).data.tags
    unfinished = mlflow.client.create_run(mlflow.experiment_id, tags=tags)
    pipeline.track()
    assert mlflow.aliases() == {"champion": 1, "challenger": 3}
    assert mlflow.client.get_run(unfinished.info.run_id).info.lifecycle_stage == "deleted"


def report_model_lost_from_the_outbox(pipeline: OfflinePipeline) -> None:
    pipeline.train()
    shutil.rmtree(pipeline.settings.mlflow_dir / "outbox" / "4")
    pipeline.reported.clear()
    pipeline.track()
    assert pipeline.reported == ["never logged, and pruned meanwhile: models 4"]


def load_the_champion_from_mlflow(pipeline: OfflinePipeline) -> None:
    """The model that MLflow gives out scores as the bundle does."""
    import mlflow

    settings = pipeline.settings
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    frame = read_data(settings.data_dir / settings.data.train, settings.data).frame.head(20)
    bundle = pipeline.store.load_current()
    assert (loaded.predict(frame) == bundle.score(bundle.features.transform(frame))).all()


def test_errors_and_shown_uri_contain_no_secrets() -> None:
    uri = "https://user:p%40ss@host:1/x?token=abc"
    settings = Settings.model_validate(
        {"home": Path("/h"), "data": {"train": "", "target": ""}, "mlflow": {"tracking_uri": uri}}
    )
    tracker = Tracker(settings, print)
    text = tracker.describe(ValueError(f"at {uri}\n(https://user:***@host) p@ss failed"))
    assert tracker.display_uri == "https://host:1/x"
    assert not [secret for secret in ("p%40ss", "p@ss", "abc") if secret in text]
