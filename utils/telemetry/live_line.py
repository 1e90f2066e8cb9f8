"""One line at the bottom of a terminal that shows the newest figures of a process."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleRenderable, RenderHook
from rich.text import Text

from utils.telemetry.live_text import SEPARATOR, encodable, fit
from utils.telemetry.reporter import ERASE_LINE, Reporter

REFRESHES_PER_SECOND = 4
#: If this variable of the environment is set, the line is printed whenever it has changed, after
#: this mark: for a program that starts the process, reads its output and shows the line itself.
EMBEDDED, EMBEDDED_MARK = "PIPELINE_EMBEDDED_LIVE_LINE", "\x1e"
ERASE, BOLD, PLAIN = "\r\x1b[2K", "\x1b[1m", "\x1b[0m"


class LiveLine:
    """Shows a line below what a reporter prints, on a terminal and nowhere else; it vanishes.

    A thread of its own asks for the figures, at most `REFRESHES_PER_SECOND` times a second, so
    the process pays nothing for it in its loop. Use it in a `with` block.

    Args:
        report: Prints the lines above.
        parts: Returns the parts of the line, the most important first; the last ones are left
            out where the terminal is narrow. Called by the other thread.

    Attributes:
        is_shown: Whether anyone sees it; known within the `with` block.
    """

    def __init__(self, report: Reporter, parts: Callable[[], Sequence[str]]) -> None:
        self._report = report
        self._parts = parts
        self.is_shown = False
        self._resources = ExitStack()

    def __enter__(self) -> "LiveLine":
        console = self._report.console
        if EMBEDDED in os.environ and not self._report.is_json:
            self._show(_Embedded(console))
        elif self._report.may_be_live:
            line = _Bottom(console)
            console.push_render_hook(line)
            self._resources.callback(console.pop_render_hook)
            self._resources.callback(line.erase)
            self._show(line)
        return self

    def _show(self, show: Callable[[Sequence[str]], None]) -> None:
        self.is_shown, ended = True, threading.Event()

        def refresh() -> None:
            while True:
                show(self._parts())
                if ended.wait(1 / REFRESHES_PER_SECOND):
                    return

        thread = threading.Thread(target=refresh, name="live line", daemon=True)
        self._resources.callback(thread.join)
        self._resources.callback(ended.set)
        thread.start()

    def __exit__(self, *exception: object) -> None:
        """Remove the line."""
        self._resources.close()


class _Bottom(RenderHook):
    """The last line of a terminal.

    `rich.live.Live` takes 2.5 ms to rewrite it, this 0.05 ms. All that is written begins by
    erasing the line and ends with its text, so no order of what two threads write does harm.
    The cursor stays visible: it would be lost if the process were killed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""

    def __call__(self, parts: Sequence[str]) -> None:
        options = self._console.options
        text = encodable(fit(parts, options.max_width - 1), ascii_only=options.ascii_only)
        if not text.isprintable():  # a column may be called anything
            text = "".join(char if char.isprintable() else "?" for char in text)
        self._text = set_cell_size(text, min(cell_len(text), options.max_width - 1))
        self._write(f"{ERASE}{BOLD}{self._text}{PLAIN}")

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is printed, above the line."""
        line = Text(self._text, style="bold", end="", no_wrap=True, overflow="ignore")
        return [ERASE_LINE, *renderables, line]

    def erase(self) -> None:
        """Remove the line."""
        self._write(ERASE)

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


class _Embedded:
    """Prints the whole line after a mark whenever it has changed."""

    def __init__(self, console: Console) -> None:
        self._file = console.file
        self._before = ""

    def __call__(self, parts: Sequence[str]) -> None:
        text = SEPARATOR.join(parts)
        if text != self._before:
            self._file.write(f"{EMBEDDED_MARK}{text}\n")
            self._file.flush()
        self._before = text
