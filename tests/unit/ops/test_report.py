"""`python -m ops report`."""

from pathlib import Path

import numpy as np
import pytest

from ops import report
from ops.__main__ import main
from tests.unit.utils.message_store.samples import FEATURES, judged_batch
from train import adapt, fit, racing
from train.adapt import Block, State
from train.input_drift import Shift
from utils.message_store import MessageStore
from utils.model_store import Draft, ModelStore
from utils.model_store.manifest import TrainingRecord


def publish(models: Path) -> None:
    random_rows = np.random.default_rng(1).random((100, 2))
    booster = fit.fit(random_rows, np.arange(100) % 2, FEATURES, {"num_leaves": 4}, 2, threads=1)
    draft = Draft(
        model_text=fit.model_text(booster),
        features=FEATURES,
        hyperparameters={"num_boost_round": 2},
        seed=1,
        training=TrainingRecord(rows=100, base_data_sha256="0" * 64),
        golden_rows=[{"age": 1.5, "job": "a"}],
    )
    ModelStore(models).publish(draft)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))
    monkeypatch.delenv("MESSAGES_URL", raising=False)
    return tmp_path


def test_report_prints_live_quality(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(home / "models")
    assert main(["report"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "not made it yet" in error
    with MessageStore(f"sqlite:///{home}/messages/messages.db", FEATURES) as store:
        store.ingest(judged_batch(400))
    assert main(["report", "--last", "70"]) == 0
    printed = capsys.readouterr().out
    for words in ("log loss", "AUC", "calibration", "last 70", "160", "400 messages, 360 of them"):
        assert words in printed


def test_report_says_what_was_learnt_from_and_what_it_gained(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(home / "models")
    with MessageStore(f"sqlite:///{home}/messages/messages.db", FEATURES) as store:
        store.ingest(judged_batch(400))
    blocks = [Block(125, 50.0, 75.0, 60.0, 50.0, 100), Block(75, 30.0, 25.0, 20.0, 30.0, 60)]
    state = State("p", {}, {}, done=1200, turned_at=200, blocks=blocks, first_model=1)
    adapt.save_state(home / "searches" / racing.RACE_FILE, state)
    assert main(["report"]) == 0
    printed = capsys.readouterr().out
    assert "model 1 learns from everything" in printed
    assert "the world turned round 1,000 outcomes ago" in printed
    assert "retraining has gained 0.1000 nats a prediction so far: log loss 0.4000" in printed
    assert "on 200 outcomes, where model 1 would have had 0.5000" in printed


def test_report_without_a_model_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_largest_drift_is_the_first_row() -> None:
    shifts = [Shift("age", 0.01, "none"), Shift("job [x]", 0.5, "strong")]
    table = report.drift_table(shifts, 500)
    assert [list(column.cells) for column in table.columns] == [
        [r"job \[x]", "age"],
        ["0.500", "0.010"],
        ["strong", "none"],
    ]
