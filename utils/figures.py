"""The figures that models are judged by, as manifests, the history and announcements hold them."""

import msgspec


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """How good probabilities are; a figure is None where no row, or only one class, was seen.

    Attributes:
        log_loss: In nats, the mean over the rows.
        auc: Area under the ROC curve; of several classes the mean over each against the rest.
        accuracy: Share of the rows whose likeliest class is the true one.
        calibration: Expected calibration error.
        rows: How many rows were looked at.
    """

    log_loss: float | None = None
    auc: float | None = None
    accuracy: float | None = None
    calibration: float | None = None
    rows: int = 0


class Comparison(msgspec.Struct, frozen=True):
    """Two models on the same rows.

    Attributes:
        mean_difference: Challenger's mean log loss minus the champion's, in nats.
        standard_error: Of that mean; 0 with fewer than two rows.
        worse: Whether the challenger is worse by more than one standard error.
        rows: How many rows both have scored.
    """

    mean_difference: float = 0.0
    standard_error: float = 0.0
    worse: bool = False
    rows: int = 0


class BothMetrics(msgspec.Struct, frozen=True):
    """A challenger's metrics and those of the champion on the same rows; None if unknown."""

    challenger: Metrics | None = None
    champion: Metrics | None = None
