"""The detector of a higher loss: its false alarms and its delays."""

import numpy as np

from train.drift import RUN_LENGTH, WARM_UP, LossDrift
from utils.feature_tools import Matrix

#: Streams of a length of RUN_LENGTH; more than so many false alarms are too many.
STREAMS = 10


def calibrated_losses(rng: np.random.Generator, rows: int, *, swapped: bool = False) -> Matrix:
    """Losses of a model about as good as one on Adult (mean 0.27 nats) that knows its chances."""
    chances = rng.beta(0.25, 0.75, rows)
    hits = rng.random(rows) < chances
    if swapped:
        hits = ~hits
    losses: Matrix = -np.log(np.clip(np.where(hits, chances, 1 - chances), 1e-15, 1.0))
    return losses


def first_alarm(drift: LossDrift, losses: Matrix) -> int | None:
    return next((n for n, loss in enumerate(losses.tolist(), 1) if drift.update(loss)), None)


def test_no_more_than_one_false_alarm_in_a_run_length() -> None:
    alarms = 0
    for seed in range(STREAMS):
        drift = LossDrift()
        losses = calibrated_losses(np.random.default_rng(seed), RUN_LENGTH)
        alarms += sum(map(drift.update, losses.tolist()))
    assert alarms <= STREAMS


def test_swapped_labels_are_found_within_twenty_outcomes() -> None:
    for seed in range(20):
        rng, drift = np.random.default_rng(seed), LossDrift()
        assert first_alarm(drift, calibrated_losses(rng, 500)) is None
        found = first_alarm(drift, calibrated_losses(rng, 100, swapped=True))
        assert found is not None and found <= 20
        assert 0.15 < drift.expected < 0.45 and drift.recent > 2 * drift.expected
        assert found - 5 <= drift.outcomes <= found + 100


def test_some_more_wrong_predictions_are_found() -> None:
    """Accuracy falls by about five points."""
    found = []
    for seed in range(10):
        rng, drift = np.random.default_rng(seed), LossDrift()
        first_alarm(drift, calibrated_losses(rng, 3_000))
        wrong = rng.random(5_000) < 0.07
        losses = np.where(
            wrong,
            calibrated_losses(rng, 5_000, swapped=True),
            calibrated_losses(rng, 5_000),
        )
        found.append(first_alarm(drift, losses) or 5_000)
    assert np.median(found) < 500


def test_lower_loss_is_no_alarm() -> None:
    drift, rng = LossDrift(), np.random.default_rng(1)
    first_alarm(drift, calibrated_losses(rng, 1_000, swapped=True))
    assert first_alarm(drift, calibrated_losses(rng, 5_000)) is None


def test_there_is_no_alarm_before_the_first_estimate() -> None:
    assert first_alarm(LossDrift(), np.array([0.01] * 10 + [4.0] * (WARM_UP - 10))) is None


def test_a_single_surprise_is_no_alarm() -> None:
    """Neither for a usual model nor for one that is almost always sure and right."""
    for usual in (0.3, 1e-6, 0.0):
        assert first_alarm(LossDrift(), np.array([usual] * 1_000 + [34.5] + [usual] * 100)) is None
