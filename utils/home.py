"""The identity of a pipeline's home, which its topics name as their owner.

    data/home.json   the home's id, when it was made, and the pipeline's name

A copy or a backup of a home has its id: it is the same home, wherever it is. What it keeps of
the log belongs to the topics of one name, so scripts with another PIPELINE_NAME refuse it.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from utils.durable_files import replace_file
from utils.errors import UserError, describe_error
from utils.settings import Settings

FILE, LOCK = "home.json", ".home.lock"


class Home(msgspec.Struct, frozen=True):
    """The content of home.json.

    Attributes:
        id: 32 hexadecimal digits.
        created: The time in UTC, ISO 8601.
        name: The pipeline's name; empty in homes of versions that knew no names.
    """

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    created: str = ""
    name: str = ""


def identify(settings: Settings) -> Home:
    """The identity of this home; it gets one if it has none yet.

    Raises:
        UserError: home.json is damaged, or cannot be read or written.
    """
    path = settings.data_dir / FILE
    with _errors(path):
        return _read(path) or _create(path, settings.kafka.name)


def check_name(settings: Settings) -> None:
    """Check that the home, if it has an identity, is that of the pipeline of this name.

    Raises:
        UserError: It is another pipeline's, or as for `identify`.
    """
    path, name = settings.data_dir / FILE, settings.kafka.name
    with _errors(path):
        found = _read(path)
    if found is not None and found.name != name:
        whose = f"of the pipeline {found.name}" if found.name else "of a pipeline without a name"
        now = f"PIPELINE_NAME is {name}" if name else "PIPELINE_NAME is not set"
        change = f"set it to {found.name}" if found.name else "unset it"
        raise UserError(
            f"{settings.home} is the home {whose}, but {now}: {change}, use another PIPELINE_HOME, "
            "or give the home this name with `python initialize.py --take-over`"
        )


def rename(settings: Settings) -> None:
    """Make the home that of the pipeline of this name.

    Raises:
        UserError: As for `identify`.
    """
    path, own = settings.data_dir / FILE, identify(settings)
    with _errors(path):
        _write(path, msgspec.structs.replace(own, name=settings.kafka.name))


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn errors of the file into one line."""
    try:
        yield
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is damaged, restore it from a backup, or delete it and run "
            f"`python initialize.py --take-over`: {describe_error(error)}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _read(path: Path) -> Home | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Home)
    except FileNotFoundError:
        return None


def _create(path: Path, name: str) -> Home:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of several scripts that start at once, one makes it.
    lock = os.open(path.with_name(LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := _read(path)) is not None:
            return found
        made = Home(uuid.uuid4().hex, datetime.now(UTC).isoformat(timespec="seconds"), name)
        _write(path, made)
        return made
    finally:
        os.close(lock)  # releases the lock


def _write(path: Path, home: Home) -> None:
    replace_file(path, msgspec.json.encode(home) + b"\n")
