"""Serves the page over HTTP, in a thread."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from monitor import page
from monitor.actions import Guard
from monitor.figures import Figures
from utils.errors import UserError
from utils.process import Report
from utils.settings import Settings
from utils.telemetry import exposition

#: The names under which a browser on this machine reaches a page on loopback.
LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
#: Seconds to wait for the server to start, and for open pages when it ends.
START_TIMEOUT, STOP_TIMEOUT = 20.0, 2


class SameOrigin:
    """Refuses what a page of another site asks for in a visitor's browser.

    Browsers let any page open a WebSocket to any address, and so press buttons here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers.get("host"):
                refused = PlainTextResponse("a page of another site", status_code=403)
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


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
    app.add_middleware(SameOrigin)
    if local:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL), www_redirect=False)
    figures = Figures(settings, report)
    ui.page("/", title="pipeline")(page.build(settings, figures, Guard(token)))
    ui.run_with(app, dark=None, tailwind=True, show_welcome_message=False)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=STOP_TIMEOUT)
    )
    # Not in the main thread: there the server would take over the signals.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        _wait_for_start(server, thread)
        # Not before: the library looks through all objects at its start, and Python cannot bear
        # that while another thread builds a tuple.
        with figures, exposition.serve(settings.metrics, figures.counts, settings.kafka.name):
            yield
    finally:
        server.should_exit = True
        thread.join(STOP_TIMEOUT + 2)


def _wait_for_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    until = time.monotonic() + START_TIMEOUT
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise UserError("the page could not be served")
        time.sleep(0.02)
