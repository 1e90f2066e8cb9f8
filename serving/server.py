"""Serves a model over HTTP until a signal."""

import gc
import math
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import uvicorn

from serving import app
from serving.connection import ANSWER_GRACE, Connection
from serving.rows import Scorer
from serving.serving_bundle import ServingBundle
from utils import web_server
from utils.process import Stop
from utils.settings import Settings
from utils.telemetry import exposition, live_figures
from utils.telemetry.counts import ServingCounts
from utils.telemetry.live_line import LiveLine
from utils.telemetry.reporter import Reporter

#: Seconds between two looks for a newer bundle.
FOLLOW_EVERY = 0.1
#: The most connections; more are answered with status 503.
MAX_CONNECTIONS = 500
#: Seconds that a connection may be idle between two requests; load balancers expect more than 60.
KEEP_ALIVE = 75


@dataclass
class Service:
    """What serves.

    Attributes:
        scorer: Scores the rows.
        bundle: The bundle that serves.
        counts: What is answered.
        report: Prints the lines for the user.
    """

    scorer: Scorer
    bundle: ServingBundle
    counts: ServingCounts
    report: Reporter

    def note(self) -> None:
        """Swap to a newer bundle if there is one, and note whether rows can be scored."""
        self.bundle.follow()
        self.counts.mark()
        if trouble := self.scorer.trouble():
            self.counts.health.fails(trouble)
        else:
            self.counts.health.serves(f"model {self.counts.model_id} serves")


def serve(
    service: Service, settings: Settings, found: socket.socket, address: str, stop: Stop
) -> None:
    """Serve until a signal; then the requests in hand are answered.

    Args:
        service: What serves.
        settings: The pipeline's settings.
        found: The socket to listen at, which is closed at the end.
        address: Its URL, for people.
        stop: Set by the signal.
    """
    report, counts = service.report, service.counts
    # Objects created so far live until the end: the collector skips them.
    gc.freeze()
    with ExitStack() as resources:
        resources.enter_context(exposition.serve(settings.metrics, counts, settings.kafka.name))
        resources.enter_context(web_server.running(_config(service, settings), found))
        report(f"model {counts.model_id} serves at {address}/invocations; {address}/docs explains")
        with LiveLine(report, partial(live_figures.of_serving, counts)):
            while not stop.wait(FOLLOW_EVERY):
                service.note()
        counts.health.fails("stops")
    report(f"stopped after {counts.predictions} predictions", predictions=counts.predictions)


def _config(service: Service, settings: Settings) -> uvicorn.Config:
    limits = settings.serving
    application = app.build(service.scorer, limits, service.counts, service.report)
    connection = partial(Connection, timeout=limits.timeout)
    return uvicorn.Config(
        application,
        http=connection,  # type: ignore[arg-type]  # any function that makes one will do
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        proxy_headers=False,  # who the client is makes no difference
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(limits.timeout + ANSWER_GRACE),
    )
