"""Prints the lines in which a script says what it does, for people or for machines."""

import threading
import time
from numbers import Integral, Real

import msgspec
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from utils import json_lines
from utils.settings import LogFormat

#: Moves the cursor to the beginning of its line, and empties that.
ERASE_LINE = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))


def is_live_terminal(console: Console) -> bool:
    """Whether it is a terminal that can rewrite a line; FORCE_COLOR makes none of a file."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


class Reporter:
    """Prints one line a call; it can be passed wherever a `process.Report` is wanted.

    As text, a line has the time and the script's name, in colour on a terminal and plain
    elsewhere; its fields are left out. As JSON it is one object with `time` (RFC 3339, UTC,
    with milliseconds), `level`, `process`, `message` and the fields. Any thread may call it.

    Args:
        process: The script's name.
        colour: The colour of the time and the name.
        log_format: `text` or `json`.
        prefix: Whether a line of text begins with the time and the name.
        stderr: Whether to print to stderr instead of stdout.
        over_live_line: Whether another process may show its live line in the same terminal; a
            line then takes that one's place.

    Attributes:
        console: The terminal or file that the lines go to. What is printed there while a live
            display runs appears above it.
    """

    def __init__(
        self,
        process: str,
        colour: str,
        log_format: LogFormat = "text",
        *,
        prefix: bool = True,
        stderr: bool = False,
        over_live_line: bool = False,
    ) -> None:
        self.console = Console(highlight=False, soft_wrap=True, stderr=stderr)
        self.log_format: LogFormat = log_format
        self._process = process
        self._colour = colour
        self._prefix = prefix
        self._first = [ERASE_LINE] if over_live_line and self.may_be_live else []
        self._lock = threading.Lock()

    @property
    def is_json(self) -> bool:
        """Whether the lines are JSON; nothing else may be printed then."""
        return self.log_format == "json"

    @property
    def may_be_live(self) -> bool:
        """Whether a person watches the lines: a live display or a progress bar makes sense."""
        return is_live_terminal(self.console) and not self.is_json

    def __call__(
        self, text: str, /, *, level: str = "info", style: str = "", **fields: object
    ) -> None:
        """Print one line.

        Args:
            text: What happened, on one line.
            level: debug, info, warning, error or critical; only JSON shows it.
            style: The colour of the text; only a terminal shows it.
            fields: What a machine would look for; structs and dataclasses become objects. Only
                JSON shows them.
        """
        if self.is_json:
            plain = msgspec.to_builtins(fields, builtin_types=(bytes,), enc_hook=_plain)
            line = json_lines.encode(self._process, text, level, **plain)
            with self._lock:  # one write for each line: other processes may share the file
                self.console.file.write(line + "\n")
                self.console.file.flush()
            return
        shown = Text()
        if self._prefix:
            shown.append(f"{time.strftime('%H:%M:%S')} {self._process:<9}", self._colour)
            shown.append(" ")
        self.console.print(*self._first, shown.append(text, style), sep="")


def _plain(value: object) -> object:
    """A value of a type that msgspec does not know: a number of NumPy's, or text."""
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)
