"""A whole pipeline in a temporary home, driven as a user would."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove

from utils import kafka_io, messages, settings
from utils.kafka_io import Content, LogReader, Sender, TopicPartition
from utils.kafka_io.clients import open_admin
from utils.kafka_io.transactions import commit, discard, open_transactional_producer
from utils.message_store import MessageStore, StoreError
from utils.model_store import ModelStore
from utils.settings import ROOT, Settings


class Script:
    """One of the pipeline's scripts as a process; its output goes to a file."""

    def __init__(
        self, home: Path, env: dict[str, str], *command: str, python: str = sys.executable
    ) -> None:
        self.output = home / f"{command[0].removesuffix('.py')}-{time.monotonic_ns()}.out"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [python, "-u", *command],
                cwd=ROOT,
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        """The output so far."""
        return self.output.read_text()

    def says(self, text: str, timeout: float = 30.0) -> None:
        """Wait until the output contains `text`."""
        until(lambda: text in self.text(), timeout, lambda: f"{text!r} in:\n{self.text()}")

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.process.kill()
        self.process.wait()

    def end(self, number: int = signal.SIGTERM, timeout: float = 40.0) -> int:
        """Send a signal, SIGTERM by default, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)


class Pipeline:
    """Home, broker address and processes of one test."""

    def __init__(self, home: Path, bootstrap: str = "", **environment: str) -> None:
        self.home = home
        self.env = {
            **{name: value for name, value in os.environ.items() if name not in _VARIABLES},
            "PIPELINE_HOME": str(home),
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            **environment,
        }
        self.settings: Settings = settings.load(self.env)
        self.scripts: list[Script] = []

    def copy_of(self, prepared_home: Path) -> None:
        """Copy another home's data set and models, and create the topics."""
        self.copy_files(prepared_home)
        kafka_io.ensure_topics(self.settings.kafka, messages.GROUPS)

    def copy_files(self, prepared_home: Path) -> None:
        """Copy another home's data set and models; use its pipeline.toml, if any."""
        for folder in ("data", "models"):
            shutil.copytree(prepared_home / folder, self.home / folder, dirs_exist_ok=True)
        (self.home / "messages").mkdir(exist_ok=True)
        if (config := prepared_home / "pipeline.toml").exists():
            self.env.setdefault("PIPELINE_CONFIG", str(config))

    def start(self, *command: str, python: str = sys.executable, **environment: str) -> Script:
        """Start a script in the background."""
        script = Script(self.home, {**self.env, **environment}, *command, python=python)
        self.scripts.append(script)
        return script

    def run(self, *command: str, timeout: float = 90.0) -> subprocess.CompletedProcess[str]:
        """Run a script and wait for its end."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def stored_messages(self) -> int:
        """Count the messages in the trainer's store; 0 without a store."""
        features = ModelStore(self.settings.models_dir).load_current().features
        try:
            with MessageStore.open(self.settings.messages_url, features) as store:
                return store.counts().messages
        except StoreError:
            return 0

    def send(
        self,
        records: Iterable[tuple[str, bytes | None, Any]],
        partition: int = 0,
        timestamp: int | None = None,
    ) -> None:
        """Send records (topic, key, value): bytes unchanged, other values as JSON.

        A timestamp is in milliseconds since 1970; None is now.
        """
        with Sender(self.settings.kafka, linger_ms=5) as sender:
            for topic, key, value in records:
                raw = value if value is None or isinstance(value, bytes) else _json(value)
                sender._producer.send(
                    topic, key=key, value=raw, partition=partition, timestamp_ms=timestamp
                )
            sender.flush()

    def send_contents(self, topic: str, contents: Sequence[Content], partition: int = 0) -> None:
        """Send records as the predictor does, in one transaction; a header may be null."""
        producer = open_transactional_producer(self.settings.kafka, "tester")
        commit(producer, None, {TopicPartition(topic, partition): contents}, {})
        discard(producer)

    def accept_any_timestamp(self, topic: str) -> None:
        """Make the broker accept timestamps of the future, as those before Kafka 3.6 do."""
        accepted = {"message.timestamp.after.max.ms": str(2**63 - 1)}
        with closing(open_admin(self.settings.kafka)) as admin:
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, accepted)])

    def send_rows(self, rows: Iterable[dict[str, Any]], prefix: str = "r") -> list[str]:
        """Send rows as messages with the ids prefix-0, prefix-1, ...; return the ids."""
        records = [(f"{prefix}-{number}", row) for number, row in enumerate(rows)]
        self.send(
            (messages.APP_MESSAGES, name.encode(), {"request_id": name, "data": row})
            for name, row in records
        )
        return [name for name, _ in records]

    def records(self, topic: str) -> list[Any]:
        """Read every committed record of a topic, ordered by (partition, offset)."""
        with LogReader(self.settings.kafka, [topic]) as reader:
            ends = reader.ends()
            found: list[Any] = []
            while any(reader.position(tp) < end for tp, end in ends.items()):
                for records in reader.poll(500).values():
                    found += records
        return sorted(found, key=lambda record: (record.partition, record.offset))

    def values(self, topic: str) -> list[Any]:
        """Read the decoded values of a topic."""
        return [json.loads(record.value) for record in self.records(topic)]

    def events(self, kind: str) -> list[Any]:
        """Read the records of `retrain_topic` that have this key: "retrain", ..."""
        return [value for value in self.values(messages.RETRAIN_TOPIC) if value.get(kind)]

    def wait_for(self, topic: str, count: int, timeout: float = 40.0) -> list[Any]:
        """Wait until a topic holds exactly `count` records; return their decoded values."""
        return [json.loads(record.value) for record in self.wait_for_records(topic, count, timeout)]

    def wait_for_records(self, topic: str, count: int, timeout: float = 40.0) -> list[Any]:
        """Wait until a topic holds exactly `count` records; return them."""
        self._wait(topic, lambda found: len(found) >= count, timeout, f"{count} in {topic}")
        records = self.records(topic)
        assert len(records) == count
        return records

    def wait_for_events(self, kind: str, count: int, timeout: float = 60.0) -> list[Any]:
        """Wait until `retrain_topic` holds `count` records of a kind; return them."""

        def enough(found: list[Any]) -> bool:
            return sum(kind in json.loads(record.value) for record in found) >= count

        self._wait(messages.RETRAIN_TOPIC, enough, timeout, f"{count} {kind}")
        return self.events(kind)

    def _wait(
        self, topic: str, enough: Callable[[list[Any]], bool], timeout: float, what: str
    ) -> None:
        found: list[Any] = []
        deadline = time.monotonic() + timeout
        with LogReader(self.settings.kafka, [topic]) as reader:
            while not enough(found):
                for records in reader.poll(100).values():
                    found += records
                if time.monotonic() > deadline:
                    outputs = "\n".join(script.text()[-2000:] for script in self.scripts)
                    raise AssertionError(
                        f"expected {what} within {timeout} s, found {len(found)}:\n{outputs}"
                    )

    def close(self) -> None:
        """Kill the processes that still run."""
        for script in self.scripts:
            if script.process.poll() is None:
                script.kill()


def listening_addresses(pid: int) -> list[str]:
    """The addresses on which a process listens, in hexadecimal as in /proc."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            sockets.update(re.findall(r"^socket:\[(\d+)\]$", str(descriptor.readlink())))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *rest = line.split()
            if state == "0A" and rest[5] in sockets:
                found.append(address.split(":")[0])
    return found


@contextmanager
def mount_tmpfs(folder: Path, size: str) -> Iterator[bool]:
    """Mount a small file system at a folder; yield False if that is not permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    able = not os.geteuid() and shutil.which("mount") is not None
    if not (able and subprocess.run(command, capture_output=True).returncode == 0):
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def write_adult(home: Path, whole: Path, train: int, test: int | None = None) -> Path:
    """Write the first rows of Adult into a home: a training on a tenth of them tests as much.

    Args:
        home: Gets data/ and a pipeline.toml without downloads.
        whole: The folder with the whole adult.data and adult.test.
        train: Number of rows of adult.data.
        test: Number of rows of adult.test; None for all.

    Returns:
        The pipeline.toml, for PIPELINE_CONFIG.
    """
    (home / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in (("adult.data", train), ("adult.test", test)):
        lines = (whole / name).read_text("utf-8").splitlines(keepends=True)
        (home / "data" / name).write_text("".join(lines[:rows]), "utf-8")
    config = home / "pipeline.toml"
    committed = (ROOT / "pipeline.toml").read_text("utf-8")
    config.write_text(re.sub(r"\[\[data\.files\]\].*?(?=\[training\])", "", committed, flags=re.S))
    return config


_VARIABLES = {variable.name for variable in settings.VARIABLES}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def until(
    condition: Callable[[], bool], timeout: float, what: Callable[[], str] = lambda: "the condition"
) -> None:
    """Wait for a condition; fail with a description when it does not become true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what()}"
        time.sleep(0.05)


def delete_topics_and_groups(bootstrap: str) -> None:
    """Delete all topics and groups, also groups whose members were killed."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        groups = [group["group_id"] for group in admin.list_groups()]
        for name, group in admin.describe_groups(groups).items() if groups else ():
            members = [MemberToRemove(member["member_id"]) for member in group["members"]]
            if members:
                admin.remove_group_members(name, members)
        if groups:
            admin.delete_groups(groups)
        if topics := [name for name in admin.list_topics() if not name.startswith("__")]:
            admin.delete_topics(topics)
            until(lambda: not set(topics) & set(admin.list_topics()), 10)
    finally:
        admin.close()
