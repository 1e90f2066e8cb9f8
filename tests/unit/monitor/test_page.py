"""What the page makes of the figures: others' texts stay texts."""

from dataclasses import replace

from monitor import sections
from monitor.cluster import Cluster, Predictor
from monitor.events import Events, Happened, in_words
from monitor.learning import Learning
from monitor.page import problems
from monitor.sections import Seen
from monitor.widgets import rate, table
from utils.message_store.summaries import GroupSummary
from utils.messages import ModelLoaded, RetrainRequest, TrainingCompleted
from utils.metrics import Comparison

BAD = "<img src=x onerror=alert(1)>"


def group(value: str) -> GroupSummary:
    return GroupSummary("category", value, None, None, 10, 8, 4, 1, 4, 1)


def seen(cluster: Cluster, *, serving: int = 0, events: Events | None = None) -> Seen:
    return Seen(events or Events(), cluster, Learning(serving=serving))


def test_texts_of_others_are_escaped() -> None:
    cluster = Cluster(predictors=(Predictor(BAD, BAD, (0,), 1, 0),))
    events = Events(latest=(Happened(0.0, "loaded", BAD),))
    for shown in (
        sections.group_table([group(BAD)], Learning(classes=(BAD, BAD))),
        sections.predictors_table(seen(cluster)),
        sections.events_list(events),
    ):
        assert "<img" not in shown
        assert "&lt;img" in shown


def test_predictor_that_lags_behind_is_marked() -> None:
    cluster = Cluster(predictors=(Predictor("p-0", "here", (0,), 2, 0),))
    behind = sections.predictors_table(seen(cluster, serving=3))
    assert "model 2, behind: model 3 serves" in behind
    assert "behind" not in sections.predictors_table(seen(cluster, serving=2))
    loaded = Events(models={"p-0": 3})  # it says so before it predicts
    assert "behind" not in sections.predictors_table(seen(cluster, serving=3, events=loaded))


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
    assert "predicted" not in sections.group_table([several], three)


def test_missing_processes_are_named() -> None:
    now = Cluster(at=1.0)
    assert "No predictor runs" in problems(seen(now))[0]
    running = replace(now, predictors=(Predictor("p-0", "", (0,), 1, 0),))
    assert "No trainer runs" in problems(seen(running))[0]
    gone = replace(running, trainers=1, error="no route", failed_at=1.0)
    assert "The broker does not answer" in problems(seen(gone))[0]
    assert problems(seen(replace(running, trainers=1))) == []


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
