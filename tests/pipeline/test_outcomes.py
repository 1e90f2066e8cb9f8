"""Late outcomes, the gate and rollbacks, in the real pipeline."""

import json
from typing import Any

import numpy as np
import pytest

from tests.conftest import MakePipeline
from tests.harness import Pipeline, until
from train import evaluate
from utils.message_store import MessageStore
from utils.messages import APP_MESSAGES, DEAD_LETTERS, OUTCOMES, PREDICTIONS
from utils.model_store import Bundle, ModelStore
from utils.model_store.manifest import published

Row = dict[str, Any]
TARGET = "income_bracket"


def flip_label(row: Row) -> Row:
    return {**row, TARGET: "<=50K" if row[TARGET] == ">50K" else ">50K"}


def remove_outcome(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != TARGET}


def outcome(request_id: str, label: Any) -> tuple[str, bytes, Any]:
    return OUTCOMES, request_id.encode(), {"request_id": request_id, "outcome": label}


def open_store(pipeline: Pipeline) -> MessageStore:
    bundle = ModelStore(pipeline.settings.models_dir).load_current()
    return MessageStore.open(pipeline.settings.messages_url, bundle.features)


def log_loss(bundle: Bundle, rows: list[Row]) -> float:
    """The log loss of a model, in nats, on rows with their true labels."""
    sent = [json.dumps({"request_id": "a", "data": remove_outcome(row)}).encode() for row in rows]
    features = bundle.features
    scores = bundle.score(features.transform_rows([bundle.decoder(one).data for one in sent]))
    codes = features.encode_target(np.array([row[TARGET] for row in rows], dtype=object))
    return float(evaluate.row_losses(scores, codes).mean())


@pytest.mark.timeout(200)
def test_flipped_labels_are_forgotten_once_clean_outcomes_come(
    make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    """Flipped labels look like a changed world, so a model may follow them for a while."""
    pipeline = make_pipeline(RETRAIN_EVERY="1500", EXTRA_MODELS_TO_KEEP="5")
    predictor = pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py", "--evals", "1")
    trainer.says("ready")
    store, unseen = ModelStore(pipeline.settings.models_dir), adult[6000:8000]
    first = log_loss(store.load_current(), unseen)
    pipeline.send_rows([flip_label(row) for row in adult[:1500]], "poison")
    pipeline.wait_for_events("training_completed", 1, timeout=90)
    assert log_loss(store.load_current(), unseen) > first  # it follows them
    pipeline.send_rows(adult[1500:2100], "clean")

    def is_as_good() -> bool:
        return log_loss(store.load_current(), unseen) < first + 0.03

    until(is_as_good, 60, trainer.text)  # by a rollback, or by another training
    predictor.says(f"NEW MODEL RELOADED {store.current_id()}")
    pipeline.send_rows(adult[2100:2110], "after")
    predictions = pipeline.wait_for(PREDICTIONS, 2110)
    assert {each["model_id"] for each in predictions[-10:]} == {store.current_id()}
    assert trainer.end() == 0


def test_refused_challenger_is_announced_and_champion_keeps_serving(
    make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    """It follows flipped labels, which are over again: on the latest outcomes it is worse."""
    pipeline = make_pipeline(RETRAIN_EVERY="2000", EXTRA_MODELS_TO_KEEP="5")
    rows = [*map(flip_label, adult[:1490]), *adult[1490:2000]]
    pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py", "--evals", "1")
    pipeline.send_rows(rows)
    (completed,) = pipeline.wait_for_events("training_completed", 1, timeout=90)
    assert completed["accepted"] is False
    assert completed["challenger"]["log_loss"] > completed["champion"]["log_loss"]
    assert completed["challenger"]["rows"] == completed["champion"]["rows"] == 500
    gate = completed["gate"]
    assert gate["worse"] and gate["mean_difference"] > gate["standard_error"]
    store = ModelStore(pipeline.settings.models_dir)
    assert store.current_id() == 1
    assert [line.accepted for line in published(store.history())] == [True, False]
    assert "REFUSED" in trainer.text()
    assert not pipeline.events("model_loaded")


def test_trainer_stores_early_repeated_corrected_and_unknown_outcomes(
    pipeline: Pipeline, adult: list[Row]
) -> None:
    pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py", "--evals", "1")
    trainer.says("ready")
    pipeline.send([outcome("early", ">50K")])  # before its message
    names = ["early", "twice", "corrected", "never"]
    pipeline.send(
        (APP_MESSAGES, name.encode(), {"request_id": name, "data": remove_outcome(row)})
        for name, row in zip(names, adult, strict=False)
    )
    pipeline.send_rows(adult[10:11], "inside")
    pipeline.send(
        [
            outcome("twice", "<=50K"),
            outcome("twice", "<=50K"),
            outcome("corrected", "<=50K"),
            outcome("corrected", ">50K"),
            outcome("inside-0", "<=50K" if adult[10][TARGET] == ">50K" else ">50K"),
            outcome("unmatched", ">50K"),
            outcome("early", "an unknown class"),
            (OUTCOMES, b"x", b"not json"),
        ]
    )
    pipeline.wait_for(PREDICTIONS, 5)
    pipeline.wait_for_records(DEAD_LETTERS, 2)

    def stored_outcomes() -> dict[str, str]:
        snapshot = open_store(pipeline).snapshot()
        return dict(zip(snapshot.request_ids, snapshot.outcomes, strict=True))

    expected = {
        "early": ">50K",
        "twice": "<=50K",
        "corrected": ">50K",
        "inside-0": "<=50K" if adult[10][TARGET] == ">50K" else ">50K",
    }
    until(lambda: stored_outcomes() == expected, 20, lambda: str(stored_outcomes()))
    with open_store(pipeline) as store:
        assert store.offsets()[(OUTCOMES, 0)] == 9
        assert store.counts().rejected_outcomes == 1
    report = pipeline.run("-m", "ops", "report")
    assert report.returncode == 0, report.stderr
    assert trainer.end() == 0


def test_killed_trainer_neither_loses_nor_duplicates_rows(
    make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    pipeline = make_pipeline(RETRAIN_EVERY="100000")
    pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py")
    for part in range(4):
        pipeline.send_rows(adult[part * 1000 : (part + 1) * 1000], f"part-{part}")
        trainer.kill()
        trainer = pipeline.start("trainer.py")
    trainer.says("ready")  # earlier ones may have been killed before they made the store
    pipeline.wait_for(PREDICTIONS, 4000)
    until(lambda: len(open_store(pipeline).snapshot().request_ids) == 4000, 30)
    snapshot = open_store(pipeline).snapshot()
    sent = [json.loads(record.value)["request_id"] for record in pipeline.records(APP_MESSAGES)]
    assert list(snapshot.request_ids) == sent
    assert trainer.end() == 0
