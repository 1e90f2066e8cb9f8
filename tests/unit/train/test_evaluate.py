"""Metrics and the paired comparison."""

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from train import evaluate
from utils.metrics import Metrics


def test_metrics_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 2, 500)
    scores = np.clip(codes * 0.3 + rng.random(500) * 0.7, 0, 1).round(2)  # with ties
    found = evaluate.metrics(scores, codes)
    assert found.log_loss == pytest.approx(log_loss(codes, np.clip(scores, 1e-15, 1 - 1e-15)))
    assert found.auc == pytest.approx(roc_auc_score(codes, scores))
    assert found.accuracy == ((scores > 0.5) == codes).mean()

    several = rng.integers(0, 3, 500)
    table = rng.dirichlet([1, 1, 1], 500) * 0.5 + np.eye(3)[several] * 0.5
    found = evaluate.metrics(table, several)
    assert found.log_loss == pytest.approx(log_loss(several, table))
    assert found.auc == pytest.approx(roc_auc_score(several, table, multi_class="ovr"))
    assert found.accuracy == (table.argmax(axis=1) == several).mean()


def test_calibration_error_measures_overconfidence() -> None:
    rng = np.random.default_rng(4)
    probabilities = rng.random(100_000)
    outcomes = (rng.random(100_000) < probabilities).astype(int)
    extreme = np.where(probabilities > 0.5, 0.99, 0.01)
    calibrated = evaluate.metrics(probabilities, outcomes).calibration
    overconfident = evaluate.metrics(extreme, outcomes).calibration
    assert calibrated is not None
    assert overconfident is not None
    assert calibrated < 0.01
    assert overconfident == pytest.approx(0.24, abs=0.01)
    assert evaluate.metrics(np.array([1.0, 0.0]), np.array([1, 0])).calibration == 0


def test_metrics_of_empty_and_one_sided_data() -> None:
    none = evaluate.metrics(np.empty(0), np.empty(0, dtype=np.int64))
    assert none == Metrics(log_loss=None, auc=None, accuracy=None, calibration=None, rows=0)
    one = evaluate.metrics(np.array([0.0, 1.0]), np.array([1, 1]))
    assert one.auc is None
    assert one.log_loss == pytest.approx(-math.log(1e-15) / 2)
    several = evaluate.metrics(np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]), np.array([2, 0]))
    assert several.auc == 1
    with pytest.raises(ValueError, match="no class"):
        evaluate.row_losses(np.array([0.5]), np.array([-1]))
