"""Faults of the machine: the scripts report them in one line, keep their state and recover.

The unit tests cover each part by itself; here are whole processes.
"""

import ast
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import clear_broker
from tests.harness import Pipeline, mount_tmpfs, until
from tests.unit.test_layout import LIBRARIES
from utils.broker import Broker
from utils.kafka_io import Outgoing, Sender
from utils.messages import APP_MESSAGES, PREDICTIONS, RETRAIN_TOPIC
from utils.model_store import ModelStore
from utils.model_store.bundle import Draft
from utils.settings import ROOT

Row = dict[str, Any]


class Running:
    """A running predictor and trainer; `models/` is on a small disk if one can be mounted."""

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

    def predict(self, count: int) -> list[Any]:
        """Send rows, wait for their predictions and return them."""
        rows = [self._rows[(self._sent + n) % len(self._rows)] for n in range(count)]
        self.pipeline.send_rows(rows, f"at-{self._sent}")
        self._sent += count
        return self.pipeline.wait_for(PREDICTIONS, self._sent)[-count:]

    def announce(self) -> None:
        """Make the predictor read current.json."""
        with Sender(self.pipeline.settings.kafka) as sender:
            sender.send(Outgoing(RETRAIN_TOPIC, 0, None, b'{"training_completed": true}'))

    def publish(self) -> int:
        """Publish a copy of the serving bundle; its model id."""
        serving = self.store.load_current()
        manifest = serving.manifest
        return self.store.publish(
            Draft(
                model_text=serving.booster.model_to_string(),
                features=serving.features,
                hyperparameters=manifest.hyperparameters,
                seed=manifest.seed,
                training=manifest.training,
                golden_rows=[row.data for row in manifest.golden],
                parent_id=serving.model_id,
            )
        )


@pytest.fixture(scope="module")
def running(
    broker: Broker, prepared_home: Path, adult: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Shared by the tests here; tests of other modules must not use the broker in between."""
    clear_broker(broker)
    pipeline = Pipeline(tmp_path_factory.mktemp("running"), broker.bootstrap)
    models = pipeline.settings.models_dir
    models.mkdir()
    with mount_tmpfs(models, "16m"):
        try:
            pipeline.copy_of(prepared_home)
            yield Running(pipeline, broker, adult)
        finally:
            pipeline.close()


def test_unusable_current_json_keeps_the_old_model(running: Running) -> None:
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
            assert running.predict(1)[0]["model_id"] == serving
    finally:
        current.write_bytes(was)


def test_predictor_without_a_model_ends_with_one_line(running: Running, tmp_path: Path) -> None:
    pipelines = {}
    for name, content in {"missing": None, "empty": b"", "lost": b'{"model_id": 77}'}.items():
        home = tmp_path / name
        shutil.copytree(running.store.path, home / "models")
        (home / "data").mkdir()
        shutil.copy(running.store.path.parent / "data" / "home.json", home / "data")
        current = home / "models" / "current.json"
        current.unlink()
        if content is not None:
            current.write_bytes(content)
        pipelines[current] = Pipeline(home, running.broker.bootstrap)
    with ExitStack() as resources:
        for pipeline in pipelines.values():
            pipeline.start("predictor.py")
            resources.callback(pipeline.close)
        for current, pipeline in pipelines.items():
            (script,) = pipeline.scripts
            assert script.process.wait(60) == 1
            (line,) = script.text().splitlines()
            assert line.startswith(f"predictor.py: {current}")


def test_corrupt_model_is_not_loaded_until_it_is_repaired(running: Running) -> None:
    serving = running.store.current_id()
    with running.store.writing():  # keeps the trainer's child from publishing meanwhile
        new = running.publish()
        model = running.store.path / str(new) / "model.txt"
        was = model.read_bytes()
        model.write_bytes(was.replace(b"tree", b"tsee", 1))
        running.announce()
        running.predictor.says(f"bundle {new} in {running.store.path}: model.txt does not match")
        assert running.predict(1)[0]["model_id"] == serving
        model.write_bytes(was)
        running.predictor.says(f"NEW MODEL RELOADED {new}")
        assert running.predict(1)[0]["model_id"] == new


def test_training_is_retried_after_a_full_disk(running: Running) -> None:
    models = running.store.path
    if not models.is_mount():
        pytest.skip("mounting a file system needs root")
    filler, completed = models / "filler", len(running.pipeline.events("training_completed"))
    with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 16))
    try:
        running.predict(25)
        running.trainer.says("the training failed, again in 5 s: cannot write bundle", 60)
        assert "No space left on device" in running.trainer.text()
    finally:
        filler.unlink()
    running.pipeline.wait_for_events("training_completed", completed + 1)


def test_trainer_recovers_from_locked_and_damaged_store(running: Running) -> None:
    path = running.pipeline.home / "messages" / "messages.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        running.predict(3)
        running.trainer.says("messages.db: locked by another process")
        other.execute("ROLLBACK")
        running.trainer.says("recovered")
        sent = len(running.pipeline.values(APP_MESSAGES))
        until(lambda: running.pipeline.stored_messages() == sent, 30)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else the pages are in the WAL
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    running.predict(3)
    running.trainer.says("the file was damaged; the old file is now messages.db.damaged-1")
    until(lambda: running.pipeline.stored_messages() == sent + 3, 30)


def test_scripts_survive_an_unresponsive_broker(running: Running) -> None:
    """For longer than the session timeout; `make torture` has an outage of 60 s."""
    os.kill(running.broker.pid, signal.SIGSTOP)
    time.sleep(7)
    os.kill(running.broker.pid, signal.SIGCONT)
    running.predict(5)
    for script in (running.predictor, running.trainer):
        assert script.process.poll() is None
        assert "Traceback" not in script.text()


# Clocks


class Clock:
    """A system clock that can be set, for processes that start in its environment."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("clock.c needs a C compiler")
        library, self._shift = folder / "clock.so", folder / "clock"
        source = Path(__file__).with_name("clock.c")
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._shift)}
        self._shift.write_bytes(bytes(8))

    def set(self, seconds: int) -> None:
        """Shift the clock by this from the machine's."""
        with self._shift.open("r+b") as stream:  # never truncated: processes have it mapped
            stream.write(seconds.to_bytes(8, sys.byteorder, signed=True))


def test_changed_system_clock_delays_nothing(
    prepared_home: Path, adult: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the broker changes as well."""
    clock = Clock(tmp_path)
    with monkeypatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        broker = Broker(tmp_path / "broker")
        broker.start()
    pipeline = Pipeline(tmp_path, broker.bootstrap, **clock.environment)
    try:
        pipeline.copy_of(prepared_home)
        running = Running(pipeline, broker, adult)
        running.predict(25)
        pipeline.wait_for_events("training_completed", 1)
        for requests, shift in ((2, -3_600), (3, 86_400)):
            clock.set(shift)
            running.predict(25)
            pipeline.wait_for_events("training_completed", requests, timeout=30)
        back, ahead = np.diff([record.timestamp for record in pipeline.records(PREDICTIONS)[::25]])
        assert back < -3_500_000 and ahead > 86_000_000, "the clock was not set"
        assert (running.trainer.end(), running.predictor.end()) == (0, 0)
    finally:
        pipeline.close()
        broker.stop()


#: The modules that read the system clock, how often, and what for: to record or show it.
SYSTEM_CLOCK_READS = {
    "initialize.py": 1,  # how old the oldest record of the message store is
    "predictor.py": 1,  # how old a message is when its prediction is committed
    "trainer.py": 3,  # how old the newest training is, and a request; when a training began
    "monitor/cluster.py": 3,  # when the cluster was looked at, and which predictions are recent
    "monitor/snapshot.py": 1,  # when the broker was lost
    "monitor/learning.py": 1,  # when predictions were counted
    "monitor/sections.py": 1,  # how old missing outcomes are
    "monitor/widgets.py": 3,  # how a time is shown
    "train/tracking/mlflow_log.py": 1,  # a figure's timestamp
    "train/tracking/tracker.py": 1,  # how old missing outcomes are
    "utils/json_lines.py": 1,  # in each line of output
    "utils/message_store/summaries.py": 1,  # how old missing outcomes are
    "utils/message_store/timestamps.py": 1,  # whether a record's timestamp makes sense
    "utils/model_store/bundle.py": 1,  # when a bundle was made
    "utils/home.py": 1,  # when a home was made
    "utils/client_certificate.py": 1,  # whether a certificate is valid
    "utils/kafka_io/oauth.py": 1,  # how long a token of AWS can be used
    "utils/kafka_io/transactions.py": 1,  # a record's timestamp
    "utils/telemetry/reporter.py": 1,  # before each line of output
    "ops/demo_screen.py": 1,  # before each line of output
    "ops/report.py": 1,  # how old missing outcomes are
}


def test_no_module_measures_time_by_the_system_clock() -> None:
    found = {}
    packages = (file for name in LIBRARIES for file in ROOT.glob(f"{name}/**/*.py"))
    for file in [*ROOT.glob("*.py"), *packages]:
        calls = [
            node for node in ast.walk(ast.parse(file.read_text())) if _reads_system_clock(node)
        ]
        if calls:
            found[str(file.relative_to(ROOT))] = len(calls)
    assert found == SYSTEM_CLOCK_READS


def _reads_system_clock(node: ast.AST) -> bool:
    name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return name in ("time.time", "time.strftime", "time.localtime") or name.endswith(
        ("datetime.now", ".today", ".utcnow")
    )
