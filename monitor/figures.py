"""What the page shows, read in three threads beside the page's own."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from monitor.cluster import LOOK_EVERY, Cluster, ClusterWatch
from monitor.events import Events, EventsWatch
from monitor.learning import Learning, LearningWatch
from utils.errors import one_line
from utils.process import Report
from utils.settings import Settings
from utils.telemetry.counts import MonitorCounts

#: Milliseconds that one read of the events waits for new ones.
EVENTS_MS = 500
#: Seconds between two looks at which model serves, and between two tries of a broker that is gone.
STORES_EVERY, TRY_EVERY = 0.5, 0.5
#: Niceness of the thread that reads the stores: predictors and trainings go first.
STORES_NICENESS = 10


class Figures:
    """The newest figures, kept up to date until it is closed.

    Args:
        settings: The pipeline's settings.
        report: Called with one line of text for the user.

    Attributes:
        counts: How many pages are open: what takes long is read only for somebody.
        failure: What has gone wrong in the page itself; empty if nothing has.
    """

    def __init__(self, settings: Settings, report: Report) -> None:
        self.counts = MonitorCounts()
        self.failure = ""
        self._report = report
        self._closed = threading.Event()
        self._events = EventsWatch(settings.kafka)
        self._cluster = ClusterWatch(settings.kafka, lambda: self._events.now.rejected_messages)
        self._learning = LearningWatch(settings, lambda: self.counts.viewers > 0)
        self._threads = [
            threading.Thread(target=self._run, args=arguments, daemon=True)
            for arguments in (
                (self._read_events, self._events.close, 0),
                (self._look_at_cluster, self._cluster.close, 0),
                (self._look_at_stores, self._learning.close, STORES_NICENESS),
            )
        ]

    @property
    def events(self) -> Events:
        """What was announced and rejected."""
        return self._events.now

    @property
    def cluster(self) -> Cluster:
        """What Kafka shows."""
        return self._cluster.now

    @property
    def learning(self) -> Learning:
        """What the stores show."""
        return self._learning.now

    def __enter__(self) -> "Figures":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(2.0)

    def _run(self, step: Callable[[], None], close: Callable[[], None], niceness: int) -> None:
        if niceness:
            with suppress(OSError):  # Linux has a niceness for each thread
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        while not self._closed.is_set():
            try:
                step()
            except Exception as error:  # a fault of ours: shown, and the next step may succeed
                if (failure := f"{type(error).__name__}: {one_line(error)}") != self.failure:
                    self._report(f"a fault of the page: {failure}")
                self.failure = failure
                self._closed.wait(1.0)
        with suppress(Exception):  # the process ends anyway
            close()

    def _read_events(self) -> None:
        if self._events.step(EVENTS_MS).error:
            self._closed.wait(TRY_EVERY)

    def _look_at_cluster(self) -> None:
        if error := self._cluster.step().error:
            self.counts.health.fails(error)
        else:
            self.counts.health.serves("shows the newest figures")
        self._closed.wait(TRY_EVERY if error else LOOK_EVERY / 5)

    def _look_at_stores(self) -> None:
        self._learning.step()
        self._closed.wait(STORES_EVERY)
