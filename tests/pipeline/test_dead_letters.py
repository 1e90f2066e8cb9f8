"""Rejected records: listed, repaired and resent once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakePipeline
from tests.harness import Pipeline, Script
from utils.kafka_io import Outgoing, Sender
from utils.messages import APP_MESSAGES, DEAD_LETTERS, PREDICTIONS
from utils.settings import ROOT

#: Bytes that are no JSON, two messages that another model could answer, and a tombstone.
REJECTED = [
    b"[/red] :+1: \x1b[2J",
    b'{"request_id": "a", "data": {"hours_per_week": "part time"}}',
    b'{"request_id": "b", "data": {"hours_per_week": "part time"}}',
    None,
]


def dead_letters(pipeline: Pipeline, *words: str) -> str:
    """Run the command; what it prints."""
    done = pipeline.run("-m", "ops", "dead-letters", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refusal(pipeline: Pipeline, *words: str) -> str:
    """Run the command, which has to fail; its one line of error."""
    done = pipeline.run("-m", "ops", "dead-letters", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    return done.stderr


@pytest.mark.timeout(240)  # trains a model
def test_repaired_dead_letters_are_resent_once(
    make_pipeline: MakePipeline, prepared_home: Path, tmp_path: Path
) -> None:
    config = tmp_path / "pipeline.toml"
    config.write_text((prepared_home / "pipeline.toml").read_text())
    pipeline = make_pipeline(PIPELINE_CONFIG=str(config))
    predictor = pipeline.start("predictor.py")
    pipeline.send((APP_MESSAGES, b"key", value) for value in REJECTED)
    pipeline.wait_for_records(DEAD_LETTERS, 4)
    foreign_offset = send_foreign_record(pipeline)

    check_list_and_show(pipeline)
    resend_repaired_record(pipeline, tmp_path / "record.json")
    assert "0 was sent again already" in refusal(pipeline, "resend", "0", "1")
    assert "does not say where it comes from" in refusal(pipeline, "resend", foreign_offset)
    assert "has no record 999" in refusal(pipeline, "resend", "999")

    train_with_text_hours(pipeline, config, predictor)
    resend_all_and_one_again(pipeline)
    assert predictor.end() == 0


def send_foreign_record(pipeline: Pipeline) -> str:
    """Send a record without the predictor's headers to the dead letters; its offset."""
    with Sender(pipeline.settings.kafka) as sender:
        sender.send(Outgoing(DEAD_LETTERS, 0, None, b"?")).get(timeout=10)
    return str(pipeline.records(DEAD_LETTERS)[-1].offset)


def check_list_and_show(pipeline: Pipeline) -> None:
    listed = dead_letters(pipeline, "list")
    assert "[/red] :+1:" in listed
    assert "\x1b" not in listed
    assert "sent again" not in listed
    show = [sys.executable, "-m", "ops", "dead-letters", "show", "0"]
    done = subprocess.run(show, cwd=ROOT, env=pipeline.env, capture_output=True)
    assert done.stdout == REJECTED[0]


def resend_repaired_record(pipeline: Pipeline, file: Path) -> None:
    """The record was wrong: another value takes its place."""
    file.write_text('{"request_id": "repaired", "data": {"age": 39}}')
    assert dead_letters(pipeline, "resend", "0", "--value", str(file)) == "sent 1 again\n"
    assert [p["request_id"] for p in pipeline.wait_for(PREDICTIONS, 1)] == ["repaired"]


def train_with_text_hours(pipeline: Pipeline, config: Path, predictor: Script) -> None:
    """The pipeline was wrong: hours may be text."""
    text = config.read_text()
    config.write_text(text.replace("categorical = []", 'categorical = ["hours_per_week"]'))
    made = pipeline.run("initialize.py", "--force", "--evals", "1")
    assert made.returncode == 0, made.stdout + made.stderr
    predictor.says("NEW MODEL RELOADED 2")


def resend_all_and_one_again(pipeline: Pipeline) -> None:
    assert dead_letters(pipeline, "resend", "--all") == "sent 3 again\n"
    predictions = pipeline.wait_for(PREDICTIONS, 3)
    assert [(p["request_id"], p["model_id"]) for p in predictions[1:]] == [("a", 2), ("b", 2)]
    rejected_again = pipeline.wait_for_records(DEAD_LETTERS, 6)[-1]
    assert rejected_again.value is None  # a tombstone cannot be repaired
    assert dead_letters(pipeline, "list").count("sent again") == 4
    assert dead_letters(pipeline, "resend", "--all") == "sent 1 again\n"  # the new letter alone
    assert dead_letters(pipeline, "resend", "1", "--again") == "sent 1 again\n"
    assert [p["request_id"] for p in pipeline.wait_for(PREDICTIONS, 4)][-1] == "a"
    assert [json.loads(r.value)["request_id"] for r in pipeline.records(PREDICTIONS)] == [
        *("repaired", "a", "b", "a")
    ]
