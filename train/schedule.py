"""When the trainer reads the log, trains and judges; apart from how it does so."""

import time
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds between two reads of the log during a training: each read is a transaction of the
#: store, and takes processor time from the training and from the predictors.
READ_SECONDS = 0.5
#: A read of at least this many records is followed by another at once: there are more.
LARGE_READ = 1_000
#: Seconds from a failed training to the next try.
RETRY_SECONDS = 5.0
#: New outcomes after which the serving model is judged again.
JUDGE_EVERY = 50
#: Seconds by which a judgement is delayed. Its outcomes often complete a retrain request as
#: well, and that training should not find the worker busy.
JUDGE_DELAY = 0.5


@dataclass
class Schedule:
    """The trainer's times.

    >>> now = 0.0
    >>> schedule = Schedule(clock=lambda: now)
    >>> schedule.request_arrived()
    >>> now = 3.0
    >>> schedule.may_train(), schedule.training_started()
    (True, 3.0)
    >>> schedule.training_failed()
    >>> schedule.may_train()
    False
    >>> now = 8.0
    >>> schedule.may_train(), schedule.training_started()
    (True, 8.0)

    Attributes:
        clock: Gives seconds; never goes back.
    """

    clock: Callable[[], float] = time.monotonic
    _waiting_since: float | None = None
    _trained_since: float | None = None
    _train_from: float = 0.0
    _read_from: float = 0.0
    _judged_outcomes: int = 0
    _judge_from: float | None = None

    def request_arrived(self) -> None:
        """Note a request; the oldest one that waits counts."""
        if self._waiting_since is None:
            self._waiting_since = self.clock()

    def may_train(self) -> bool:
        """Whether the pause after a failed training is over."""
        return self.clock() >= self._train_from

    def training_started(self) -> float:
        """Note a training of all that waits; returns the seconds that the oldest waited."""
        now = self.clock()
        self._trained_since, self._waiting_since = self._waiting_since, None
        return 0.0 if self._trained_since is None else now - self._trained_since

    def training_failed(self) -> None:
        """Note that the requests of the last training wait on, and pause."""
        self._waiting_since = self._trained_since
        self._train_from = self.clock() + RETRY_SECONDS

    def may_read(self, *, training: bool) -> bool:
        """Whether the log may be read now: always, but only now and then during a training."""
        return not training or self.clock() >= self._read_from

    def log_read(self, records: int) -> None:
        """Note a read of the log and how many records it brought."""
        if records < LARGE_READ:
            self._read_from = self.clock() + READ_SECONDS

    def judgement_due(self, outcomes: int) -> bool:
        """Whether the serving model is to be judged now.

        Args:
            outcomes: Known outcomes that the trainer has read so far.
        """
        if outcomes - self._judged_outcomes < JUDGE_EVERY:
            return False
        if self._judge_from is None:
            self._judge_from = self.clock() + JUDGE_DELAY
        return self.clock() >= self._judge_from

    def judgement_started(self, outcomes: int) -> None:
        """Note a judgement, and how many outcomes there were."""
        self._judged_outcomes, self._judge_from = outcomes, None
