"""The identity of a pipeline's home, which its topics name as their owner.

    data/home.json   the home's id, and when it was made

A copy or a backup of a home has its id: it is the same home, wherever it is.
"""

import fcntl
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from utils.durable_files import replace_file
from utils.errors import UserError, describe_error
from utils.settings import Settings

FILE, LOCK = "home.json", ".home.lock"


class Home(msgspec.Struct, frozen=True):
    """The content of home.json: 32 hexadecimal digits, and the time in UTC, ISO 8601."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    created: str = ""


def identify(settings: Settings) -> Home:
    """The identity of this home; it gets one if it has none yet.

    Raises:
        UserError: home.json is damaged, or cannot be read or written.
    """
    path = settings.data_dir / FILE
    try:
        return _read(path) or _create(path)
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


def _create(path: Path) -> Home:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of several scripts that start at once, one makes it.
    lock = os.open(path.with_name(LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := _read(path)) is not None:
            return found
        made = Home(uuid.uuid4().hex, datetime.now(UTC).isoformat(timespec="seconds"))
        replace_file(path, msgspec.json.encode(made) + b"\n")
        return made
    finally:
        os.close(lock)  # releases the lock
