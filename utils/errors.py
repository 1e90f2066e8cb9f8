"""Errors and their text: what a user can mend is one line, never a traceback."""

from pathlib import Path


class UserError(Exception):
    """Something the user can mend; its text is one line, printed by `process.run`."""


def one_line(error: BaseException) -> str:
    """The text of an exception on one line; its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def describe_error(error: Exception) -> str:
    """An error on one line, without the path that its caller names anyway."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{Path(error.filename).name}: " if isinstance(error.filename, str) else ""
        return named + error.strerror
    return one_line(error)
