"""What both watches of Kafka keep of an error."""

import time
from dataclasses import dataclass, replace
from typing import Self

from utils.errors import one_line


@dataclass(frozen=True)
class Snapshot:
    """What was seen last, and whether it can be seen now.

    Attributes:
        error: Why it cannot be looked at now; empty while the broker answers.
        failed_at: Since when, in seconds since 1970.
    """

    error: str = ""
    failed_at: float = 0.0

    def failed(self, error: Exception) -> Self:
        """The same figures with an error; the time is that of the first of several."""
        since = self.failed_at if self.error else time.time()
        return replace(self, error=one_line(error), failed_at=since)
