"""Limits what repeated work costs, however long one run of it takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Pace:
    """Says when work is due that may take a share of the time at most.

    A second of work on a large database is followed by a pause of 100; a few milliseconds on a
    small one are repeated as often as `least` says.

    Attributes:
        least: Seconds from the end of one run to the next, at least.
        share: The most of the time that the work may take.
        clock: Returns seconds; never goes back.

    >>> now = 0.0
    >>> pace = Pace(1.0, 0.05, clock=lambda: now)
    >>> pace.is_due()
    True
    >>> with pace.run():
    ...     now = 2.0
    >>> now = 39.0
    >>> pace.is_due()
    False
    >>> now = 40.0
    >>> pace.is_due()
    True
    """

    least: float
    share: float = 0.01
    clock: Callable[[], float] = time.monotonic
    _due_at: float = float("-inf")

    def is_due(self) -> bool:
        """Whether the work may run again."""
        return self.clock() >= self._due_at

    @contextmanager
    def run(self) -> Iterator[None]:
        """Measure one run, also one that fails."""
        started = self.clock()
        try:
            yield
        finally:
            ended = self.clock()
            pause = (ended - started) * (1 / self.share - 1)
            self._due_at = ended + max(self.least, pause)
