"""The broker that users, tests and the demo start: real Java, real sockets, real signals."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from tests.harness import listening_addresses, until
from utils.broker import (
    Broker,
    BrokerError,
    ensure_jars,
    find_damaged,
    free_port,
    is_answering,
    load_lock,
)
from utils.settings import ROOT

pytestmark = pytest.mark.timeout(150)  # most start brokers of their own


def topics(bootstrap: str) -> list[str]:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        return list(admin.list_topics())
    finally:
        admin.close()


def create_topic(bootstrap: str, name: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.create_topics([NewTopic(name=name, num_partitions=1, replication_factor=1)])
    finally:
        admin.close()


def gone_within(seconds: float, pid: int) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def mapped(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_answers_and_listens_on_loopback_alone(broker: Broker) -> None:
    assert is_answering(broker.bootstrap)
    assert is_answering(f"127.0.0.1:{free_port()},{broker.bootstrap}")
    addresses = listening_addresses(broker.pid)
    assert len(addresses) == 2  # for clients and for the controller
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_silence_is_no_answer() -> None:
    assert not is_answering(f"127.0.0.1:{free_port()}", timeout=0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_answering(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.2)


def test_keeps_its_topics_when_stopped_and_when_killed(tmp_path: Path) -> None:
    home = tmp_path / "hôme, with a space"
    with Broker(home) as first:
        create_topic(first.bootstrap, "kept")
        with pytest.raises(BrokerError, match="another broker is using"):
            Broker(home).start()
    assert gone_within(0.1, first.pid) and not is_answering(first.bootstrap)
    with Broker(home) as second:
        assert topics(second.bootstrap) == ["kept"]
        assert re.search(r"/kafka-\w+\.aot$", mapped(second.pid), re.M)  # written by the first
        bootstrap, killed = second.bootstrap, second.pid
        os.kill(killed, signal.SIGKILL)  # from outside, as a fault-injecting test does
        second.start()
        assert second.bootstrap == bootstrap and second.pid != killed
        assert topics(bootstrap) == ["kept"]


def test_a_login_can_be_asked_for(tmp_path: Path) -> None:
    port = free_port()
    overrides = {
        "listeners": f"SASL_PLAINTEXT://127.0.0.1:{port}",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
    }
    with Broker(tmp_path, overrides=overrides, scram={"ann": "secret"}):
        assert is_answering(f"localhost:{port}")
        client = KafkaAdminClient(
            bootstrap_servers=f"127.0.0.1:{port}",
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_plain_username="ann",
            sasl_plain_password="secret",
        )
        assert list(client.list_topics()) == []
        client.close()


def test_says_why_it_did_not_start(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(BrokerError, match=r"No readable meta\.properties.*broker\.log") as failure:
        Broker(tmp_path).start()
    assert "\n" not in str(failure.value)
    with pytest.raises(BrokerError, match="Unrecognized VM option 'Nonsense'") as failure:
        Broker(tmp_path, jvm=["-XX:+Nonsense"]).start()
    assert "\n" not in str(failure.value)


# The command


@contextmanager
def command(home: Path, port: int) -> Iterator["subprocess.Popen[str]"]:
    """`python -m utils.broker`; whatever a test leaves of it is killed."""
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


def test_command_stops_cleanly_or_at_once(tmp_path: Path) -> None:
    port = free_port()
    with command(tmp_path, port) as process:
        assert f"ready at localhost:{port}" in first_line(process)
        again = run([], {"KAFKA_BOOTSTRAP_SERVERS": f"localhost:{port}"})
        assert again.returncode == 0 and "nothing to start" in again.stdout
        java = java_of(process)
        os.kill(java, signal.SIGSTOP)  # so it cannot stop in order
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(1) == -signal.SIGTERM
        assert gone_within(5, java)
    with command(tmp_path, port) as process:  # at once, on what the first left behind
        assert f"ready at localhost:{port}" in first_line(process)
        java = java_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert gone_within(0.1, java)
        assert process.stderr is not None and process.stderr.read() == ""
    assert (tmp_path / "data/kafka/log/.kafka_cleanshutdown").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_java_is_left_when_the_command_ends_while_starting(
    tmp_path: Path, number: signal.Signals
) -> None:
    with command(tmp_path, free_port()) as process:
        until(lambda: (tmp_path / "data/kafka/java.out").exists(), 30)
        until(lambda: bool(children_of(process)), 5)
        java = java_of(process)
        process.send_signal(number)
        assert process.wait(5) == (0 if number == signal.SIGINT else -number)
        assert gone_within(5, java)


def test_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
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


def test_all_can_be_had_before_the_first_start(tmp_path: Path) -> None:
    done = run(["--prepare"], {"PIPELINE_HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "is ready to be started" in done.stdout
    assert not list(tmp_path.iterdir())


def test_command_explains_itself() -> None:
    done = run(["--help"], {})
    assert done.returncode == 0
    for word in ("KAFKA_BOOTSTRAP_SERVERS", "PIPELINE_HOME", "M2_REPO", "SIGTERM"):
        assert word in done.stdout


# The jars


class Repository(SimpleHTTPRequestHandler):
    """A Maven repository made of the cache, which cuts some files short once."""

    asked: list[str] = []
    cut_short: set[str] = set()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def copyfile(self, source: object, outputfile: object) -> None:
        if self.path in self.cut_short:
            self.cut_short.remove(self.path)
            self.close_connection = True
        else:
            super().copyfile(source, outputfile)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository at this machine, the only one that jgo knows; its folder."""
    folder = tmp_path / "repository"
    for jar, file in zip(load_lock(), ensure_jars(), strict=True):
        (folder / jar.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / jar.path)

    def handler(*args: object) -> Repository:
        return Repository(*args, directory=str(folder))  # type: ignore[arg-type]

    Repository.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        config = tmp_path / "jgo.conf"
        config.write_text(f"[repositories]\nhere = http://127.0.0.1:{server.server_port}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(config))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield folder
        server.shutdown()


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_and_missing_jars_are_fetched_again(tmp_path: Path, repository: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(repository, cache)
    first, second, *_ = jars = load_lock()
    assert find_damaged(jars, cache) == []
    flip_a_bit(cache / first.path)
    (cache / second.path).unlink()
    assert find_damaged(jars, cache) == [first, second]
    Repository.cut_short.add(f"/{first.path}")  # and once more, as the connection drops
    ensure_jars(cache)
    assert find_damaged(jars, cache) == []
    assert not list(cache.glob(".*"))


def test_two_that_need_the_jars_at_once_fetch_them_once(tmp_path: Path, repository: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(2) as both:  # a lock of Linux's is an open file's, not a process's
        ways = list(both.map(lambda _: ensure_jars(cache), range(2)))
    assert ways[0] == ways[1] and find_damaged(load_lock(), cache) == []
    jars = [path for path in Repository.asked if path.endswith(".jar")]
    assert sorted(jars) == sorted(f"/{jar.path}" for jar in load_lock())


def test_a_jar_that_is_not_the_pinned_one_is_refused(tmp_path: Path, repository: Path) -> None:
    first, *_ = jars = load_lock()
    flip_a_bit(repository / first.path)
    with pytest.raises(BrokerError, match=r"is not what jars\.sha256 pins"):
        ensure_jars(tmp_path / "cache")
    assert not (tmp_path / "cache" / first.path).exists()
    (repository / first.path).unlink()
    with pytest.raises(BrokerError, match="cannot fetch"):
        ensure_jars(tmp_path / "cache")
    assert len(find_damaged(jars, tmp_path / "cache")) == len(jars)
