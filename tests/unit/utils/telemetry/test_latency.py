"""Latencies by class."""

import numpy as np
import pytest

from utils.messages import OLDEST_MS
from utils.telemetry.latency import BOUNDS_MS, LARGE, Latencies

NOW = 1_700_000_000_000.0


def observed(*latencies_ms: float) -> Latencies:
    latencies = Latencies()
    latencies.observe([int(NOW - latency) for latency in latencies_ms], NOW)
    return latencies


def test_latency_is_in_the_class_up_to_its_bound() -> None:
    found = observed(0, 1, 2, 2, 3, 10**9).now()
    expected = np.zeros(len(BOUNDS_MS) + 1, dtype=int)
    expected[[0, 2, 3]] = 2, 2, 1  # up to 1, up to 2 and up to 3 ms
    expected[-1] = 1
    assert found.counts.tolist() == expected.tolist()
    assert found.total_ms == 1 + 2 + 2 + 3 + 10**9


@pytest.mark.parametrize("times", [1, LARGE])
@pytest.mark.parametrize("wrong", [0, -1, -(2**63), int(NOW) + 1, int(NOW) * 1000, OLDEST_MS - 1])
def test_timestamp_without_sense_is_counted_apart(wrong: int, times: int) -> None:
    latencies = Latencies()
    latencies.observe([wrong, int(NOW) - 5] * times, NOW)
    found = latencies.now()
    assert (latencies.undated, found.count, found.total_ms) == (times, times, 5 * times)


@pytest.mark.parametrize("times", [1, LARGE])
@pytest.mark.parametrize("right", [OLDEST_MS, int(NOW)])
def test_timestamps_at_the_limits_make_sense(right: int, times: int) -> None:
    latencies = Latencies()
    latencies.observe([right] * times, NOW)
    assert (latencies.undated, latencies.now().count) == (0, times)


def test_few_and_many_at_once_are_counted_alike() -> None:
    exact = [*BOUNDS_MS[:-3], *(BOUNDS_MS[:-3] + 0.25), 0]
    ages = np.array([*exact, *np.random.default_rng(1).lognormal(3, 3, 1_000).round()])
    at_once, in_turn, measured, one_by_one = (Latencies() for _ in range(4))
    stamps = (np.ceil(NOW - ages)).astype(int).tolist()
    at_once.observe(stamps, NOW)
    for stamp in stamps:
        in_turn.observe([stamp], NOW)
    measured.add(ages.tolist())
    for age in ages.tolist():
        one_by_one.add([age])
    assert at_once.now().counts.tolist() == in_turn.now().counts.tolist()
    assert measured.now().counts.tolist() == one_by_one.now().counts.tolist()
    assert measured.now().count == at_once.now().count == len(ages)
    assert measured.now().total_ms == pytest.approx(one_by_one.now().total_ms)


def test_percentile_is_near_the_true_one() -> None:
    true = np.random.default_rng(1).lognormal(3, 1, 20_000).round()
    found = observed(*true.tolist()).now()
    for share in (0.01, 0.5, 0.9, 0.99):
        estimate, exact = found.percentile(share), float(np.quantile(true, share))
        assert estimate is not None and exact / 1.25 < estimate < exact * 1.25


def test_percentile_of_nothing_and_of_too_much() -> None:
    assert Latencies().now().percentile(0.5) is None
    assert observed(10**9).now().percentile(0.5) == BOUNDS_MS[-1]


def test_state_that_was_looked_at_does_not_change() -> None:
    latencies = observed(5)
    before = latencies.now()
    latencies.observe([int(NOW) - 7], NOW)
    assert (before.count, latencies.now().count) == (1, 2)
    assert latencies.now().since(before).total_ms == 7
