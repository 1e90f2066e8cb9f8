"""`python -m utils.broker`: starts, stops, and says what is wrong."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import until
from tests.unit.utils.broker.processes import gone_within
from utils.broker import (
    free_port,
)
from utils.settings import ROOT

pytestmark = pytest.mark.timeout(150)  # most tests start a broker of their own


@contextmanager
def command(home: Path, port: int) -> Iterator["subprocess.Popen[str]"]:
    """Run `python -m utils.broker`; kill it if the test leaves it running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "utils.broker"],
        cwd=ROOT,
        env={
            **os.environ,
            "PIPELINE_HOME": str(home),
            "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{port}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(arguments: list[str], variables: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "utils.broker", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=30,
    )


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def children_of(process: "subprocess.Popen[str]") -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def java_of(process: "subprocess.Popen[str]") -> int:
    (child,) = children_of(process)
    return int(child)


def test_first_signal_stops_cleanly_and_second_at_once(tmp_path: Path) -> None:
    port = free_port()
    with command(tmp_path, port) as process:
        assert f"ready at localhost:{port}" in first_line(process)
        again = run([], {"KAFKA_BOOTSTRAP_SERVERS": f"localhost:{port}"})
        assert again.returncode == 0 and "nothing to start" in again.stdout
        java = java_of(process)
        os.kill(java, signal.SIGSTOP)  # so that it cannot stop cleanly
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(1) == -signal.SIGTERM
        assert gone_within(5, java)
    with command(tmp_path, port) as process:  # at once, in the home that the first one left
        assert f"ready at localhost:{port}" in first_line(process)
        java = java_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert gone_within(0.1, java)
        assert process.stderr is not None and process.stderr.read() == ""
    assert (tmp_path / "data/kafka/log/.kafka_cleanshutdown").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_java_ends_with_a_command_that_is_stopped_while_starting(
    tmp_path: Path, number: signal.Signals
) -> None:
    with command(tmp_path, free_port()) as process:
        until(lambda: (tmp_path / "data/kafka/java.out").exists(), 30)
        until(lambda: bool(children_of(process)), 5)
        java = java_of(process)
        process.send_signal(number)
        assert process.wait(5) == (0 if number == signal.SIGINT else -number)
        assert gone_within(5, java)


def test_unusable_settings_are_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"localhost:{listener.getsockname()[1]}"
        cases = {
            "in use by another program": {"KAFKA_BOOTSTRAP_SERVERS": taken},
            "127.0.0.1 alone": {"KAFKA_BOOTSTRAP_SERVERS": "192.0.2.1:9092"},
            "wants host:port": {"KAFKA_BOOTSTRAP_SERVERS": "nonsense"},
            "plain text only": {
                "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{free_port()}",
                "KAFKA_SECURITY_PROTOCOL": "SSL",
            },
        }
        for message, variables in cases.items():
            done = run([], {"PIPELINE_HOME": str(tmp_path), **variables})
            assert done.returncode == 1 and done.stdout == ""
            assert message in done.stderr and done.stderr.count("\n") == 1


def test_prepare_fetches_everything_before_the_first_start(tmp_path: Path) -> None:
    done = run(["--prepare"], {"PIPELINE_HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "is ready to be started" in done.stdout
    assert not list(tmp_path.iterdir())


def test_broker_help_explains_variables_and_signals() -> None:
    done = run(["--help"], {})
    assert done.returncode == 0
    for word in ("KAFKA_BOOTSTRAP_SERVERS", "PIPELINE_HOME", "M2_REPO", "SIGTERM"):
        assert word in done.stdout
