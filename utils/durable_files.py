"""Reads untrusted files safely, and writes files that survive a power failure."""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec

T = TypeVar("T")


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Open a folder; reads through the descriptor see the same folder even if it is renamed."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield folder
    finally:
        os.close(folder)


def read_plain(folder: int, name: str, largest: int) -> bytes:
    """Read a regular file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not a regular file, or larger than `largest` bytes.
    """
    # The flags make it neither follow a symbolic link nor block on a pipe.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a plain file")
        if status.st_size > largest:
            raise ValueError(f"{name} is too large: {status.st_size} of {largest} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Create a folder of files and wait until it is on the disk."""
    path.mkdir()
    for name, content in files.items():
        write_file(path / name, content)
    sync_folder(path)


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, and its folder if missing; a reader or a crash finds the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    write_file(temporary, content)
    temporary.replace(path)


def sync_folder(path: Path) -> None:
    """Wait until a folder's new, renamed and removed entries are on the disk."""
    with open_folder(path) as folder:
        os.fsync(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def try_lock(file: IO[str] | int) -> bool:
    """Take an exclusive lock on a file; returns False if another process holds it.

    The kernel releases the lock when its process ends, for whatever reason.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_state(path: Path, kind: type[T]) -> T | None:
    """Read a struct from a JSON file; None if there is none, or it is damaged."""
    with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(path.read_bytes(), type=kind)
    return None
