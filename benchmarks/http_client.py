"""An HTTP client that costs as little as possible: it shares two cores with the server.

One thread waits for all connections, which stay open. A request is bytes that were made before,
and a response is parsed by httptools, as the servers parse requests. On one connection the next
request is sent when the last one is answered.
"""

import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Self

from httptools import HttpResponseParser

#: Seconds without any response after which a server counts as gone.
TIMEOUT = 60.0


def post(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A whole request with this body."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def get(path: str) -> bytes:
    """A whole request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


class Failed(RuntimeError):
    """A response is not one of success, or there is none."""


class _Connection:
    """One open connection; httptools calls the methods `on_...`."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self._body: list[bytes] = []
        self._complete = False
        self._parser = HttpResponseParser(self)

    def send(self, request: bytes) -> None:
        self.sent = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """Read what has arrived; returns the response's body once all of it is here.

        Raises:
            Failed: The server has closed the connection, or its status is not 200.
        """
        received = self.socket.recv(262_144)
        if not received:
            raise Failed("the server has closed the connection")
        self._parser.feed_data(received)
        if not self._complete:
            return None
        body, status = b"".join(self._body), self._parser.get_status_code()
        if status != 200:
            raise Failed(f"status {status}: {body[:500]!r}")
        self._body.clear()
        self._complete = False
        return body

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._complete = True


@dataclass
class Load:
    """What a load of requests has shown.

    Attributes:
        latencies: Milliseconds from sending each request to having all of its response.
        seconds: From the first request sent to the last response read.
        processor: Seconds of processor time that the client has used meanwhile.
    """

    latencies: Sequence[float]
    seconds: float
    processor: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds


class Client:
    """Connections to one server; a context manager.

    Args:
        port: The server's port on loopback.
        connections: How many.
    """

    def __init__(self, port: int, connections: int = 1) -> None:
        self._selector = selectors.DefaultSelector()
        self._connections = [_Connection(port) for _ in range(connections)]
        for one in self._connections:
            self._selector.register(one.socket, selectors.EVENT_READ, one)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for one in self._connections:
            one.socket.close()
        self._selector.close()

    def ask(self, request: bytes) -> bytes:
        """Send one request on the first connection; returns the body of its response."""
        first = self._connections[0]
        first.send(request)
        while (body := first.receive()) is None:
            pass
        return body

    def load(self, requests: Sequence[bytes], seconds: float) -> Load:
        """Send requests on all connections, each as soon as it is free.

        Args:
            requests: The requests, sent in turn and from the beginning again.
            seconds: How long requests are sent; those under way are waited for.
        """
        turn = cycle(requests)
        latencies: list[float] = []
        used, began = time.process_time(), time.perf_counter()
        end = began + seconds
        for one in self._connections:
            one.send(next(turn))
        waiting = len(self._connections)
        now = began
        while waiting:
            ready = self._selector.select(TIMEOUT)
            if not ready:
                raise Failed(f"no response within {TIMEOUT:.0f} s")
            for key, _ in ready:
                one = key.data
                if one.receive() is None:
                    continue
                now = time.perf_counter()
                latencies.append(1000 * (now - one.sent))
                if now < end:
                    one.send(next(turn))
                else:
                    waiting -= 1
        return Load(latencies, now - began, time.process_time() - used)
