"""Filling the store from a real Kafka and from its own copy, on SQLite and on PostgreSQL."""

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Pipeline, until
from tests.unit.databases import Database
from tests.unit.utils.message_store.samples import FEATURES, contents, make_features
from utils import kafka_io
from utils.broker import Broker
from utils.feature_tools import FeatureTools
from utils.kafka_io import LogReader, Outgoing, TopicPartition, TransactionalSender
from utils.kafka_io.clients import open_admin
from utils.kafka_io.transactions import open_transactional_producer
from utils.message_store import MessageStore, Offsets, StoreError, StoreReplaced, ingest, log_table
from utils.message_store.ingest import Ingest
from utils.message_store.timestamps import Dated, Timestamps
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS, RetrainRequest

WIDER = make_features(numerical=["age", "hours"], classes=["no", "yes", "maybe"])
ROWS = 120


@dataclass(frozen=True)
class Log:
    """The topics of a real broker, each with two partitions."""

    pipeline: Pipeline

    def send(self, topic: str, value: object, partition: int = 0) -> None:
        """Append a record; bytes and None are sent as they are."""
        self.pipeline.send([(topic, b"key", value)], partition)

    def ends(self) -> Offsets:
        """The next offset of each partition that has had records."""
        with LogReader(self.pipeline.settings.kafka, ingest.TOPICS) as reader:
            ends = reader.ends()
        return {(tp.topic, tp.partition): end for tp, end in ends.items() if end}

    def expire(self) -> None:
        """Delete all records; the next ones get the next offsets."""
        ends = {TopicPartition(*place): end for place, end in self.ends().items()}
        with closing(open_admin(self.pipeline.settings.kafka)) as admin:
            admin.delete_records(ends)
        with LogReader(self.pipeline.settings.kafka, ingest.TOPICS) as reader:
            assert all(reader.position(tp) == end for tp, end in ends.items())

    def recreate(self, topic: str) -> None:
        """Delete a topic and create it again, empty."""
        with closing(open_admin(self.pipeline.settings.kafka)) as admin:
            admin.delete_topics([topic])
            until(lambda: topic not in admin.list_topics(), 10)
        kafka_io.ensure_topics(self.pipeline.settings.kafka, {})


@pytest.fixture
def log(empty_broker: Broker, tmp_path: Path) -> Log:
    """A log with messages, predictions, outcomes, and records that are rejected."""
    pipeline = Pipeline(tmp_path, empty_broker.bootstrap, PARTITIONS="2")
    kafka_io.ensure_topics(pipeline.settings.kafka, {})
    for partition in (0, 1):
        rows = range(partition, ROWS, 2)
        pipeline.send((record for n in rows for record in records_of(n)), partition)
    pipeline.send([(APP_MESSAGES, b"key", None), (APP_MESSAGES, b"key", b"no JSON")])
    return Log(pipeline)


def records_of(n: int) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """A message, its prediction and its outcome."""
    data: dict[str, Any] = {"age": n, "job": "ab"[n // 2 % 2], "hours": n / 2}
    if n % 10 == 3:
        data = {"hours": 1.0}  # only WIDER knows this column
    if n % 10 == 4:
        data["income"] = "yes"
    name, key = {"request_id": f"r{n}"}, f"{n}".encode()
    made = {"prediction": 1, "label": "yes", "probability": 0.25, "model_id": 1}
    yield APP_MESSAGES, key, {**name, "data": data}
    yield PREDICTIONS, key, {**name, **made}
    yield OUTCOMES, key, {**name, "outcome": ("no", "yes", "maybe")[n % 3]}  # "maybe" as above


@contextmanager
def opened(
    url: str,
    features: FeatureTools,
    log: Log,
    lines: list[str] | None = None,
    outcomes_from: dict[int, int] | None = None,
) -> Iterator[tuple[MessageStore, Ingest]]:
    """A store and what fills it; its lines of text for the user go to `lines`."""
    report = (lines if lines is not None else []).append
    with (
        MessageStore(url, features, report=report) as store,
        Ingest(log.pipeline.settings.kafka, store, features, outcomes_from) as ingesting,
    ):
        yield store, ingesting


def read_on(store: MessageStore, ingesting: Ingest, log: Log) -> dict[str, Any]:
    """Read until nothing is left; what the store holds then."""
    ends = log.ends()

    def is_read() -> bool:
        while ingesting.step():
            pass
        return store.offsets() == ends

    until(is_read, 20, lambda: f"{ends} are the ends, read up to {store.offsets()}")
    assert not ingesting.is_rereading
    return summary(store)


def read_all(
    url: str, features: FeatureTools, log: Log, lines: list[str] | None = None
) -> dict[str, Any]:
    """As `read_on`, with a newly opened store."""
    with opened(url, features, log, lines) as (store, ingesting):
        return read_on(store, ingesting, log)


def summary(store: MessageStore) -> dict[str, Any]:
    found = contents(store.snapshot())
    found |= {"counts": store.counts(), "values": store.value_shares()}
    copied = [
        record
        for topic in ingest.TOPICS
        for chunk in store.raw_log.chunks(topic, store.raw_log.bounds(topic))
        for record in chunk.records
    ]
    return found | {"copied": copied, "ids": store.topic_ids()}


def request(last_offset: int) -> RetrainRequest:
    """A batch of partition 1, up to an offset."""
    return RetrainRequest(
        batch_id="b", topic=APP_MESSAGES, partition=1, first_offset=0, last_offset=last_offset,
        count=1,
    )  # fmt: skip


def test_other_columns_give_the_rows_of_a_fresh_read(
    database: Database, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when Kafka has deleted all records, and after stops in the middle."""
    monkeypatch.setattr(log_table, "CHUNK_RECORDS", 25)
    wanted = read_all(database.new_url(), WIDER, log)
    count = len(wanted["copied"])
    assert count == 3 * ROWS + 2 and set(wanted["ids"]) == set(ingest.TOPICS)
    url, lines = database.new_url(), list[str]()
    narrow = read_all(url, FEATURES, log)
    assert 0 < len(narrow["rows"]) < len(wanted["rows"])
    with opened(url, WIDER, log, lines) as (store, ingesting):
        assert ingesting.is_rereading
        assert read_on(store, ingesting, log) == wanted
        assert ingesting.outcomes == 0  # of records read from Kafka
    assert len(lines) == 3 and f"its {count} records are read again from its own copy" in lines[0]
    assert str(count) in lines[1] and str(count) in lines[2]
    log.expire()
    assert read_all(url, FEATURES, log) == narrow
    stop_while_rereading(url, log)
    assert read_all(url, WIDER, log) == wanted
    log.send(OUTCOMES, {"request_id": "r1", "outcome": "maybe"}, partition=1)
    again = read_all(url, WIDER, log)
    assert len(again["copied"]) == count + 1
    assert again["counts"] == replace(wanted["counts"], superseded_outcomes=1)
    names = [row[0] for row in wanted["rows"] if row[0] != "r1"]
    assert [row[0] for row in again["rows"]] == [*names, "r1"]  # known last, since its correction
    assert again["rows"][-1] == ("r1", 1.0, 0.5, "a", "maybe")


def test_timestamp_that_makes_no_sense_counts_as_the_one_before(
    database: Database, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after restarts, and in rows that are built again from the copy."""
    log.pipeline.accept_any_timestamp(OUTCOMES)
    urls, now = [database.new_url() for _ in range(2)], round(time.time() * 1000)
    steps = [(1, now, "yes"), (1, now // 1000, "no"), (1, now * 1000, "yes"), (1, 2**63 - 1, "no")]
    steps += [(1, 0, "no"), (0, now + 1, "yes"), (1, now, "no")]  # corrected on a lower partition
    for partition, timestamp, outcome in steps:
        record = {"request_id": "r1", "outcome": outcome}
        log.pipeline.send([(OUTCOMES, b"key", record)], partition, timestamp)
        stepwise = read_all(urls[0], FEATURES, log)
    at_once = read_all(urls[1], FEATURES, log)
    assert stepwise == at_once and at_once["counts"].misdated_records == 4
    assert at_once["counts"].superseded_outcomes == len(steps)
    assert (at_once["rows"][-1], at_once["times"][-1][0]) == (("r1", 1.0, "a", "yes"), now + 1)
    again = [read_all(url, WIDER, log) for url in (urls[0], database.new_url())]
    assert again[0] == again[1] and again[0]["counts"].misdated_records == 4
    assert [r.timestamp for r in again[0]["copied"] if r.misdated] == [now] * 4
    with opened(urls[0], WIDER, log) as (store, _):
        assert store.counts() == again[0]["counts"]
        request = store.request("r1")
        assert request is not None and request.late_outcome == (0, 60, now + 1)
    old_url = database.new_url()
    with monkeypatch.context() as patched:  # a copy as older versions made it
        patched.setattr(Timestamps, "correct", lambda _, polled: Dated(polled, {}))
        assert read_all(old_url, FEATURES, log)["counts"].misdated_records == 0
    of_old_copy = read_all(old_url, WIDER, log)
    assert {**of_old_copy, "copied": again[0]["copied"]} == again[0]


def stop_while_rereading(url: str, log: Log) -> None:
    """Start to read the copy for WIDER several times."""
    for steps in (1, 2, 3):
        with opened(url, WIDER, log) as (store, ingesting):
            before = sum(store.offsets().values())
            for _ in range(steps):
                assert 0 < ingesting.step() <= 25
            assert sum(store.offsets().values()) > before and ingesting.is_rereading


def test_another_preprocessor_is_taken_without_a_restart(
    url: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    with opened(url, FEATURES, log, lines) as (store, ingesting):
        before = read_on(store, ingesting, log)
        failed_change_changes_nothing(store, ingesting, before, monkeypatch)
        assert lines == [] and ingesting.has_read([request(59)])
        outcomes = ingesting.outcomes
        assert outcomes > 0
        log.expire()
        ingesting.use(WIDER)
        assert ingesting.is_rereading and not ingesting.has_read([request(0)])
        assert len(read_on(store, ingesting, log)["rows"]) > len(before["rows"])
        assert ingesting.has_read([request(59)]) and not ingesting.has_read([request(60)])
        assert ingesting.outcomes == outcomes
        log.send(OUTCOMES, {"request_id": "r0", "outcome": "maybe"})
        after = read_on(store, ingesting, log)
        assert ingesting.outcomes == outcomes + 1
        assert ("r0", 0.0, 0.0, "a", "maybe") in after["rows"]
    assert read_all(url, WIDER, log) == after


def test_everything_before_the_mark_is_read(log: Log, tmp_path: Path) -> None:
    """Also what a transaction has written and not committed yet, but nothing later."""
    kafka, url = log.pipeline.settings.kafka, f"sqlite:///{tmp_path}/messages.db"
    made = json.dumps(list(records_of(1))[1][2]).encode()
    with opened(url, FEATURES, log) as (store, ingesting):
        read_on(store, ingesting, log)
        assert ingesting.has_read([])
        with TransactionalSender(kafka, "sender") as sender:
            sender.send([Outgoing(PREDICTIONS, 0, b"1", made)])
        ingesting.mark_end()
        assert not ingesting.has_read([]) and not ingesting.has_read([request(59)])
        log.send(OUTCOMES, {"request_id": "r0", "outcome": "no"}, partition=1)
        ingesting.close()  # as after an error
        until(lambda: ingesting.step() >= 0 and ingesting.has_read([]), 10)  # past its marker
        assert ingesting.has_read([request(59)]) and not ingesting.has_read([request(60)])
        producer = open_transactional_producer(kafka, "open")
        producer.begin_transaction()
        producer.send(PREDICTIONS, value=made, partition=1).get(10)
        ingesting.mark_end()
        assert [ingesting.has_read([]) for _ in range(5) if ingesting.step() >= 0] == [False] * 5
        producer.commit_transaction()
        producer.close()
        until(lambda: ingesting.step() >= 0 and ingesting.has_read([]), 10)
        assert store.offsets()[PREDICTIONS, 1] == 61


def failed_change_changes_nothing(
    store: MessageStore, ingesting: Ingest, before: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise StoreError("locked")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_open_database", locked)
        with pytest.raises(StoreError):
            ingesting.use(WIDER)
    assert not ingesting.is_rereading and summary(store) == before


def test_another_preprocessor_of_the_same_columns_keeps_the_rows(log: Log, tmp_path: Path) -> None:
    """Categories and ranges are no part of the layout; new messages are read with the new ones."""
    other = make_features({"age": [-7.0, 500.0, None], "job": ["c", None, "d"]})
    url, lines = f"sqlite:///{tmp_path}/messages.db", list[str]()
    with opened(url, FEATURES, log, lines) as (store, ingesting):
        before = read_on(store, ingesting, log)
        ingesting.use(other)
        assert not ingesting.is_rereading and ingesting.has_read([request(59)])
        assert summary(store) == before
        log.send(APP_MESSAGES, {"request_id": "new", "data": {"job": " c ", "income": "no"}})
        after = read_on(store, ingesting, log)
        new = ("new", None, "c", "no")
        assert sorted(after["rows"], key=str) == sorted([*before["rows"], new], key=str)
        since = ingesting.values.since_start()
        assert (since.rows, since.lenient, since.unknown) == (1, {"job": 1.0}, {})
        assert ingesting.all_values().rows == before["values"].rows + 1
    assert read_all(url, FEATURES, log, lines) == after and lines == []


def test_outcomes_of_another_target_are_ignored(log: Log, tmp_path: Path) -> None:
    """Those before an offset, by partition."""
    url = f"sqlite:///{tmp_path}/messages.db"
    with opened(url, FEATURES, log, outcomes_from={0: 58}) as (store, ingesting):
        found = read_on(store, ingesting, log)
        names = {int(row[0][1:]): row[-1] for row in found["rows"]}
        inside = [n for n in range(0, ROWS, 2) if n % 10 == 4]
        # The outcomes of r116 and r118 have the offsets 58 and 59; that of r116 is "maybe".
        assert sorted(n for n in names if n % 2 == 0) == sorted([*inside, 118])
        assert {names[n] for n in inside} == {"yes"} and names[118] == "yes"
        assert all(n in names for n in range(1, ROWS, 2) if n % 3 < 2 and n % 10 != 3)
        assert found["offsets"][OUTCOMES, 0] == 60 and found["counts"].rejected_outcomes == 21
        ingesting.use(WIDER, outcomes_from={0: 60, 1: 60})
        found = read_on(store, ingesting, log)
        assert [row[0] for row in found["rows"]] == [f"r{n}" for n in inside]
        assert found["counts"].rejected_outcomes == 0
        log.send(OUTCOMES, {"request_id": "r0", "outcome": "maybe"})
        assert ("r0", 0.0, 0.0, "a", "maybe") in read_on(store, ingesting, log)["rows"]


def test_topic_that_was_recreated_during_a_restart_is_noticed(url: str, log: Log) -> None:
    """The copy knows the topic's id, also when the offsets went with the rows."""
    read_all(url, FEATURES, log)
    log.recreate(OUTCOMES)
    log.send(OUTCOMES, {"request_id": "r0", "outcome": "no"})
    with opened(url, WIDER, log) as (store, ingesting):
        with pytest.raises(StoreReplaced, match="outcomes was deleted and recreated"):
            read_on(store, ingesting, log)
        assert (store.offsets(), store.raw_log.ends()) == ({}, {})
        assert ingesting.is_rereading  # until the reader is open again
        found = read_on(store, ingesting, log)
        assert store.raw_log.ends() == found["offsets"] and found["offsets"][OUTCOMES, 0] == 1
        assert "r0" in [row[0] for row in found["rows"]]
