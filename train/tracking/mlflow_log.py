"""Writes to MLflow. The only module that imports MLflow's client, which takes seconds.

Each training is a run, with a child run for each evaluation, and the bundle as an artifact
and as a version of the registered model. The run is set to FINISHED last. A run that is not
was interrupted; it is deleted, and the training is logged again.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from train.quality import Quality
from utils.model_store import Bundle
from utils.model_store.bundle import load_bundle
from utils.model_store.manifest import Manifest

HOME, MODEL_ID, PARENT = "home", "model_id", "mlflow.parentRunId"
ARTIFACT = "bundle"
#: Databases hold no artifacts; a tracking server defines itself where they are.
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
#: Otherwise the UI treats the experiment as one about language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
#: The metrics that are logged, by their name in `Metrics`.
FIGURES = ("log_loss", "auc", "accuracy", "calibration")


Figures = Mapping[str, float | None]


class MlflowLog:
    """One pipeline's experiment and registered model.

    MLflow raises exceptions of many types (its own, those of requests and of SQLAlchemy).
    After any of them, create a new instance, which reads MLflow's state again.

    Args:
        uri: The tracking server or database.
        name: The name of the experiment and of the registered model.
        home: The id of this pipeline's runs; other pipelines may log to the same place.
        artifacts: The folder for artifacts if `uri` is a database.
    """

    def __init__(self, uri: str, name: str, *, home: str, artifacts: Path) -> None:
        mlflow.set_tracking_uri(uri)  # read when artifacts are uploaded
        self._client = mlflow.MlflowClient(uri)
        self._name = name
        self._home = home
        in_database = uri.startswith(DATABASES)
        self._experiment = self._find_experiment(artifacts.as_uri() if in_database else None)
        self._find_registered_model()
        self._runs: dict[int, str] = {}
        self._known_outcomes: dict[int, int] = {}
        self._read_runs()
        self._versions = self._find_versions()

    @property
    def models(self) -> set[int]:
        """The models that are logged completely."""
        return set(self._runs)

    def known_outcomes(self, model_id: int) -> int:
        """The number of known outcomes when the model's live quality was last logged."""
        return self._known_outcomes.get(model_id, 0)

    def log_bundle(self, bundle: Bundle, folder: Path) -> None:
        """Log a training and its model.

        1. Create the run.
        2. Create a child run for each evaluation.
        3. Upload the artifact.
        4. Register the version.
        5. Log the metrics and end the run.

        Args:
            bundle: Loaded from `folder`.
            folder: The bundle's files.
        """
        manifest = bundle.manifest
        ended = round(datetime.fromisoformat(manifest.created).timestamp() * 1000)
        seconds = manifest.training.seconds
        started = ended - round(1000 * sum(seconds.values()))
        run = self._client.create_run(  # 1
            self._experiment,
            start_time=started,
            run_name=f"model {bundle.model_id}",
            tags={
                HOME: self._home,
                MODEL_ID: str(bundle.model_id),
                "parent_model_id": str(bundle.parent_id or ""),
                "gate": _verdict(manifest),
                "batch_ids": " ".join(manifest.batch_ids)[:5000],
            },
        )
        run_id = run.info.run_id
        self._log_children(run_id, manifest, started + round(1000 * seconds.get("reading", 0)))  # 2
        self._log_artifact(run_id, bundle, folder)  # 3
        version = self._client.create_model_version(  # 4
            self._name,
            source=f"{run.info.artifact_uri}/{ARTIFACT}",
            run_id=run_id,
            tags={HOME: self._home, MODEL_ID: str(bundle.model_id), "gate": _verdict(manifest)},
        )
        self._client.log_batch(  # 5
            run_id,
            metrics=_metrics(_figures_of(manifest), ended),
            params=_params(_params_of(manifest)),
        )
        self._client.set_terminated(run_id, end_time=ended)
        self._runs[bundle.model_id] = run_id
        self._versions[bundle.model_id] = str(version.version)

    def point(self, aliases: Mapping[str, int | None]) -> None:
        """Set each alias to the version of its model; delete it for None or a model not logged."""
        existing = self._client.get_registered_model(self._name).aliases
        for alias, model_id in aliases.items():
            version = self._versions.get(model_id) if model_id else None
            if version is None:
                if alias in existing:
                    self._client.delete_registered_model_alias(self._name, alias)
            elif str(existing.get(alias)) != version:
                self._client.set_registered_model_alias(self._name, alias, version)

    def log_quality(self, quality: Quality, last: int) -> None:
        """Log a model's live quality; the step is the number of known outcomes."""
        figures: dict[str, float | None] = {
            "live/outcomes": quality.known,
            "live/missing": quality.missing,
        }
        for name in FIGURES:
            figures[f"live/{name}"] = getattr(quality.overall, name)
            figures[f"live/{name}_last_{last}"] = getattr(quality.last, name)
        self._client.log_batch(
            self._runs[quality.model_id],
            metrics=_metrics(figures, round(time.time() * 1000), quality.known),
        )
        self._known_outcomes[quality.model_id] = quality.known

    def _find_experiment(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(self._name)
        if found is None:
            return str(
                self._client.create_experiment(
                    self._name, artifact_location=artifacts, tags=EXPERIMENT_TAGS
                )
            )
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_registered_model(self) -> None:
        try:
            self._client.get_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._client.create_registered_model(self._name)

    def _read_runs(self) -> None:
        """Find the logged models; delete interrupted runs, children first."""
        for run in self._search_runs(f"tags.{HOME} = '{_quote(self._home)}'", ViewType.ALL):
            if run.info.status == "FINISHED":  # a run that a user deleted is not logged again
                model_id = int(run.data.tags[MODEL_ID])
                self._runs[model_id] = run.info.run_id
                known = run.data.metrics.get("live/outcomes", 0)
                self._known_outcomes[model_id] = int(known)
            elif run.info.lifecycle_stage != "deleted":
                self._remove(run.info.run_id)

    def _remove(self, run_id: str) -> None:
        for child in self._search_runs(f"tags.`{PARENT}` = '{run_id}'", ViewType.ACTIVE_ONLY):
            self._client.delete_run(child.info.run_id)
        for version in self._client.search_model_versions(f"run_id = '{run_id}'"):
            self._client.delete_model_version(self._name, version.version)
        self._client.delete_run(run_id)

    def _search_runs(self, wanted: str, view: int) -> Iterable[Run]:
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], wanted, run_view_type=view, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _find_versions(self) -> dict[int, str]:
        wanted, found, token = f"name = '{_quote(self._name)}'", {}, None
        while True:
            page = self._client.search_model_versions(wanted, page_token=token)
            for version in page:
                if version.tags.get(HOME) == self._home:
                    found[int(version.tags[MODEL_ID])] = str(version.version)
            token = page.token
            if not token:
                return found

    def _log_children(self, parent_id: str, manifest: Manifest, started: int) -> None:
        best = math.inf
        for number, trial in enumerate(manifest.training.trials, 1):
            ended = started + round(1000 * trial.seconds)
            child = self._client.create_run(
                self._experiment,
                start_time=started,
                run_name=f"evaluation {number}",
                tags={PARENT: parent_id, "given_up": str(trial.given_up)},
            )
            loss = trial.loss
            figures = {"loss": loss, "rounds": trial.rounds, "seconds": trial.seconds}
            self._client.log_batch(
                child.info.run_id,
                metrics=_metrics(figures, ended),
                params=_params(trial.params),
            )
            self._client.set_terminated(child.info.run_id, end_time=ended)
            best = best if loss is None else min(best, loss)
            search = {"search/loss": loss, "search/best_loss": best}
            self._client.log_batch(parent_id, metrics=_metrics(search, ended, number))
            started = ended

    def _log_artifact(self, run_id: str, bundle: Bundle, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            artifact = Path(temporary) / ARTIFACT
            data = str(bundle.model_id)  # a bundle's folder is named by its number
            shutil.copytree(folder, artifact / data)
            model = Model(artifact_path=ARTIFACT, run_id=run_id)
            mlflow.pyfunc.add_to_model(model, loader_module=__name__, data=data)
            model.save(str(artifact / "MLmodel"))
            self._client.log_artifacts(run_id, str(artifact), ARTIFACT)


class _Predictor:
    """A bundle as `mlflow.pyfunc.load_model` returns it."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def predict(
        self, frame: pd.DataFrame, params: Mapping[str, object] | None = None
    ) -> np.ndarray:
        """Probabilities for raw rows, as `Bundle.score` returns them."""
        return self._bundle.score(self._bundle.features.transform(frame))


def _load_pyfunc(path: str) -> _Predictor:
    """Load and verify a bundle; MLflow calls this function of a loader module by its name."""
    return _Predictor(load_bundle(Path(path)))


def _verdict(manifest: Manifest) -> str:
    return "accepted" if manifest.accepted else "refused"


def _params_of(manifest: Manifest) -> dict[str, object]:
    training = manifest.training
    return {
        **manifest.hyperparameters,
        "hyper": training.hyper,
        "evaluations": training.evaluations,
        "rows": training.rows,
        "seed": manifest.seed,
    }


def _figures_of(manifest: Manifest) -> Figures:
    training, metrics, gate = manifest.training, manifest.metrics, manifest.gate
    figures: dict[str, float | None] = {"search/cv_loss": training.cv_loss}
    for side, named in ((metrics.challenger, "validation"), (metrics.champion, "champion")):
        for name in (*FIGURES, "rows"):
            figures[f"{named}/{name}"] = getattr(side, name, None)
    for name in ("mean_difference", "standard_error"):
        figures[f"gate/{name}"] = getattr(gate, name, None)
    return figures | {f"seconds/{name}": value for name, value in training.seconds.items()}


def _metrics(figures: Figures, timestamp: int, step: int = 0) -> list[Metric]:
    """The figures that are finite numbers; `timestamp` in milliseconds since 1970."""
    return [
        Metric(name, float(value), timestamp, step)
        for name, value in figures.items()
        if value is not None and math.isfinite(value)
    ]


def _params(values: Mapping[str, object]) -> list[Param]:
    return [Param(name, str(value)) for name, value in values.items()]


def _quote(text: str) -> str:
    return text.replace("'", "''")
