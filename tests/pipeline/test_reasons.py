"""Why the real pipeline trains: by count, by hand, by age, and because loss or inputs move."""

from typing import Any

from tests.conftest import MakePipeline
from tests.harness import Pipeline, until
from tests.pipeline.test_outcomes import flip_label
from train import live_inputs
from utils.messages import APP_MESSAGES

Row = dict[str, Any]
EVERY = 100


def by_reason(pipeline: Pipeline, reason: str) -> list[Any]:
    """The requests of a reason, in the order of the topic."""
    return [event for event in pipeline.events("retrain") if event["reason"] == reason]


def test_every_reason_leads_to_a_training(make_pipeline: MakePipeline, adult: list[Row]) -> None:
    pipeline = make_pipeline(RETRAIN_EVERY=str(EVERY), MAX_AGE="1d")
    request_by_hand_without_a_trainer(pipeline)
    pipeline.start("predictor.py")
    pipeline.send_rows(adult[:250], "usual")
    pipeline.wait_for_events("retrain", 3)
    trainer = pipeline.start("trainer.py", "--evals", "1")
    pipeline.wait_for_events("training_completed", 3)
    by_hand = pipeline.run("-m", "ops", "retrain", "--wait", "60")
    assert by_hand.returncode == 0, by_hand.stderr
    assert "retraining requested: manual-" in by_hand.stdout and "model 3 " in by_hand.stdout
    pipeline.send_rows(map(flip_label, adult[250:350]), "swapped")
    trainer.says("DRIFT: log loss ")
    drift = pipeline.wait_for_events("retrain", 6)[-1]
    assert drift["reason"] == "drift"
    assert trainer.end() == 0
    report = pipeline.run("-m", "ops", "report", "--last", "100")
    assert "drift of the last 100 messages" in report.stdout and "PSI" in report.stdout
    assert "prediction: >50K" in report.stdout
    request_by_age_across_a_kill(pipeline)
    requests, completed = pipeline.events("retrain"), pipeline.events("training_completed")
    names = [request["batch_id"] for request in requests]
    assert len(set(names)) == len(names) == len(completed)
    assert set(names) == {event["batch_id"] for event in completed}
    homes = {event.pop("home") for event in [*requests, *completed]}
    assert homes == {event["home"] for event in pipeline.events("home_mark")}
    assert {tuple(request) for request in requests if request["reason"] != "count"} == {
        ("retrain", "reason", "batch_id")
    }
    assert [request for request in requests if request["reason"] == "count"] == [
        {
            "retrain": True,
            "reason": "count",
            "batch_id": f"{APP_MESSAGES}-0-{first}",
            "topic": APP_MESSAGES,
            "partition": 0,
            "first_offset": first,
            "last_offset": first + EVERY - 1,
            "count": EVERY,
        }
        for first in (0, 100, 200)
    ]


def request_by_hand_without_a_trainer(pipeline: Pipeline) -> None:
    """Nobody answers, so waiting fails; the request stays."""
    by_hand = pipeline.run("-m", "ops", "retrain", "--wait", "0.5")
    first, second = by_hand.stdout.splitlines()
    assert by_hand.returncode == 1 and first.startswith("retraining requested: manual-")
    assert second == "no training after 0.5 s; the request waits"


def request_by_age_across_a_kill(pipeline: Pipeline) -> None:
    """A trainer is killed once it has requested a training; the next one answers the request."""
    trainer = pipeline.start("trainer.py", "--evals", "1", MAX_AGE="1s")
    trainer.says("too old; retraining requested")
    pipeline.wait_for_events("retrain", 7)
    trainer.kill()
    trainer = pipeline.start("trainer.py", "--evals", "1", MAX_AGE="1s")
    trainer.says("RETRAINING COMPLETED", 60)
    assert trainer.end() == 0
    ages = by_reason(pipeline, "age")
    assert ages and all(request["batch_id"].startswith("age-") for request in ages)


def make_older(row: Row) -> Row:
    return {**row, "age": row["age"] + 20}


def measured(pipeline: Pipeline) -> int:
    """The number of known outcomes when the trainer last compared the inputs."""
    return live_inputs.read(pipeline.settings.searches_dir / live_inputs.FILE).outcomes


def test_moved_inputs_ask_once_across_a_kill(make_pipeline: MakePipeline, adult: list[Row]) -> None:
    """The trainer is killed as it requests; what the training has learnt is no drift any more."""
    pipeline = make_pipeline(
        RETRAIN_EVERY="5000", ON_DRIFT="false", ON_INPUT_DRIFT="true", DRIFT_INTERVAL="50"
    )
    pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py", "--evals", "1")
    trainer.says("ready")
    pipeline.send_rows(adult[:250], "usual")
    until(lambda: measured(pipeline) >= 200, 30.0, lambda: trainer.text())
    assert pipeline.events("retrain") == []
    pipeline.send_rows(map(make_older, adult[250:900]), "older")
    trainer.says("DRIFT: inputs moved: age (PSI ")
    trainer.kill()
    trainer = pipeline.start("trainer.py", "--evals", "1")
    trainer.says("ready")
    pipeline.send_rows(map(make_older, adult[900:1000]), "older-still")
    trainer.says("RETRAINING COMPLETED", 60)
    pipeline.send_rows(map(make_older, adult[1000:1500]), "as-old")
    until(lambda: measured(pipeline) >= 1450, 30.0, lambda: trainer.text())
    assert trainer.end() == 0
    (request,) = pipeline.events("retrain")
    assert request["reason"] == "drift" and request["batch_id"].startswith("input-drift-1-")
    (completed,) = pipeline.events("training_completed")
    assert completed["batch_id"] == request["batch_id"]
    report = pipeline.run("-m", "ops", "report").stdout
    assert "inputs: largest shift from what was learnt last" in report
    assert "outcomes before that: age (PSI" in report
