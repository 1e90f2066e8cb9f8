"""Shares of values that the model was not trained on as they are, and their jumps."""

import numpy as np
import pandas as pd

from utils.feature_tools import FeatureTools
from utils.value_counts import ValueCounts, describe


def make_features(max_categories: int = 0) -> FeatureTools:
    frame = pd.DataFrame({"age": [1.0, 2.0, None, 4.0], "job": ["a", "b", "a", "c"]})
    return FeatureTools().fit(
        frame,
        target="y",
        numerical=["age"],
        categorical=["job"],
        crosses=[],
        classes=["n", "p"],
        max_categories=max_categories,
    )


def tally(missing: int = 0, unknown: int = 0, lenient: int = 0, other: int = 0) -> np.ndarray:
    """Counts of one kind each: missing ages; unknown, leniently read and other jobs."""
    return np.array([[missing, 0], [0, unknown], [0, lenient], [0, other]])


def test_what_training_had_is_no_jump() -> None:
    counts = ValueCounts(make_features())  # a quarter of the ages is missing in training
    counts.add(200, tally(missing=50))
    assert counts.jumps() == []


def test_other_categories_are_compared_with_their_share_in_training() -> None:
    counts = ValueCounts(make_features(max_categories=1), window=100)  # half of the jobs
    counts.add(100, tally(missing=25, other=50))
    assert counts.jumps() == []
    counts.add(100, tally(missing=25, other=90))
    (line,) = counts.jumps()
    assert line == "values scored as other in the last 100 messages: job 90 % (50 % before)"
    assert describe(counts.of_the_last()) == "missing: age 25 %; scored as other: job 90 %"


def test_a_jump_is_told_once_and_so_is_the_way_back() -> None:
    counts = ValueCounts(make_features(), window=100)
    counts.add(100, tally(missing=25))
    assert counts.jumps() == []
    counts.add(100, tally(missing=25, unknown=60))
    (line,) = counts.jumps()
    assert line == "values unknown in the last 100 messages: job 60 % (0 % before)"
    counts.add(100, tally(missing=25, unknown=58))
    assert counts.jumps() == []
    counts.add(100, tally(missing=25))
    (line,) = counts.jumps()
    assert "job 0 % (60 % before)" in line


def test_few_messages_say_nothing() -> None:
    counts = ValueCounts(make_features())
    counts.add(10, tally(lenient=10))
    assert counts.jumps() == []
    counts.add(10, tally(lenient=10))
    assert len(counts.jumps()) == 1


def test_shares_since_the_start_and_of_the_last() -> None:
    counts = ValueCounts(make_features(), window=10)
    counts.add(30, tally(missing=30))
    counts.add(10, tally(unknown=5))
    assert counts.since_start().missing == {"age": 0.75}
    assert counts.of_the_last().missing == {}
    assert counts.of_the_last().unknown == {"job": 0.5}
    assert describe(counts.since_start()) == "missing: age 75 %; unknown: job 12.5 %"
