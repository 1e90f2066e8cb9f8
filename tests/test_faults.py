"""What goes wrong on a machine: a clear line, the old state kept, and on when it is mended.

What each part does by itself is tested with the part; here are whole processes.
"""

import ast
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient

from tests.harness import Pipeline, Script, file_system, until
from utils import kafka_io
from utils.broker import SHORT_LIVED, Broker
from utils.bundles import Draft
from utils.kafka_io import Outgoing, Sender, TopicPartition
from utils.message_store import MessageStore
from utils.messages import APP_MESSAGES, CO_PARTITIONED, GROUPS, PREDICTIONS, RETRAIN_TOPIC
from utils.model_store import ModelStore
from utils.settings import ROOT

Row = dict[str, Any]

#: The script that is named, with less patience where it would wait for seconds.
HASTY = """
import runpy, sys
from utils import kafka_io
kafka_io.METADATA_MAX_AGE_MS = 500
kafka_io.NO_OFFSET_PATIENCE_S = 0.5
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def admin_of(broker: Broker) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        yield admin


# Topics that are missing, grow, expire, or are deleted and made again


def test_topics_change_under_the_processes(
    own_broker: Broker, prepared: Path, tmp_path: Path, adult: list[Row]
) -> None:
    pipeline = Pipeline(tmp_path / "home", own_broker.bootstrap)
    pipeline.copy_files_of(prepared)
    hasty = tmp_path / "hasty.py"
    hasty.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{HASTY}")

    def start() -> tuple[Script, Script]:
        return (
            pipeline.start(str(hasty), "predictor.py"),
            pipeline.start(str(hasty), "trainer.py", "--evals", "1"),
        )

    try:
        # Missing: both wait, and begin by themselves.
        predictor, trainer = start()
        predictor.says("waiting for topic app_messages, outcomes (initialize.py creates it)")
        trainer.says("waiting for topic retrain_topic")
        kafka_io.ensure_topics(pipeline.settings.kafka, GROUPS)
        pipeline.send_rows(adult[:25], "first")
        pipeline.wait_for(PREDICTIONS, 25)
        pipeline.wait_for_events("training_completed", 1)
        # More partitions than before: nobody is started again.
        with admin_of(own_broker) as admin:
            admin.create_partitions(dict.fromkeys(CO_PARTITIONED, 2))
        until(lambda: "serves partitions [0, 1]" in predictor.text(), 30, predictor.text)
        pipeline.send(_as_messages(adult[25:30], "more"), partition=1)
        pipeline.wait_for(PREDICTIONS, 30)
        until(lambda: _stored(pipeline) == 30, 30)
        # Expired before anyone read them: on with what there is.
        assert predictor.end() == 0 and trainer.end() == 0
        pipeline.send_rows(adult[30:40], "expired")
        with admin_of(own_broker) as admin:
            admin.delete_records({TopicPartition(APP_MESSAGES, 0): 35})
        predictor, trainer = start()
        predictor.says("app_messages-0: offset 25 is not in the log any more (35 to 35)")
        pipeline.send_rows(adult[40:43], "after")
        pipeline.wait_for(PREDICTIONS, 33)
        until(lambda: _stored(pipeline) == 33, 30)
        # Deleted and made again: its offsets, and so its batches, are called as before.
        with admin_of(own_broker) as admin:
            admin.delete_topics([APP_MESSAGES])
        kafka_io.ensure_topics(pipeline.settings.kafka.model_copy(update={"partitions": 2}), GROUPS)
        pipeline.send_rows(adult[100:125], "again")
        pipeline.wait_for(PREDICTIONS, 58)
        trainer.says("app_messages was deleted and made again; what there was is now")
        completed = pipeline.wait_for_events("training_completed", 2)
        assert [c["batch_id"] for c in completed] == ["app_messages-0-0"] * 2
        assert completed[0]["model_id"] < completed[1]["model_id"]
        assert completed[1]["rows"] < completed[0]["rows"] + 25
        assert _stored(pipeline) == 25
        assert (pipeline.home / "messages" / "messages.db.before-1").exists()
        assert predictor.end() == 0 and trainer.end() == 0
    finally:
        pipeline.close()


def _as_messages(rows: list[Row], prefix: str) -> Iterator[tuple[str, bytes, Any]]:
    for number, row in enumerate(rows):
        name = f"{prefix}-{number}"
        yield APP_MESSAGES, name.encode(), {"request_id": name, "data": row}


def _stored(pipeline: Pipeline) -> int:
    """How many messages the trainer's store holds."""
    features = ModelStore(pipeline.settings.models_dir).load_current().features
    with MessageStore.open(pipeline.settings.messages_url, features) as store:
        return store.counts().messages


# Files and disks under processes that run


class Running:
    """A predictor and a trainer at work, with `models/` on a small disk where there can be one."""

    def __init__(self, pipeline: Pipeline, broker: Broker, rows: list[Row]) -> None:
        self.pipeline = pipeline
        self.broker = broker
        self.store = ModelStore(pipeline.settings.models_dir)
        self.predictor = pipeline.start("predictor.py")
        self.trainer = pipeline.start("trainer.py", "--evals", "1")
        self._rows = rows
        self._sent = 0
        self.trainer.says("ready")
        self.predictor.says("serves partitions [0]")

    def answers(self, count: int) -> list[Any]:
        """Send so many rows and wait for their predictions."""
        rows = [self._rows[(self._sent + n) % len(self._rows)] for n in range(count)]
        self.pipeline.send_rows(rows, f"at-{self._sent}")
        self._sent += count
        return self.pipeline.wait_for(PREDICTIONS, self._sent)[-count:]

    def announce(self) -> None:
        """Have the predictor look at current.json."""
        with Sender(self.pipeline.settings.kafka) as sender:
            sender.send(Outgoing(RETRAIN_TOPIC, 0, None, b'{"training_completed": true}'))

    def published(self) -> int:
        """A new bundle, the serving one once more."""
        serving = self.store.load_current()
        manifest = serving.manifest
        return self.store.publish(
            Draft(
                model_text=serving.booster.model_to_string(),
                features=serving.features,
                hyperparameters=manifest["hyperparameters"],
                seed=manifest["seed"],
                training=manifest["training"],
                golden_rows=[row["data"] for row in manifest["golden"]],
                parent_id=serving.model_id,
            )
        )


@pytest.fixture(scope="module")
def running(
    prepared: Path, adult: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("running")
    with Broker(folder / "broker", jvm=SHORT_LIVED) as broker:
        pipeline = Pipeline(folder / "home", broker.bootstrap)
        models = pipeline.settings.models_dir
        models.mkdir(parents=True)
        with file_system(models, "16m"):
            try:
                pipeline.copy_of(prepared)
                yield Running(pipeline, broker, adult)
            finally:
                pipeline.close()


def test_a_current_that_cannot_be_used_keeps_the_old_model(running: Running) -> None:
    current = running.store.path / "current.json"
    was, serving = current.read_bytes(), running.store.current_id()
    damages = {
        "names bundle 77, which is not there": b'{"model_id": 77}',
        "Input data was truncated": b"",
        "No such file or directory": None,
    }
    try:
        for complaint, content in damages.items():
            if content is None:
                current.unlink()
            else:
                current.write_bytes(content)
            running.announce()
            running.predictor.says(f"model {serving} keeps serving: {current}")
            running.predictor.says(complaint)
            assert running.answers(1)[0]["model_id"] == serving
    finally:
        current.write_bytes(was)


@pytest.mark.parametrize("content", [None, b"", b'{"model_id": 77}'])
def test_a_predictor_without_a_model_is_one_line(
    running: Running, tmp_path: Path, content: bytes | None
) -> None:
    shutil.copytree(running.store.path, tmp_path / "models")
    current = tmp_path / "models" / "current.json"
    current.unlink()
    if content is not None:
        current.write_bytes(content)
    done = Pipeline(tmp_path, running.broker.bootstrap).run("predictor.py")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"predictor.py: {current}" in done.stderr


def test_a_flipped_byte_keeps_the_old_model_until_it_is_mended(running: Running) -> None:
    serving = running.store.current_id()
    with running.store.writing():  # so that the trainer's child does not come in between
        new = running.published()
        model = running.store.path / str(new) / "model.txt"
        was = model.read_bytes()
        model.write_bytes(was.replace(b"tree", b"tsee", 1))
        running.announce()
        running.predictor.says(f"bundle {new} in {running.store.path}: model.txt does not match")
        assert running.answers(1)[0]["model_id"] == serving
        model.write_bytes(was)
        running.predictor.says(f"NEW MODEL RELOADED {new}")
        assert running.answers(1)[0]["model_id"] == new


def test_a_full_disk_delays_a_training(running: Running) -> None:
    models = running.store.path
    if not models.is_mount():
        pytest.skip("a file system of one's own needs root")
    filler, completed = models / "filler", len(running.pipeline.events("training_completed"))
    with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 16))
    try:
        running.answers(25)
        running.trainer.says("the training failed, again in 5 s: cannot write bundle", 60)
        assert "No space left on device" in running.trainer.text()
    finally:
        filler.unlink()
    running.pipeline.wait_for_events("training_completed", completed + 1)


def test_a_locked_and_a_damaged_store_under_a_trainer(running: Running) -> None:
    path = running.pipeline.home / "messages" / "messages.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        running.answers(3)
        running.trainer.says("messages.db: locked by another process")
        other.execute("ROLLBACK")
    running.trainer.says("all is well again")
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    running.answers(3)
    running.trainer.says("the file was damaged; what there was is now messages.db.damaged-1")
    sent = len(running.pipeline.values(APP_MESSAGES))
    until(lambda: _stored(running.pipeline) == sent, 30)


def test_a_silent_broker_is_waited_for(running: Running) -> None:
    """For longer than a session may last; `make torture` has one of 60 s."""
    os.kill(running.broker.pid, signal.SIGSTOP)
    time.sleep(7)
    os.kill(running.broker.pid, signal.SIGCONT)
    running.answers(5)
    for script in (running.predictor, running.trainer):
        assert script.process.poll() is None
        assert "Traceback" not in script.text()


# Clocks

#: Where the time of day is asked for, and only to be written down or shown.
TIME_OF_DAY = {
    "train/mlflow_log.py": 1,  # a figure's timestamp
    "train/tracking.py": 1,  # how old missing outcomes are
    "utils/bundles.py": 1,  # when a bundle was made
    "utils/kafka_io.py": 1,  # a record's timestamp
    "utils/message_store.py": 1,  # how old missing outcomes are
    "utils/process.py": 1,  # before each line of output
}


def test_nothing_waits_by_a_clock_that_can_be_set_back() -> None:
    found = {}
    for file in [*ROOT.glob("*.py"), *ROOT.glob("utils/*.py"), *ROOT.glob("train/*.py")]:
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if _asks_the_time(node)]
        if calls:
            found[str(file.relative_to(ROOT))] = len(calls)
    assert found == TIME_OF_DAY


def _asks_the_time(node: ast.AST) -> bool:
    name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return name in ("time.time", "time.strftime", "time.localtime") or name.endswith(
        (".now", ".today", ".utcnow")
    )
