"""Serves the model over HTTP: for `python -m serving` and for containers."""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from serving.rows import Scorer
from utils import kafka_io, listening, process
from utils.errors import UserError
from utils.model_store import ModelStore
from utils.model_store.watcher import BundleWatcher, FileChanges
from utils.settings import Settings
from utils.telemetry.counts import ServingCounts
from utils.telemetry.reporter import Reporter

if TYPE_CHECKING:
    from serving.serving_bundle import ServingBundle

PACKAGES = ("starlette", "uvicorn", "httptools", "uvloop")


def serve_models(settings: Settings, host: str, port: int) -> None:
    """Serve the current model of the settings' folder until a signal.

    Args:
        settings: The pipeline's settings; they say whether rows go through Kafka.
        host: The address to listen at.
        port: The port to listen at; 0 for a free one.

    Raises:
        UserError: A package is missing, the port is taken, or there is no model.
    """
    check_packages()
    report, counts = Reporter("serving", "green", settings.log_format), ServingCounts()
    stop = process.Stop().on_signals()
    from serving import server
    from serving.serving_bundle import ServingBundle

    store = ModelStore(settings.models_dir)
    with ExitStack() as resources:
        socket = resources.enter_context(listening.listen(host, port))
        watcher = resources.enter_context(
            BundleWatcher(store, FileChanges(settings.models_dir), report)
        )
        bundle = ServingBundle(watcher.current(), counts, report, watcher.take)
        failures: list[Exception] = []

        def fail(error: Exception) -> None:
            failures.append(error)
            stop.set()

        scorer = resources.enter_context(_scorer(bundle, settings, counts, report, fail))
        service = server.Service(scorer, bundle, counts, report)
        address = listening.address_of(socket, host)
        server.serve(service, settings, socket, address, stop)
        if failures:
            raise failures[0]


def _scorer(
    bundle: "ServingBundle",
    settings: Settings,
    counts: ServingCounts,
    report: Reporter,
    fail: Callable[[Exception], None],
) -> AbstractContextManager[Scorer]:
    """Scores rows here, or sends them to Kafka, as the settings say."""
    if not settings.serving.log:
        from serving.local import LocalScorer

        return LocalScorer(bundle, counts)
    from serving.logged import LoggedScorer

    kafka_io.claim_topics(settings)
    report("rows go through Kafka; a predictor answers them")
    return LoggedScorer(bundle, settings, counts, report, fail)


def check_packages() -> None:
    """Check that what only HTTP needs is installed.

    Raises:
        UserError: It is not.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"HTTP needs {name}: pip install -r requirements-serving.txt")
