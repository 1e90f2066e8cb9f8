"""The retrainings that the trainer requests itself."""

import pytest

from train.drift import Alarm
from train.input_alarm import InputAlarm, Moved
from train.reasons import age_request, drift_request
from utils.model_store.manifest import HistoryLine, PublishedModel, RolledBack

FIRST = PublishedModel(model_id=1, created="1970-01-01T00:00:00+00:00", accepted=True)
REFUSED = PublishedModel(
    model_id=2, created="1970-01-01T01:00:00+00:00", accepted=False, batch_ids=["drift-1-340"]
)
BACK = RolledBack(rollback_to=1, from_id=2, created="1970-01-01T05:00:00+00:00")
ALARM = Alarm(batch_id="drift-1-340", at=340, log_loss=0.6, expected=0.3, outcomes=20)
MOVED = InputAlarm(
    batch_id="drift-1-340", at=340, model_id=1, moved=(Moved("age", 1.5),), recent=200, learnt=500
)


@pytest.mark.parametrize(
    ("history", "max_age", "now", "batch_id"),
    [
        ([FIRST], 100.0, 99.0, None),
        ([FIRST], 100.0, 100.0, "age-1"),
        ([FIRST], 0, 1e9, None),
        ([], 100.0, 1e9, None),
        ([FIRST, REFUSED], 100.0, 3699.0, None),
        ([FIRST, REFUSED, BACK], 100.0, 3700.0, "age-2"),
        ([PublishedModel(model_id=1, accepted=True)], 100.0, 1e9, None),
    ],
)
def test_newest_training_must_not_be_too_old(
    history: list[HistoryLine], max_age: float, now: float, batch_id: str | None
) -> None:
    request = age_request(history, max_age, now)
    assert (request and request.batch_id) == batch_id
    assert request is None or (request.reason, request.end) == ("age", None)


@pytest.mark.parametrize("alarm", [ALARM, MOVED])
def test_alarm_is_answered_by_a_training(alarm: Alarm | InputAlarm) -> None:
    request = drift_request(alarm, [FIRST])
    assert request is not None
    assert (request.reason, request.batch_id, request.end) == ("drift", "drift-1-340", None)
    assert drift_request(alarm, [FIRST, REFUSED]) is None


def test_any_later_training_answers_an_alarm_of_the_inputs() -> None:
    other = PublishedModel(model_id=2, accepted=True, batch_ids=["app_messages-0-0"])
    assert drift_request(MOVED, [FIRST, other]) is None
    assert drift_request(ALARM, [FIRST, other]) is not None


def test_alarm_of_the_inputs_says_what_moved_most() -> None:
    moved = tuple(Moved(f"c{number}", 2.0 - number / 10) for number in range(7))
    alarm = InputAlarm(batch_id="a", at=1, model_id=1, moved=moved, recent=200, learnt=500)
    assert str(alarm) == (
        "inputs moved: c0 (PSI 2.00), c1 (PSI 1.90), c2 (PSI 1.80), c3 (PSI 1.70), c4 (PSI 1.60) "
        "and 2 more, the last 200 rows against the 500 learnt last"
    )
