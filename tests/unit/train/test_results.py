"""The line about a training says what happened, and whether that is as it should be."""

import pytest

from train.results import Result
from utils.metrics import Comparison, Metrics


@pytest.mark.parametrize(
    ("accepted", "comparison", "line"),
    [
        (
            True,
            Comparison(-0.02, 0.005, rows=500),
            "model 7 serves now: log loss 0.2800 on the last 500 outcomes, what was served "
            "0.3000; better by 0.0200 +- 0.0050",
        ),
        (
            True,
            Comparison(-0.02, 0.05, rows=58),
            "model 7 serves now: log loss 0.2800 on the last 58 outcomes, what was served "
            "0.3000; the difference of 0.0200 +- 0.0500 is within noise",
        ),
        (
            True,
            Comparison(0.00001, 0.00002, rows=58),
            "model 7 serves now: log loss 0.3000 on the last 58 outcomes, what was served "
            "0.3000; no difference",
        ),
        (
            True,
            Comparison(0.02, 0.009, rows=58),
            "model 7 serves now: log loss 0.3200 on the last 58 outcomes, what was served "
            "0.3000; worse by 0.0200 +- 0.0090, too little evidence to refuse it",
        ),
        (
            True,
            Comparison(0.02, rows=1),
            "model 7 serves now: log loss 0.3200 on the last 1 outcomes, what was served "
            "0.3000; too few to compare on",
        ),
        (
            False,
            Comparison(0.02, 0.004, worse=True, rows=500),
            "model 7 is REFUSED, model 6 is better and serves on: log loss 0.3200 on the last "
            "500 outcomes, what was served 0.3000; worse by 0.0200 +- 0.0040",
        ),
        (
            False,
            None,
            "model 7 is REFUSED, model 6 has other columns or classes and serves on",
        ),
    ],
)
def test_line_about_a_training(accepted: bool, comparison: Comparison | None, line: str) -> None:
    ours = Metrics(log_loss=0.30 + (comparison.mean_difference if comparison else 0.0))
    theirs = Metrics(log_loss=0.30) if comparison else None
    assert Result(7, accepted, 6, 900, ours, theirs, comparison).in_words() == line
