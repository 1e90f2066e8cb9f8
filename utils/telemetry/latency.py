"""Counts latencies by size, at a cost that is small beside scoring a message."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from utils.messages import OLDEST_MS

#: The upper bounds of the classes, in milliseconds; the last class has none. Up to 100 s
#: neighbours differ by a factor of 1.7 at most, and so does an estimated percentile from the true
#: one.
BOUNDS_MS = np.array(
    [step * 10**power for power in range(5) for step in (1, 1.5, 2, 3, 5, 7)] + [1e5, 1e6, 1e7]
)
_BOUNDS: list[float] = BOUNDS_MS.tolist()
#: From so many latencies on, NumPy is faster than a loop.
LARGE = 250


@dataclass(frozen=True)
class Histogram:
    """Latencies by class.

    Attributes:
        counts: (bounds + 1,), the number of latencies up to each bound and above the one before;
            the last of those above all bounds.
        total_ms: Their sum, in milliseconds.
    """

    counts: npt.NDArray[np.int64]
    total_ms: float

    @property
    def count(self) -> int:
        """The number of latencies."""
        return int(self.counts.sum())

    def percentile(self, share: float) -> float | None:
        """An estimate of a percentile, in milliseconds; None without latencies.

        Args:
            share: Between 0 and 1. What lies above all bounds counts as the last bound.
        """
        reached = np.cumsum(self.counts)
        if not reached[-1]:
            return None
        wanted = max(share * reached[-1], 1e-9)
        place = int(np.searchsorted(reached, wanted))
        if place == len(BOUNDS_MS):
            return float(BOUNDS_MS[-1])
        low = BOUNDS_MS[place - 1] if place else 0.0
        part = 1.0 - (reached[place] - wanted) / self.counts[place]
        return float(low + part * (BOUNDS_MS[place] - low))

    def since(self, before: "Histogram") -> "Histogram":
        """What has come since an earlier state."""
        return Histogram(self.counts - before.counts, self.total_ms - before.total_ms)


class Latencies:
    """A histogram of latencies that grows; one thread adds, any may look.

    >>> latencies = Latencies()
    >>> now = 1_700_000_000_000
    >>> latencies.observe([now - 4, now - 40, 0, now + 60_000], now)
    >>> latencies.now().count, latencies.undated
    (2, 2)

    Attributes:
        undated: The number of timestamps that made no sense: before the year 2000, so unset or
            in another unit, or in the future.
    """

    def __init__(self) -> None:
        self.undated = 0
        # Replaced as a whole: who looks meanwhile sees the state before or the one after.
        self._now: tuple[list[int], float] = [0] * (len(_BOUNDS) + 1), 0.0

    def observe(self, timestamps_ms: Sequence[int], now_ms: float) -> None:
        """Add the time from each timestamp until now.

        Args:
            timestamps_ms: In milliseconds since 1970.
            now_ms: The same.
        """
        longest = now_ms - OLDEST_MS
        if len(timestamps_ms) < LARGE:
            latencies = [now_ms - timestamp for timestamp in timestamps_ms]
            found = [latency for latency in latencies if 0 <= latency <= longest]
            self.undated += len(latencies) - len(found)
            self._add_few(found)
        else:
            ascending = now_ms - np.array(timestamps_ms, dtype=np.int64)
            ascending.sort()  # after it, two binary searches find what makes no sense
            first = np.searchsorted(ascending, 0.0, side="left")
            last = np.searchsorted(ascending, longest, side="right")
            self.undated += len(ascending) - int(last - first)
            self._add_many(ascending[first:last])

    def add(self, latencies_ms: Sequence[float]) -> None:
        """Add latencies that were measured, in milliseconds."""
        if len(latencies_ms) < LARGE:
            self._add_few(latencies_ms)
        else:
            self._add_many(np.sort(latencies_ms))

    def _add_few(self, latencies: Sequence[float]) -> None:
        counts, total = self._now
        counts = counts.copy()
        for latency in latencies:
            counts[bisect_left(_BOUNDS, latency)] += 1
        self._now = counts, total + sum(latencies)

    def _add_many(self, ascending: npt.NDArray[np.floating]) -> None:
        reached = np.searchsorted(ascending, BOUNDS_MS, side="right")
        new = np.diff(reached, prepend=0, append=len(ascending))
        counts, total = self._now
        self._now = (new + counts).tolist(), total + float(ascending.sum())

    def now(self) -> Histogram:
        """The latencies so far."""
        counts, total = self._now
        return Histogram(np.array(counts), total)
