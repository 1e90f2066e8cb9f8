"""One line at the bottom of a terminal that shows the newest figures of a process."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rich.text import Text

from utils.telemetry.live_text import ASCII, SEPARATOR, fit
from utils.telemetry.reporter import Reporter

REFRESHES_PER_SECOND = 4
#: If this variable of the environment is set, the line is printed whenever it has changed, after
#: this mark: for a program that starts the process, reads its output and shows the line itself.
EMBEDDED, EMBEDDED_MARK = "PIPELINE_EMBEDDED_LIVE_LINE", "\x1e"


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
            self._resources.enter_context(_Embedded(self._report, self._parts))
            self.is_shown = True
        elif self._report.may_be_live:
            from rich.live import Live  # here: only a terminal needs it

            live = Live(
                console=console,
                refresh_per_second=REFRESHES_PER_SECOND,
                get_renderable=self._render,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._resources.enter_context(live)
            self.is_shown = True
            console.show_cursor(True)  # it would stay hidden if the process were killed
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the line."""
        self._resources.close()

    def _render(self) -> Text:
        options = self._report.console.options
        text = fit(self._parts(), options.max_width - 1)
        if options.ascii_only:
            text = text.translate(ASCII)
        return Text(text, style="bold", no_wrap=True, overflow="ellipsis")


class _Embedded:
    """Prints the whole line after a mark whenever it has changed."""

    def __init__(self, report: Reporter, parts: Callable[[], Sequence[str]]) -> None:
        self._file = report.console.file
        self._parts = parts
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _print(self) -> None:
        before = ""
        while not self._ended.wait(1 / REFRESHES_PER_SECOND):
            text = SEPARATOR.join(self._parts())
            if text != before:
                self._file.write(f"{EMBEDDED_MARK}{text}\n")
                self._file.flush()
            before = text
