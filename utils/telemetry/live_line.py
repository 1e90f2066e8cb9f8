"""One line at the bottom of a terminal that shows the newest figures of a process."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rich.live import Live
from rich.text import Text

from utils.telemetry.reporter import Reporter

REFRESHES_PER_SECOND = 4
#: If this variable is set, the line is printed whenever it has changed, after a carriage
#: return: for a program that starts the process, reads its output and shows the line itself.
EMBEDDED = "PIPELINE_EMBEDDED_LIVE_LINE"
SEPARATOR, FULL, EMPTY = " · ", "█", "░"
#: Where the terminal's encoding lacks these.
ASCII = str.maketrans({"·": "|", FULL: "#", EMPTY: "-"})
BAR_WIDTH = 10


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
        elif self._report.may_be_live and console.file.isatty() and not console.is_dumb_terminal:
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
    """Prints the whole line after a carriage return whenever it has changed."""

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
                self._file.write(f"\r{text}\n")
                self._file.flush()
            before = text


class Rate:
    """Counts a second over the last seconds, from a total that grows.

    Args:
        seconds: How long the window is.
        clock: Returns seconds; never goes back.
    """

    def __init__(
        self, seconds: float = 5.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._totals = deque([(clock(), 0)])

    def __call__(self, total: int) -> float:
        """Note the total; returns the rate.

        >>> now = iter([0.0, 1.0, 2.0, 9.0, 9.1])
        >>> rate = Rate(5.0, clock=lambda: next(now))
        >>> rate(100), rate(200), rate(200), rate(200)
        (100.0, 100.0, 0.0, 0.0)
        """
        now = self._clock()
        self._totals.append((now, total))
        while len(self._totals) > 2 and self._totals[1][0] <= now - self._seconds:
            self._totals.popleft()
        first, before = self._totals[0]
        return (total - before) / (now - first) if now > first else 0.0


def fit(parts: Sequence[str], width: int) -> str:
    """The first parts as one line of at most that many characters; the first one in any case.

    >>> fit(["1,234/s", "model 7", "lag 0"], 20)
    '1,234/s · model 7'
    """
    text = ""
    for part in parts:
        longer = f"{text}{SEPARATOR}{part}" if text else part
        if text and len(longer) > width:
            break
        text = longer
    return text


def bar(done: int, total: int) -> str:
    """A progress bar of `BAR_WIDTH` characters.

    >>> bar(3, 10)
    '███░░░░░░░'
    """
    full = min(BAR_WIDTH, BAR_WIDTH * done // max(total, 1))
    return FULL * full + EMPTY * (BAR_WIDTH - full)


def rate_text(rate: float) -> str:
    """A rate for a reader.

    >>> rate_text(0.52), rate_text(12345.6)
    ('0.5/s', '12,346/s')
    """
    return f"{rate:.1f}/s" if rate < 10 else f"{rate:,.0f}/s"


def duration_text(seconds: float) -> str:
    """A latency for a reader.

    >>> duration_text(0.0043), duration_text(0.25), duration_text(12.34)
    ('4.3 ms', '250 ms', '12.3 s')
    """
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
