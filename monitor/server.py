"""Serves the page over HTTP, in a thread."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from monitor import page
from monitor.actions import Guard
from monitor.figures import Figures
from utils import web_server
from utils.process import Report
from utils.settings import Settings
from utils.telemetry import exposition

#: The names under which a browser on this machine reaches a page on loopback.
LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
#: Seconds to wait for open pages when it ends.
STOP_TIMEOUT = 2


@contextmanager
def running(
    settings: Settings,
    listening: socket.socket,
    report: Report,
    *,
    token: str | None,
    local: bool,
) -> Iterator[None]:
    """Serve the page until the context ends.

    Args:
        settings: The pipeline's settings.
        listening: The socket, which is closed at the end.
        report: Called with one line of text for the user.
        token: What the buttons ask for; None where nothing is asked for.
        local: Whether only this machine may reach it; then under the names of `LOCAL`, so that
            no name of another site leads here.

    Raises:
        UserError: The server did not start.
    """
    app = FastAPI(openapi_url=None)
    app.add_middleware(web_server.SameOrigin)
    if local:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL), www_redirect=False)
    figures = Figures(settings, report)
    ui.page("/", title="pipeline")(page.build(settings, figures, Guard(token)))
    ui.run_with(app, dark=None, tailwind=True, show_welcome_message=False)
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=STOP_TIMEOUT)
    # The figures come after the start: the library looks through all objects then, and Python
    # cannot bear that while another thread builds a tuple.
    with (
        web_server.running(config, listening),
        figures,
        exposition.serve(settings.metrics, figures.counts, settings.kafka.name),
    ):
        yield
