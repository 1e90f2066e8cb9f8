"""How far the training in the worker process is, for the trainer to show."""

import math
import multiprocessing
from dataclasses import dataclass

from utils.telemetry.live_text import bar

#: The parts of a training, in their order; `train.retrain.train` measures each.
PARTS = ("reading", "adapting", "searching", "fitting", "gate", "publishing")


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        part: One of `PARTS`.
        done: Candidates that the search has tried; 0 outside of a search.
        total: Candidates that it will try; 0 outside of a search.
        best_loss: The lowest loss of a candidate so far, in nats.
    """

    part: str
    done: int = 0
    total: int = 0
    best_loss: float = math.inf

    def in_words(self) -> str:
        """The progress for a reader.

        >>> TrainingProgress("fitting").in_words()
        'fitting'
        >>> TrainingProgress("searching", 6, 10, 0.27123).in_words()
        'searching ██████░░░░ 6/10, best 0.2712'
        >>> TrainingProgress("searching", 10, 10, 0.27123).in_words()
        'searching ██████████ 10/10, validating the best 0.2712'
        """
        if not self.total:
            return self.part
        best = "best" if self.done < self.total else "validating the best"
        best = f", {best} {self.best_loss:.4f}" if math.isfinite(self.best_loss) else ""
        return f"{self.part} {bar(self.done, self.total)} {self.done}/{self.total}{best}"


class SharedProgress:
    """The progress of one process, readable by another; passed to it when it starts.

    It is shared memory without a lock: writing and reading cost nothing, nobody waits for a
    process that was killed, and there is no semaphore to leak. A reader may see a new count
    beside the loss before it, until it looks again.
    """

    def __init__(self) -> None:
        # The number of the part, counted from 1 (0 is none), done, total, the best loss.
        self._cells = multiprocessing.get_context("spawn").RawArray("d", 4)

    def begin(self, part: str) -> None:
        """Note that a part of the training begins."""
        self._cells[1:] = [0.0, 0.0, math.inf]
        self._cells[0] = PARTS.index(part) + 1

    def search(self, done: int, total: int, best_loss: float, /) -> None:
        """Note a candidate that the search has tried; a `train.search.Progress`."""
        self._cells[1:] = [done, total, best_loss]

    def close(self) -> None:
        """Note that no training runs any more."""
        self._cells[:] = [0.0, 0.0, 0.0, math.inf]

    def read(self) -> TrainingProgress | None:
        """The progress; None if no training runs."""
        part, done, total, best_loss = self._cells
        if not part:
            return None
        return TrainingProgress(PARTS[int(part) - 1], int(done), int(total), best_loss)
