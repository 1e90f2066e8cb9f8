"""A real Apache Kafka on this machine, for users, tests, benchmarks and the demo.

    python -m utils.broker

One node, KRaft, bound to 127.0.0.1 only.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from utils.broker.jars import BrokerError, ensure_jars
from utils.broker.java import Java, reason_in, write_properties
from utils.broker.ports import LOOPBACK, accepts_clients, free_port, is_free
from utils.durable_files import try_lock

#: Kafka's own settings. Paths are relative to Java's working directory, because some
#: characters in an absolute path could break Kafka's properties files.
PROPERTIES: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "log.dirs": "log",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,"
    "SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL",
    "auto.create.topics.enable": "false",
    "delete.topic.enable": "true",
    # the pipeline needs the whole log, and committed offsets even after a long idle time
    "log.retention.ms": "-1",
    "offsets.retention.minutes": str(2**31 - 1),
    # one node; with few, small internal partitions it restarts quickly
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.segment.bytes": str(2**20),
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.segment.bytes": str(2**20),
    "log.cleaner.dedupe.buffer.size": str(2**24),
    # a killed predictor's partitions and transactions are released within seconds
    "group.min.session.timeout.ms": "1000",
    "group.initial.rebalance.delay.ms": "0",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # after a SIGKILL the controller waits this long before the broker may register again
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
}

LOG4J = """\
rootLogger = INFO, file
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = broker.log
appender.file.filePattern = broker.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %c{1}: %m%n
appender.file.policies.type = Policies
appender.file.policies.start.type = OnStartupTriggeringPolicy
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
"""


class Broker:
    """One Kafka broker and its folder; a context manager that starts and stops it.

    `start` after `stop` or `kill`, or in another process, continues with the same log; the
    port stays that of the first start. Java runs in its own session, so Ctrl-C reaches
    Python only. On Linux, Java is killed with the *thread* that called `start`: call it
    from a thread that lives as long as the broker.

    Args:
        home: The broker's folder: `log/`, `broker.log`, `server.properties`.
        port: The port on 127.0.0.1; 0 takes a free one.
        overrides: Kafka properties that override PROPERTIES. `listeners` is appended to
            the plain listener instead, such as "SASL_PLAINTEXT://127.0.0.1:19094".
        jvm: Further arguments for Java.
        scram: Users and passwords for SCRAM-SHA-256 and -512, created when the folder is
            first used. Other users of this machine can see them for about a second.
    """

    def __init__(
        self,
        home: Path,
        port: int = 0,
        *,
        overrides: Mapping[str, str] | None = None,
        jvm: Sequence[str] = (),
        scram: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home.resolve()
        self.port = port or free_port()
        self._overrides = dict(overrides or {})
        self._jvm = tuple(jvm)
        self._scram = dict(scram or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._java: Java | None = None
        self._lock: IO[str] | None = None

    @property
    def bootstrap(self) -> str:
        """The broker's address, for KAFKA_BOOTSTRAP_SERVERS."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def log_file(self) -> Path:
        """Kafka's log of the current run; earlier ones are broker.log.1 and so on."""
        return self.home / "broker.log"

    @property
    def running(self) -> bool:
        """Whether the Java process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of Java.

        Raises:
            BrokerError: It was never started.
        """
        if self._process is None:
            raise BrokerError("the broker was not started")
        return self._process.pid

    def __enter__(self) -> "Broker":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, timeout: float = 60.0) -> "Broker":
        """Start Kafka and return when it can be used.

        Args:
            timeout: Seconds from the launch of Java to its first answer, without the
                one-time download of the jars.

        Raises:
            BrokerError: The broker is running, the folder or the port is in use, the
                jars cannot be fetched, or Kafka did not start.
            OSError: The folder cannot be written.
        """
        if not _within(1.0, lambda: not self.running):  # a killed process takes a moment to end
            raise BrokerError(f"the broker at {self.bootstrap} is running already")
        self.kill()  # releases the lock of the previous run
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            self._lock_folder()
            if not _within(1.0, lambda: is_free(self.port)):
                raise BrokerError(f"port {self.port} is in use by another program")
            java = Java(ensure_jars(), self.home, self._jvm)
            self._configure(java)
            self._process = java.launch(self._lock)
            self._wait_until_open(timeout)
            self._java = java
        except BaseException:
            self.kill()
            raise
        return self

    def wait(self) -> int:
        """Wait until Java ends; returns its exit status, negative for a signal."""
        return 0 if self._process is None else self._process.wait()

    def stop(self, timeout: float = 30.0) -> None:
        """Stop Kafka cleanly; kill it after `timeout` seconds, or when interrupted."""
        try:
            if self._process is not None:
                self._process.terminate()
                self._process.wait(timeout)
            if self._java is not None:
                self._java.make_cache()
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL, to act like a crash; does nothing if the broker has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._java = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _lock_folder(self) -> None:
        lock = (self.home / "lock").open("a", encoding="ascii")
        if not _within(1.0, lambda: try_lock(lock)):
            lock.close()
            raise BrokerError(f"another broker is using {self.home}")
        self._lock = lock

    def _configure(self, java: "Java") -> None:
        controller = f"{LOOPBACK}:{free_port()}"
        properties = {
            **PROPERTIES,
            **self._overrides,
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}",
            "controller.quorum.voters": f"1@{controller}",
        }
        if more := self._overrides.get("listeners"):
            properties["listeners"] += f",{more}"
        (self.home / "log4j2.properties").write_text(LOG4J, "ascii")
        write_properties(self.home / "server.properties", properties)
        if not (self.home / "log").exists():
            java.format(properties, self._scram)

    def _wait_until_open(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not accepts_clients(self.port):
            if not self.running:
                raise BrokerError(self._with_reason("Kafka ended while starting"))
            if time.monotonic() > deadline:
                raise BrokerError(self._with_reason(f"Kafka did not answer in {timeout:g} s"))
            time.sleep(0.05)

    def _with_reason(self, what: str) -> str:
        reason = reason_in(_read_text(self.home / "java.out"))
        if not reason:  # Java started, so the log is from this run
            _, error, last = _read_text(self.log_file).rpartition(" ERROR ")
            reason = reason_in(last) if error else "no reason given"
        return f"{what}: {reason} (log: {self.log_file})"


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for a condition; returns whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _read_text(file: Path) -> str:
    return file.read_text("utf-8", "replace") if file.exists() else ""


def prepare() -> None:
    """Fetch the jars and create Java's AOT cache, so that later starts are fast.

    Raises:
        BrokerError: As for `Broker.start`.
    """
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)):
        pass  # stopping the broker creates the cache
