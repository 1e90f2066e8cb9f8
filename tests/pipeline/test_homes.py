"""Homes: two on one cluster, one that is copied, and one that is restored from a backup."""

import json
import shutil
from typing import Any

import pytest

from tests.conftest import MakePipeline
from tests.harness import Pipeline
from utils.messages import PREDICTIONS

Row = dict[str, Any]


def home_beside(pipeline: Pipeline, name: str) -> Pipeline:
    """A pipeline on the same cluster, with a copy of the home."""
    folder = pipeline.home.with_name(name)
    shutil.copytree(pipeline.home, folder)
    config = pipeline.env["PIPELINE_CONFIG"]
    return Pipeline(folder, pipeline.env["KAFKA_BOOTSTRAP_SERVERS"], PIPELINE_CONFIG=config)


def run(pipeline: Pipeline, *command: str) -> str:
    """Run a script, which has to succeed; its output."""
    done = pipeline.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def refusal(pipeline: Pipeline, *command: str) -> str:
    """Run a script, which has to fail; its one line of error."""
    done = pipeline.run(*command)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stdout + done.stderr
    return done.stderr


SEND = ("sample_app.py", "--messages", "5", "--interval", "0", "--timeout", "20")


@pytest.mark.timeout(240)
def test_second_home_on_a_cluster_is_refused(pipeline: Pipeline) -> None:
    predictor = pipeline.start("predictor.py")
    predictor.says("serves partitions")
    run(pipeline, *SEND)
    copy, other = home_beside(pipeline, "copy"), home_beside(pipeline, "other")
    (other.home / "data" / "home.json").unlink()
    for command in (
        ["initialize.py"],
        ["initialize.py", "--take-over"],  # while the predictor runs
        ["predictor.py"],
        ["trainer.py"],
        SEND,
        ["-m", "ops", "retrain"],
        ["-m", "ops", "rollback", "1"],
        ["-m", "ops", "dead-letters", "resend", "--all"],
    ):
        line = refusal(other, *command)
        assert ("are running" if "--take-over" in command else str(pipeline.home)) in line
    assert len(pipeline.wait_for(PREDICTIONS, 5)) == 5
    run(copy, *SEND)
    assert predictor.end() == 0
    assert str(pipeline.home) not in run(copy, "initialize.py")
    elsewhere = copy.start("predictor.py")
    elsewhere.says("serves partitions")
    assert elsewhere.end() == 0
    assert "took the topics over" in run(other, "initialize.py", "--take-over")
    assert str(other.home) in refusal(pipeline, "predictor.py")
    heir = other.start("predictor.py")
    heir.says("serves partitions")
    run(other, *SEND)
    assert heir.end() == 0
    assert len(pipeline.values(PREDICTIONS)) == 15


@pytest.mark.timeout(240)  # trains five models
def test_restored_home_uses_no_number_twice(make_pipeline: MakePipeline, adult: list[Row]) -> None:
    pipeline = make_pipeline(RETRAIN_EVERY="1000", EXTRA_MODELS_TO_KEEP="9")
    predictor = pipeline.start("predictor.py")
    predictor.says("serves partitions")
    pipeline.send_rows(adult[:1], "first")
    pipeline.wait_for(PREDICTIONS, 1)
    backup = home_beside(pipeline, "backup")
    for number in (2, 3):
        run(pipeline, "initialize.py", "--force", "--evals", "1")
        predictor.says(f"NEW MODEL RELOADED {number}")
    pipeline.send_rows(adult[1:2], "late")
    pipeline.wait_for(PREDICTIONS, 2)
    assert predictor.end() == 0

    trainer = backup.start("trainer.py", "--evals", "1")
    trainer.says("the log knows models 2 and 3, which this home lacks (restored from a backup?)")
    trainer.says("the next one is 4")
    assert "model 4 " in run(backup, "-m", "ops", "retrain", "--wait", "60")
    assert trainer.end() == 0
    look_back(backup)

    shutil.rmtree(backup.home / "models")
    said = run(backup, "initialize.py", "--evals", "1")
    assert "models 1, 2, 3 and 4, which this home lacks" in said and "model 5 serves" in said


def look_back(pipeline: Pipeline) -> None:
    """What was predicted by a model that is gone is named as such."""
    absent = "is not in this home"
    replayed = run(pipeline, "-m", "ops", "replay")
    assert "1 predictions reproduced bit for bit: 1 by model 1" in replayed
    assert f"1 cannot be replayed: model 3 {absent}" in replayed
    assert "3, NOT IN THIS HOME" in run(pipeline, "-m", "ops", "why", "late-0")
    model = json.loads(run(pipeline, "-m", "ops", "why", "late-0", "--json"))["model"]
    assert (model["absent"], model["pruned"]) == (True, False)
    assert f"model 3 {absent}" in run(pipeline, "-m", "ops", "report")
    assert run(pipeline, "-m", "ops", "list").count("absent  ") == 2  # in the last column
    for command in ("show", "rollback", "rebuild"):
        assert f"3 {absent}" in refusal(pipeline, "-m", "ops", command, "3")
    assert "never existed" in refusal(pipeline, "-m", "ops", "show", "9")
