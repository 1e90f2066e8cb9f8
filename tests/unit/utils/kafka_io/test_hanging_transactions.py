"""Transactions that a restarted broker has left open on a partition."""

import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

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
from kafka.producer.sender import Sender
from kafka.producer.transaction_manager import (
    TransactionalRequestResult,
    TransactionManager,
    TxnOffsetCommitHandler,
)

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
    hanging_transactions,
)
from utils.kafka_io.clients import open_admin
from utils.kafka_io.hanging_transactions import decision
from utils.kafka_io.transactions import TRANSACTION_TIMEOUT_MS, await_result, enqueue_batches
from utils.kafka_io.transactions_v2 import FEATURE
from utils.messages import APP_MESSAGES, GROUPS, PREDICTIONS
from utils.settings import Kafka

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


@pytest.fixture(scope="module", params=[1, 2])
def version(request: pytest.FixtureRequest, forgetful_broker: Broker) -> int:
    """The version of the cluster's transactions."""
    kafka = Kafka(bootstrap_servers=forgetful_broker.bootstrap)
    with closing(open_admin(kafka)) as admin:
        level = admin.describe_features()[FEATURE]["finalized"][1]
        if level != request.param:
            change = "SAFE_DOWNGRADE" if level > request.param else "UPGRADE"
            admin.update_features({FEATURE: (change, request.param)})
            until(lambda: admin.describe_features()[FEATURE]["finalized"][1] == request.param, 10)
    return int(request.param)


@pytest.fixture
def forgetful(version: int, forgetful_broker: Broker, tmp_path: Path) -> Pipeline:
    pipeline = Pipeline(tmp_path, forgetful_broker.bootstrap, PARTITIONS="4")
    delete_topics_and_groups(pipeline.env["KAFKA_BOOTSTRAP_SERVERS"])
    kafka_io.ensure_topics(pipeline.settings.kafka, GROUPS)
    return pipeline


def forget(exchange: ExactlyOnce, *partitions: TopicPartition) -> None:
    """Let the coordinator not learn of these partitions of the coming transaction."""
    assert exchange._producer is not None
    add_by_request(exchange._producer)
    manager = exchange._producer._transaction_manager
    add = manager.maybe_add_partition_to_transaction

    def add_or_forget(tp: TopicPartition) -> None:
        if tp in partitions:
            manager._partitions_in_transaction.add(tp)
        else:
            add(tp)

    manager.maybe_add_partition_to_transaction = add_or_forget


def add_by_request(producer: KafkaProducer) -> None:
    """Add partitions as version 1 does, and send records that the broker does not add.

    The transaction still ends as its version does.
    """
    manager, sender = producer._transaction_manager, producer._sender
    manager.maybe_add_partition_to_transaction = partial(
        TransactionManager.maybe_add_partition_to_transaction, manager
    )
    sender._produce_request = partial(Sender._produce_request, sender)


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


def open_on(pipeline: Pipeline, tp: TopicPartition) -> bool:
    """Whether a transaction is open on a partition."""
    with closing(open_admin(pipeline.settings.kafka)) as admin:
        producers = admin.describe_producers([tp])[tp].active_producers
    return any(one.current_transaction_start_offset >= 0 for one in producers)


def until_ended(pipeline: Pipeline, state: str) -> None:
    """Wait until the coordinator is in a state, which it reaches after a timeout at the latest."""
    with closing(open_admin(pipeline.settings.kafka)) as admin:
        until(
            lambda: admin.describe_transactions(["tester"])["tester"].state == state,
            TRANSACTION_TIMEOUT_MS / 1000 + 10,
        )


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


def test_epochs_are_as_the_decisions_assume(forgetful: Pipeline, version: int) -> None:
    with (
        closing(join_group(forgetful)) as exchange,
        closing(open_admin(forgetful.settings.kafka)) as admin,
    ):
        polled = poll_until_assigned(exchange)

        def state() -> tuple[str, int]:
            found = admin.describe_transactions(["tester"])["tester"]
            return found.state.value, found.producer_epoch - first

        first = 0
        first = state()[1]
        assert state() == ("Empty", 0)
        commit_and_wait(exchange, polled, {prediction(0): record(b"0")})
        until_ended(forgetful, "CompleteCommit")
        committed = 0 if version == 1 else 1
        assert state() == ("CompleteCommit", committed)
        leave_open(exchange, b"1")
        assert state() == ("Ongoing", committed)
        ongoing = admin.describe_transactions(["tester"])["tester"]
        hanging_transactions._abort(admin, "tester", ongoing)
        until_ended(forgetful, "CompleteAbort")
        assert state() == ("CompleteAbort", committed + 1)
    with closing(join_group(forgetful)), closing(open_admin(forgetful.settings.kafka)) as admin:
        assert state() == ("Empty", committed + 2)


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
        until_ended(forgetful, "CompleteAbort")
    with closing(join_group(forgetful)):
        assert predictions(forgetful) == []


def test_transaction_that_a_zombie_commits_meanwhile_is_not_aborted(
    forgetful: Pipeline, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old process commits after the new one has asked for the transaction's state.

    With version 2 the state after it is that of an abort, too, and nothing is decided.
    """
    with closing(join_group(forgetful)) as zombie:
        poll_until_assigned(zombie)
        forget(zombie, prediction(0))
        producer = leave_open(zombie, b"0", b"1")
        abort = hanging_transactions._abort

        def commit_first(*arguments: Any) -> None:
            await_result(producer, producer._transaction_manager.begin_commit())
            until_ended(forgetful, "CompleteCommit")
            abort(*arguments)

        monkeypatch.setattr(hanging_transactions, "_abort", commit_first)
        with closing(join_group(forgetful)):
            assert predictions(forgetful) == ([b"0", b"1"] if version == 1 else [b"1"])
            assert open_on(forgetful, prediction(0)) == (version == 2)


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
    forgetful: Pipeline, version: int, caplog: pytest.LogCaptureFixture, allowed: ACLOperation
) -> None:
    """Asking needs READ on the topic, and DESCRIBE to learn of its partitions.

    With version 2 nobody can know later how the transaction ended.
    """
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
        assert predictions(forgetful) == ([b"0", b"1"] if version == 1 else [b"1"])
        assert open_on(forgetful, prediction(0)) == (version == 2)


#: What the coordinator may say after a transaction of epoch 5, and how that ended.
@pytest.mark.parametrize(
    ("state", "state_epoch", "committed"),
    [
        ("CompleteCommit", 5, True),  # version 1
        ("CompleteCommit", 6, True),  # version 2
        ("CompleteCommit", 7, None),  # another transaction since
        ("CompleteAbort", 5, False),  # on request, version 1
        ("CompleteAbort", 6, False),  # by the coordinator, or on request in version 2
        ("CompleteAbort", 7, None),
        ("Empty", 5, False),  # records that were never in a transaction
        ("Empty", 6, True),  # only a new producer added 1
        ("Empty", 7, None),  # a new producer, after an abort or after a commit of version 2
        ("Empty", 8, None),
        ("CompleteCommit", 4, None),
        ("CompleteAbort", 4, None),
        ("Empty", 0, None),  # a new producer id
    ],
)
def test_decision_about_epoch_5(state: str, state_epoch: int, committed: bool | None) -> None:
    assert decision(described(state, state_epoch), 5) is committed


def described(state: str, epoch: int) -> TransactionDescription:
    return TransactionDescription(1, TransactionState(state), 0, epoch, 4_000, 0, set())


def test_sender_commits_what_its_predecessor_committed_without_marker(
    forgetful: Pipeline,
) -> None:
    with TransactionalSender(forgetful.settings.kafka, "resender") as sender:
        add_by_request(sender._producer)
        sender._producer._transaction_manager._partitions_in_transaction.add(prediction(0))
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
