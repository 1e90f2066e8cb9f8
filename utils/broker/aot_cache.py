"""Kafka's classes in a file that Java maps instead of parsing and linking each.

Java calls it an ahead-of-time cache (JEP 483, 514 and 515): what a program has loaded and
linked is recorded when it ends, and a second Java makes the cache of that. It lies beside
Java's library and takes 70 MB, with twice as much beside the program's files while it is made.
Java does not use one that does not fit the Java, the jars or its own checksum; then, and where
none can be written, all works as it would without.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


class AotCache:
    """The cache for a class path; it is made after the first program that ends cleanly.

    Args:
        java: Java's program file.
        jars: The class path.
        folder: Where the program runs; what Java records is there until it is used.
    """

    def __init__(self, java: Path, jars: Sequence[Path], folder: Path) -> None:
        java = java.resolve()  # one and the same from whichever clone
        self._recorded = folder / "classes.aotconf"
        self._made = folder / "classes.aot"
        self._shelf = java.parents[1] / "lib" / "server"
        self._cache = self._shelf / f"kafka-{_state_of([java, *jars])}.aot"

    def options(self, *, records: bool = False) -> tuple[str, ...]:
        """Java's options for a start with the cache, if there is one.

        Args:
            records: Have Java record in the end what `make` needs, if there is none.
        """
        if self._cache.exists():
            return (f"-XX:AOTCache={self._cache}", "-XX:+VerifySharedSpaces", *QUIET)
        self._recorded.unlink(missing_ok=True)  # of one that was killed while it wrote
        if records and os.access(self._shelf, os.W_OK):
            return ("-XX:AOTMode=record", f"-XX:AOTConfiguration={self._recorded.name}", *QUIET)
        return ()

    def make(self, command: Sequence[str], environ: dict[str, str]) -> None:
        """Make the cache of what Java has recorded, if it has.

        Args:
            command: Java and its arguments, up to the program's name.
            environ: Its environment.
        """
        if self._cache.exists() or not self._recorded.exists():
            self._recorded.unlink(missing_ok=True)
            return
        options = ("-XX:AOTMode=create", f"-XX:AOTConfiguration={self._recorded.name}")
        try:
            done = subprocess.run(
                [*command, *options, f"-XX:AOTCache={self._made.name}"],
                cwd=self._recorded.parent,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=MOST_SECONDS,
            )
            if done.returncode == 0:
                with suppress(OSError):
                    self._put()
        except subprocess.TimeoutExpired:
            pass  # the next one that ends may have more of a processor
        finally:
            for file in (self._recorded, self._made):
                file.unlink(missing_ok=True)

    def _put(self) -> None:
        """Where two make the same one the first stays, as others may have mapped it."""
        aside = self._cache.with_suffix(f".{os.getpid()}")
        try:
            shutil.copyfile(self._made, aside)
            with suppress(FileExistsError):
                self._cache.hardlink_to(aside)
        finally:
            aside.unlink(missing_ok=True)
        for other in self._shelf.glob("kafka-*.aot"):
            if other != self._cache:  # of another Java or other jars
                other.unlink(missing_ok=True)


#: An end waits no longer than this for the cache; it takes 2 s, and 5 on a slow machine.
MOST_SECONDS = 15.0
QUIET = ("-Xlog:aot*=off", "-Xlog:cds*=off")


def _state_of(files: Sequence[Path]) -> str:
    """A short name that changes with the files, which are told apart as Java does, by time."""
    state = "".join(f"{file} {file.stat().st_mtime_ns}\n" for file in files)
    return hashlib.sha256(state.encode()).hexdigest()[:12]
