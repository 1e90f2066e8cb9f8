"""Transactions that a restarted broker has left open on a partition."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaProducer
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
    TransactionDescription,
    TransactionState,
)
from kafka.producer.transaction_manager import TransactionalRequestResult, TxnOffsetCommitHandler

from tests.harness import Pipeline, delete_topics_and_groups, until
from tests.unit.utils.kafka_io.test_exactly_once import join_group, poll_until_assigned
from utils import kafka_io
from utils.broker import Broker
from utils.kafka_io import (
    RETRIABLE_ERRORS,
    Content,
    ExactlyOnce,
    KafkaError,
    LogReader,
    Outgoing,
    Polled,
    Position,
    Record,
    TopicPartition,
    TransactionalSender,
)
from utils.kafka_io.clients import open_admin
from utils.kafka_io.hanging_transactions import decision, decision_since
from utils.kafka_io.transactions import TRANSACTION_TIMEOUT_MS, await_result, enqueue_batches
from utils.messages import APP_MESSAGES, GROUPS, PREDICTIONS

#: A broker that lets a producer write to a partition that is not in its transaction. The
#: coordinator writes no marker there, as after a restart that made it drop the marker.
FORGETFUL = {
    "transaction.partition.verification.enable": "false",
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


@pytest.fixture(scope="module")
def forgetful_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("forgetful"), overrides=FORGETFUL) as running:
        yield running


@pytest.fixture
def forgetful(forgetful_broker: Broker, tmp_path: Path) -> Pipeline:
    pipeline = Pipeline(tmp_path, forgetful_broker.bootstrap, PARTITIONS="4")
    delete_topics_and_groups(pipeline.env["KAFKA_BOOTSTRAP_SERVERS"])
    kafka_io.ensure_topics(pipeline.settings.kafka, GROUPS)
    return pipeline


def forget(exchange: ExactlyOnce, *partitions: TopicPartition) -> None:
    """Let the coordinator not learn of these partitions of the coming transaction."""
    assert exchange._producer is not None
    manager = exchange._producer._transaction_manager
    add = manager.maybe_add_partition_to_transaction

    def add_or_forget(tp: TopicPartition) -> None:
        if tp in partitions:
            manager._partitions_in_transaction.add(tp)
        else:
            add(tp)

    manager.maybe_add_partition_to_transaction = add_or_forget


def forget_offsets(exchange: ExactlyOnce) -> None:
    """Let the coordinator not learn of the offsets in the coming transaction."""
    assert exchange._producer is not None
    manager = exchange._producer._transaction_manager

    def send_offsets(
        offsets: dict[TopicPartition, object], membership: object
    ) -> TransactionalRequestResult:
        handler = TxnOffsetCommitHandler(manager, membership, offsets, TransactionalRequestResult())
        manager._pending_txn_offset_commits.update(offsets)
        manager._enqueue_request(handler)
        return handler.result

    manager.send_offsets_to_transaction = send_offsets


def prediction(partition: int) -> TopicPartition:
    return TopicPartition(PREDICTIONS, partition)


def record(key: bytes) -> list[Content]:
    return [(key, b"{}", None)]


def predictions(pipeline: Pipeline, seconds: float = 10.0) -> list[bytes]:
    """The keys of all committed predictions; fails if some stay open."""
    found: list[Record] = []
    with LogReader(pipeline.settings.kafka, [PREDICTIONS]) as reader:
        ends, deadline = reader.ends(), time.monotonic() + seconds
        while any(reader.position(tp) < end for tp, end in ends.items()):
            assert time.monotonic() < deadline, f"an open transaction hides records: {found}"
            for records in reader.poll(200).values():
                found += records
    return sorted(record.key or b"" for record in found)


def commit_and_wait(
    exchange: ExactlyOnce,
    polled: Polled,
    records: dict[TopicPartition, list[Content]],
    positions: dict[TopicPartition, Position] | None = None,
) -> None:
    exchange.commit(polled, records, positions or {})
    exchange.wait_for_commit()


def leave_open(exchange: ExactlyOnce, *keys: bytes) -> KafkaProducer:
    """Send a record to each partition from 0 on, and neither commit nor abort."""
    producer = exchange._producer
    assert producer is not None
    producer.begin_transaction()
    enqueue_batches(producer, {prediction(n): record(key) for n, key in enumerate(keys)})
    producer.flush(10)
    return producer


def test_next_commit_does_not_include_a_forgotten_transaction(forgetful: Pipeline) -> None:
    """Records of no transaction that the coordinator knows are aborted."""
    with closing(join_group(forgetful)) as exchange:
        poll_until_assigned(exchange)
        forget(exchange, prediction(0))
        leave_open(exchange, b"half")
    with closing(join_group(forgetful)) as exchange:
        commit_and_wait(exchange, poll_until_assigned(exchange), {prediction(0): record(b"whole")})
    assert predictions(forgetful) == [b"whole"]


def test_committed_transaction_without_marker_is_committed_by_the_next_process(
    forgetful: Pipeline,
) -> None:
    with closing(join_group(forgetful)) as exchange:
        polled = poll_until_assigned(exchange)
        forget(exchange, prediction(0), prediction(1))
        records = {prediction(n): record(b"%d" % n) for n in range(3)}
        commit_and_wait(exchange, polled, records)
    with closing(join_group(forgetful)) as exchange:
        assert predictions(forgetful) == [b"0", b"1", b"2"]
        commit_and_wait(exchange, poll_until_assigned(exchange), {prediction(0): record(b"3")})
    assert predictions(forgetful) == [b"0", b"1", b"2", b"3"]


def test_committed_offsets_without_marker_are_committed_by_the_next_process(
    forgetful: Pipeline,
) -> None:
    """Otherwise their records were predicted twice."""
    tp = TopicPartition(APP_MESSAGES, 0)
    forgetful.send([(APP_MESSAGES, b"a", b"{}"), (APP_MESSAGES, b"b", b"{}")])
    with closing(join_group(forgetful)) as exchange:
        polled = poll_until_assigned(exchange)
        polled = exchange.poll(5_000)
        forget_offsets(exchange)
        commit_and_wait(exchange, polled, {prediction(0): record(b"a")}, {tp: Position(1)})
    with closing(join_group(forgetful)) as exchange:
        restored = poll_until_assigned(exchange).restored
        assert restored is not None
        assert restored[tp].offset == 1
        assert predictions(forgetful) == [b"a"]


def test_aborted_transaction_without_marker_is_aborted_by_the_next_process(
    forgetful: Pipeline,
) -> None:
    with closing(join_group(forgetful)) as exchange:
        polled = poll_until_assigned(exchange)
        commit_and_wait(exchange, polled, {prediction(2): record(b"whole")})
        forget(exchange, prediction(0), prediction(1))
        leave_open(exchange, b"half", b"done", b"only")
    with closing(join_group(forgetful)) as exchange:
        assert predictions(forgetful) == [b"whole"]
        commit_and_wait(exchange, poll_until_assigned(exchange), {prediction(0): record(b"new")})
    assert predictions(forgetful) == [b"new", b"whole"]


def test_transaction_that_timed_out_without_marker_is_aborted(forgetful: Pipeline) -> None:
    with closing(join_group(forgetful)) as exchange:
        poll_until_assigned(exchange)
        forget(exchange, prediction(0))
        leave_open(exchange, b"half", b"done")
        with closing(open_admin(forgetful.settings.kafka)) as admin:
            until(
                lambda: admin.describe_transactions(["tester"])["tester"].state == "CompleteAbort",
                TRANSACTION_TIMEOUT_MS / 1000 + 10,
            )
    with closing(join_group(forgetful)):
        assert predictions(forgetful) == []


def test_transaction_that_a_zombie_commits_meanwhile_is_committed(
    forgetful: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old process commits after the new one has asked for the transaction's state."""
    with closing(join_group(forgetful)) as zombie:
        poll_until_assigned(zombie)
        forget(zombie, prediction(0))
        producer = leave_open(zombie, b"0", b"1")
        init_transactions = KafkaProducer.init_transactions

        def commit_first(other: KafkaProducer) -> None:
            await_result(producer, producer._transaction_manager.begin_commit())
            init_transactions(other)

        monkeypatch.setattr(KafkaProducer, "init_transactions", commit_first)
        with closing(join_group(forgetful)):
            assert predictions(forgetful) == [b"0", b"1"]


def test_zombie_cannot_commit_what_its_successor_aborted(forgetful: Pipeline) -> None:
    with closing(join_group(forgetful)) as zombie:
        poll_until_assigned(zombie)
        forget(zombie, prediction(0))
        producer = leave_open(zombie, b"0", b"1")
        with closing(join_group(forgetful)):
            with pytest.raises(KafkaError):
                await_result(producer, producer._transaction_manager.begin_commit())
            assert predictions(forgetful) == []


def test_predictor_that_outlives_the_broker_commits_what_has_no_marker(
    forgetful: Pipeline, forgetful_broker: Broker
) -> None:
    """The next transaction would decide about those records too, and could be aborted."""
    with closing(join_group(forgetful)) as exchange:
        polled = poll_until_assigned(exchange)
        forget(exchange, prediction(0))
        records = {prediction(n): record(b"%d" % n) for n in range(2)}
        commit_and_wait(exchange, polled, records)
        forgetful_broker.kill()
        forgetful_broker.start()
        polled = poll_until_recovered(exchange)
        assert predictions(forgetful) == [b"0", b"1"]
        commit_and_wait(exchange, polled, {prediction(2): record(b"2")})
        assert predictions(forgetful) == [b"0", b"1", b"2"]


def poll_until_recovered(exchange: ExactlyOnce, seconds: float = 30.0) -> Polled:
    """Poll as a predictor without messages does, until three polls in a row succeed."""
    deadline, succeeded = time.monotonic() + seconds, 0
    while succeeded < 3:
        assert time.monotonic() < deadline
        try:
            polled = exchange.poll(200)
            succeeded = succeeded + 1 if polled.membership and polled.restored is None else 0
        except RETRIABLE_ERRORS:
            succeeded = 0
    return polled


def test_process_killed_right_after_its_start_loses_no_decision(
    forgetful: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`init_transactions` replaces what the coordinator has decided."""
    with closing(join_group(forgetful)) as exchange:
        polled = poll_until_assigned(exchange)
        forget(exchange, prediction(0))
        commit_and_wait(exchange, polled, {prediction(n): record(b"%d" % n) for n in range(2)})
    init_transactions = KafkaProducer.init_transactions

    def killed_after(producer: KafkaProducer) -> None:
        init_transactions(producer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(KafkaProducer, "init_transactions", killed_after)
        with pytest.raises(KeyboardInterrupt):
            join_group(forgetful)
    with closing(join_group(forgetful)):
        assert predictions(forgetful) == [b"0", b"1"]


@pytest.mark.parametrize("allowed", [ACLOperation.DESCRIBE, ACLOperation.ALTER])
def test_nothing_is_aborted_if_asking_is_forbidden(
    forgetful: Pipeline, caplog: pytest.LogCaptureFixture, allowed: ACLOperation
) -> None:
    """Asking needs READ on the topic, and DESCRIBE to learn of its partitions."""
    with closing(join_group(forgetful)) as exchange:
        polled = poll_until_assigned(exchange)
        forget(exchange, prediction(0))
        commit_and_wait(exchange, polled, {prediction(n): record(b"%d" % n) for n in range(2)})
    topic = ResourcePattern(ResourceType.TOPIC, PREDICTIONS)
    rule = ("User:ANONYMOUS", "*", allowed, ACLPermissionType.ALLOW, topic)
    with closing(open_admin(forgetful.settings.kafka)) as admin:
        admin.create_acls([ACL(*rule)])
        try:
            with closing(join_group(forgetful)):
                assert "its readers wait" in caplog.text
        finally:
            admin.delete_acls([ACLFilter(*rule)])
    with closing(join_group(forgetful)):
        assert predictions(forgetful) == [b"0", b"1"]


@pytest.mark.parametrize(
    ("state", "state_epoch", "committed"),
    [
        ("CompleteCommit", 5, True),
        ("CompleteAbort", 5, False),  # on request, of an earlier version
        ("Empty", 5, False),  # records that were never in a transaction
        ("CompleteAbort", 6, False),  # the abort added 1
        ("Empty", 6, True),  # only a new producer added 1
        ("Empty", 7, False),  # an abort and then a new producer
    ],
)
def test_decision_about_epoch_5(state: str, state_epoch: int, committed: bool) -> None:
    assert decision(described(state, state_epoch), 5) is committed


@pytest.mark.parametrize(
    ("state_epoch", "now", "committed"),
    [(5, 6, True), (5, 7, False), (5, 8, None), (6, 7, None)],
)
def test_decision_about_epoch_5_since(state_epoch: int, now: int, committed: bool | None) -> None:
    assert decision_since(described("Ongoing", state_epoch), 5, now) is committed


def described(state: str, epoch: int) -> TransactionDescription:
    return TransactionDescription(1, TransactionState(state), 0, epoch, 4_000, 0, set())


def test_sender_commits_what_its_predecessor_committed_without_marker(
    forgetful: Pipeline,
) -> None:
    with TransactionalSender(forgetful.settings.kafka, "resender") as sender:
        manager = sender._producer._transaction_manager
        manager._partitions_in_transaction.add(prediction(0))
        sender.send(Outgoing(PREDICTIONS, n, b"%d" % n, b"{}") for n in range(2))
    with TransactionalSender(forgetful.settings.kafka, "resender") as sender:
        assert predictions(forgetful) == [b"0", b"1"]


def test_sender_continues_after_a_failed_transaction(forgetful: Pipeline) -> None:
    with TransactionalSender(forgetful.settings.kafka, "resender") as sender:
        too_large = Outgoing(PREDICTIONS, 1, b"large", b"x" * 20_000_000)
        with pytest.raises(KafkaError):
            sender.send([Outgoing(PREDICTIONS, 0, b"small", b"{}"), too_large])
        sender.send([Outgoing(PREDICTIONS, 0, b"next", b"{}")])
        assert predictions(forgetful) == [b"next"]
