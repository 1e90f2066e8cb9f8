"""Loads new bundles in a background thread for whoever serves them."""

import threading
import time
from pathlib import Path
from typing import Protocol

from utils import messages
from utils.errors import one_line
from utils.kafka_io import RETRIABLE_ERRORS, LogReader
from utils.model_store.bundle import Bundle, BundleError
from utils.model_store.store import CURRENT, ModelStore
from utils.process import Outage, Report
from utils.settings import Kafka


class Changes(Protocol):
    """Says when another bundle may have become current; used by one thread."""

    def wait(self) -> bool:
        """Wait a moment, at most a second; returns whether it is worth looking.

        Raises:
            KafkaError: It is not known; a change may have been missed.
        """

    def close(self) -> None:
        """Release what it holds."""


class Announcements:
    """The records of `retrain_topic` that are written from now on."""

    def __init__(self, kafka: Kafka) -> None:
        self._reader = LogReader(kafka, [messages.RETRAIN_TOPIC], default="latest")

    def wait(self) -> bool:
        """Wait for a record."""
        return any(self._reader.poll(timeout_ms=200).values())

    def close(self) -> None:
        """Release the connection."""
        self._reader.close()


class FileChanges:
    """Changes of `current.json`, which is replaced as a whole; needs no Kafka."""

    INTERVAL_S = 0.2

    def __init__(self, models_dir: Path) -> None:
        self._path = models_dir / CURRENT
        self._seen = self._state()

    def wait(self) -> bool:
        """Sleep, and compare the file with what it was."""
        time.sleep(self.INTERVAL_S)
        before, self._seen = self._seen, self._state()
        return before != self._seen

    def close(self) -> None:
        """Nothing is held."""

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class BundleWatcher:
    """A thread that loads each bundle that becomes current.

    A change only triggers a check; `models/current.json` names the serving bundle. `changes`
    begins before that file is first read, so no change is missed.

    A bundle that does not load is reported once and retried every RETRY_SECONDS; the old
    one keeps serving.

    Args:
        store: The store of bundles.
        changes: Says when to look.
        report: Called with one line of text for the user.
    """

    RETRY_SECONDS = 1.0

    def __init__(self, store: ModelStore, changes: Changes, report: Report) -> None:
        self._store = store
        self._changes = changes
        self._lock = threading.Lock()
        self._ready: Bundle | None = None
        self._loaded_id: int | None = None
        self._outage = Outage(report)  # the line of the new model announces the recovery
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bundle-watcher", daemon=True)

    def __enter__(self) -> "BundleWatcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def current(self) -> Bundle:
        """Load the current bundle and start the thread.

        Raises:
            BundleError: No usable bundle.
        """
        bundle = self._store.load_current()
        self._loaded_id = bundle.model_id
        self._thread.start()
        return bundle

    def take(self) -> Bundle | None:
        """The new current bundle, once; None if there is none since the last call."""
        if self._ready is None:
            return None
        with self._lock:
            bundle, self._ready = self._ready, None
        return bundle

    def _watch(self) -> None:
        look = False
        try:
            while not self._stop.is_set():
                try:
                    look = self._changes.wait() or look
                except RETRIABLE_ERRORS:
                    look = True  # an announcement may have been missed
                    self._stop.wait(self.RETRY_SECONDS)
                if look:
                    look = not self._refresh()
                    if look:
                        self._stop.wait(self.RETRY_SECONDS)
        finally:
            self._changes.close()

    def _refresh(self) -> bool:
        """Load the current bundle unless it is loaded; returns whether that worked."""
        try:
            current = self._store.current_id()
            if current != self._loaded_id:
                bundle = self._store.load(current)
                with self._lock:
                    self._ready = bundle
                self._loaded_id = current
        except (BundleError, OSError) as error:
            self._outage.begin(f"model {self._loaded_id} keeps serving: {one_line(error)}")
            return False
        self._outage.end()
        return True
