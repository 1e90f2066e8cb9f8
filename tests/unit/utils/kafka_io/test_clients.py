"""What all clients do."""

import socket

import pytest
from kafka import KafkaProducer

from tests.harness import Pipeline
from utils.kafka_io import LogReader, Outgoing, Sender
from utils.messages import APP_MESSAGES


def note_waits(producer: KafkaProducer, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The list to which the sockets are added that the client waits for, in order to write."""
    net = producer._sender._client._net
    waits: list[object] = []
    wait_write = net.wait_write

    def note_and_wait(waiting: object, *arguments: object) -> object:
        waits.append(waiting)
        return wait_write(waiting, *arguments)

    monkeypatch.setattr(net, "wait_write", note_and_wait)
    return waits


def test_request_is_written_at_once_or_when_the_socket_takes_the_rest(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [10, 900_000]
    with Sender(pipeline.settings.kafka) as sender:
        sender.send(Outgoing(APP_MESSAGES, 0, None, b"first")).get(timeout=20)
        waits = note_waits(sender._producer, monkeypatch)
        sender.send(Outgoing(APP_MESSAGES, 0, None, b"x" * sizes[0])).get(timeout=20)
        assert not waits
        for connection in sender._producer._sender._client._manager._conns.values():
            connection.transport._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sender.send(Outgoing(APP_MESSAGES, 0, None, b"x" * sizes[1])).get(timeout=20)
        assert waits
    with LogReader(pipeline.settings.kafka, [APP_MESSAGES]) as reader:
        found: list[int] = []
        while len(found) < 3 and (polled := reader.poll(10_000)):
            found += [len(one.value or b"") for records in polled.values() for one in records]
    assert found == [5, *sizes]
