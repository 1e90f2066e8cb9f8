"""Live quality: how good the predictions that a model really made turned out to be."""

from dataclasses import dataclass

import numpy as np

from train.evaluate import metrics
from utils.feature_tools import FeatureTools
from utils.figures import Metrics
from utils.message_store import Judged


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
    overall: Metrics
    last: Metrics


def measure_quality(judged: Judged, features: FeatureTools, *, last: int, now: float) -> Quality:
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
