"""Metrics of models and of values, in the form of manifests, the history and announcements."""

import math
from collections.abc import Mapping

import msgspec

#: What `Comparison.in_words` says of two models between which it sees no difference.
WITHIN_NOISE = "within noise"


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of predicted probabilities; None if there are no rows, or too few classes.

    Attributes:
        log_loss: The mean log loss in nats.
        auc: Area under the ROC curve; with more than two classes, the mean over each class
            against the rest.
        accuracy: The share of rows whose most likely class is the true one.
        calibration: The expected calibration error.
        rows: The number of rows.
    """

    log_loss: float | None = None
    auc: float | None = None
    accuracy: float | None = None
    calibration: float | None = None
    rows: int = 0


class Comparison(msgspec.Struct, frozen=True):
    """Two models on the same rows.

    Attributes:
        mean_difference: The challenger's mean log loss minus the champion's, in nats.
        standard_error: The standard error of that mean; 0 with fewer than two rows.
        worse: Whether there is evidence that the challenger is worse.
        rows: The number of rows that both have scored.
    """

    mean_difference: float = 0.0
    standard_error: float = 0.0
    worse: bool = False
    rows: int = 0

    def in_words(self) -> str:
        """The result for a reader; a difference within two standard errors is noise.

        >>> Comparison(-0.031, 0.008, rows=500).in_words()
        'better by 0.0310 +- 0.0080'
        >>> Comparison(0.001, 0.008, rows=500).in_words()
        'within noise'
        """
        if self.rows < 2:
            return "not measured"
        if abs(self.mean_difference) <= max(2 * self.standard_error, 5e-5):  # as it is shown
            return WITHIN_NOISE
        side = "worse" if self.mean_difference > 0 else "better"
        return f"{side} by {abs(self.mean_difference):.4f} +- {self.standard_error:.4f}"


class LiveLoss(msgspec.Struct, frozen=True, kw_only=True):
    """The loss of the real predictions whose outcomes came last, and what was to be expected.

    Attributes:
        log_loss: Their mean log loss, in nats.
        standard_error: The standard error of that mean; 0 of a single outcome.
        outcomes: The number of those outcomes.
        expected: The mean of the outcomes before; None if too few came before.
        low: The lower end of the interval in which `log_loss` lies unless the loss has changed;
            None without `expected`.
        high: Its upper end.
    """

    log_loss: float
    standard_error: float
    outcomes: int
    expected: float | None = None
    low: float | None = None
    high: float | None = None


class BothMetrics(msgspec.Struct, frozen=True):
    """A challenger's and the champion's metrics on the same rows; None if unknown."""

    challenger: Metrics | None = None
    champion: Metrics | None = None


def wilson(successes: int, total: int) -> tuple[float, float]:
    """A 95 % confidence interval of a share: the score interval, which also suits few rows.

    E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    Journal of the American Statistical Association 22 (1927), pages 209 to 212.

    Args:
        successes: How many rows have the property, from 0 to `total`.
        total: The number of rows; without any the share may be anything.

    Returns:
        The lower and the upper limit, both from 0 to 1.

    Raises:
        ValueError: There are more successes than rows, or fewer than none.

    >>> [tuple(round(limit, 3) for limit in wilson(*of)) for of in ((0, 0), (0, 10), (8, 10))]
    [(0.0, 1.0), (0.0, 0.278), (0.49, 0.943)]
    """
    if not 0 <= successes <= total:
        raise ValueError(f"{successes} of {total} is no share")
    if total == 0:
        return 0.0, 1.0
    share, spread = successes / total, 1.959964**2 / total  # the normal distribution's 97.5 %
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    # Rounding errors may lie beyond the limits.
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (0.0 if successes == 0 else low), (1.0 if successes == total else high)


class ValueShares(msgspec.Struct, frozen=True, kw_only=True):
    """How many of the values of each column are not what the model was trained on.

    Attributes:
        rows: The number of messages.
        missing: The share of values that are missing, by column; columns without one are left
            out, here and below.
        unknown: The share of categories that training did not see.
        lenient: The share of values that are written in another way than in the data set.
        other: The share of categories that are none of those that were learnt one by one, in a
            column of which only the most frequent ones were.
    """

    rows: int = 0
    missing: Mapping[str, float] = msgspec.field(default_factory=dict)
    unknown: Mapping[str, float] = msgspec.field(default_factory=dict)
    lenient: Mapping[str, float] = msgspec.field(default_factory=dict)
    other: Mapping[str, float] = msgspec.field(default_factory=dict)
