"""A pipeline whose MLflow server does not answer."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import MakePipeline
from tests.harness import until
from train.tracking.tracker import Tracker

Row = dict[str, Any]


@pytest.fixture
def silent_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that accepts and never answers: its address, and the connections so far."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://user:s3cret@127.0.0.1:{server.getsockname()[1]}", connections
        server.shutdown(socket.SHUT_RDWR)
    for connection in connections:
        connection.close()


@pytest.mark.optional
def test_unresponsive_mlflow_delays_neither_training_nor_swap(
    make_pipeline: MakePipeline, adult: list[Row], silent_server: tuple[str, list[socket.socket]]
) -> None:
    """MLflow's client waits for ten minutes here, so anything that waited for it would time out."""
    uri, connections = silent_server
    pipeline = make_pipeline(MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_TIMEOUT="600")
    predictor = pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py", "--evals", "1")
    until(lambda: len(connections) > 0, 60, trainer.text)  # from here on, tracking hangs
    pipeline.send_rows(adult[:25])
    (completed,) = pipeline.wait_for_events("training_completed", 1)
    if completed["accepted"]:
        predictor.says("NEW MODEL RELOADED 2")
    assert trainer.end() == 0
    shown = uri.replace("user:s3cret@", "")
    assert f"not logged yet, {shown} is silent: models 1, 2" in trainer.text()
    assert "s3cret" not in trainer.text()
    assert Tracker(pipeline.settings, print).waiting() == [1, 2]
