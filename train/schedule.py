"""Decides when the trainer reads the log, trains, and reviews the newer outcomes.

A review looks whether the live loss rises (`live.look`) and whether the inputs move
(`live_inputs.look`), and compares the serving model with its parent (`retrain.judge`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds between two reads of the log during a training. Each read is a transaction of the
#: store, and takes processor time from the training and from the predictors.
READ_SECONDS = 0.5
#: After a read of at least this many records the log is read again at once: there is more to read.
LARGE_READ = 1_000
#: Seconds from a failed training to the next try. They double with each further failure, because
#: what fails for a lasting reason costs a whole training each time.
RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 3600.0
#: New outcomes after which the serving model is judged again.
JUDGE_EVERY = 50
#: New outcomes after which it is judged even though a training is requested: where trainings
#: follow each other without a pause, it would never be.
JUDGE_AT_LAST = 10 * JUDGE_EVERY
#: Seconds by which a judgement is delayed. Its outcomes often complete a retrain request as
#: well, and that training should not find the worker busy.
JUDGE_DELAY = 0.5
#: Seconds between two looks at the age of the newest training, which read the history.
AGE_SECONDS = 1.0


@dataclass
class Schedule:
    """The trainer's schedule.

    >>> now = 0.0
    >>> schedule = Schedule(clock=lambda: now)
    >>> schedule.may_train()
    True
    >>> schedule.training_failed()
    5.0
    >>> schedule.may_train()
    False
    >>> now = 5.0
    >>> schedule.may_train()
    True

    Attributes:
        clock: Returns seconds; never goes back.
    """

    clock: Callable[[], float] = time.monotonic
    _train_from: float = 0.0
    _retry_seconds: float = RETRY_SECONDS
    _read_from: float = 0.0
    _judged_outcomes: int = 0
    _judge_from: float | None = None
    _age_from: float = 0.0

    def may_train(self) -> bool:
        """Whether the pause after a failed training is over."""
        return self.clock() >= self._train_from

    def training_failed(self) -> float:
        """Record that the training failed: the next try is delayed.

        Returns:
            Seconds until then.
        """
        delay = self._retry_seconds
        self._train_from = self.clock() + delay
        self._retry_seconds = min(2 * delay, LONGEST_RETRY_SECONDS)
        return delay

    def forget_failures(self) -> None:
        """Record that a training may succeed: the next one is not delayed."""
        self._train_from, self._retry_seconds = 0.0, RETRY_SECONDS

    def may_read(self, *, training: bool) -> bool:
        """Whether the log may be read now; during a training it is read less often."""
        return not training or self.clock() >= self._read_from

    def log_read(self, records: int) -> None:
        """Record a read of the log and its number of records."""
        if records < LARGE_READ:
            self._read_from = self.clock() + READ_SECONDS

    def judgement_due(self, outcomes: int, *, requested: bool = False) -> bool:
        """Whether it is time to judge the serving model.

        Args:
            outcomes: Number of known outcomes that the trainer has read so far.
            requested: Whether a training is requested, which mostly goes first.
        """
        if requested:
            return outcomes - self._judged_outcomes >= JUDGE_AT_LAST
        if outcomes - self._judged_outcomes < JUDGE_EVERY:
            return False
        if self._judge_from is None:
            self._judge_from = self.clock() + JUDGE_DELAY
        return self.clock() >= self._judge_from

    def judgement_started(self, outcomes: int) -> None:
        """Record that a judgement began, and the number of known outcomes."""
        self._judged_outcomes, self._judge_from = outcomes, None

    def may_look_at_age(self) -> bool:
        """Whether to look at the age of the newest training; then not again for a moment."""
        now = self.clock()
        if now < self._age_from:
            return False
        self._age_from = now + AGE_SECONDS
        return True
