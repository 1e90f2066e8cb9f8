"""A Java AOT cache: Kafka's loaded and linked classes in one file, for faster starts.

Java calls it an ahead-of-time cache (JEP 483, 514 and 515): a program records the classes it
has loaded and linked when it ends, and a second run of Java creates the cache from that. The
cache is stored beside Java's library and takes 70 MB; while it is created, twice as much is
needed in the program's folder. Java ignores a cache that does not match the Java version, the
jars or its own checksum. Then, and where no cache can be written, Kafka just starts slower.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


class AotCache:
    """The cache for a class path; created after the first program that ends cleanly.

    Args:
        java: Java's executable.
        jars: The class path.
        folder: The working directory of the program; holds the recording until it is used.
    """

    def __init__(self, java: Path, jars: Sequence[Path], folder: Path) -> None:
        java = java.resolve()  # the same path from every clone
        self._recording = folder / "classes.aotconf"
        self._new_cache = folder / "classes.aot"
        self._cache_folder = java.parents[1] / "lib" / "server"
        self._cache = self._cache_folder / f"kafka-{_fingerprint([java, *jars])}.aot"

    def options(self, *, records: bool = False) -> tuple[str, ...]:
        """Java's options to start with the cache, if there is one.

        Args:
            records: If there is no cache, have Java record what `make` needs.
        """
        if self._cache.exists():
            return (f"-XX:AOTCache={self._cache}", "-XX:+VerifySharedSpaces", *QUIET)
        self._recording.unlink(missing_ok=True)  # left by a process killed while recording
        if records and os.access(self._cache_folder, os.W_OK):
            return ("-XX:AOTMode=record", f"-XX:AOTConfiguration={self._recording.name}", *QUIET)
        return ()

    def make(self, command: Sequence[str], environ: dict[str, str]) -> None:
        """Create the cache from what Java has recorded, if anything.

        Args:
            command: Java and its arguments, without the program's name.
            environ: The environment variables.
        """
        if self._cache.exists() or not self._recording.exists():
            self._recording.unlink(missing_ok=True)
            return
        options = ("-XX:AOTMode=create", f"-XX:AOTConfiguration={self._recording.name}")
        try:
            done = subprocess.run(
                [*command, *options, f"-XX:AOTCache={self._new_cache.name}"],
                cwd=self._recording.parent,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=MAX_SECONDS,
            )
            if done.returncode == 0:
                with suppress(OSError):
                    self._install()
        except subprocess.TimeoutExpired:
            pass  # tried again after the next run
        finally:
            for file in (self._recording, self._new_cache):
                file.unlink(missing_ok=True)

    def _install(self) -> None:
        """Move the cache into place; an existing one stays, as it may be mapped already."""
        temporary = self._cache.with_suffix(f".{os.getpid()}")
        try:
            shutil.copyfile(self._new_cache, temporary)
            with suppress(FileExistsError):
                self._cache.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        for other in self._cache_folder.glob("kafka-*.aot"):
            if other != self._cache:  # for another Java or other jars
                other.unlink(missing_ok=True)


#: A stopping broker waits at most this long for the cache, which takes 2 to 5 s to create.
MAX_SECONDS = 15.0
QUIET = ("-Xlog:aot*=off", "-Xlog:cds*=off")


def _fingerprint(files: Sequence[Path]) -> str:
    """A short hash of the files' paths and modification times, which Java compares too."""
    state = "".join(f"{file} {file.stat().st_mtime_ns}\n" for file in files)
    return hashlib.sha256(state.encode()).hexdigest()[:12]
