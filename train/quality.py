"""Live quality: the metrics of a model's real predictions, once their outcomes are known."""

from dataclasses import dataclass

import numpy as np

from train.evaluate import metrics
from utils.feature_tools import FeatureTools
from utils.message_store import ModelPredictions
from utils.metrics import Metrics


@dataclass(frozen=True)
class Quality:
    """The live quality of one model.

    Metrics of a few early outcomes say little; `missing`, `oldest` and `median` show how
    many outcomes are still to come, and how long they have been missing.

    Attributes:
        model_id: The model.
        known: Number of predictions with a known outcome.
        missing: Number of predictions without one.
        oldest: Age of the oldest prediction without an outcome, in seconds, or None.
        median: Median age of the predictions without an outcome, in seconds, or None.
        overall: The metrics over all known outcomes.
        last: The metrics over the latest of them.
    """

    model_id: int
    known: int
    missing: int
    oldest: float | None
    median: float | None
    overall: Metrics
    last: Metrics


def measure_quality(
    judged: ModelPredictions, features: FeatureTools, *, last: int, now: float
) -> Quality:
    """Compute the live quality of one model.

    Args:
        judged: The model's predictions and their outcomes.
        features: The preprocessor, which encodes the classes.
        last: How many of the latest predictions `Quality.last` covers.
        now: Milliseconds since 1970.
    """
    codes = features.encode_target(judged.outcomes)
    probabilities, codes = judged.probabilities[codes >= 0], codes[codes >= 0]
    # No age is negative, even if the clock was set back.
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
