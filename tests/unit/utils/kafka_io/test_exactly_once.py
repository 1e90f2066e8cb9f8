"""Exactly-once, where kafka-python needs a workaround."""

import time
from contextlib import closing, suppress

import pytest

from tests.harness import Pipeline, until
from utils.kafka_io import (
    ExactlyOnce,
    Fenced,
    KafkaError,
    Outgoing,
    Polled,
    Sender,
    TopicPartition,
    TransactionalSender,
)
from utils.messages import APP_MESSAGES, GROUPS, PREDICTOR_GROUP


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


def test_silence_is_noticed_and_ends(pipeline: Pipeline) -> None:
    with closing(join_group(pipeline)) as exchange:
        poll_until_assigned(exchange)
        assert exchange.silence() == ""
        heartbeat = exchange._consumer._coordinator.heartbeat
        heartbeat.last_receive = heartbeat.last_reset = time.monotonic() - 7
        assert exchange.silence() == "the broker has not answered for 7 s"
        until(lambda: bool(exchange.poll(100)) and exchange.silence() == "", 10)


def test_lag_falls_to_zero_and_does_not_count_transaction_markers(pipeline: Pipeline) -> None:
    place, read = TopicPartition(APP_MESSAGES, 0), 0
    with (
        closing(join_group(pipeline)) as exchange,
        TransactionalSender(pipeline.settings.kafka, "lag") as sender,
    ):
        poll_until_assigned(exchange)
        sender.send(Outgoing(APP_MESSAGES, 0, None, b"{}") for _ in range(25))
        lags = []
        deadline = time.monotonic() + 20
        while read < 25 and time.monotonic() < deadline:
            if found := exchange.poll(100).records.get(place):
                read += len(found)
                lags.append(exchange.lag()[place] - (25 - read))
        # Behind the records stands the marker of their transaction, which is fetched as well.
        assert len(lags) >= 3 and set(lags) <= {0, 1}
        until(lambda: bool(exchange.poll(100)) and exchange.lag()[place] == 0, 10)


def test_of_two_processes_with_one_id_the_first_ends(pipeline: Pipeline) -> None:
    """On machines of the same name, with homes at the same place; they fenced each other."""
    with closing(join_group(pipeline)) as first:
        place, position = poll_until_assigned(first).restored.popitem()  # type: ignore[union-attr]
        with closing(join_group(pipeline)) as second:
            poll_until_assigned(second)
            deadline = time.monotonic() + 20
            with pytest.raises(Fenced, match="another process runs as tester"):
                while time.monotonic() < deadline:
                    with suppress(KafkaError):
                        if (polled := first.poll(100)).epoch:
                            first.commit(polled, {}, {place: position})
                            first.wait_for_commit()
            polled = second.poll(100)
            second.commit(polled, {}, {place: position})
            second.wait_for_commit()


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
