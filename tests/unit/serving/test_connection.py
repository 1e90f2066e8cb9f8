"""Connections that clients try to hold up, at a real server."""

import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serving import connection
from serving.connection import MAX_HEAD, Connection
from utils import listening, web_server

LARGE = 24 * 1024 * 1024  # more than the buffers of a connection hold
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer with a large one."""
    while (message := await receive()).get("more_body"):
        pass
    if message["type"] == "http.disconnect":
        return
    length = [(b"content-length", str(LARGE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": b"x" * LARGE})


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A connection to a server that gives 0.4 s to a request, and 0.5 s to its answer."""
    monkeypatch.setattr(connection, "ANSWER_GRACE", 0.1)
    config = uvicorn.Config(
        application,
        http=partial(Connection, timeout=0.4),  # type: ignore[arg-type]
        lifespan="off",
        log_level="critical",
        timeout_graceful_shutdown=3,
    )
    found = listening.listen("127.0.0.1", 0)
    with web_server.running(config, found), socket.create_connection(found.getsockname()) as made:
        made.settimeout(5)
        yield made


def answer(client: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts = []
    try:
        while part := client.recv(1 << 20):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def trickle(client: socket.socket, content: bytes) -> None:
    """Send bytes one by one, more slowly than the server waits, until it closes."""

    def send() -> None:
        for place in range(len(content)):
            time.sleep(0.05)
            try:
                client.send(content[place : place + 1])
            except OSError:
                return

    threading.Thread(target=send, daemon=True).start()


def test_a_client_that_sends_nothing(client: socket.socket) -> None:
    assert answer(client) == b""


@pytest.mark.parametrize("content", [HEAD, b"\r\n" * 20])
def test_a_head_that_trickles(client: socket.socket, content: bytes) -> None:
    trickle(client, content)
    found = answer(client)
    assert found.startswith(b"HTTP/1.1 408" if content == HEAD else b"") and len(found) < 300


def test_a_body_that_trickles(client: socket.socket) -> None:
    client.sendall(HEAD + b"Content-Length: 100\r\n\r\n")
    trickle(client, b"x" * 100)
    assert answer(client).startswith(b"HTTP/1.1 408")


def test_an_answer_that_nobody_reads(client: socket.socket) -> None:
    client.sendall(HEAD + b"Content-Length: 0\r\n\r\n")
    time.sleep(1.5)
    found = answer(client)
    assert found.startswith(b"HTTP/1.1 200") and len(found) < LARGE


def test_headers_without_end(client: socket.socket) -> None:
    client.sendall(HEAD + b"X: " + b"x" * (MAX_HEAD // 2))
    time.sleep(0.1)
    client.sendall(b"x" * MAX_HEAD)
    assert b"too large" in answer(client)


def test_a_client_that_reads_has_its_whole_answer(client: socket.socket) -> None:
    client.sendall(HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
    assert len(answer(client)) > LARGE


def test_an_answer_that_nobody_reads_behind_a_request_without_end(client: socket.socket) -> None:
    client.sendall(HEAD + b"Content-Length: 0\r\n\r\n")
    time.sleep(0.2)
    client.sendall(HEAD)
    time.sleep(1.5)
    assert len(answer(client)) < LARGE
