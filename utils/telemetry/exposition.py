"""Serves a process's `/metrics` and `/healthz` while it runs, if METRICS_PORT is set."""

import json
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from utils.errors import UserError
from utils.settings import Metrics
from utils.telemetry.counts import Counts
from utils.telemetry.health import Health

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

#: Seconds that a client may take for its request.
CLIENT_TIMEOUT_S = 10.0


@contextmanager
def serve(metrics: Metrics, counts: Counts, pipeline: str = "") -> Iterator[None]:
    """Serve what a process counts, from a thread of its own; do nothing without a port.

    Args:
        metrics: Where to serve.
        counts: What the process counts. It is looked at when somebody asks.
        pipeline: The pipeline's name.

    Raises:
        UserError: The port is in use, or there is no such address.
    """
    if metrics.port is None:
        yield
        return
    # Imported here: a process without METRICS_PORT starts sooner without them.
    from prometheus_client import make_wsgi_app

    from utils.telemetry.collectors import registry

    application = _route(make_wsgi_app(registry(counts, pipeline)), counts.health)
    server = _bind(metrics.host, metrics.port, application)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _route(metrics: "WSGIApplication", health: Health) -> "WSGIApplication":
    """The application that answers each path."""

    def application(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start)
        if path == "/healthz":
            state = health.check()
            status = HTTPStatus.OK if state.ready else HTTPStatus.SERVICE_UNAVAILABLE
            return _answer(start, status, {"ready": state.ready, "reason": state.text})
        found = {"reason": "there are /metrics and /healthz"}
        return _answer(start, HTTPStatus.NOT_FOUND, found)

    return application


def _answer(start: "StartResponse", status: HTTPStatus, value: object) -> list[bytes]:
    body = json.dumps(value).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start(f"{status.value} {status.phrase}", headers)
    return [body]


def _bind(host: str, port: int, application: "WSGIApplication") -> "WSGIServer":
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

        def server_bind(self) -> None:
            # WSGIServer's own asks a name server for this machine's name, which may take seconds.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()
            self.server_name, self.server_port = host, port
            self.setup_environ()

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that goes away concerns nobody."""

    class Handler(WSGIRequestHandler):
        timeout = CLIENT_TIMEOUT_S

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not logged."""

    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        Server.address_family = family
        server = Server((str(address[0]), port), Handler)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot serve metrics at {host}:{port}: {reason}") from None
    server.set_app(application)
    return server
