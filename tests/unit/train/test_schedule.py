"""When the trainer reads, trains and judges."""

from train.schedule import (
    AGE_SECONDS,
    JUDGE_AT_LAST,
    JUDGE_DELAY,
    JUDGE_EVERY,
    LARGE_READ,
    READ_SECONDS,
    Schedule,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_schedule() -> tuple[Clock, Schedule]:
    clock = Clock()
    return clock, Schedule(clock=clock)


def test_trainings_that_keep_failing_are_repeated_ever_more_rarely() -> None:
    clock, schedule = make_schedule()
    delays = []
    for _ in range(12):
        delays.append(schedule.training_failed())
        clock.now += delays[-1] - 1
        assert not schedule.may_train()
        clock.now += 1
        assert schedule.may_train()
    assert delays[:3] == [5, 10, 20] and delays[-2:] == [3600, 3600]
    schedule.training_failed()
    schedule.forget_failures()
    assert schedule.may_train()
    assert schedule.training_failed() == 5


def test_log_is_read_rarely_during_a_training_unless_there_is_more() -> None:
    clock, schedule = make_schedule()
    schedule.log_read(3)
    assert schedule.may_read(training=False)
    assert not schedule.may_read(training=True)
    clock.now += READ_SECONDS
    assert schedule.may_read(training=True)
    schedule.log_read(LARGE_READ)
    assert schedule.may_read(training=True)


def test_judgement_is_due_a_moment_after_enough_outcomes() -> None:
    clock, schedule = make_schedule()
    assert not schedule.judgement_due(JUDGE_EVERY - 1)
    assert not schedule.judgement_due(JUDGE_EVERY)
    clock.now += JUDGE_DELAY
    assert schedule.judgement_due(JUDGE_EVERY + 1)
    schedule.judgement_started(JUDGE_EVERY + 1)
    assert not schedule.judgement_due(2 * JUDGE_EVERY)
    assert not schedule.judgement_due(2 * JUDGE_EVERY + 1)
    clock.now += JUDGE_DELAY
    assert schedule.judgement_due(2 * JUDGE_EVERY + 1)


def test_age_is_looked_at_once_in_a_while() -> None:
    clock, schedule = make_schedule()
    assert schedule.may_look_at_age() and not schedule.may_look_at_age()
    clock.now += AGE_SECONDS
    assert schedule.may_look_at_age() and not schedule.may_look_at_age()


def test_judgement_is_not_put_off_without_end_by_trainings() -> None:
    schedule = Schedule(lambda: 0.0)
    assert not schedule.judgement_due(JUDGE_AT_LAST - 1, requested=True)
    assert schedule.judgement_due(JUDGE_AT_LAST, requested=True)
    schedule.judgement_started(JUDGE_AT_LAST)
    assert not schedule.judgement_due(JUDGE_AT_LAST + 1, requested=True)
