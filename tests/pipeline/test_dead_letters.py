"""Rejected records: shown, mended, and sent again once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakePipeline
from tests.harness import Pipeline
from utils.kafka_io import Outgoing, Sender
from utils.messages import APP_MESSAGES, DEAD_LETTERS, PREDICTIONS
from utils.settings import ROOT


def command(pipeline: Pipeline, *words: str) -> "subprocess.CompletedProcess[str]":
    return pipeline.run("-m", "ops", "dead-letters", *words)


def says(pipeline: Pipeline, *words: str) -> str:
    done = command(pipeline, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refuses(pipeline: Pipeline, *words: str) -> str:
    done = command(pipeline, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    return done.stderr


@pytest.mark.timeout(240)  # a model is made anew
def test_repaired_dead_letter_is_resent_once(
    make_pipeline: MakePipeline, prepared: Path, tmp_path: Path
) -> None:
    config, file = tmp_path / "pipeline.toml", tmp_path / "record.json"
    original = (prepared / "pipeline.toml").read_text()
    config.write_text(original)
    pipeline = make_pipeline(PIPELINE_CONFIG=str(config))
    predictor = pipeline.start("predictor.py")
    rejected = [
        b"[/red] :+1: \x1b[2J",
        *(
            b'{"request_id": "%b", "data": {"hours_per_week": "part time"}}' % name
            for name in (b"a", b"b")
        ),
        None,
    ]
    pipeline.send((APP_MESSAGES, b"key", value) for value in rejected)
    pipeline.wait_for_raw(DEAD_LETTERS, 4)
    with Sender(pipeline.settings.kafka) as sender:  # a stranger's
        sender.send(Outgoing(DEAD_LETTERS, 0, None, b"?")).get(timeout=10)
    stranger = str(pipeline.records(DEAD_LETTERS)[-1].offset)
    shown = says(pipeline, "list")
    assert "[/red] :+1:" in shown
    assert "\x1b" not in shown
    assert "sent again" not in shown

    # The record was wrong.
    raw = [sys.executable, "-m", "ops", "dead-letters", "show", "0"]
    assert (
        subprocess.run(raw, cwd=ROOT, env=pipeline.env, capture_output=True).stdout == rejected[0]
    )
    file.write_text('{"request_id": "mended", "data": {"age": 39}}')
    assert says(pipeline, "resend", "0", "--value", str(file)) == "sent 1 again\n"
    assert [p["request_id"] for p in pipeline.wait_for(PREDICTIONS, 1)] == ["mended"]
    assert "0 was sent again already" in refuses(pipeline, "resend", "0", "1")
    assert "does not say where it comes from" in refuses(pipeline, "resend", stranger)
    assert "has no record 999" in refuses(pipeline, "resend", "999")

    # The pipeline was wrong: hours may have names.
    config.write_text(original.replace("categorical = []", 'categorical = ["hours_per_week"]'))
    made = pipeline.run("initialize.py", "--force", "--evals", "1")
    assert made.returncode == 0, made.stdout + made.stderr
    predictor.says("NEW MODEL RELOADED 2")
    assert says(pipeline, "resend", "--all") == "sent 3 again\n"
    predictions = pipeline.wait_for(PREDICTIONS, 3)
    assert [(p["request_id"], p["model_id"]) for p in predictions[1:]] == [("a", 2), ("b", 2)]
    assert pipeline.wait_for_raw(DEAD_LETTERS, 6)[-1].value is None  # it cannot be mended
    assert says(pipeline, "list").count("sent again") == 4
    assert says(pipeline, "resend", "--all") == "sent 1 again\n"  # the new letter alone
    assert says(pipeline, "resend", "1", "--again") == "sent 1 again\n"
    assert [p["request_id"] for p in pipeline.wait_for(PREDICTIONS, 4)][-1] == "a"
    assert [json.loads(r.value)["request_id"] for r in pipeline.records(PREDICTIONS)] == [
        *("mended", "a", "b", "a")
    ]
    assert predictor.end() == 0
