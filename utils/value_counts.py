"""Counts the values of messages that the model was not trained on as they are, by column."""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from utils.feature_tools import FeatureTools, ValueTally
from utils.metrics import ValueShares
from utils.values import CategoryColumn

#: The kinds of values that are counted, in the order of a tally's rows.
KINDS = ("missing", "unknown", "lenient", "other")
#: What a line for the user calls them.
SHOWN = {
    "missing": "missing",
    "unknown": "unknown",
    "lenient": "leniently read",
    "other": "scored as other",
}
#: How many messages "the last" are.
WINDOW = 1_000
#: A share is compared after this many further messages.
CHECK_EVERY = 20
#: A share has jumped if it changes by more than this, and by more than chance explains.
LEAST_JUMP = 0.05
STANDARD_ERRORS = 4.0
#: How many columns a line names.
NAMED = 5


class ValueCounts:
    """The counts since the start and over the last messages.

    Args:
        features: The preprocessor, which knows the columns and their shares in training.
        window: How many messages "the last" are; a batch counts as a whole.
    """

    def __init__(self, features: FeatureTools, window: int = WINDOW) -> None:
        self.columns = features.columns
        self.rows = 0
        self.total = new_tally(features)
        self._window = window
        self._batches: deque[tuple[int, ValueTally]] = deque()
        self._last_rows = 0
        self._last = new_tally(features)
        self._unchecked = 0
        self._reference = np.zeros(self.total.shape)
        columns = [features.column(name) for name in self.columns]
        self._reference[0] = [column.missing_share for column in columns]
        self._reference[3] = [
            column.other_share or 0.0 if isinstance(column, CategoryColumn) else 0.0
            for column in columns
        ]

    def add(self, rows: int, tally: ValueTally) -> None:
        """Add the values of some messages.

        Args:
            rows: The number of messages.
            tally: (kinds, columns), as `FeatureTools.transform_rows` fills it.
        """
        self.rows += rows
        self.total += tally
        self._batches.append((rows, tally))
        self._last_rows += rows
        self._last += tally
        while self._last_rows - self._batches[0][0] >= self._window:
            old_rows, old = self._batches.popleft()
            self._last_rows -= old_rows
            self._last -= old
        self._unchecked += rows

    def since_start(self) -> ValueShares:
        """The shares since the start."""
        return shares(self.rows, self.total, self.columns)

    def of_the_last(self) -> ValueShares:
        """The shares over the last messages."""
        return shares(self._last_rows, self._last, self.columns)

    def jumps(self) -> list[str]:
        """A line of text for each kind of which a column's share has jumped.

        A share is compared with the one that was reported last, at first with that in training.
        """
        if self._unchecked < CHECK_EVERY:
            return []
        self._unchecked = 0
        now = self._last / self._last_rows
        pooled = np.clip((now + self._reference) / 2, 0.01, 0.99)
        chance = STANDARD_ERRORS * np.sqrt(pooled * (1 - pooled) / self._last_rows)
        jumped = np.abs(now - self._reference) > LEAST_JUMP + chance
        lines = [
            f"values {SHOWN[kind]} in the last {self._last_rows:,} messages: "
            + named([self._change(k, c, now[k, c]) for c in np.flatnonzero(jumped[k]).tolist()])
            for k, kind in enumerate(KINDS)
            if jumped[k].any()
        ]
        self._reference[jumped] = now[jumped]
        return lines

    def _change(self, kind: int, place: int, now: float) -> str:
        before = _percent(self._reference[kind, place])
        return f"{self.columns[place]} {_percent(now)} ({before} before)"


class ValueTotals:
    """The counts by column since the start, whatever models with other columns come and go.

    One thread adds, any may look. A column that no model has any more keeps its counts.

    >>> totals = ValueTotals()
    >>> totals.add(("age", "race"), np.array([[1, 0], [0, 0], [0, 2], [0, 0]]))
    >>> totals.add(("age",), np.array([[1], [0], [0], [0]]))
    >>> totals.by_column("missing"), totals.by_column("lenient")
    ({'age': 2, 'race': 0}, {'age': 0, 'race': 2})
    """

    def __init__(self) -> None:
        # Replaced as a whole when the columns change, so that nobody sees half of a change.
        self._state: tuple[dict[str, ValueTally], Sequence[str], ValueTally] = (
            {},
            (),
            np.zeros((len(KINDS), 0), dtype=np.int64),
        )

    def add(self, columns: Sequence[str], tally: ValueTally) -> None:
        """Add a tally of some messages, (kinds, columns)."""
        former, current, total = self._state
        if current != columns:
            self._state = _add_columns(former, current, total), columns, tally.copy()
        else:
            total += tally

    def by_column(self, kind: str) -> dict[str, int]:
        """How many values of a kind there were in each column."""
        former, columns, total = self._state
        row = KINDS.index(kind)
        return {
            name: int(counts[row]) for name, counts in _add_columns(former, columns, total).items()
        }


def _add_columns(
    former: Mapping[str, ValueTally], columns: Sequence[str], total: ValueTally
) -> dict[str, ValueTally]:
    found = dict(former)
    for name, counts in zip(columns, total.T, strict=True):
        found[name] = found[name] + counts if name in found else counts.copy()
    return found


def shares(rows: int, tally: ValueTally, columns: Sequence[str]) -> ValueShares:
    """A tally as shares of the messages."""
    found: dict[str, Mapping[str, float]] = {
        kind: {
            name: round(float(count) / rows, 6)
            for name, count in zip(columns, tally[k], strict=True)
            if count
        }
        for k, kind in enumerate(KINDS)
    }
    return ValueShares(rows=rows, **found)  # type: ignore[arg-type]


def describe(found: ValueShares) -> str:
    """The shares on one line; empty if there are none.

    >>> describe(ValueShares(rows=200, missing={"age": 0.25}))
    'missing: age 25 %'
    """
    texts = []
    for kind in KINDS:
        ranked = sorted(getattr(found, kind).items(), key=lambda item: -item[1])
        if ranked:
            texts.append(f"{SHOWN[kind]}: " + named([f"{n} {_percent(s)}" for n, s in ranked]))
    return "; ".join(texts)


def named(texts: Sequence[str]) -> str:
    """The first texts, and how many more there are."""
    more = len(texts) - NAMED
    return ", ".join(texts[:NAMED]) + (f" and {more} more columns" if more > 0 else "")


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def new_tally(features: FeatureTools) -> ValueTally:
    """Zeros, (kinds, columns)."""
    return np.zeros((len(KINDS), len(features.columns)), dtype=np.int64)
