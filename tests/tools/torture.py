"""Kills processes at random while messages flow, then verifies every guarantee.

    python -m tests.tools.torture [--minutes 5] [--seed N] [--rate 100] [--only broker]
                                  [--pipelines 3]

It runs a broker, three predictors, a trainer and a steady producer in a temporary home. A
seeded loop kills one process after another, whatever it is doing, and restarts it; among that
it adds partitions, deletes records, and restores the home from a backup. In the end the
committed log shows whether every guarantee held. A seed gives the same kinds of kills in the
same order and the same messages; what a process is doing when it is killed differs from run to
run. With --pipelines, several of them suffer all that at once on one broker, each with a home
and a name of its own.
"""

import argparse
import bisect
import json
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient

from tests.harness import Pipeline, Script
from utils import preprocess_data
from utils.broker import SHORT_LIVED, Broker
from utils.kafka_io import (
    RETRIABLE_ERRORS,
    KafkaError,
    LogReader,
    Outgoing,
    Sender,
    TopicPartition,
    log_scan,
)
from utils.kafka_io.clients import open_admin
from utils.message_decoder import request_id_of
from utils.message_store import MessageStore, StoreError
from utils.messages import (
    APP_MESSAGES,
    CO_PARTITIONED,
    DEAD_LETTERS,
    OUTCOMES,
    PREDICTIONS,
    PREDICTOR_GROUP,
    RETRAIN_TOPIC,
)
from utils.model_store import ModelStore
from utils.model_store.manifest import published

Row = dict[str, Any]

PARTITIONS = 4
EVERY = 25
PREDICTORS = 3
ENVIRONMENT = {
    "PARTITIONS": str(PARTITIONS),
    "RETRAIN_EVERY": str(EVERY),
    "EXTRA_MODELS_TO_KEEP": "100000",  # every prediction is recomputed in the end
}
#: The longest time a partition may have no predictions after a kill; then the run ends.
STUCK_SECONDS = 90.0
#: The longest time until all is processed, once nothing is sent any more.
FINISH_SECONDS = 180.0
#: What decides which of two records is the later one.
_TIME = attrgetter("timestamp", "partition", "offset")
#: Marks the faults after which a run ends early.
_STUCK = "have no new predictions"

BAD_MESSAGES: list[bytes | None] = [
    b"{",
    b'{"request_id": "\xff", "data": {"age": 1}}',
    b'{"data": {"age": 39}}',
    b'{"request_id": "x", "data": {"age": "old"}}',
    b'{"request_id": "x", "data": {"colour": "red"}}',
    None,
]
BAD_OUTCOMES: list[bytes | None] = [b"[]", b'{"request_id": "x", "outcome": "neither"}', None]


class Feeder(threading.Thread):
    """Sends messages at a steady rate; half have the outcome inside, half get it later.

    Some records are bad, and some request_ids are repeated.

    Attributes:
        acknowledged: (topic, key, value) of every acknowledged record.
        unsure: Number of records without an acknowledgement, which may be in the log.
    """

    def __init__(self, pipeline: Pipeline, rows: Sequence[Row], rate: float, seed: int) -> None:
        super().__init__(name="feeder", daemon=True)
        self.acknowledged: list[tuple[str, bytes, bytes | None]] = []
        self.unsure = 0
        self._pipeline = pipeline
        self._prefix = prefix_of(pipeline)
        self._rows = rows
        self._rate = rate
        self._random = random.Random(seed)
        self._target = pipeline.settings.data.target
        self._halt = threading.Event()
        self._sent: list[tuple[Any, tuple[str, bytes, bytes | None]]] = []
        self._later: list[tuple[float, str, Any]] = []

    def stop(self) -> None:
        """Send the outcomes that are still due, and wait for all acknowledgements."""
        self._halt.set()
        self.join()

    def run(self) -> None:
        sender = Sender(self._pipeline.settings.kafka, linger_ms=2)
        started, number = time.monotonic(), 0
        try:
            while not self._halt.wait(0.01):
                due = int((time.monotonic() - started) * self._rate)
                for record in self._records(range(number, due)):
                    sender = self._send(sender, record)
                number = max(number, due)
                self._collect()
            for _, name, outcome in self._later:
                sender = self._send(sender, self._outcome(name, outcome))
            sender.flush(60)
            self._collect(wait=True)
        finally:
            sender.close()

    def _records(self, numbers: range) -> Iterator[tuple[str, bytes, bytes | None]]:
        pick = self._random
        for number in numbers:
            name = f"{self._prefix}{number}"
            if pick.random() < 0.02 and number:
                name = f"{self._prefix}{pick.randrange(number)}"  # repeated, with other data
            row = dict(pick.choice(self._rows))
            if pick.random() < 0.5:
                outcome = row.pop(self._target)
                self._later.append((time.monotonic() + pick.uniform(0.1, 3), name, outcome))
            if pick.random() < 0.1:  # as csv.DictReader reads them
                row = {k: v if k == self._target or v is None else f" {v}" for k, v in row.items()}
            value = json.dumps({"request_id": name, "data": row}).encode()
            yield APP_MESSAGES, name.encode(), value
            if pick.random() < 0.02:
                yield APP_MESSAGES, self._bad_key(number), pick.choice(BAD_MESSAGES)
            if pick.random() < 0.01:
                yield OUTCOMES, self._bad_key(number), pick.choice(BAD_OUTCOMES)
        now = time.monotonic()
        due = [entry for entry in self._later if entry[0] <= now]
        self._later = [entry for entry in self._later if entry[0] > now]
        for _, name, outcome in due:
            yield self._outcome(name, outcome)

    def _bad_key(self, number: int) -> bytes:
        return f"bad-{self._prefix}{number}".encode()

    @staticmethod
    def _outcome(name: str, outcome: Any) -> tuple[str, bytes, bytes]:
        value = json.dumps({"request_id": name, "outcome": outcome}).encode()
        return OUTCOMES, name.encode(), value

    def _send(self, sender: Sender, record: tuple[str, bytes, bytes | None]) -> Sender:
        topic, key, value = record
        try:
            self._sent.append((sender.send(Outgoing(topic, None, key, value)), record))
        except KafkaError:
            self.unsure += 1
            sender.close()
            sender = Sender(self._pipeline.settings.kafka, linger_ms=2)
        return sender

    def _collect(self, wait: bool = False) -> None:
        left = []
        for future, record in self._sent:
            if wait and not future.is_done:
                with suppress(KafkaError):
                    future.get(timeout=60)
            if not future.is_done:
                left.append((future, record))
            elif future.succeeded():
                self.acknowledged.append(record)
            else:
                self.unsure += 1
        self._sent = left


class PredictionMonitor(threading.Thread):
    """Reads the committed predictions and remembers when each was read."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(name="prediction-monitor", daemon=True)
        self.seen = 0
        self._made: dict[int, list[float]] = defaultdict(list)
        self._arrived: dict[int, list[float]] = defaultdict(list)
        self._reader = LogReader(pipeline.settings.kafka, [PREDICTIONS])
        self._halt = threading.Event()

    def stop(self) -> None:
        """Stop reading and wait for the end of the thread."""
        self._halt.set()
        self.join()

    def run(self) -> None:
        with self._reader:
            while not self._halt.is_set():
                try:
                    polled = self._reader.poll(50)
                except KafkaError:
                    continue
                now = time.time()
                for tp, records in polled.items():
                    self.seen += len(records)
                    newest = max(record.timestamp for record in records) / 1000
                    self._arrived[tp.partition].append(now)
                    self._made[tp.partition].append(newest)

    def first_after(self, moment: float, partition: int) -> float | None:
        """When the first prediction made after `moment` was read; None before that."""
        made = self._made[partition]
        at = bisect.bisect_right(made, moment)
        return self._arrived[partition][at] if at < len(made) else None


@dataclass(frozen=True)
class Kill:
    """One kill: what, when, and the partitions whose predictions it delays."""

    kind: str
    at: float
    partitions: Sequence[int]


@dataclass
class Report:
    """The results of a run; all times in seconds."""

    kills: Counter[str] = field(default_factory=Counter)
    stalls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    figures: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The results as text."""
        lines = [f"{'kill':42} kills  stall: median   worst"]
        for kind in sorted({*self.kills, *self.stalls}):
            times = self.stalls.get(kind)
            stall = f"{statistics.median(times):12.2f} s {max(times):6.2f} s" if times else ""
            lines.append(f"  {kind:40} {self.kills[kind] or '':5}  {stall}")
        lines.append(f"  {'all':40} {self.kills.total():5}")
        lines += [f"{name}: {number}" for name, number in self.figures.items()]
        lines += [f"FAULT: {fault}" for fault in self.faults] or ["no fault"]
        return "\n".join(lines)


class Torture:
    """Runs the processes of one pipeline and kills them.

    Args:
        pipeline: Has a prepared home, topics, and the variables of ENVIRONMENT.
        broker: Its broker, to be killed too; None where another thread does that, because only
            the one that started it can.
        rows: The data of the messages, with the outcome inside.
        seed: Seeds everything random here.
        rate: Messages a second.
        silence: Seconds for which the broker is frozen now and then; 0 for never.
        only: Part of the names of the kills to choose from ("broker"); empty for all.
        say: Called with one line for each action.
        meet: Waits for the torture of other pipelines: before the first kill and after the last.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        broker: Broker | None,
        rows: Sequence[Row],
        *,
        seed: int,
        rate: float = 100.0,
        silence: float = 0.0,
        only: str = "",
        say: Callable[[str], None] = lambda line: None,
        meet: Callable[[], object] = lambda: None,
    ) -> None:
        self.report = Report()
        self._meet = meet
        self._pipeline = pipeline
        self._broker = broker
        # The plan has its own generator: the other is used more or less often depending on
        # the machine's speed, and a seed would not give the same kills in the same order.
        self._plan = random.Random(seed)
        self._random = random.Random(seed)
        self._silence = silence
        self._say = say
        self._store = ModelStore(pipeline.settings.models_dir)
        self._feeder = Feeder(pipeline, rows, rate, seed)
        self._monitor = PredictionMonitor(pipeline)
        self._predictors: list[Script] = []
        self._trainer: Script | None = None
        self._leaving: list[Script] = []
        self._returns: list[float] = []  # when predictors are started (again)
        self._partitions = PARTITIONS
        self._kept = Kept(pipeline.home / "kept")
        self._strikes: list[tuple[float, Callable[[], Kill]]] = [
            (4, self._restart),
            (1.5, self._restart_later),
            (1, self._replace),
            (1.5, self._kill_while_loading),
            (1, self._freeze_predictor),
            (1, self._kill_trainer),
            (1, self._kill_training),
            (1, self._kill_publishing),
            (1, self._kill_broker),
            (0.5, self._add_partitions),
            (0.5, self._delete_records),
            (0.5, self._restore_home),
        ]
        if silence:
            self._strikes.append((0.2, self._freeze_broker))
        self._strikes = [
            entry
            for entry in self._strikes
            if only in entry[1].__name__ and (broker or "broker" not in entry[1].__name__)
        ]
        # Each kind once, so that a short run has them all; then at random, by weight.
        self._not_yet = [strike for _, strike in self._strikes]
        self._plan.shuffle(self._not_yet)

    def run(self, should_continue: Callable[[int], bool]) -> Report:
        """Kill while `should_continue(kills so far)`, then let all finish, and verify."""
        self._begin()
        self._meet()
        while should_continue(self.report.kills.total()) and not self._is_stuck():
            self._kill_and_recover()
        self._meet()
        self._finish()
        return self.report

    # The processes

    def _begin(self) -> None:
        for _ in range(PREDICTORS):
            self._join()
        self._trainer = self._start_trainer()
        self._monitor.start()
        self._wait(self._has_settled, 60, "the predictors did not begin")
        self._trainer.says("ready", 60)
        self._feeder.start()
        self._wait(lambda: self._monitor.seen > 200, 60, "no predictions at the beginning")

    def _join(self) -> None:
        self._predictors.append(self._pipeline.start("predictor.py"))

    def _start_trainer(self) -> Script:
        return self._pipeline.start("trainer.py", "--evals", "1")

    def _supervise(self) -> None:
        """Restart processes that ended, and report those that should not have."""
        now = time.monotonic()
        for moment in [moment for moment in self._returns if moment <= now]:
            self._returns.remove(moment)
            self._join()
        for script in [s for s in self._leaving if s.process.poll() is not None]:
            self._leaving.remove(script)
            if script.process.returncode and script.text():  # else it had not begun
                self._fault(f"status {script.process.returncode} after SIGTERM", script)
        for script in [s for s in self._predictors if s.process.poll() is not None]:
            self._predictors.remove(script)
            self._report_end(script)
            self._join()
        if self._trainer is not None and self._trainer.process.poll() is not None:
            self._report_end(self._trainer)
            self._trainer = self._start_trainer()

    def _report_end(self, script: Script) -> None:
        # A script that starts while the broker is down may say so and end.
        if "no Kafka broker answers" not in script.text():
            self._fault(f"ended by itself, status {script.process.returncode}", script)

    def _fault(self, text: str, script: Script | None = None) -> None:
        if script is not None:
            last = " | ".join(script.text().strip().splitlines()[-3:])
            text = f"{script.output.name} {text}: {last}"
        self.report.faults.append(text)
        self._say(f"FAULT: {text}")

    def _has_settled(self) -> bool:
        """Whether all predictors run and have partitions."""
        return not self._returns and all(
            _partitions_of(script) is not None for script in self._predictors
        )

    def _wait(
        self,
        condition: Callable[[], bool],
        seconds: float,
        otherwise: str,
        every: float = 0.02,
    ) -> bool:
        """Wait for a condition and supervise; a shorter interval would slow the processes."""
        deadline = time.monotonic() + seconds
        while not condition():
            self._supervise()
            if time.monotonic() > deadline:
                self._fault(f"{otherwise} in {seconds:.0f} s")
                return False
            time.sleep(every)
        return True

    def _is_stuck(self) -> bool:
        return any(_STUCK in fault for fault in self.report.faults)

    # The kills

    def _kill_and_recover(self) -> None:
        """Kill once, sometimes several times in a row, and wait until all have recovered."""
        kills = [self._strike()]
        while self._plan.random() < 0.2:
            self._pause(0.5)
            kills.append(self._strike())
        stall = 0.0
        for kill in kills:
            recovered = self._wait(
                lambda kill=kill: self._stall(kill) is not None,  # type: ignore[misc]
                STUCK_SECONDS,
                f"after {kill.kind}: partitions {list(kill.partitions)} {_STUCK}",
            )
            if not recovered:
                return
            stall = max(stall, self._stall(kill) or 0.0)
        kind = kills[0].kind if len(kills) == 1 else "several in a row"
        self.report.stalls[kind].append(stall)
        self._say(f"{self.report.kills.total():4} {kind}: {stall:.2f} s")
        self._wait(self._has_settled, 60, "not every predictor joined")
        self._pause(1.5)

    def _pause(self, longest: float) -> None:
        self._pause_of(self._random.uniform(0, longest))

    def _pause_of(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._wait(lambda: time.monotonic() >= until, seconds + 60, "")

    def _stall(self, kill: Kill) -> float | None:
        """Seconds from the kill until every partition had a new prediction; None before that."""
        seen = [self._monitor.first_after(kill.at, p) for p in kill.partitions]
        return None if None in seen else max((s - kill.at for s in seen if s), default=0.0)

    def _strike(self) -> Kill:
        if self._not_yet:
            strike = self._not_yet.pop()
        else:
            weights, strikes = zip(*self._strikes, strict=True)
            (strike,) = self._plan.choices(strikes, weights)
        if len(self._predictors) < 2 and strike in (self._restart_later, self._replace):
            strike = self._restart
        kill: Kill = strike()
        self.report.kills[kill.kind] += 1
        return kill

    def _take_victim(self, kind: str) -> tuple[Script | None, Kill]:
        if not self._predictors:
            return None, Kill(kind, time.time(), ())
        script = self._random.choice(self._predictors)
        self._predictors.remove(script)
        partitions = _partitions_of(script) or ()
        kill = Kill(kind, time.time(), partitions)
        return script, kill

    def _kill_predictor(self, kind: str) -> Kill:
        script, kill = self._take_victim(kind)
        if script is not None:
            script.kill()
        return kill

    def _restart(self) -> Kill:
        kill = self._kill_predictor("predictor, restarted at once")
        self._join()
        return kill

    def _restart_later(self) -> Kill:
        kill = self._kill_predictor("predictor, restarted after 5 s")
        self._returns.append(time.monotonic() + 5)
        return kill

    def _replace(self) -> Kill:
        script, kill = self._take_victim("predictor leaves (SIGTERM), another joins")
        if script is not None:
            script.process.terminate()
            self._leaving.append(script)
            self._returns.append(time.monotonic() + 4)
            # It finishes its batch first, so the stall begins at its end.
            self._wait_or_go_on(lambda: script.process.poll() is not None, 20)
            kill = replace(kill, at=time.time())
        return kill

    def _kill_while_loading(self) -> Kill:
        current = self._store.current_id()
        self._wait_or_go_on(lambda: self._store.current_id() != current, 8)
        time.sleep(self._random.uniform(0, 0.3))
        kill = self._kill_predictor("predictor, when a new model is out")
        self._join()
        return kill

    def _freeze_predictor(self) -> Kill:
        """Freeze a predictor for longer than its session or transaction timeout.

        Others have its partitions when it continues in the middle of its work.
        """
        script, kill = self._take_victim("predictor, frozen for a while")
        if script is not None:
            script.process.send_signal(signal.SIGSTOP)
            self._pause_of(self._random.choice((3.0, 8.0)))
            script.process.send_signal(signal.SIGCONT)
            self._predictors.append(script)
        return kill

    def _kill_trainer(self, kind: str = "trainer, at any time") -> Kill:
        kill = Kill(kind, time.time(), range(PARTITIONS))
        if self._trainer is not None:
            self._trainer.kill()
        self._trainer = self._start_trainer()
        return kill

    def _kill_training(self) -> Kill:
        trainer = self._trainer
        assert trainer is not None
        before = trainer.text().count("RETRAINING STARTED")
        self._wait_or_go_on(lambda: trainer.text().count("RETRAINING STARTED") > before, 8)
        self._pause(2)
        return self._kill_trainer("trainer, while it trains")

    def _kill_publishing(self) -> Kill:
        """Kill it in the half second in which a bundle is written, recorded and announced."""
        folder = self._pipeline.settings.models_dir
        newest = max(self._store.on_disk(), default=0) + 1
        paths = (folder / f".tmp-{newest}", folder / str(newest))
        self._wait_or_go_on(lambda: any(path.exists() for path in paths), 8)
        time.sleep(self._random.uniform(0, self._random.choice((0.01, 0.1, 0.3))))
        return self._kill_trainer("trainer, while it publishes")

    def _kill_broker(self) -> Kill:
        assert self._broker is not None
        kill = Kill("broker", time.time(), range(PARTITIONS))
        self._broker.kill()
        time.sleep(self._random.uniform(0, 1))
        self._broker.start()
        return kill

    def _add_partitions(self) -> Kill:
        """Add a partition to each topic, up to twice as many as in the beginning."""
        kill = Kill("partition added", time.time(), range(PARTITIONS))
        if self._partitions < 2 * PARTITIONS:
            self._partitions += 1
            # The torture of another pipeline may have killed the broker.
            with suppress(*RETRIABLE_ERRORS), closing(self._open_admin()) as admin:
                admin.create_partitions(dict.fromkeys(CO_PARTITIONED, self._partitions))
        return kill

    def _open_admin(self) -> KafkaAdminClient:
        return open_admin(self._pipeline.settings.kafka)

    def _delete_records(self) -> Kill:
        """Delete what was read by all from `app_messages` and `outcomes`, as retention does."""
        kill = Kill("records deleted", time.time(), range(PARTITIONS))
        kafka = self._pipeline.settings.kafka
        with suppress(StoreError, *RETRIABLE_ERRORS), self._open_store() as store:
            stored = store.offsets()
            for topic in (APP_MESSAGES, OUTCOMES):
                done = log_scan.committed(kafka, PREDICTOR_GROUP, topic)
                ends = {p: min(end, stored.get((topic, p), 0)) for p, end in done.items()}
                self._kept.keep(topic, self._pipeline.records(topic), ends)
                with closing(self._open_admin()) as admin:
                    admin.delete_records({TopicPartition(topic, p): e for p, e in ends.items()})
        return kill

    def _open_store(self) -> MessageStore:
        features = self._store.load_current().features
        return MessageStore.open(self._pipeline.settings.messages_url, features)

    def _restore_home(self) -> Kill:
        """Put the home back from a backup that lacks the newest models."""
        home, folders = self._pipeline.home, ("models", "messages", "searches")
        backup = home / "backup"
        shutil.rmtree(backup, ignore_errors=True)
        if self._trainer is not None:
            self._trainer.kill()
        for folder in folders:
            (home / folder).mkdir(exist_ok=True)  # searches/ comes with the first training
            shutil.copytree(home / folder, backup / folder, dirs_exist_ok=True)
        self._trainer = self._start_trainer()
        newest = max(self._store.on_disk())
        self._wait_or_go_on(lambda: max(self._store.on_disk()) > newest, 15)
        self._pause(2)
        killed, self._predictors = self._predictors, []
        for script in (*killed, self._trainer):
            script.kill()
        kill = Kill("home restored from a backup", time.time(), range(PARTITIONS))
        self._kept.keep_models(self._pipeline.settings.models_dir)
        for folder in folders:
            shutil.rmtree(home / folder)
            shutil.copytree(backup / folder, home / folder)
        for _ in killed:
            self._join()
        self._trainer = self._start_trainer()
        return kill

    def _freeze_broker(self) -> Kill:
        """Freeze the broker: nobody reaches it, and no connection breaks."""
        assert self._broker is not None
        os.kill(self._broker.pid, signal.SIGSTOP)
        self._pause_of(self._silence)
        os.kill(self._broker.pid, signal.SIGCONT)
        return Kill(f"broker, silent for {self._silence:.0f} s", time.time(), range(PARTITIONS))

    def _wait_or_go_on(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self._supervise()
            time.sleep(0.002)

    # The end

    def _finish(self) -> None:
        self._say("no more kills; waiting until all is processed")
        self._feeder.stop()
        log = Log(self._pipeline, self._kept)
        self._wait(
            lambda: self._monitor.seen >= len(log.good),
            FINISH_SECONDS,
            "not all messages were answered",
        )
        self._wait(self._has_settled, 60, "not every predictor joined")
        # The rows repeat, and models of repeated rows take more and more rounds.
        timeout = FINISH_SECONDS + len(log.good) / 150
        # Each check reads the log from its beginning.
        self._wait(log.is_answered, timeout, "not every retrain request was answered", every=1.0)
        self._wait(log.is_stored, FINISH_SECONDS, "the message store did not catch up", every=1.0)
        for script in [*self._predictors, *([self._trainer] if self._trainer else [])]:
            if status := script.end(signal.SIGTERM, 60):
                self._fault(f"status {status} after SIGTERM", script)
        self._monitor.stop()
        for script in self._pipeline.scripts:
            if "Traceback" in script.text():
                self._fault("printed a traceback", script)
        self._say("verifying")
        log = Log(self._pipeline, self._kept)
        for fault in log.faults(self._feeder.acknowledged):
            self._fault(fault)
        self.report.figures = {**log.figures, "not acknowledged": self._feeder.unsure}


class Kept:
    """What the run itself has deleted, for the verification: records, and models.

    Args:
        folder: Where the models are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: dict[tuple[str, int, int], Any] = {}

    def keep(self, topic: str, records: Sequence[Any], ends: Mapping[int, int]) -> None:
        """Keep a topic's records before the given offset of each partition."""
        for record in records:
            if record.offset < ends.get(record.partition, 0):
                self._records[topic, record.partition, record.offset] = record

    def keep_models(self, models_dir: Path) -> None:
        """Keep copies of all models."""
        for model in models_dir.glob("[1-9]*"):
            if not (self.folder / model.name).exists():
                shutil.copytree(model, self.folder / model.name)

    def with_deleted(self, topic: str, records: Sequence[Any]) -> list[Any]:
        """A topic's records together with those that were deleted."""
        found = {(topic, r.partition, r.offset): r for r in records}
        found |= {place: r for place, r in self._records.items() if place[0] == topic}
        return [record for _, record in sorted(found.items())]


class Log:
    """The content of the topics, compared with what the messages should have led to."""

    def __init__(self, pipeline: Pipeline, kept: Kept) -> None:
        self.figures: dict[str, int] = {}
        self._pipeline = pipeline
        self._store = ModelStore(pipeline.settings.models_dir)
        self._features = self._store.load_current().features
        self._kept = kept
        self._messages = kept.with_deleted(APP_MESSAGES, pipeline.records(APP_MESSAGES))
        self._outcomes = kept.with_deleted(OUTCOMES, pipeline.records(OUTCOMES))
        self.good = [r for r in self._messages if r.value not in BAD_MESSAGES]

    def faults(self, acknowledged: Sequence[tuple[str, bytes, bytes | None]]) -> Iterator[str]:
        """Every broken guarantee, in one line each."""
        self._predictions = self._pipeline.records(PREDICTIONS)
        self._events = self._pipeline.values(RETRAIN_TOPIC)
        yield from self._check_input(acknowledged)
        yield from self._check_predictions()
        yield from self._check_dead_letters()
        yield from self._check_requests()
        yield from self._check_trainings()
        yield from self._check_probabilities()
        yield from self._check_message_store()
        yield from self._check_commands()

    def is_answered(self) -> bool:
        """Whether every retrain request that is due was made and answered."""
        events = self._pipeline.values(RETRAIN_TOPIC)
        answered = {event["batch_id"] for event in events if event.get("training_completed")}
        return {f"{t}-{p}-{first}" for t, p, first, _ in self._due_requests()} <= answered

    def is_stored(self) -> bool:
        """Whether the trainer has stored the whole log."""
        try:
            with self._open_store() as store:
                offsets, counts = store.offsets(), store.counts()
        except StoreError:
            return False
        last = {(r.topic, r.partition): r.offset for r in [*self._messages, *self._outcomes]}
        return all(
            offsets.get(place, 0) > offset for place, offset in last.items()
        ) and counts.predictions >= len({json.loads(r.value)["request_id"] for r in self.good})

    def _open_store(self) -> MessageStore:
        return MessageStore.open(self._pipeline.settings.messages_url, self._features)

    def _check_input(
        self, acknowledged: Sequence[tuple[str, bytes, bytes | None]]
    ) -> Iterator[str]:
        there = Counter((r.topic, r.key, r.value) for r in [*self._messages, *self._outcomes])
        lost = Counter(acknowledged) - there
        if lost:
            yield f"{lost.total()} acknowledged records are not in the log: {_some(lost)}"
        prefix = prefix_of(self._pipeline).encode()
        others = Counter(key for _, key, _ in there if prefix not in key)
        if others:
            yield f"records of another pipeline: {_some(others)}"
        self.figures["messages"] = len(self.good)

    def _check_predictions(self) -> Iterator[str]:
        requested, given = _by_partition(self.good), _by_partition(self._predictions)
        missing = duplicates = 0
        for partition in sorted(requested.keys() | given.keys()):
            ids, found = requested.get(partition, []), given.get(partition, [])
            lost, more = Counter(ids) - Counter(found), Counter(found) - Counter(ids)
            missing, duplicates = missing + lost.total(), duplicates + more.total()
            if lost:
                yield f"partition {partition}: {lost.total()} without prediction: {_some(lost)}"
            if more:
                yield f"partition {partition}: {more.total()} duplicates: {_some(more)}"
            if not lost and not more and ids != found:
                at = next(
                    n for n, pair in enumerate(zip(ids, found, strict=True)) if len({*pair}) > 1
                )
                yield f"partition {partition}: out of order from {ids[at]} on"
        self.figures |= {"missing": missing, "duplicates": duplicates}

    def _check_dead_letters(self) -> Iterator[str]:
        bad = [r for r in self._messages if r.value in BAD_MESSAGES]
        bad += [r for r in self._outcomes if r.value in BAD_OUTCOMES]
        expected = Counter(
            # A letter's key is the request_id, if that can be read.
            (r.topic, r.partition, r.offset, _readable_id(r.value) or r.key, r.value)
            for r in bad
        )
        found: Counter[Any] = Counter()
        for letter in self._pipeline.records(DEAD_LETTERS):
            headers = {name: value.decode() for name, value in letter.headers}
            place = (headers["topic"], int(headers["partition"]), int(headers["offset"]))
            found[(*place, letter.key, letter.value)] += 1
        self.figures["rejected"] = found.total()
        if expected != found:
            yield f"missing dead letters: {_some(expected - found)}"
            yield f"unexpected dead letters: {_some(found - expected)}"

    def _due_requests(self) -> list[tuple[str, int, int, int]]:
        """The expected retrain requests: topic, partition, first and last offset."""
        state: dict[tuple[str, int], list[int]] = {}
        due = []
        for record in [*self._messages, *self._outcomes]:
            place = (record.topic, record.partition)
            first_and_count = state.setdefault(place, [0, 0])
            if self._outcome_of(record) is None:
                continue
            first_and_count[1] += 1
            if first_and_count[1] == EVERY:
                due.append((*place, first_and_count[0], record.offset))
                state[place] = [record.offset + 1, 0]
        return due

    def _outcome_of(self, record: Any) -> str | None:
        """The outcome in a record, if any."""
        if record.topic == OUTCOMES:
            good = record.value not in BAD_OUTCOMES
            return str(json.loads(record.value)["outcome"]) if good else None
        if record.value in BAD_MESSAGES:
            return None
        outcome: str | None = json.loads(record.value)["data"].get(self._features.target)
        return outcome

    def _check_requests(self) -> Iterator[str]:
        # The trainer's own requests have no range.
        requests = [
            event
            for event in self._events
            if event.get("retrain") and event.get("reason") == "count"
        ]
        found = Counter(
            (r["topic"], r["partition"], r["first_offset"], r["last_offset"]) for r in requests
        )
        due = Counter(self._due_requests())
        self.figures["retrain requests"] = len(requests)
        if found != due:
            yield f"requests: missing {_some(due - found)}, unexpected {_some(found - due)}"
        if any(request["count"] != EVERY for request in requests):
            yield f"a retrain request whose count is not {EVERY}"

    def _check_trainings(self) -> Iterator[str]:
        completed = [event for event in self._events if event.get("training_completed")]
        answers = Counter(event["batch_id"] for event in completed)
        requested = {event["batch_id"] for event in self._events if event.get("retrain")}
        if requested - answers.keys():
            yield f"never trained: {_some(Counter(requested - answers.keys()))}"
        if answers.keys() - requested:
            yield f"trained, but never requested: {_some(Counter(answers.keys() - requested))}"
        ids = [line.model_id for line in published(self._store.history())]
        if ids != sorted(set(ids)):
            yield f"model ids in the history do not increase: {ids}"
        announced = [event["model_id"] for event in completed]
        if announced != sorted(announced):
            yield "announced model ids do not increase"
        if missing := set(ids) - set(self._store.on_disk()):
            yield f"bundles of the history are missing: {sorted(missing)}"
        self.figures |= {
            "models": len(ids),
            "announced twice": answers.total() - len(answers),
        }

    def _check_probabilities(self) -> Iterator[str]:
        """Recompute each prediction with the model that it names."""
        by_model: dict[int, list[tuple[Any, Any]]] = defaultdict(list)
        requested, given = defaultdict(list), defaultdict(list)
        for record in self.good:
            requested[record.partition].append(record)
        for record in self._predictions:
            given[record.partition].append(json.loads(record.value))
        for partition, records in requested.items():
            for record, prediction in zip(records, given[partition], strict=False):
                by_model[prediction["model_id"]].append((record, prediction))
        wrong, names = 0, self._features.classes
        for model_id, pairs in by_model.items():
            was_lost = model_id not in self._store.on_disk()
            bundle = (ModelStore(self._kept.folder) if was_lost else self._store).load(model_id)
            rows = [bundle.decoder(record.value).data for record, _ in pairs]
            scores = bundle.score(bundle.features.transform_rows(rows)).tolist()
            for score, (record, prediction) in zip(scores, pairs, strict=True):
                code = int(score > 0.5)
                wrong += prediction != {
                    "request_id": record.key.decode(),
                    "prediction": code,
                    "label": names[code],
                    "probability": score,
                    "model_id": model_id,
                }
        self.figures["models that answered"] = len(by_model)
        if wrong:
            yield f"{wrong} predictions differ from those of their model"

    def _check_commands(self) -> Iterator[str]:
        """Run the commands with which a user examines a home."""
        newest = str(max(self._store.on_disk()))
        request_id = json.loads(self._predictions[-1].value)["request_id"]
        for command in (["why", request_id], ["replay"], ["rebuild", newest]):
            done = self._pipeline.run("-m", "ops", *command, timeout=300)
            if done.returncode:
                last_line = (done.stdout + done.stderr).strip().splitlines()[-1:]
                yield f"{' '.join(command)} ended with status {done.returncode}: {last_line}"

    def _check_message_store(self) -> Iterator[str]:
        inline: dict[str, str | None] = {}
        late: dict[str, str] = {}
        for record in sorted(self.good, key=_TIME):
            inline[record.key.decode()] = self._outcome_of(record)
        for record in sorted(self._outcomes, key=_TIME):
            outcome = self._outcome_of(record)
            if outcome is not None:
                late[record.key.decode()] = outcome
        known = {name: late.get(name) or label for name, label in inline.items()}
        expected = {name: label for name, label in known.items() if label is not None}
        with self._open_store() as store:
            counts, snapshot = store.counts(), store.snapshot()
        found = dict(zip(snapshot.request_ids, snapshot.outcomes, strict=True))
        self.figures["rows in the store"] = counts.messages
        if counts.messages != len(inline):
            yield f"the store has {counts.messages} messages of {len(inline)}"
        if counts.predictions != len(inline):
            yield f"the store has {counts.predictions} predictions of {len(inline)}"
        if found != expected:
            yield f"the store has {len(found)} outcomes of {len(expected)}, or others"


def prefix_of(pipeline: Pipeline) -> str:
    """How the request_ids of a pipeline begin."""
    return f"{pipeline.settings.kafka.name or 'r'}-"


def _partitions_of(script: Script) -> list[int] | None:
    """The partitions in a predictor's last line about them; None before the first."""
    lines = re.findall(r"serves partitions \[(.*?)\]|(no partition to serve)", script.text())
    if not lines:
        return None
    return [int(number) for number in lines[-1][0].split(",") if number]


def _readable_id(value: bytes | None) -> bytes | None:
    found = request_id_of(value)
    return None if found is None else found.encode()


def _by_partition(records: Sequence[Any]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for record in records:
        found[record.partition].append(json.loads(record.value)["request_id"])
    return found


def _some(counter: Counter[Any]) -> str:
    things = list(counter.elements())
    return f"{len(things)} ({', '.join(map(repr, things[:5]))}{', ...' if len(things) > 5 else ''})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the torture; returns 1 if a guarantee was broken, and then keeps all files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=5.0, help="duration of the kills (5)")
    parser.add_argument(
        "--seed",
        type=int,
        help="seed of the kills' order and of the messages; the times vary (random)",
    )
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second (100)")
    parser.add_argument(
        "--only", choices=["broker", "trainer"], default="", help="kill nothing else"
    )
    parser.add_argument(
        "--pipelines", type=int, default=1, help="how many share the broker, each with its name (1)"
    )
    options = parser.parse_args(argv)
    if options.pipelines > 1 and options.only == "broker":
        parser.error("only the first of several pipelines kills the broker")
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"SEED={seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    pipelines: list[Pipeline] = []
    with Broker(folder / "broker", jvm=SHORT_LIVED) as broker:
        try:
            for number in range(options.pipelines):
                pipelines.append(_prepare(folder, broker, f"p{number}" if number else ""))
            reports = _torture_all(pipelines, broker, options, seed)
        except KeyboardInterrupt:
            print(f"interrupted; the home is in {folder}")
            return 130
        finally:
            for pipeline in pipelines:
                pipeline.close()
    for pipeline, report in zip(pipelines, reports, strict=True):
        print(f"{prefix_of(pipeline)}:\n{report.text()}" if pipelines[1:] else report.text())
    if any(report.faults for report in reports):
        print(f"SEED={seed}; the home, the outputs and the broker's log are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _prepare(folder: Path, broker: Broker, name: str) -> Pipeline:
    home = folder / f"home{name}"
    home.mkdir()
    pipeline = Pipeline(home, broker.bootstrap, PIPELINE_NAME=name, **ENVIRONMENT)
    done = pipeline.run("initialize.py", "--evals", "1", timeout=300)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return pipeline


def _torture_all(
    pipelines: Sequence[Pipeline], broker: Broker, options: argparse.Namespace, seed: int
) -> list[Report]:
    """Run the torture of each pipeline, the first one in this thread: it kills the broker."""
    together = threading.Barrier(len(pipelines))
    until = time.monotonic() + 60 * options.minutes

    def run(number: int) -> Report:
        pipeline = pipelines[number]
        mark = f" {prefix_of(pipeline)}" if pipelines[1:] else ""
        torture = Torture(
            pipeline,
            None if number else broker,
            preprocess_data.sample_rows(pipeline.settings.data_dir, pipeline.settings.data),
            seed=seed + number,
            rate=options.rate,
            silence=60.0 if options.minutes >= 5 and not options.only else 0.0,
            only=options.only,
            say=lambda line: print(f"{time.strftime('%H:%M:%S')}{mark} {line}", flush=True),
            meet=together.wait,
        )
        try:
            return torture.run(lambda kills: time.monotonic() < until)
        except BaseException:
            together.abort()
            raise

    with ThreadPoolExecutor(len(pipelines)) as pool:
        others = [pool.submit(run, number) for number in range(1, len(pipelines))]
        return [run(0), *(other.result() for other in others)]


if __name__ == "__main__":
    sys.exit(main())
