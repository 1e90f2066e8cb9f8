"""Kafka's jars: fetched once, checked against the lock, fetched again when damaged."""

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils.broker import (
    BrokerError,
    ensure_jars,
    find_damaged,
    load_lock,
)


class Repository(SimpleHTTPRequestHandler):
    """A Maven repository with the jars of the cache; it truncates some files once."""

    requests: list[str] = []
    to_truncate: set[str] = set()

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def copyfile(self, source: object, outputfile: object) -> None:
        if self.path in self.to_truncate:
            self.to_truncate.remove(self.path)
            self.close_connection = True
        else:
            super().copyfile(source, outputfile)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local repository, the only one that jgo knows; its folder."""
    folder = tmp_path / "repository"
    for jar, file in zip(load_lock(), ensure_jars(), strict=True):
        (folder / jar.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / jar.path)

    def handler(*args: object) -> Repository:
        return Repository(*args, directory=str(folder))  # type: ignore[arg-type]

    Repository.requests.clear()
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
    Repository.to_truncate.add(f"/{first.path}")  # retried, for the connection drops
    ensure_jars(cache)
    assert find_damaged(jars, cache) == []
    assert not list(cache.glob(".*"))


def test_concurrent_callers_fetch_the_jars_once(tmp_path: Path, repository: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(2) as threads:  # flock belongs to the open file, so threads will do
        paths = list(threads.map(lambda _: ensure_jars(cache), range(2)))
    assert paths[0] == paths[1] and find_damaged(load_lock(), cache) == []
    jars = [path for path in Repository.requests if path.endswith(".jar")]
    assert sorted(jars) == sorted(f"/{jar.path}" for jar in load_lock())


def test_jar_with_another_checksum_is_refused(tmp_path: Path, repository: Path) -> None:
    first, *_ = jars = load_lock()
    flip_a_bit(repository / first.path)
    with pytest.raises(BrokerError, match=r"is not what jars\.sha256 pins"):
        ensure_jars(tmp_path / "cache")
    assert not (tmp_path / "cache" / first.path).exists()
    (repository / first.path).unlink()
    with pytest.raises(BrokerError, match="cannot fetch"):
        ensure_jars(tmp_path / "cache")
    assert len(find_damaged(jars, tmp_path / "cache")) == len(jars)
