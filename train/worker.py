"""The worker process, which trains beside the trainer's loop.

It is started before the first request and kept, so that a request does not wait for imports
or for the data set to be read. It runs at a low priority, and it ends with the trainer.
"""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from train.drift import Alarm
from train.input_alarm import InputAlarm
from train.progress import SharedProgress, TrainingProgress
from train.results import Result, Review
from utils import process
from utils.settings import Settings

if TYPE_CHECKING:  # the trainer's loop imports no training library
    from utils.feature_tools import FeatureTools

NICENESS = 10
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One training: the batch_ids of the requests, and how long the first one waited (s)."""

    batch_ids: tuple[str, ...]
    waited: float


class Worker:
    """Runs trainings and reviews in another process, one at a time.

    Args:
        settings: The pipeline's settings, passed to the process.
        hyper: The optimiser's name.
        evals: Evaluations of each search.
    """

    def __init__(self, settings: Settings, *, hyper: str, evals: int) -> None:
        self._settings = settings
        self._hyper = hyper
        self._evals = evals
        self._progress = SharedProgress()
        self._training: Future[Result] | None = None
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(
            max_workers=1,
            # Not fork: the parent has threads, which a forked child would lack.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_prepare,
            initargs=(self._settings, self._progress),
        )
        pool.submit(_warm_up, self._settings, self._hyper)
        return pool

    def train(self, job: Job) -> Future[Result]:
        """Start a training."""
        self._progress.close()  # of a process that was killed
        self._training = self._submit(_train, self._settings, self._hyper, self._evals, job)
        return self._training

    def review(self) -> "Future[Review]":
        """Start to look at newer outcomes: for a higher loss, other inputs, a better parent."""
        return self._submit(_review, self._settings)

    def progress(self) -> TrainingProgress | None:
        """How far the running training is; None if none runs, or it has not begun yet."""
        running = self._training is not None and not self._training.done()
        return self._progress.read() if running else None

    def _submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        try:
            return self._pool.submit(function, *arguments)
        except BrokenProcessPool:  # it was killed, perhaps for lack of memory
            self._pool.shutdown(wait=False)
            self._pool = self._start()
            return self._pool.submit(function, *arguments)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        """End the process; what it prepares for a first training is not waited for."""
        for one in (self._pool._processes or {}).values():
            one.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class _OfThisProcess:
    """What the worker process gets when it starts: shared memory cannot be passed later."""

    progress: SharedProgress | None = None


_this_process = _OfThisProcess()


def _prepare(settings: Settings, progress: SharedProgress) -> None:
    _this_process.progress = progress
    process.configure_logging(settings)
    # A signal may reach the whole process group; the trainer handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    process.be_nice(NICENESS)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _warm_up(settings: Settings, hyper: str) -> None:
    gc.disable()  # collecting garbage during the imports takes half as long as they do
    from train import optimisers, retrain
    from utils.errors import UserError
    from utils.message_store import MessageStore, StoreError

    optimisers.get(hyper)
    with suppress(UserError):  # reported by the first training
        try:
            with MessageStore.open(settings.messages_url, _features(settings)) as messages:
                retrain.prepare(settings, messages.snapshot())
        except StoreError:  # not there yet: no message was ever stored
            retrain.prepare(settings, None)
    gc.freeze()
    gc.enable()


def _train(settings: Settings, hyper: str, evals: int, job: Job) -> Result:
    from train.retrain import train
    from utils.message_store import MessageStore

    progress = _this_process.progress
    assert progress is not None
    progress.begin("reading")
    started = time.monotonic()
    with (
        closing(progress),
        MessageStore.open(settings.messages_url, _features(settings)) as messages,
    ):
        snapshot = messages.snapshot()
        read = time.monotonic() - started
        result = train(
            settings,
            snapshot=snapshot,
            hyper=hyper,
            evals=evals,
            batch_ids=job.batch_ids,
            predictions=messages.predictions_since,
            progress=progress.search,
            begin=progress.begin,
        )
    seconds = {"waiting": round(job.waited, 3), **result.seconds}
    seconds["reading"] = round(seconds["reading"] + read, 3)
    return replace(result, seconds=seconds)


def _review(settings: Settings) -> Review:
    from train import live, live_inputs
    from train.retrain import judge
    from utils.message_store import MessageStore
    from utils.model_store import ModelStore

    store = ModelStore(settings.models_dir)
    serving = store.load_current()
    with MessageStore.open(settings.messages_url, serving.features) as messages:
        alarms: list[Alarm | InputAlarm | None] = []
        if settings.training.on_drift:
            alarms.append(live.look(settings, messages, serving.features, serving.model_id))
        if settings.training.on_input_drift:
            alarms.append(live_inputs.look(settings, messages, serving, store.history()))
        found = tuple(alarm for alarm in alarms if alarm is not None)
        figures = live.figures(settings) if settings.training.on_drift else None
        return Review(found, judge(settings, messages), figures)


def _features(settings: Settings) -> "FeatureTools":
    from utils.model_store import ModelStore

    return ModelStore(settings.models_dir).load_current().features
