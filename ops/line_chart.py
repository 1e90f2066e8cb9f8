"""Draws panels of lines over a common axis as an SVG file."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

from utils.feature_tools import Matrix

WIDTH, PANEL = 900, 300
LEFT, RIGHT, BOTTOM = 64, 16, 48
#: The height above the curves of a panel, for its name, and of a line of the legend.
ABOVE, LEGEND = 28, 20
NAMES_A_LINE = 3
COLOURS = ("#0b6e4f", "#999999", "#c8553d", "#3d5a80", "#d4a017", "#7b4b94")
#: The most points of a line; more would not be visible.
MOST_POINTS = 900
TICKS = 5


@dataclass(frozen=True)
class Line:
    """A line: its name, and its values at x = 0, 1, ...; NaN where there is none."""

    name: str
    values: Matrix


@dataclass(frozen=True)
class Panel:
    """Lines over the same y axis. A line of the same name has the same colour in all panels."""

    y_name: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Mark:
    """A vertical line with a text at x, in all panels."""

    at: int
    text: str


def draw(title: str, x_name: str, panels: Sequence[Panel], marks: Sequence[Mark] = ()) -> str:
    """The text of an SVG file with some panels, one below the other."""
    lines = [line for panel in panels for line in panel.lines]
    last = max(max(len(line.values) for line in lines) - 1, 1)
    names = list(dict.fromkeys(line.name for line in lines))
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    top = 32 + LEGEND * -(-len(names) // NAMES_A_LINE)
    height = top + PANEL * len(panels) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 20, title, "start", size=15),
        *(_legend(name, colours[name], place) for place, name in enumerate(names)),
        _text((LEFT + WIDTH - RIGHT) / 2, height - 10, x_name),
    ]
    for place, panel in enumerate(panels):
        axes = _Axes.of(panel, last, top + PANEL * place + ABOVE, top + PANEL * (place + 1))
        parts += [_text(LEFT, axes.upper - 8, panel.y_name, "start"), *axes.grid()]
        parts += [_drawn_mark(mark, axes, number) for number, mark in enumerate(marks)]
        parts += [
            path for line in panel.lines for path in axes.curve(line.values, colours[line.name])
        ]
    return "\n".join([*parts, "</svg>", ""])


def _legend(name: str, colour: str, place: int) -> str:
    x = LEFT + (WIDTH - LEFT - RIGHT) / NAMES_A_LINE * (place % NAMES_A_LINE)
    y = 36 + LEGEND * (place // NAMES_A_LINE)
    line = f'<path d="M{x:.0f} {y}h24" stroke="{colour}" stroke-width="3"/>'
    return line + _text(x + 30, y + 4, name, "start")


@dataclass(frozen=True)
class _Axes:
    """The ranges of both axes, which begin with 0, and where the panel is, in pixels."""

    last: int
    highest: float
    upper: int
    lower: int

    @classmethod
    def of(cls, panel: Panel, last: int, upper: int, lower: int) -> "_Axes":
        known = np.concatenate([line.values[~np.isnan(line.values)] for line in panel.lines])
        return cls(last, float(known.max(initial=0.0)) * 1.05 or 1.0, upper, lower)

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.last

    def y(self, value: float) -> float:
        return self.lower - (self.lower - self.upper) * value / self.highest

    def grid(self) -> list[str]:
        parts = []
        for value in _ticks(self.highest):
            y = self.y(value)
            parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>')
            parts.append(_text(LEFT - 8, y + 4, f"{value:g}", "end"))
        for value in _ticks(self.last):
            parts.append(_text(self.x(value), self.lower + 18, f"{value:,.0f}"))
        return parts

    def curve(self, values: Matrix, colour: str) -> list[str]:
        """One path for each stretch without NaN."""
        step = max(1, len(values) // MOST_POINTS)
        chosen = np.arange(0, len(values), step)
        gaps = np.flatnonzero(np.isnan(values[chosen]))
        paths = []
        for before, after in pairwise([-1, *gaps.tolist(), len(chosen)]):
            stretch = chosen[before + 1 : after].tolist()
            points = " ".join(f"{self.x(at):.1f},{self.y(values[at]):.1f}" for at in stretch)
            if points:
                paths.append(
                    f'<polyline points="{points}" fill="none" stroke="{colour}" '
                    'stroke-width="1.6"/>'
                )
        return paths


def _ticks(top: float) -> list[float]:
    """Round values from 0 to the top, about `TICKS` of them.

    >>> _ticks(1.3), _ticks(700)
    ([0.0, 0.5, 1.0], [0.0, 200.0, 400.0, 600.0])
    """
    power = 10.0 ** np.floor(np.log10(top / TICKS))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * TICKS >= top)
    return [round(float(step * place), 10) for place in range(int(top / step) + 1)]


def _drawn_mark(mark: Mark, axes: _Axes, place: int) -> str:
    x, y = axes.x(mark.at), axes.upper + 12 + 14 * (place % 4)
    line = f'<path d="M{x:.1f} {axes.upper}V{axes.lower}" stroke="#555" stroke-dasharray="4 3"/>'
    late = x > WIDTH * 0.8
    return line + _text(x + (-4 if late else 4), y, mark.text, "end" if late else "start")


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="#333">{escape(text)}</text>'
    )
