"""The background process that logs to MLflow, and the option `--mlflow` that starts it."""

import argparse
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection

from train.tracking import outbox
from train.tracking.tracker import Tracker, loop
from utils import process
from utils.errors import UserError
from utils.process import Report, Stop
from utils.settings import Settings, sqlite_url
from utils.telemetry.reporter import Reporter


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option `--mlflow` to a script that trains."""
    parser.add_argument(
        "--mlflow",
        action="store_true",
        help="log to MLflow; without MLFLOW_TRACKING_URI, into mlruns/ in the home",
    )


def with_tracking(settings: Settings, wanted: bool) -> Settings:
    """The settings, with a default tracking URI if tracking is wanted.

    Raises:
        UserError: Tracking is on, but MLflow is not installed.
    """
    if wanted and not settings.mlflow.tracking_uri:
        uri = sqlite_url(settings.mlflow_dir / "mlflow.db")
        section = settings.mlflow.model_copy(update={"tracking_uri": uri})
        settings = settings.model_copy(update={"mlflow": section})
    if settings.mlflow.tracking_uri and find_spec("mlflow") is None:
        raise UserError("MLflow is not installed: pip install -r requirements-mlflow.txt")
    return settings


class Tracking:
    """Runs the tracking process while a script runs, if tracking is on.

    Args:
        settings: As `with_tracking` returns them.
        timeout: Seconds that the process has at the end to log what is left.
        niceness: The process's niceness, from 0 to 19; 0 if the script waits for it.
    """

    def __init__(self, settings: Settings, timeout: float, *, niceness: int) -> None:
        self._settings = settings
        self._timeout = timeout
        self._niceness = niceness

    def __enter__(self) -> "Tracking":
        if self._settings.mlflow.tracking_uri:
            outbox.enqueue_all(self._settings)
            context = multiprocessing.get_context("spawn")
            child_end, self._parent_end = context.Pipe(duplex=False)
            self._process = context.Process(
                target=_run_tracker,
                args=(self._settings, child_end, self._timeout, self._niceness),
                daemon=True,
            )
            self._process.start()
            child_end.close()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._settings.mlflow.tracking_uri:
            self._parent_end.close()  # makes the process end
            self._process.join(self._timeout)
            if self._process.exitcode != 0:
                self._process.kill()
                self._process.join()
                Tracker(self._settings, _reporter(self._settings)).report_waiting("silent")


def _run_tracker(settings: Settings, parent: Connection, timeout: float, niceness: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the script handles them
    process.configure_logging(settings)
    if niceness:
        process.be_nice(niceness)
    stop = Stop()

    report = _reporter(settings)
    tracker = Tracker(settings, report)

    def end_with_parent() -> None:
        with contextlib.suppress(EOFError):
            parent.recv()  # raises once the script closes its end, or is killed
        stop.set()
        time.sleep(timeout)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    with process.single_instance(settings, "tracker", stop, report) as instance_id:
        if instance_id is not None:
            loop(tracker, stop, report)


def _reporter(settings: Settings) -> Report:
    return Reporter("mlflow", "blue", settings.log_format, over_live_line=True)


def log_once(settings: Settings) -> None:
    """Bring MLflow up to date once.

    Raises:
        UserError: Something could not be logged.
    """
    settings = with_tracking(settings, wanted=True)
    tracker = Tracker(settings, _reporter(settings))
    with process.claim_instance_id(settings, "tracker", limit=1):
        outbox.enqueue_all(settings)
        try:
            tracker.step(thorough=True)
        except Exception as error:  # MLflow raises many types
            raise UserError(f"{tracker.display_uri}: {tracker.describe(error)}") from None
    print(f"every model is logged to {tracker.display_uri}")
