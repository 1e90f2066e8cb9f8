"""Live quality: how good the predictions that a model really made turned out to be."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from train.evaluate import metrics
from utils.feature_tools import FeatureTools
from utils.message_store import Counts, Judged


@dataclass(frozen=True)
class Quality:
    """What is known of one model.

    A figure from a few outcomes that happened to come early says little; `missing` and
    its ages show how much is still to come.

    Attributes:
        model_id: The model.
        known: Predictions whose outcome is known.
        missing: Predictions still without one.
        oldest: Seconds since the oldest of the missing; None without any.
        median: Seconds since half of the missing; None without any.
        overall: `train.evaluate.metrics` over all known outcomes.
        last: The same over the last of them.
    """

    model_id: int
    known: int
    missing: int
    oldest: float | None
    median: float | None
    overall: dict[str, float | None]
    last: dict[str, float | None]


def quality(judged: Judged, features: FeatureTools, *, last: int, now: float) -> Quality:
    """The figures of one model.

    Args:
        judged: Its predictions.
        features: Says which class has which code.
        last: How many of the latest predictions `Quality.last` looks at.
        now: Milliseconds since 1970.
    """
    codes = features.encode_target(judged.outcomes)
    probabilities, codes = judged.probabilities[codes >= 0], codes[codes >= 0]
    # A clock that was set back makes no negative ages.
    ages = np.maximum(now - judged.missing_since, 0.0) / 1000
    return Quality(
        judged.model_id,
        len(codes),
        len(ages),
        float(ages.max()) if len(ages) else None,
        float(np.median(ages)) if len(ages) else None,
        metrics(probabilities, codes),
        metrics(probabilities[-last:], codes[-last:]),
    )


def table(figures: list[Quality], last: int) -> Table:
    """The models one above the other, each over all and over its last predictions."""
    shown = Table(caption="calibration: mean gap between probability and frequency (0 is best)")
    for heading in ("model", "over", "predictions", "with outcome", "missing"):
        shown.add_column(heading, justify="left" if heading == "over" else "right")
    for heading in ("oldest", "median", "log loss", "AUC", "accuracy", "calibration"):
        shown.add_column(heading, justify="right")
    for one in figures:
        shown.add_row(
            str(one.model_id),
            "all",
            str(one.known + one.missing),
            str(one.known),
            str(one.missing),
            age(one.oldest),
            age(one.median),
            *_cells(one.overall),
        )
        rows = str(one.last["rows"])
        shown.add_row("", f"last {last}", "", rows, "", "", "", *_cells(one.last), end_section=True)
    return shown


def totals(counts: Counts) -> str:
    """One line about the whole store."""
    return (
        f"{counts.messages} messages, {counts.known_outcomes} of them with an outcome; "
        f"{counts.predictions} predictions; {counts.unmatched_outcomes} outcomes without a "
        f"message, {counts.refused_outcomes} refused (unknown class)"
    )


def age(seconds: float | None) -> str:
    """A duration for the eye.

    >>> [age(seconds) for seconds in (None, 4.2, 130, 9000, 400000)]
    ['', '4 s', '2 min', '2.5 h', '4.6 d']
    """
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86400 else f"{seconds / 86400:.1f} d"


def _cells(figures: dict[str, Any]) -> list[str]:
    names = ("log_loss", "auc", "accuracy", "calibration")
    return ["" if figures[name] is None else f"{figures[name]:.4f}" for name in names]
