"""What the demonstration shows: its processes at a glance, and below each other what happens.

On a terminal each process has its row at the bottom, with its state and its newest figures; what
happens scrolls above, in the colour of its process. Elsewhere there are plain lines alone.
"""

import re
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from utils.telemetry.live_line import EMBEDDED_MARK, REFRESHES_PER_SECOND
from utils.telemetry.live_text import SEPARATOR, encodable, fit
from utils.telemetry.reporter import is_live_terminal

COLOURS = {
    "broker": "blue",
    "initialize": "yellow",
    "predictor": "cyan",
    "trainer": "magenta",
    "sample_app": "green",
    "monitor": "blue",
}
#: The state of a process: its sign and that sign's colour.
SIGNS = {
    "waits": ("○", "dim"),
    "runs": ("●", "green"),
    "done": ("✔", "green"),
    "failed": ("✘", "red"),
}
#: Lines with such words stand out.
EMPHASIS = {
    "REFUSED": "bold yellow",
    "ROLLED BACK": "bold yellow",
    "DRIFT": "bold yellow",
    "Rejected": "yellow",
    "RETRAINING COMPLETED": "bold",
    "NEW MODEL RELOADED": "bold",
    "shows the pipeline": "bold",
}
NAME_WIDTH = max(map(len, COLOURS))
#: Below this width, lines have no time.
NARROW = 60


@dataclass
class Row:
    """The row of a process.

    Attributes:
        state: One of `SIGNS`.
        line: The newest line that it printed.
        figures: What its live line says; empty if it has none.
    """

    state: str = "waits"
    line: str = ""
    figures: str = ""

    @property
    def text(self) -> str:
        """What the row shows."""
        return (self.state == "runs" and self.figures) or self.line


class Screen:
    """Shows what processes do; any thread may call it. Use it in a `with` block."""

    def __init__(self) -> None:
        plain = Console(highlight=False, emoji=False, soft_wrap=True)
        self.is_live = is_live_terminal(plain)
        self.console = Console(highlight=False, emoji=False) if self.is_live else plain
        self._rows = {name: Row() for name in COLOURS}
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._live = Live(
            console=self.console,
            refresh_per_second=REFRESHES_PER_SECOND,
            get_renderable=self._render,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> "Screen":
        if self.is_live:
            self._live.start()
            self.console.show_cursor(True)  # it would stay hidden if the process were killed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        """Remove the rows; what has happened stays."""
        self._live.stop()

    def set_state(self, name: str, state: str, line: str = "") -> None:
        """Show the state of a process, and a line unless it is empty."""
        with self._lock:
            row = self._rows.setdefault(name, Row())
            row.state, row.line = state, line or row.line

    def take(self, name: str, line: str) -> None:
        """Show a line of a process's output: as an event, or in its row alone."""
        if line.startswith(EMBEDDED_MARK):
            with self._lock:
                self._rows[name].figures = line.removeprefix(EMBEDDED_MARK)
        elif line.strip() and line == line.rstrip():  # the lines of tables end with blanks
            # The scripts print their name in each line; here the margin does.
            found = re.match(rf"(\d\d:\d\d:\d\d) {re.escape(name)}\s+(.*)", line)
            at, text = found.groups() if found else (time.strftime("%H:%M:%S"), line)
            text = re.sub(r" \((seconds|log): [^()]*\)$", "", text)
            with self._lock:
                self._rows[name].line = text
            self._print(name, at, text)

    def say(self, text: str, style: str = "bold") -> None:
        """Show a line of the demonstration itself."""
        self.console.print(self._encodable(text), style=style, markup=False)

    def _print(self, name: str, at: str, text: str) -> None:
        colour = COLOURS.get(name, "white")
        style = next((style for words, style in EMPHASIS.items() if words in text), "")
        text = self._encodable(text)
        if not self.is_live:
            margin = Text(f"{name:<10} | ", style=colour)
            self.console.print(margin + Text(f"{at} ") + Text(text, style=style))
            return
        cells = [Text(at, style="dim"), Text(name, style=colour), Text(text, style=style)]
        first = 1 if self.console.width < NARROW else 0
        grid = _grid(*(len("00:00:00"), NAME_WIDTH)[first:])
        grid.add_row(*cells[first:])
        self.console.print(grid)

    def _encodable(self, text: str) -> str:
        return encodable(text, ascii_only=self.console.options.ascii_only)

    def _render(self) -> Group:
        grid = _grid(1, NAME_WIDTH)
        room = self.console.width - 1 - NAME_WIDTH - 3
        with self._lock:
            rows = [(name, row.state, row.text) for name, row in self._rows.items()]
        for name, state, text in rows:
            sign, style = SIGNS[state]
            shown = self._encodable(fit(text.split(SEPARATOR), room))
            grid.add_row(
                Text(self._encodable(sign), style=style),
                Text(name, style=COLOURS.get(name, "white")),
                Text(shown, no_wrap=True, overflow="ellipsis"),
            )
        seconds = time.monotonic() - self._started
        return Group(Rule(f"{seconds:.0f} s; Ctrl-C ends it", style="dim"), grid)


def _grid(*widths: int) -> Table:
    """A table of columns with these widths, and a last one that takes what is left."""
    grid = Table.grid(padding=(0, 1), expand=True)
    for width in widths:
        grid.add_column(no_wrap=True, width=width)
    grid.add_column(ratio=1)
    return grid
