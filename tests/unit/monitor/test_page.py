"""What the page makes of the figures: others' texts stay texts."""

from dataclasses import replace

from monitor import page
from monitor.cluster import Cluster, Happened, Predictor, in_words
from monitor.learning import Learning
from monitor.widgets import rate, table
from utils.message_store.summaries import GroupSummary
from utils.messages import ModelLoaded, RetrainRequest, TrainingCompleted
from utils.metrics import Comparison

BAD = "<img src=x onerror=alert(1)>"


def group(value: str) -> GroupSummary:
    return GroupSummary("category", value, None, None, 10, 8, 4, 1, 4, 1)


def test_texts_of_others_are_escaped() -> None:
    learning = Learning(classes=(BAD, BAD))
    cluster = Cluster(
        predictors=(Predictor(BAD, BAD, (0,), 1, 0),), events=(Happened(0.0, "loaded", BAD),)
    )
    for shown in (
        page._group_table([group(BAD)], learning),
        page._predictors(cluster, learning),
        page._events(cluster),
    ):
        assert "<img" not in shown
        assert "&lt;img" in shown


def test_predictor_that_lags_behind_is_marked() -> None:
    learning = Learning(serving=3)
    cluster = Cluster(predictors=(Predictor("p-0", "here", (0,), 2, 0),))
    assert "model 2, behind: model 3 serves" in page._predictors(cluster, learning)
    now = replace(learning, serving=2)
    assert "behind" not in page._predictors(cluster, now)


def test_rates_have_intervals() -> None:
    assert "80.0% (49.0% to 94.3%)" in rate(8, 10)
    assert "no case" in rate(0, 0)
    assert "no case" in rate(None, 10)
    assert table(("a",), [("b",)]).count("<td>") == 1


def test_groups_of_several_classes_have_no_rates_of_a_positive_one() -> None:
    three = Learning(classes=("a", "b", "c"))
    several = replace(
        group("x"), true_positive=None, false_positive=None, true_negative=None, false_negative=None
    )
    assert "predicted" not in page._group_table([several], three)


def test_missing_processes_are_named() -> None:
    seen = Cluster(at=1.0)
    assert "No predictor runs" in page._problems(seen, Learning())[0]
    running = replace(seen, predictors=(Predictor("p-0", "", (0,), 1, 0),))
    assert "No trainer runs" in page._problems(running, Learning())[0]
    gone = replace(running, trainers=1, error="no route", failed_at=1.0)
    assert "The broker does not answer" in page._problems(gone, Learning())[0]
    assert page._problems(replace(running, trainers=1), Learning()) == []


def test_events_in_words() -> None:
    accepted = TrainingCompleted(
        model_id=4,
        accepted=True,
        batch_id="manual-1",
        gate=Comparison(-0.031, 0.008, rows=500),
    )
    assert in_words(accepted) == (
        "accepted",
        "model 4 serves now (better by 0.0310 +- 0.0080 on 500 outcomes)",
    )
    assert in_words(RetrainRequest(reason="drift", batch_id="drift-3-900")) == (
        "request",
        "retraining requested, drift",
    )
    assert in_words(ModelLoaded(model_id=4)) == ("loaded", "model 4 loaded")
