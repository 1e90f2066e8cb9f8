"""Detects that the loss of the predictions has risen, one outcome at a time."""

import math

import msgspec

#: How much of its stake each bet risks: small bets find small rises, large ones find large
#: rises within a few outcomes.
BETS = (0.05, 0.1, 0.2, 0.4, 0.8)
#: The average number of outcomes from one false alarm to the next is at least this.
RUN_LENGTH = 20_000
#: One outcome counts at most this many nats, so that a single one cannot raise the alarm.
MAX_LOSS = 4.0
#: No alarm before so many outcomes have given a first estimate of the expected loss. With 100
#: outcomes its standard error on Adult is 0.05 nats.
WARM_UP = 100
#: A rise by less than this share of the expected loss is no drift. It also covers the error of
#: the estimate: without it Adult gives 0.5 false alarms in 20,000 outcomes, with it 0.2.
SLACK = 0.05
#: The bet that finds where a rise began.
CUSUM_BET = 0.2
#: A mean loss below this, of a model that is almost always sure and right, counts as this: else
#: a single surprise among such would be a rise by a factor of thousands.
LEAST = 0.01


class Losses(msgspec.Struct):
    """The number of losses and their sum."""

    count: int = 0
    total: float = 0.0

    def add(self, loss: float) -> None:
        """Add a loss."""
        self.count += 1
        self.total += loss


class LossDrift(msgspec.Struct, kw_only=True):
    """An e-detector for a rise of the mean loss.

    The expected loss is the mean since the start or the last alarm, plus a slack. Each bet
    multiplies its money by 1 + bet * (loss / expected - 1): on average by no more than 1, unless
    the loss has risen. A stake of 1 joins the money before each outcome (a Shiryaev-Roberts
    sum), and the alarm is raised when the bets have `RUN_LENGTH` on average. So many outcomes
    pass from one false alarm to the next, on average and at least, whatever the distribution.

    A lower loss raises no alarm. After an alarm the detector starts again.

    >>> import random
    >>> draw = random.Random(1)
    >>> drift = LossDrift()
    >>> any(drift.update(draw.expovariate(1 / 0.3)) for _ in range(2_000))
    False
    >>> next(n for n in range(1, 1_000) if drift.update(draw.expovariate(1 / 0.6)))
    62
    >>> print(f"{drift.recent:.2f} over the last {drift.outcomes}, {drift.expected:.2f} expected")
    0.54 over the last 64, 0.30 expected

    Attributes:
        expected: The mean loss before the last alarm's rise.
        recent: The mean loss since that rise began.
        outcomes: The number of outcomes since then.

    References:
        Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change
        detection", The New England Journal of Statistics in Data Science 2(2), 2024.
    """

    expected: float = 0.0
    recent: float = 0.0
    outcomes: int = 0
    _all: Losses = msgspec.field(default_factory=Losses)
    _risen: Losses = msgspec.field(default_factory=Losses)
    _cusum: float = 0.0
    _money: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(BETS))

    @property
    def usual(self) -> tuple[float, int]:
        """The mean loss since the start or the last alarm, in nats, and of how many outcomes."""
        return self._all.total / max(self._all.count, 1), self._all.count

    def update(self, loss: float) -> bool:
        """Take the loss of one prediction, in nats; returns whether this raises the alarm."""
        loss = min(loss, MAX_LOSS)
        alarm = self._all.count >= WARM_UP and self._bet(loss)
        self._all.add(loss)
        if alarm:
            self._restart()
        return alarm

    def _bet(self, loss: float) -> bool:
        limit = max(self._all.total / self._all.count, LEAST) * (1.0 + SLACK)
        rise = loss / limit - 1.0
        self._money = [
            (money + 1.0) * (1.0 + bet * rise) for money, bet in zip(self._money, BETS, strict=True)
        ]
        # Where the rise began is where this sum (Page's CUSUM) was last at zero.
        self._cusum = max(self._cusum + math.log1p(CUSUM_BET * rise), 0.0)
        if self._cusum == 0.0:
            self._risen = Losses()
        else:
            self._risen.add(loss)
        return sum(self._money) >= RUN_LENGTH * len(BETS)

    def _restart(self) -> None:
        before = self._all.count - self._risen.count
        self.expected = (self._all.total - self._risen.total) / before
        self.recent = self._risen.total / max(self._risen.count, 1)
        self.outcomes = self._risen.count
        self._all, self._risen, self._cusum = Losses(), Losses(), 0.0
        self._money = [0.0] * len(BETS)


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """A rise of the loss that asks for a retraining.

    Attributes:
        batch_id: The id of its retrain request.
        at: The number of outcomes when it was raised.
        log_loss: The mean loss since the rise began, in nats.
        expected: The mean loss before.
        outcomes: The number of outcomes since the rise began.
    """

    batch_id: str
    at: int
    log_loss: float
    expected: float
    outcomes: int

    def __str__(self) -> str:
        return (
            f"log loss {self.log_loss:.2f} over the last {self.outcomes} outcomes, "
            f"{self.expected:.2f} expected"
        )
