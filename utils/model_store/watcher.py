"""Loads new bundles in a background thread for the predictor."""

import threading

from utils import messages
from utils.errors import one_line
from utils.kafka_io import RETRIABLE_ERRORS, LogReader
from utils.model_store.bundle import Bundle, BundleError
from utils.model_store.store import ModelStore
from utils.process import Outage, Report
from utils.settings import Kafka


class BundleWatcher:
    """A thread that tails `retrain_topic` and loads each bundle that becomes current.

    A record only triggers a check; `models/current.json` names the serving bundle. The
    reader is positioned before that file is first read, so no change is missed.

    A bundle that does not load is reported once and retried every RETRY_SECONDS; the old
    one keeps serving.

    Args:
        store: The store of bundles.
        kafka: How to reach the cluster.
        report: Called with one line of text for the user.
    """

    RETRY_SECONDS = 1.0

    def __init__(self, store: ModelStore, kafka: Kafka, report: Report) -> None:
        self._store = store
        self._kafka = kafka
        self._lock = threading.Lock()
        self._ready: Bundle | None = None
        self._loaded_id: int | None = None
        self._outage = Outage(report)  # the line of the new model announces the recovery
        self._stop = threading.Event()
        self._reader = LogReader(kafka, [messages.RETRAIN_TOPIC], default="latest")
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
                    polled = self._reader.poll(timeout_ms=200)
                    look = look or any(polled.values())
                except RETRIABLE_ERRORS:
                    look = True  # an announcement may have been missed
                    self._stop.wait(self.RETRY_SECONDS)
                if look:
                    look = not self._refresh()
                    if look:
                        self._stop.wait(self.RETRY_SECONDS)
        finally:
            self._reader.close()

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
