"""Topics that are missing, grow, expire, or are deleted and recreated while scripts run."""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from tests.harness import Pipeline, Script, delete_topics_and_groups, until
from utils import kafka_io
from utils.broker import Broker
from utils.kafka_io import TopicPartition
from utils.messages import (
    APP_MESSAGES,
    CO_PARTITIONED,
    DEAD_LETTERS,
    GROUPS,
    OUTCOMES,
    PREDICTIONS,
    PREDICTOR_GROUP,
    RETRAIN_TOPIC,
    TRAINER_GROUP,
)
from utils.model_store import ModelStore
from utils.settings import ROOT

Row = dict[str, Any]

#: Runs a script with shorter timeouts where it would wait for seconds.
SHORT_TIMEOUTS = """
import runpy, sys
from utils.kafka_io import clients, group_watch, log_reader, positions
clients.METADATA_MAX_AGE_MS = log_reader.METADATA_MAX_AGE_MS = 500
positions.NO_OFFSET_TIMEOUT_S = 3.0
group_watch.LOOK_EVERY_S = group_watch.LEADER_TIMEOUT_S = 0.3
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass
class Scripts:
    """A predictor and a trainer that notice changes of topics sooner."""

    pipeline: Pipeline
    broker: Broker
    program: str
    predictor: Script
    trainer: Script

    def start_predictor(self) -> Script:
        """Start the predictor again."""
        self.predictor = self.pipeline.start(self.program, "predictor.py")
        return self.predictor

    def start_trainer(self) -> Script:
        """Start the trainer again."""
        self.trainer = self.pipeline.start(self.program, "trainer.py", "--evals", "1")
        return self.trainer


@pytest.fixture
def scripts(empty_broker: Broker, prepared_home: Path, tmp_path: Path) -> Iterator[Scripts]:
    """Scripts that were started while there were no topics."""
    pipeline = Pipeline(tmp_path / "home", empty_broker.bootstrap)
    pipeline.copy_files(prepared_home)
    program = tmp_path / "short_timeouts.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{SHORT_TIMEOUTS}")
    try:
        predictor = pipeline.start(str(program), "predictor.py")
        trainer = pipeline.start(str(program), "trainer.py", "--evals", "1")
        yield Scripts(pipeline, empty_broker, str(program), predictor, trainer)
    finally:
        pipeline.close()


@pytest.mark.timeout(180)
def test_scripts_follow_missing_growing_and_expired_topics(
    scripts: Scripts, adult: list[Row]
) -> None:
    """One test, for each change builds on the topics that the one before left."""
    scripts_start_when_topics_appear(scripts, adult)
    predictor_serves_added_partitions(scripts, adult)
    predictor_serves_what_was_added_while_it_was_down(scripts)
    scripts_skip_expired_records(scripts, adult)
    assert scripts.predictor.end() == 0 and scripts.trainer.end() == 0


@pytest.mark.timeout(180)
def test_scripts_follow_recreated_topics_and_forgotten_offsets(
    scripts: Scripts, adult: list[Row]
) -> None:
    """One test, likewise."""
    kafka_io.ensure_topics(scripts.pipeline.settings.kafka, GROUPS)
    trainer_starts_over_with_a_recreated_topic(scripts, adult)
    trainer_knows_the_log_before_any_training(scripts, adult)
    scripts_go_on_when_their_offsets_have_expired(scripts, adult)
    assert scripts.predictor.end() == 0 and scripts.trainer.end() == 0


def scripts_start_when_topics_appear(scripts: Scripts, adult: list[Row]) -> None:
    pipeline = scripts.pipeline
    scripts.predictor.says("waiting for topic app_messages, outcomes (initialize.py creates it)")
    scripts.trainer.says("waiting for topic retrain_topic")
    waiting = "topic app_messages, dead_letters, outcomes, predictions (initialize.py creates it)"
    app = pipeline.start("sample_app.py")
    app.says(f"waiting for {waiting}")
    assert app.end(timeout=2) == 0 and app.text().count("\n") == 1
    done = pipeline.run("sample_app.py", "--timeout", "0.5")
    assert done.returncode == 1
    assert done.stderr == f"sample_app.py: after 0.5 s there is no {waiting}\n"
    kafka_io.ensure_topics(pipeline.settings.kafka, GROUPS)
    pipeline.send_rows(adult[:25], "first")
    pipeline.wait_for(PREDICTIONS, 25)
    pipeline.wait_for_events("training_completed", 1)
    assert "another trainer" not in scripts.trainer.text()


def predictor_serves_added_partitions(scripts: Scripts, adult: list[Row]) -> None:
    """Without a restart; the old partition is served meanwhile."""
    pipeline, predictor = scripts.pipeline, scripts.predictor
    with admin_of(scripts.broker) as admin:
        admin.create_partitions(dict.fromkeys(CO_PARTITIONED, 20))
    until(lambda: predictor.text().count("serves partitions [0]") == 2, 30, predictor.text)
    pipeline.send(_as_messages(adult[25:27], "meanwhile"), partition=0)
    pipeline.wait_for(PREDICTIONS, 27, timeout=2.5)
    assert "app_messages-1 to 19" not in predictor.text()
    until(lambda: f"serves partitions {[*range(20)]}" in predictor.text(), 30, predictor.text)
    predictor.says(
        "no committed offset: reading from the start of app_messages-1 to 19, outcomes-1 to 19"
    )
    pipeline.send(_as_messages(adult[27:30], "more"), partition=19)
    pipeline.wait_for(PREDICTIONS, 30)
    until(lambda: pipeline.stored_messages() == 30, 30)


def predictor_serves_what_was_added_while_it_was_down(scripts: Scripts) -> None:
    """It restarts within its session, so the broker gives it its old partitions.

    The topics do not fit each other: what can be answered is served until initialize.py mends it.
    """
    pipeline, predictor = scripts.pipeline, scripts.predictor
    with admin_of(scripts.broker) as admin:
        predictor.kill()
        admin.create_partitions({APP_MESSAGES: 22, OUTCOMES: 22})
        predictor = scripts.start_predictor()
        predictor.says(
            "app_messages has partitions that predictions lacks, so they are not served: "
            "app_messages-20, 21 (initialize.py adds them)"
        )
        predictor.says(f"serves partitions {[*range(20)]}")
        lines = kafka_io.ensure_topics(pipeline.settings.kafka, GROUPS)
        assert lines == ["predictions has 22 partitions now, as app_messages"]
        until(lambda: f"serves partitions {[*range(22)]}" in predictor.text(), 30, predictor.text)
    assert predictor.text().count("lacks") == 1 and "waiting" not in predictor.text()


def scripts_skip_expired_records(scripts: Scripts, adult: list[Row]) -> None:
    """Records that expire before anyone reads them; the scripts continue after them."""
    pipeline, predictor = scripts.pipeline, scripts.predictor
    with paused(predictor, scripts.trainer), admin_of(scripts.broker) as admin:
        pipeline.send_rows(adult[30:40], "expired")
        admin.delete_records({TopicPartition(APP_MESSAGES, 0): 37})
    predictor.says("app_messages-0: offset 27 is not in the log any more (37 to 37)")
    pipeline.send_rows(adult[40:43], "after")
    pipeline.wait_for(PREDICTIONS, 33)
    until(lambda: pipeline.stored_messages() == 33, 30)


def trainer_starts_over_with_a_recreated_topic(scripts: Scripts, adult: list[Row]) -> None:
    """Offsets, and so the ids of batches, begin at 0 again."""
    pipeline = scripts.pipeline
    pipeline.send_rows(adult[:35], "first")
    pipeline.wait_for_events("training_completed", 1)
    until(lambda: pipeline.stored_messages() == 35, 30)
    pipeline.wait_for(PREDICTIONS, 35)
    with admin_of(scripts.broker) as admin:
        admin.delete_topics([APP_MESSAGES])
    kafka_io.ensure_topics(pipeline.settings.kafka, GROUPS)
    pipeline.send_rows(adult[100:125], "again")
    pipeline.wait_for(PREDICTIONS, 60)
    scripts.trainer.says("app_messages was deleted and recreated; the old file is now")
    completed = pipeline.wait_for_events("training_completed", 2)
    assert [c["batch_id"] for c in completed] == ["app_messages-0-0"] * 2
    assert completed[0]["model_id"] < completed[1]["model_id"]
    assert completed[1]["rows"] < completed[0]["rows"] + 25
    assert pipeline.stored_messages() == 25
    assert (pipeline.home / "messages" / "messages.db.before-1").exists()


def trainer_knows_the_log_before_any_training(scripts: Scripts, adult: list[Row]) -> None:
    """All topics are deleted and made again while the trainer is down, and its home is kept.

    By a broker that compacts topics by default, and sets the timestamps itself.
    """
    pipeline, trainer = scripts.pipeline, scripts.trainer
    assert trainer.end() == 0 and scripts.predictor.end() == 0
    delete_topics_and_groups(scripts.broker.bootstrap)
    kafka_io.ensure_topics(pipeline.settings.kafka, GROUPS)
    configs = {"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"}
    with admin_of(scripts.broker) as admin:
        admin.alter_configs(
            [
                ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)
                for topic in (*CO_PARTITIONED, DEAD_LETTERS, RETRAIN_TOPIC)
            ]
        )
    scripts.start_predictor()
    pipeline.send_rows(adult[200:225], "recreated")
    pipeline.wait_for_events("retrain", 1)
    time.sleep(2)
    trainer = scripts.start_trainer()
    (completed,) = pipeline.wait_for_events("training_completed", 1)
    assert "was deleted and recreated" in trainer.text().split("RETRAINING STARTED")[0]
    history = ModelStore(pipeline.settings.models_dir).published(completed["model_id"])
    assert history is not None and history.offsets is not None
    assert history.offsets[APP_MESSAGES]["0"] == 25
    # A request's age is that of its record.
    waited = re.search(r"seconds: waiting ([0-9.]+)", trainer.text())
    assert waited is not None and 2 < float(waited[1]) < 100


def scripts_go_on_when_their_offsets_have_expired(scripts: Scripts, adult: list[Row]) -> None:
    """A broker forgets the offsets of a group that nobody is in: nothing is answered twice."""
    pipeline = scripts.pipeline
    pipeline.send_rows(adult[225:235], "before")
    pipeline.send([(APP_MESSAGES, b"bad", b"{")])
    pipeline.wait_for_records(DEAD_LETTERS, 1)
    pipeline.wait_for(PREDICTIONS, 35)
    assert scripts.trainer.end() == 0 and scripts.predictor.end() == 0
    with admin_of(scripts.broker) as admin:
        groups = [PREDICTOR_GROUP, TRAINER_GROUP]
        until(lambda: not any(_members(admin, group) for group in groups), 20)
        admin.delete_groups(groups)
    pipeline.send_rows(adult[235:255], "after")
    scripts.start_predictor()
    scripts.predictor.says("app_messages-0 has no committed offset any more, but work was done")
    pipeline.wait_for(PREDICTIONS, 55)
    scripts.start_trainer()
    completed = pipeline.wait_for_events("training_completed", 2)
    requested = pipeline.events("retrain")
    assert [(e["first_offset"], e["last_offset"], e["count"]) for e in requested] == [
        (0, 24, 25),
        (25, 50, 25),
    ]
    assert [e["batch_id"] for e in completed] == [e["batch_id"] for e in requested]
    assert len(pipeline.records(PREDICTIONS)) == 55
    assert len(pipeline.records(DEAD_LETTERS)) == 1


def _members(admin: KafkaAdminClient, group: str) -> list[object]:
    found: list[object] = admin.describe_groups([group])[group]["members"]
    return found


@contextmanager
def admin_of(broker: Broker) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        yield admin


@contextmanager
def paused(*scripts: Script) -> Iterator[None]:
    """Stop processes for a while."""
    for script in scripts:
        script.process.send_signal(signal.SIGSTOP)
    time.sleep(0.7)  # until fetches in flight are answered
    yield
    for script in scripts:
        script.process.send_signal(signal.SIGCONT)


def _as_messages(rows: list[Row], prefix: str) -> Iterator[tuple[str, bytes, Any]]:
    for number, row in enumerate(rows):
        name = f"{prefix}-{number}"
        yield APP_MESSAGES, name.encode(), {"request_id": name, "data": row}
