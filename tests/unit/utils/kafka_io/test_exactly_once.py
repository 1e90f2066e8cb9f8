"""Exactly-once, where kafka-python needs a workaround."""

import time
from contextlib import closing
from pathlib import Path

from tests.harness import Pipeline, until
from utils.broker import Broker
from utils.kafka_io import ExactlyOnce, Outgoing, Polled, Sender, TopicPartition
from utils.kafka_io.transactions import enqueue_batches
from utils.messages import APP_MESSAGES, GROUPS, PREDICTIONS, PREDICTOR_GROUP


def join_group(pipeline: Pipeline) -> ExactlyOnce:
    return ExactlyOnce(
        pipeline.settings.kafka,
        group=PREDICTOR_GROUP,
        topics=GROUPS[PREDICTOR_GROUP],
        instance_id="tester",
        max_records=10,
        report=print,
    )


def poll_until_assigned(
    exchange: ExactlyOnce, timeout_ms: int = 100, seconds: float = 20.0
) -> Polled:
    """Poll until partitions are assigned."""
    deadline = time.monotonic() + seconds
    while (polled := exchange.poll(timeout_ms)).restored is None:
        assert time.monotonic() < deadline, "no partitions were assigned"
    return polled


def test_join_longer_than_a_poll_completes(pipeline: Pipeline) -> None:
    """On loaded machines a trainer was ready and then never read a record."""
    with closing(join_group(pipeline)) as exchange:
        first = poll_until_assigned(exchange)
        # As if topics had changed: the only reason to rejoin, which the join itself removes.
        coordinator = exchange._consumer._coordinator
        coordinator._assignment_snapshot = {}
        exchange.poll(0)
        until(lambda: coordinator._join_task is not None and coordinator._join_task.is_done, 10)
        assert poll_until_assigned(exchange, timeout_ms=1).restored == first.restored


def test_member_joins_once(pipeline: Pipeline) -> None:
    with closing(join_group(pipeline)) as exchange:
        poll_until_assigned(exchange)
        exchange.poll(1_000)
        assert exchange._consumer._coordinator._generation.generation_id == 1


def test_next_commit_does_not_include_a_forgotten_transaction(
    prepared_home: Path, tmp_path: Path
) -> None:
    """As after a broker restart that left a partition without its abort marker."""
    forgetful = {"transaction.partition.verification.enable": "false"}
    with Broker(tmp_path / "broker", overrides=forgetful) as broker:
        pipeline = Pipeline(tmp_path, broker.bootstrap)
        pipeline.copy_of(prepared_home)
        with closing(join_group(pipeline)) as exchange:
            tp, producer = TopicPartition(PREDICTIONS, 0), exchange._producer
            assert producer is not None
            producer.begin_transaction()
            producer.partitions_for(tp.topic)
            # The coordinator does not learn of the partition, so it aborts nothing.
            manager = producer._transaction_manager
            manager._partitions_in_transaction.add(tp)
            enqueue_batches(producer, {tp: [(b"half", b"done", None)]})
            producer.flush(10)
        with closing(join_group(pipeline)) as exchange:
            polled = poll_until_assigned(exchange)
            exchange.commit(polled, {tp: [(b"whole", b"{}", None)]}, {})
            exchange.wait_for_commit()
        assert [record.key for record in pipeline.records(PREDICTIONS)] == [b"whole"]


def test_partly_read_partition_does_not_wait_for_an_empty_one(
    pipeline: Pipeline,
) -> None:
    """The client may fetch only the empty one, and the broker answers that after 0.5 s."""
    with (
        closing(join_group(pipeline)) as exchange,
        Sender(pipeline.settings.kafka, linger_ms=20) as sender,
    ):
        poll_until_assigned(exchange)
        took = [seconds_until(exchange, sender, count) for count in [25, 1] * 5]
        assert min(took[1::2]) < 0.2, took


def seconds_until(exchange: ExactlyOnce, sender: Sender, count: int) -> float:
    """Send records and read them all; the seconds that the reading takes."""
    for _ in range(count):
        sender.send(Outgoing(APP_MESSAGES, 0, None, b"{}"))
    sender.flush()
    started = time.monotonic()
    while count > 0:
        assert time.monotonic() < started + 10
        count -= sum(map(len, exchange.poll(1_000).records.values()))
    return time.monotonic() - started
