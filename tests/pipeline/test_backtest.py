"""A backtest of what the real pipeline was sent trains the same models, byte for byte."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer

from ops import backtest, backtest_report, backtest_stream
from tests.conftest import MakePipeline
from tests.harness import Pipeline, Script
from tests.pipeline.test_outcomes import flip_label
from train.schedule import JUDGE_DELAY
from utils.message_store import MessageStore
from utils.messages import APP_MESSAGES, PREDICTIONS
from utils.model_store import ModelStore
from utils.model_store.manifest import PublishedModel, RolledBack
from utils.settings import Settings

Row = dict[str, Any]
EVERY, TRAININGS = 50, 6
DAY_MS, STEP_MS = 86_400_000, 1000
#: Seconds in which a judgement, which leaves no trace unless it rolls back, is surely over.
JUDGED = JUDGE_DELAY + 1.5


@pytest.mark.timeout(300)
def test_backtest_trains_the_models_of_the_real_trainer(
    make_pipeline: MakePipeline, adult: list[Row], tmp_path: Path
) -> None:
    pipeline = make_pipeline(
        RETRAIN_EVERY=str(EVERY), EXTRA_MODELS_TO_KEEP="20", ON_DRIFT="0", MAX_AGE="0"
    )
    predictor = pipeline.start("predictor.py")
    pipeline.start("trainer.py", "--evals", "1").says("ready")
    # Early enough for several models of recent outcomes.
    swapped_from, end = EVERY * TRAININGS // 3, EVERY * TRAININGS
    rows = [*adult[:swapped_from], *map(flip_label, adult[swapped_from:end])]
    for number in range(TRAININGS):
        send_slice(pipeline, predictor, rows, number)
    replayed = replay_stored(pipeline, tmp_path / "replay")
    assert_same_models(pipeline.settings, replayed)
    printed = pipeline.run("-m", "ops", "backtest")
    assert printed.returncode == 0, printed.stderr
    assert "300 rows, labels known at once, retraining every 50" in printed.stdout
    assert "6 trainings" in printed.stdout and "frozen: the first model" in printed.stdout
    assert len(ModelStore(pipeline.settings.models_dir).on_disk()) == TRAININGS + 1


def send_slice(pipeline: Pipeline, predictor: Script, rows: list[Row], number: int) -> None:
    """Send the rows up to the next training, wait for it, and for the model to serve."""
    first = time.time_ns() // 1_000_000 - DAY_MS if not number else pipeline_start(pipeline)
    producer = KafkaProducer(
        bootstrap_servers=pipeline.settings.kafka.bootstrap_servers, acks="all", linger_ms=0
    )
    for place in range(EVERY * number, EVERY * (number + 1)):
        value = {"request_id": f"r-{place}", "data": rows[place]}
        producer.send(
            APP_MESSAGES,
            msgspec.json.encode(value),
            partition=0,
            timestamp_ms=first + STEP_MS * place,
        ).get(10)
    producer.close()
    pipeline.wait_for(PREDICTIONS, EVERY * (number + 1))
    completed = pipeline.wait_for_events("training_completed", number + 1)[-1]
    time.sleep(JUDGED)
    serving = ModelStore(pipeline.settings.models_dir).current_id()
    if completed["accepted"] or serving != completed["parent_id"]:
        predictor.says(f"NEW MODEL RELOADED {serving}\n")


def pipeline_start(pipeline: Pipeline) -> int:
    """The timestamp of the first message."""
    return int(pipeline.records(APP_MESSAGES)[0].timestamp)


def replay_stored(pipeline: Pipeline, home: Path) -> Settings:
    """Replay the stored messages in a home that stays; returns its settings."""
    settings = pipeline.settings
    bundle = backtest_stream.serving_of(settings)
    with MessageStore.open(settings.messages_url, bundle.features) as store:
        assert len(store.snapshot().request_ids) == EVERY * TRAININGS
    stream = backtest_stream.read_store(settings, bundle)
    assert stream.delay == 0
    plan = backtest.Plan(EVERY, first=backtest_stream.first_parameters(settings, bundle))
    home.mkdir()
    (home / "data").symlink_to(settings.data_dir)
    replayed = settings.model_copy(update={"home": home})
    base = backtest_report.base_of_bundle(replayed, bundle)
    found = backtest.replay(replayed, base, stream.frame, stream.labels, plan)
    assert found.trainings == TRAININGS
    return replayed


def assert_same_models(settings: Settings, replayed: Settings) -> None:
    """Compare all models that both have, and what became of them."""
    real, again = ModelStore(settings.models_dir), ModelStore(replayed.models_dir)
    assert real.on_disk() == again.on_disk()
    assert len(real.on_disk()) == TRAININGS + 1
    assert fates(real) == fates(again)
    memories = [real.load(model_id).manifest.training.memory for model_id in real.on_disk()]
    assert {memory.policy for memory in memories if memory} == {"everything", "recent"}
    for model_id in real.on_disk():
        for name in ("model.txt", "features.json"):
            files = [store.path / str(model_id) / name for store in (real, again)]
            assert files[0].read_bytes() == files[1].read_bytes(), files[0]


def fates(store: ModelStore) -> list[tuple[int, bool | None]]:
    """The accepted and refused models and the rollbacks, in their order."""
    return [
        (line.rollback_to, None) if isinstance(line, RolledBack) else (line.model_id, line.accepted)
        for line in store.history()
        if isinstance(line, PublishedModel | RolledBack)
    ]
