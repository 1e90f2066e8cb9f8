"""Files: read as if they came from a stranger, written to survive a power cut."""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """A folder's descriptor: what is read through it is of one folder, renamed or not."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield folder
    finally:
        os.close(folder)


def read_plain(folder: int, name: str, largest: int) -> bytes:
    """A plain file's content.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no plain file, or larger than `largest` bytes.
    """
    # Neither follows a link nor waits for the other end of a pipe.
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
    """Make a folder of files that is on the disk when this returns."""
    path.mkdir()
    for name, content in files.items():
        write_file(path / name, content)
    sync_folder(path)


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has what was made, renamed or removed in a folder."""
    with open_folder(path) as folder:
        os.fsync(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def try_lock(file: IO[str] | int) -> bool:
    """Take an exclusive lock on a file; whether no other process has it.

    The kernel releases it with its process, however that ends.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
