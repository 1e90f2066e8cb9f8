"""What the processes count."""

import numpy as np
import pytest

from utils.telemetry.counts import PredictorCounts, RecentAnswers, TrainerCounts
from utils.telemetry.health import Health
from utils.telemetry.latency import Latencies
from utils.value_counts import ValueTotals

NOW = 1_700_000_000_000.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_recent_covers_ten_seconds_and_no_more() -> None:
    clock, latencies = Clock(), Latencies()
    recent = RecentAnswers(latencies, clock)
    answers = 0
    for second in range(60):
        slow = second < 40
        latencies.observe([int(NOW) - (400 if slow else 4)] * 50, NOW)
        answers += 50
        clock.now += 1
        recent.mark(answers)
    found = recent.now(answers)
    assert found.seconds == pytest.approx(10, abs=1)
    assert found.rate == pytest.approx(50)
    assert found.p50_ms is not None and found.p99_ms is not None
    assert 3 < found.p50_ms <= found.p99_ms <= 5  # none of the slow ones is left


def test_recent_of_an_idle_process_is_nothing() -> None:
    clock, latencies = Clock(), Latencies()
    recent = RecentAnswers(latencies, clock)
    latencies.observe([int(NOW) - 4] * 50, NOW)
    assert recent.now(50).rate == 50  # over a second, not over the microseconds that have passed
    for _ in range(12):
        clock.now += 1
        recent.mark(50)
    assert recent.now(50)[1:] == (0, None, None)


def test_totals_survive_models_with_other_columns() -> None:
    totals = ValueTotals()
    batches = [(("a", "b"), [1, 2]), (("b", "c"), [3, 4]), (("b", "c"), [5, 6]), (("a",), [7])]
    before: dict[str, int] = {}
    for columns, missing in batches:
        tally = np.zeros((4, len(columns)), dtype=np.int64)
        tally[0] = missing
        totals.add(columns, tally)
        after = totals.by_column("missing")
        assert all(after[name] >= count for name, count in before.items())
        before = after
    assert before == {"a": 8, "b": 10, "c": 10}
    assert totals.by_column("unknown") == {"a": 0, "b": 0, "c": 0}


def test_totals_do_not_keep_the_batch_itself() -> None:
    totals, tally = ValueTotals(), np.ones((4, 1), dtype=np.int64)
    for _ in range(2):
        totals.add(("a",), tally)
    assert tally.tolist() == [[1]] * 4
    assert totals.by_column("missing") == {"a": 2}


@pytest.mark.parametrize("wrong", [0, -5, NOW + 1])
def test_outcome_without_a_sensible_timestamp_is_of_now(wrong: float) -> None:
    counts = PredictorCounts(1)
    counts.add_outcomes(2, NOW - 50, NOW)
    assert (counts.outcomes, counts.last_outcome_ms) == (2, NOW - 50)
    counts.add_outcomes(1, NOW - 90, NOW)  # of another partition
    assert (counts.outcomes, counts.last_outcome_ms) == (3, NOW - 50)
    counts.add_outcomes(1, wrong, NOW)
    assert counts.last_outcome_ms == NOW


def test_predictor_is_ready_while_it_serves() -> None:
    counts, clock = PredictorCounts(1), Clock()
    counts.health = health = Health(5, clock)
    assert not health.check().ready
    counts.stepped(member=False)
    assert health.check() == (False, "not a member of the consumer group yet")
    counts.assign([("outcomes", 1), ("app_messages", 1)])
    counts.stepped(member=True)
    assert health.check() == (True, "serves partitions 1")
    counts.stepped(member=True, trouble="no broker answers")
    assert health.check() == (False, "no broker answers")
    counts.failed("no broker answers")
    assert (counts.errors, health.check()) == (1, (False, "no broker answers"))
    counts.assign([])
    counts.stepped(member=True)
    assert health.check() == (True, "a spare: there is no partition for it to serve")
    counts.assign([], held_back=[("app_messages", 0)])
    counts.stepped(member=True)
    assert not health.check().ready


def test_process_whose_loop_hangs_is_not_ready() -> None:
    counts, clock = TrainerCounts(1), Clock()
    counts.health = Health(5, clock)
    counts.stepped(owner=True)
    clock.now += 4.9
    assert counts.health.check().ready
    clock.now += 1.1
    assert counts.health.check() == (False, "no step has ended for 6 s")


def test_trainer_adds_up_the_time_of_its_trainings() -> None:
    counts = TrainerCounts(1)
    counts.add_training(True, {"waiting": 1.0, "fitting": 2.0})
    counts.add_training(False, {"fitting": 3.0})
    assert counts.trainings == {True: 1, False: 1}
    assert counts.spent == {"waiting": (1, 1.0), "fitting": (2, 5.0)}
