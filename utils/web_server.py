"""Serves an ASGI application over HTTP, in a thread: for the live page and for the model.

Only who serves HTTP imports this module: it needs Starlette and uvicorn, which the four scripts
do without.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from utils.errors import UserError

#: Seconds to wait for a server to start.
START_TIMEOUT = 20.0
#: Seconds beyond its own timeout that a server may take to end.
END_GRACE = 2.0


class SameOrigin:
    """Refuses what a page of another site asks for in a visitor's browser.

    Browsers let any page open a WebSocket, or send some kinds of POST, to any address.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and _host_of(origin) != headers.get("host"):
                refused = JSONResponse({"error": "a page of another site"}, status_code=403)
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # no browser sends it, such as http://[
        return ""


@contextmanager
def running(config: uvicorn.Config, listening: socket.socket) -> Iterator[None]:
    """Serve until the context ends; requests in hand are answered then.

    Args:
        config: The application, and how to serve it; `timeout_graceful_shutdown` is set.
        listening: The socket, which is closed at the end.

    Raises:
        UserError: The server did not start.
    """
    server = uvicorn.Server(config)
    # Not in the main thread: there the server would take over the signals.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + START_TIMEOUT
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until:
                raise UserError("the HTTP server did not start")
            time.sleep(0.02)
        yield
    finally:
        server.should_exit = True
        thread.join((config.timeout_graceful_shutdown or 0) + END_GRACE)
