"""The parts that the page is made of: tiles, charts, texts and small tables."""

import html
import time
from collections.abc import Callable, Sequence

from nicegui import ui

from monitor.charts import Options
from utils.metrics import wilson

#: Seconds between two pictures of a chart.
CHARTS_EVERY = 5.0


class Tile:
    """A figure with its label, and a line under it."""

    def __init__(self, label: str, hint: str) -> None:
        with ui.element("div").classes("tile"):
            ui.label(label).classes("label")
            self._value = ui.label("-").classes("value")
            self._under = ui.label("").classes("under")
            ui.tooltip(hint).classes("text-body2")
        self._tone = ""

    def show(self, value: str, under: str = "", tone: str = "") -> None:
        """Show a figure; `tone` is "", "good", "warn" or "bad"."""
        self._value.text = value
        self._under.text = under
        if tone != self._tone:
            self._value.classes(add=tone, remove=self._tone)
            self._tone = tone


class Chart:
    """A chart in a panel; it is sent to the browser only when it has changed."""

    def __init__(self, title: str, hint: str = "", *, wide: bool = False) -> None:
        with ui.element("section").classes("panel wide" if wide else "panel"):
            ui.label(title).classes("card-title")
            if hint:
                ui.label(hint).classes("quiet")
            self._empty = ui.label("nothing to show yet").classes("quiet")
            # As SVG its texts have the page's colours, light or dark. The library describes the
            # chart to those who cannot see it.
            self._chart = ui.echart({}, renderer="svg").classes("chart")
            self._chart.visible = False
        self._sent_at = float("-inf")

    def show(self, make: Callable[[], Options] | None, *, height: int | None = None) -> None:
        """Show a chart, or that there is nothing to show.

        Args:
            make: Returns the options; called at most every `CHARTS_EVERY` seconds.
            height: In pixels, if it depends on the figures.
        """
        self._empty.visible = make is None
        self._chart.visible = make is not None
        now = time.monotonic()
        if make is None or now - self._sent_at < CHARTS_EVERY:
            return
        options = make()
        if options == self._chart.options:
            return
        self._sent_at = now
        if height is not None:
            self._chart.style(f"height: {height}px")
        self._chart.options.clear()
        self._chart.options.update(options)
        self._chart.update()


class Html:
    """A panel with HTML that is sent only when it has changed."""

    def __init__(self, title: str, hint: str = "", *, wide: bool = False) -> None:
        with ui.element("section").classes("panel wide" if wide else "panel"):
            ui.label(title).classes("card-title")
            if hint:
                ui.label(hint).classes("quiet")
            self._html = ui.html("", sanitize=False)

    def show(self, content: str) -> None:
        """Show HTML in which all that others have sent is escaped."""
        self._html.content = content


class Text:
    """Lines of text in a panel."""

    def __init__(self, title: str, *, wide: bool = False) -> None:
        with ui.element("section").classes("panel wide" if wide else "panel"):
            ui.label(title).classes("card-title")
            self._lines = ui.html("", sanitize=False)

    def show(self, lines: Sequence[str], empty: str = "nothing yet") -> None:
        """Show lines of plain text."""
        self._lines.content = "".join(
            f'<div class="quiet">{html.escape(line)}</div>' for line in lines or (empty,)
        )


def quiet(text: str) -> str:
    """Text of less weight, as HTML."""
    return f'<span class="quiet">{html.escape(text)}</span>'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML, from cells that are HTML already."""
    head = "".join(f'<th scope="col">{html.escape(one)}</th>' for one in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="groups"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def rate(successes: int | None, total: int | None) -> str:
    """A share with its 95 % interval, as a picture and in figures; empty without cases."""
    if successes is None or not total:
        return '<span class="quiet">no case</span>'
    low, high = wilson(successes, total)
    share = successes / total
    text = f"{share:.1%} ({low:.1%} to {high:.1%})"
    x = [4 + 102 * each for each in (low, share, high)]
    return (
        f'<svg class="whisker" viewBox="0 0 110 14" role="img" aria-label="{text}">'
        f'<line class="track" x1="4" x2="106" y1="7" y2="7"/>'
        f'<line class="range" x1="{x[0]:.1f}" x2="{x[2]:.1f}" y1="7" y2="7"/>'
        f'<circle class="point" cx="{x[1]:.1f}" cy="7" r="4"/></svg>{text}'
    )


def share(found: float | None) -> str:
    """A share for a table; empty for none."""
    return "" if not found else f"{found:.2%}"


def clock(at: float) -> str:
    """A time of day; with the date unless it is today's."""
    then = time.localtime(at)
    same_day = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)


def number(value: float | None, digits: int = 0) -> str:
    """A number for a tile.

    >>> number(12345.6), number(0.28123, 4), number(None), number(3.21)
    ('12,346', '0.2812', '-', '3.2')
    """
    if value is None:
        return "-"
    if digits == 0 and value < 100 and value != int(value):
        return f"{value:,.1f}"
    return f"{value:,.{digits}f}"
