"""What kafka-python gets wrong about exactly-once, and what is done against it."""

import time
from contextlib import closing
from pathlib import Path

from tests.harness import Pipeline, until
from utils.broker import Broker
from utils.kafka_io import ExactlyOnce, Outgoing, Polled, Sender, TopicPartition
from utils.kafka_io.transactions import enqueue_batches
from utils.messages import APP_MESSAGES, GROUPS, PREDICTIONS, PREDICTOR_GROUP


def joined(pipeline: Pipeline) -> ExactlyOnce:
    return ExactlyOnce(
        pipeline.settings.kafka,
        group=PREDICTOR_GROUP,
        topics=GROUPS[PREDICTOR_GROUP],
        instance_id="tester",
        max_records=10,
        report=print,
    )


def restored(exchange: ExactlyOnce, timeout_ms: int = 100, seconds: float = 20.0) -> Polled:
    """Poll until partitions are assigned."""
    deadline = time.monotonic() + seconds
    while (polled := exchange.poll(timeout_ms)).restored is None:
        assert time.monotonic() < deadline, "it does not come back into its group"
    return polled


def test_join_longer_than_a_poll_completes(pipeline: Pipeline) -> None:
    """Seen on loaded machines: a trainer that was ready, and then read nothing for ever."""
    with closing(joined(pipeline)) as exchange:
        first = restored(exchange)
        # As when topics change: the only reason to join again, and joining removes it.
        coordinator = exchange._consumer._coordinator
        coordinator._assignment_snapshot = {}
        exchange.poll(0)
        until(lambda: coordinator._join_task is not None and coordinator._join_task.is_done, 10)
        assert restored(exchange, timeout_ms=1).restored == first.restored


def test_member_joins_once(pipeline: Pipeline) -> None:
    with closing(joined(pipeline)) as exchange:
        restored(exchange)
        exchange.poll(1_000)
        assert exchange._consumer._coordinator._generation.generation_id == 1


def test_next_commit_does_not_include_a_forgotten_transaction(
    prepared: Path, tmp_path: Path
) -> None:
    """As after a restart in which a partition was not told that it was aborted."""
    forgetful = {"transaction.partition.verification.enable": "false"}
    with Broker(tmp_path / "broker", overrides=forgetful) as broker:
        pipeline = Pipeline(tmp_path, broker.bootstrap)
        pipeline.copy_of(prepared)
        with closing(joined(pipeline)) as exchange:
            tp, producer = TopicPartition(PREDICTIONS, 0), exchange._producer
            assert producer is not None
            producer.begin_transaction()
            producer.partitions_for(tp.topic)
            # The coordinator is told of nothing, so it will abort nothing.
            manager = producer._transaction_manager
            manager._partitions_in_transaction.add(tp)
            enqueue_batches(producer, {tp: [(b"half", b"done", None)]})
            producer.flush(10)
        with closing(joined(pipeline)) as exchange:
            exchange.commit(restored(exchange), {tp: [(b"whole", b"{}", None)]}, {})
            exchange.wait_for_commit()
        assert [record.key for record in pipeline.records(PREDICTIONS)] == [b"whole"]


def test_partly_read_partition_does_not_wait_for_an_empty_one(
    pipeline: Pipeline,
) -> None:
    """The client asks for the empty one alone, and the broker has 0.5 s to answer that."""
    with (
        closing(joined(pipeline)) as exchange,
        Sender(pipeline.settings.kafka, linger_ms=20) as sender,
    ):
        restored(exchange)
        took = [seconds_until(exchange, sender, count) for count in [25, 1] * 5]
        assert min(took[1::2]) < 0.2, took


def seconds_until(exchange: ExactlyOnce, sender: Sender, count: int) -> float:
    """Send so many records; how long it then takes to read them all."""
    for _ in range(count):
        sender.send(Outgoing(APP_MESSAGES, 0, None, b"{}"))
    sender.flush()
    began = time.monotonic()
    while count > 0:
        assert time.monotonic() < began + 10
        count -= sum(map(len, exchange.poll(1_000).records.values()))
    return time.monotonic() - began
