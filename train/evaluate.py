"""Metrics of predicted probabilities."""

import numpy as np
import numpy.typing as npt

from utils.feature_tools import IntegerCodes, Matrix
from utils.metrics import Comparison, Metrics
from utils.model_store import predicted_codes


def row_losses(probabilities: Matrix, codes: IntegerCodes) -> Matrix:
    """Each row's log loss in nats: minus the log of the probability of its class.

    Args:
        probabilities: (rows,) of class 1, or (rows, classes).
        codes: (rows,), the true classes.

    Returns:
        (rows,); a probability below 1e-15 counts as 1e-15.

    Raises:
        ValueError: A code belongs to no class.
    """
    table = _by_class(probabilities)
    if len(codes) and not 0 <= codes.min() <= codes.max() < table.shape[1]:
        raise ValueError("a code belongs to no class")
    given = table[np.arange(len(codes)), codes]
    losses: Matrix = -np.log(np.clip(given, 1e-15, 1.0))
    return losses


def comparison(differences: Matrix, *, worse: bool = False) -> Comparison:
    """Summarise differences of losses of the same rows, (rows,), in nats."""
    rows = len(differences)
    mean = float(differences.mean()) if rows else 0.0
    error = float(differences.std(ddof=1)) / rows**0.5 if rows > 1 else 0.0
    return Comparison(mean, error, worse=worse, rows=rows)


def metrics(probabilities: Matrix, codes: IntegerCodes) -> Metrics:
    """Compute the metrics of predictions; without rows, all but `rows` are None.

    Args:
        probabilities: (rows,) of class 1, or (rows, classes).
        codes: (rows,), the true classes.
    """
    if len(codes) == 0:
        return Metrics()
    return Metrics(
        log_loss=float(row_losses(probabilities, codes).mean()),
        auc=_auc(probabilities, codes),
        accuracy=float((predicted_codes(probabilities) == codes).mean()),
        calibration=_calibration(probabilities, codes),
        rows=len(codes),
    )


def _by_class(probabilities: Matrix) -> Matrix:
    if probabilities.ndim == 1:
        return np.stack([1.0 - probabilities, probabilities], axis=1)
    return probabilities


def _auc(probabilities: Matrix, codes: IntegerCodes) -> float | None:
    occurring = np.unique(codes)
    if len(occurring) < 2:
        return None
    if probabilities.ndim == 1:
        return area_under_curve(probabilities, codes == 1)
    return float(
        np.mean([area_under_curve(probabilities[:, code], codes == code) for code in occurring])
    )


def area_under_curve(scores: Matrix, positive: npt.NDArray[np.bool_]) -> float:
    """How often a positive row scores higher than a negative one; a tie counts half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # from 1, ties share their mean
    positives = int(positive.sum())
    above = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(scores) - positives)))


def _calibration(probabilities: Matrix, codes: IntegerCodes) -> float:
    """Expected calibration error over ten bins of equal width.

    With two classes, of the positive class: Naeini, Cooper and Hauskrecht, "Obtaining Well
    Calibrated Probabilities Using Bayesian Binning", AAAI 2015. With more classes, of the
    most likely one: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    if probabilities.ndim == 1:
        predicted, observed = probabilities, codes == 1
    else:
        predicted, observed = probabilities.max(axis=1), predicted_codes(probabilities) == codes
    bins = np.minimum((predicted * 10).astype(np.int64), 9)
    gaps = np.bincount(bins, weights=observed - predicted, minlength=10)
    return float(np.abs(gaps).sum() / len(predicted))
