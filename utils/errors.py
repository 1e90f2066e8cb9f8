"""Errors and their text: a user's error is reported in one line, without a traceback."""

from pathlib import Path


class UserError(Exception):
    """An error that the user can correct; `process.run` prints its text, one line."""


def one_line(error: BaseException) -> str:
    """The text of an exception on one line, or its type if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def describe_error(error: Exception) -> str:
    """An error on one line, without the full path, which the caller adds."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{Path(error.filename).name}: " if isinstance(error.filename, str) else ""
        return named + error.strerror
    return one_line(error)
