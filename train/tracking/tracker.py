"""Brings MLflow up to date with a home: what is missing there is logged."""

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

#: Live quality also over so many of the latest outcomes.
LAST = 50
#: Seconds between two looks at the home; after trouble longer and longer.
LOOK_EVERY, LONGEST_PAUSE = 0.5, 60.0
#: Seconds between two looks at live quality, which reads every prediction: this long, or
#: so many times as long as the last one took.
QUALITY_EVERY, REST = 5.0, 20.0

#: MLflow reads these when it is imported. Its own timeout is minutes.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
}


def follow(tracker: "Tracker", stop: Stop, report: Report) -> None:
    """Step until asked to stop, and once more then; errors are retried, ever more rarely."""
    outage = Outage(
        report,
        tracker.shown + ": {}; goes on without it",
        "MLflow answers again and knows what it had missed",
    )
    pause = LOOK_EVERY
    while True:
        ending = stop()
        try:
            tracker.step(thorough=ending)
            outage.over()
            pause = LOOK_EVERY
        except Exception as error:  # MLflow raises many kinds, and none may end this process
            if not outage:  # its errors differ from try to try: only the first is reported
                outage.failed(tracker.explained(error))
            pause = min(2 * pause + 1, LONGEST_PAUSE)
        if ending or (stop.wait(pause) and outage):
            break
    tracker.say_what_waits("away")


class Tracker:
    """Brings MLflow up to date with a home, one step after the other.

    Args:
        settings: With a tracking URI.
        report: Told in one line what was logged, and what was not.
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
        self.shown = without_secrets(settings.mlflow.tracking_uri)

    def step(self, *, thorough: bool = False) -> None:
        """Log what is missing.

        1. connect, if that is still to do; 2. bundles that wait; 3. aliases; 4. live quality.

        Args:
            thorough: Look at live quality now, not when it is due.

        Raises:
            Exception: Of any kind; the next step begins by connecting again.
        """
        log = self._log or self._connected()  # 1
        self._log = None  # unless all goes well
        self._log_waiting(log)  # 2
        self._point(log)  # 3
        if thorough or time.monotonic() >= self._quality_after:
            self._log_quality(log)  # 4
        self._log = log

    def waiting(self) -> list[int]:
        """The models in the outbox."""
        return outbox.waiting(self._settings)

    def say_what_waits(self, why: str) -> None:
        """One line on the models in the outbox, if there are any."""
        if left := self.waiting():
            self._report(f"not logged yet, {self.shown} is {why}: models {_listed(left)}")

    def explained(self, error: Exception) -> str:
        """An error of MLflow's on one line, without what is secret in the URI."""
        text = one_line(error)
        uri = self._settings.mlflow.tracking_uri
        for secret in sorted(_secrets(uri), key=len, reverse=True):
            text = text.replace(secret, "***")
        return re.sub(r"//[^/\s]*@", "//***@", text)[:500]

    def _connected(self) -> "MlflowLog":
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
                    self._report(f"model {model_id} logged to {self.shown}")
            remove(folder)

    def _point(self, log: "MlflowLog") -> None:
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
            told = _listed(sorted(missed - self._missed))
            self._report(f"never logged, and pruned meanwhile: models {told}")
        self._missed |= missed

    def _log_quality(self, log: "MlflowLog") -> None:
        begun = time.monotonic()
        with contextlib.suppress(StoreError, BundleError):  # nothing to look at, or not now
            features = self._store.load_current().features
            with MessageStore.open(self._settings.messages_url, features) as messages:
                offsets = messages.offsets()
                judged = messages.quality_rows() if offsets != self._offsets else []
            now = time.time() * 1000
            for one in judged:
                found = quality.measure_quality(one, features, last=LAST, now=now)
                if one.model_id in log.models and found.known != log.known_outcomes(one.model_id):
                    log.log_quality(found, LAST)
            self._offsets = offsets
        spent = time.monotonic() - begun
        self._quality_after = time.monotonic() + max(QUALITY_EVERY, REST * spent)


def aliases_of(history: Sequence[HistoryLine]) -> dict[str, int | None]:
    """Which model each alias means: the one that serves, and the newest if that does not.

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
    """A tracking URI as it may be shown: no login, no query.

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
    """A name that tells this home's runs from another's, wherever it is moved."""
    path = folder / "home-id"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex, "ascii")
    return path.read_text("ascii").strip()


def _listed(models: Sequence[int]) -> str:
    return ", ".join(map(str, models))
