"""Loads a new bundle beside the predictor's loop and hands it over whole."""

import threading

from utils import messages
from utils.errors import one_line
from utils.kafka_io import TROUBLE, LogReader
from utils.model_store.bundle import Bundle, BundleError
from utils.model_store.store import ModelStore
from utils.process import Outage, Report
from utils.settings import Kafka


class BundleWatcher:
    """A thread that tails `retrain_topic` and keeps the current bundle at hand.

    An announcement only says that it is time to look: `models/current.json` says which
    bundle serves. The thread begins to listen before that file is read first, so no
    change falls between.

    A bundle that does not load is reported once, tried again now and then, and the old
    one keeps serving.

    Args:
        store: Where bundles are.
        kafka: How to reach the cluster.
        report: Told in one line what a user should see.
    """

    RETRY_SECONDS = 1.0

    def __init__(self, store: ModelStore, kafka: Kafka, report: Report) -> None:
        self._store = store
        self._kafka = kafka
        self._lock = threading.Lock()
        self._ready: Bundle | None = None
        self._loaded_id: int | None = None
        self._outage = Outage(report)  # its end is the new model's own line
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
        """The bundle to begin with; from now on the thread watches.

        Raises:
            BundleError: There is none that can be used.
        """
        bundle = self._store.load_current()
        self._loaded_id = bundle.model_id
        self._thread.start()
        return bundle

    def take(self) -> Bundle | None:
        """The bundle that became current since the last call, if any."""
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
                except TROUBLE:
                    look = True  # an announcement may have been missed
                    self._stop.wait(self.RETRY_SECONDS)
                if look:
                    look = not self._refresh()
                    if look:
                        self._stop.wait(self.RETRY_SECONDS)
        finally:
            self._reader.close()

    def _refresh(self) -> bool:
        """Load what is current if it is not what serves; whether all is well."""
        try:
            current = self._store.current_id()
            if current != self._loaded_id:
                bundle = self._store.load(current)
                with self._lock:
                    self._ready = bundle
                self._loaded_id = current
        except (BundleError, OSError) as error:
            self._outage.failed(f"model {self._loaded_id} keeps serving: {one_line(error)}")
            return False
        self._outage.over()
        return True
