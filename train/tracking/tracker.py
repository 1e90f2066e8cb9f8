"""Brings MLflow up to date with a home: logs what MLflow lacks."""

import contextlib
import os
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from train import quality
from train.tracking import outbox
from utils import model_store
from utils.durable_files import remove
from utils.errors import one_line
from utils.message_store import MessageStore, Offsets, StoreError
from utils.model_store import BundleError, ModelStore
from utils.model_store.bundle import load_bundle
from utils.model_store.manifest import HistoryLine, published
from utils.process import Outage, Report, Stop
from utils.settings import Settings

if TYPE_CHECKING:
    from train.tracking.mlflow_log import MlflowLog

#: Live quality is also logged over this many of the latest outcomes.
LATEST_OUTCOMES = 50
#: Seconds between two steps, and the most that this pause grows to after errors.
STEP_SECONDS, MAX_PAUSE_SECONDS = 0.5, 60.0
#: Measuring live quality reads every prediction. So the pause before the next time is at
#: least `QUALITY_SECONDS`, and `QUALITY_PAUSE_FACTOR` times the duration of the last time.
QUALITY_SECONDS, QUALITY_PAUSE_FACTOR = 5.0, 20.0

#: MLflow reads these when it is imported. Its default timeout is minutes.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
}


def loop(tracker: "Tracker", stop: Stop, report: Report) -> None:
    """Run steps until asked to stop, then a last one; errors are retried with growing pauses."""
    outage = Outage(
        report,
        tracker.display_uri + ": {}; it will be retried",
        "MLflow answers again, and everything is logged",
    )
    pause = STEP_SECONDS
    while True:
        ending = stop()
        try:
            tracker.step(thorough=ending)
            outage.end()
            pause = STEP_SECONDS
        except Exception as error:  # MLflow raises many types; none may end this process
            if not outage:  # the text differs between tries: only the first is reported
                outage.begin(tracker.describe(error))
            pause = min(2 * pause + 1, MAX_PAUSE_SECONDS)
        if ending or (stop.wait(pause) and outage):
            break
    tracker.report_waiting("unavailable")


class Tracker:
    """Brings MLflow up to date with a home, step by step.

    Args:
        settings: The settings, with a tracking URI.
        report: Called with one line of text for the user.
    """

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self._store = ModelStore(settings.models_dir)
        self._log: MlflowLog | None = None
        self._aliases: dict[str, int | None] | None = None
        self._offsets: Offsets = {}
        self._quality_after = 0.0
        self._missed: set[int] = set()
        self.outbox = outbox.folder_of(settings)
        self.display_uri = without_secrets(settings.mlflow.tracking_uri)

    def step(self, *, thorough: bool = False) -> None:
        """Log what is missing.

        1. Connect, if there is no connection.
        2. Log the bundles in the outbox.
        3. Set the aliases.
        4. Log live quality, if it is due.

        Args:
            thorough: Log live quality even if it is not due.

        Raises:
            Exception: Of any type; the next step connects again.
        """
        log = self._log or self._connect()  # 1
        self._log = None  # kept only if the whole step succeeds
        self._log_waiting(log)  # 2
        self._set_aliases(log)  # 3
        if thorough or time.monotonic() >= self._quality_after:
            self._log_quality(log)  # 4
        self._log = log

    def waiting(self) -> list[int]:
        """The models in the outbox."""
        return outbox.waiting(self._settings)

    def report_waiting(self, why: str) -> None:
        """Report in one line which models wait in the outbox, if any; `why` is MLflow's state."""
        if models := self.waiting():
            self._report(f"not logged yet, {self.display_uri} is {why}: models {_join_ids(models)}")

    def describe(self, error: Exception) -> str:
        """An error of MLflow on one line, without the secrets in the URI."""
        text = one_line(error)
        uri = self._settings.mlflow.tracking_uri
        for secret in sorted(_secrets(uri), key=len, reverse=True):
            text = text.replace(secret, "***")
        return re.sub(r"//[^/\s]*@", "//***@", text)[:500]

    def _connect(self) -> "MlflowLog":
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from train.tracking.mlflow_log import MlflowLog  # takes seconds

        log = MlflowLog(
            self._settings.mlflow.tracking_uri,
            self._settings.mlflow.experiment_name or self._settings.data.target,
            home=_home_id(self._settings.mlflow_dir),
            artifacts=self._settings.mlflow_dir / "artifacts",
        )
        self._aliases = None
        return log

    def _log_waiting(self, log: "MlflowLog") -> None:
        for model_id in self.waiting():
            folder = self.outbox / str(model_id)
            if model_id not in log.models:
                try:
                    bundle = load_bundle(folder)
                except BundleError as error:
                    self._report(f"not logged: {error}")
                else:
                    log.log_bundle(bundle, folder)
                    self._report(f"model {model_id} logged to {self.display_uri}")
            remove(folder)

    def _set_aliases(self, log: "MlflowLog") -> None:
        history = self._store.history()
        aliases = aliases_of(history)
        if aliases == self._aliases:
            return
        log.point(aliases)
        self._aliases = aliases
        made = {line.model_id for line in published(history)}
        since = min(log.models, default=0)
        missed = {one for one in made - log.models - set(self.waiting()) if one > since}
        if missed - self._missed:
            models = _join_ids(sorted(missed - self._missed))
            self._report(f"never logged, and pruned meanwhile: models {models}")
        self._missed |= missed

    def _log_quality(self, log: "MlflowLog") -> None:
        started = time.monotonic()
        with contextlib.suppress(StoreError, BundleError):  # nothing to measure, or not now
            features = self._store.load_current().features
            with MessageStore.open(self._settings.messages_url, features) as messages:
                offsets = messages.offsets()
                judged = messages.predictions_by_model() if offsets != self._offsets else []
            now = time.time() * 1000
            for one in judged:
                found = quality.measure_quality(one, features, last=LATEST_OUTCOMES, now=now)
                if one.model_id in log.models and found.known != log.known_outcomes(one.model_id):
                    log.log_quality(found, LATEST_OUTCOMES)
            self._offsets = offsets
        spent = time.monotonic() - started
        self._quality_after = time.monotonic() + max(QUALITY_SECONDS, QUALITY_PAUSE_FACTOR * spent)


def aliases_of(history: Sequence[HistoryLine]) -> dict[str, int | None]:
    """The model of each alias: the serving one, and the newest if it is another one.

    >>> from utils.model_store.manifest import PublishedModel
    >>> one = PublishedModel(model_id=1, accepted=True)
    >>> refused = PublishedModel(model_id=2, accepted=False)
    >>> aliases_of([one]), aliases_of([one, refused])
    ({'champion': 1, 'challenger': None}, {'champion': 1, 'challenger': 2})
    """
    champion = model_store.serving_id(history)
    newest = max((line.model_id for line in published(history)), default=None)
    return {"champion": champion, "challenger": None if newest == champion else newest}


def without_secrets(uri: str) -> str:
    """A tracking URI for display, without its login and query.

    >>> without_secrets("https://user:pass@mlflow.example.com:5000/a?token=b")
    'https://mlflow.example.com:5000/a'
    >>> without_secrets("sqlite:////home/mlruns/mlflow.db")
    'sqlite:////home/mlruns/mlflow.db'
    """
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _secrets(uri: str) -> set[str]:
    parts = urlsplit(uri)
    login = parts.netloc.rpartition("@")[0]
    password = login.partition(":")[2]
    return {secret for secret in (login, password, unquote(password), parts.query) if secret}


def _home_id(folder: Path) -> str:
    """The id of this home's runs, kept in a file so that the home can be moved."""
    path = folder / "home-id"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex, "ascii")
    return path.read_text("ascii").strip()


def _join_ids(models: Sequence[int]) -> str:
    return ", ".join(map(str, models))
