"""Whether a process does its work, as its own loop says."""

import time
from collections.abc import Callable
from typing import NamedTuple


class State(NamedTuple):
    """Whether a process serves, and a line about it."""

    ready: bool
    text: str


class Health:
    """Whether a process serves. Its loop notes it at each step; any thread may ask.

    A loop that has noted nothing for a while hangs, whatever it noted last.

    Args:
        timeout: Seconds that a step may take.
        clock: Returns seconds; never goes back.

    >>> now = 0.0
    >>> health = Health(timeout=5, clock=lambda: now)
    >>> health.check()
    State(ready=False, text='starting')
    >>> health.serves("partitions 0, 1")
    >>> health.check()
    State(ready=True, text='partitions 0, 1')
    >>> now = 6.0
    >>> health.check()
    State(ready=False, text='no step has ended for 6 s')
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout = timeout
        self._clock = clock
        self._noted = clock(), State(False, "starting")

    def note(self, state: State) -> None:
        """Note what was found at the end of a step."""
        self._noted = self._clock(), state

    def serves(self, text: str) -> None:
        """Note that a step has succeeded."""
        self._noted = self._clock(), State(True, text)

    def fails(self, reason: str) -> None:
        """Note that the process does not serve now."""
        self._noted = self._clock(), State(False, reason)

    def check(self) -> State:
        """Whether the process serves now."""
        at, state = self._noted
        age = self._clock() - at
        if state.ready and age > self._timeout:
            return State(False, f"no step has ended for {age:.0f} s")
        return state
