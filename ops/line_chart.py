"""Draws lines over a common axis as an SVG file."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

from utils.feature_tools import Matrix

WIDTH, HEIGHT = 900, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 64, 48
COLOURS = ("#0b6e4f", "#999999", "#c8553d", "#3d5a80")
#: The most points of a line; more would not be visible.
MOST_POINTS = 900
TICKS = 5


@dataclass(frozen=True)
class Line:
    """A line: its name, and its values at x = 0, 1, ...; NaN where there is none."""

    name: str
    values: Matrix


@dataclass(frozen=True)
class Mark:
    """A vertical line with a text at x."""

    at: int
    text: str


def draw(
    title: str, x_name: str, y_name: str, lines: Sequence[Line], marks: Sequence[Mark] = ()
) -> str:
    """The text of an SVG file with some lines."""
    count = max(len(line.values) for line in lines)
    known = np.concatenate([line.values[~np.isnan(line.values)] for line in lines])
    axes = _Axes(max(count - 1, 1), float(known.max(initial=0.0)) * 1.05 or 1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 20, title, "start", size=15),
        *axes.grid(),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_name),
        _text(LEFT, TOP - 8, y_name, "start"),
        *(_drawn_mark(mark, axes, place) for place, mark in enumerate(marks)),
    ]
    for place, line in enumerate(lines):
        colour = COLOURS[place % len(COLOURS)]
        parts += axes.curve(line.values, colour)
        x = LEFT + 180 * place
        parts.append(f'<path d="M{x} 36h24" stroke="{colour}" stroke-width="3"/>')
        parts.append(_text(x + 30, 40, line.name, "start"))
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True)
class _Axes:
    """The ranges of both axes, which begin with 0."""

    last: int
    top: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.last

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top

    def grid(self) -> list[str]:
        parts = []
        for value in _ticks(self.top):
            y = self.y(value)
            parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>')
            parts.append(_text(LEFT - 8, y + 4, f"{value:g}", "end"))
        for value in _ticks(self.last):
            parts.append(_text(self.x(value), HEIGHT - BOTTOM + 18, f"{value:,.0f}"))
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
    x, y = axes.x(mark.at), TOP + 12 + 14 * (place % 4)
    line = f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#555" stroke-dasharray="4 3"/>'
    late = x > WIDTH * 0.8
    return line + _text(x + (-4 if late else 4), y, mark.text, "end" if late else "start")


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="#333">{escape(text)}</text>'
    )
