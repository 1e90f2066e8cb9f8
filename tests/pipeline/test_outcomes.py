"""Late outcomes, the gate and rollbacks, in the real pipeline."""

import json
from typing import Any

from tests.conftest import MakePipeline
from tests.harness import Pipeline, until
from utils.message_store import MessageStore
from utils.messages import APP_MESSAGES, DEAD_LETTERS, OUTCOMES, PREDICTIONS
from utils.model_store import ModelStore
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


def test_model_of_flipped_labels_does_not_keep_serving(
    make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    pipeline = make_pipeline(RETRAIN_EVERY="4000", EXTRA_MODELS_TO_KEEP="5")
    predictor = pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py", "--evals", "1")
    trainer.says("ready")
    pipeline.send_rows([flip_label(row) for row in adult[:4000]], "poison")
    (completed,) = pipeline.wait_for_events("training_completed", 1, timeout=90)
    assert completed["champion"]["rows"] == completed["challenger"]["rows"]
    pipeline.send_rows(adult[4000:4600], "clean")
    store = ModelStore(pipeline.settings.models_dir)
    if completed["accepted"]:  # validation rows have flipped labels too
        trainer.says("MODEL 2 ROLLED BACK", timeout=60)
        (rollback,) = pipeline.wait_for_events("rollback", 1)
        assert (rollback["model_id"], rollback["from_model_id"]) == (1, 2)
        predictor.says("NEW MODEL RELOADED 1")
    assert store.current_id() == 1
    assert trainer.end() == 0
    pipeline.send_rows(adult[4600:4610], "after")
    predictions = pipeline.wait_for(PREDICTIONS, 4610)
    assert {p["model_id"] for p in predictions[-10:]} == {1}


def test_refused_challenger_is_announced_and_champion_keeps_serving(
    make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    """Only training rows have flipped labels, so the gate sees that the model is worse."""
    pipeline = make_pipeline(RETRAIN_EVERY="3000", EXTRA_MODELS_TO_KEEP="5")
    rows = [
        row if held_out else flip_label(row)
        for row, held_out in zip(adult[:3000], pipeline.held_out(adult[:3000]), strict=True)
    ]
    pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py", "--evals", "1")
    pipeline.send_rows(rows)
    (completed,) = pipeline.wait_for_events("training_completed", 1, timeout=90)
    assert completed["accepted"] is False
    assert completed["challenger"]["log_loss"] > completed["champion"]["log_loss"]
    gate = completed["gate"]
    assert gate["mean_difference"] > gate["standard_error"]
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
