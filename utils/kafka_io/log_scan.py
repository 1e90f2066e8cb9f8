"""Reads a topic's records between given offsets."""

import time
from collections.abc import Iterable, Iterator, Mapping

from kafka import TopicPartition
from kafka.errors import KafkaError

from utils.errors import one_line
from utils.kafka_io.clients import (
    KafkaUnavailable,
    committed_offsets,
    open_consumer,
    partitions_of,
    translate_connection_errors,
)
from utils.kafka_io.log_reader import LogReader, partition_bounds
from utils.kafka_io.naming import full_name
from utils.kafka_io.record_batches import Record
from utils.kafka_io.topic_settings import read_settings
from utils.settings import Kafka

#: How long to wait for the next records before the scan fails.
SILENCE_TIMEOUT_S = 30.0

#: An offset after every record.
END = 2**63 - 1

#: By partition: the first offset, and the offset after the last.
Bounds = Mapping[int, tuple[int, int]]


class NoTopic(KafkaUnavailable):
    """The cluster has no such topic."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        super().__init__(
            f"there is no topic {full_name(kafka.name, topic)}: run initialize.py first"
        )


def bounds(kafka: Kafka, topic: str) -> dict[int, tuple[int, int]]:
    """The bounds of a topic's log now: committed records that have not expired.

    Raises:
        NoTopic: The cluster has no such topic.
        KafkaUnavailable: No broker answers.
    """
    try:
        found = partition_bounds(kafka, topic)
    except KafkaError as error:
        raise _unreadable(kafka, topic, error) from None
    if not found:
        raise NoTopic(kafka, topic)
    return found


def is_compacted(kafka: Kafka, topic: str) -> bool:
    """Whether the broker may delete all but the newest record of each key of a topic.

    Raises:
        KafkaUnavailable: No broker answers.
    """
    found = read_settings(kafka, [topic]).get(topic)
    return found is not None and found.is_compacted


def committed(kafka: Kafka, group: str, topic: str) -> dict[int, int]:
    """The offset after the last record that a consumer group has finished, by partition.

    Partitions without a committed offset are left out.

    Raises:
        KafkaUnavailable: No broker answers.
    """
    try:
        with translate_connection_errors(kafka):
            consumer = open_consumer(kafka, group_id=group)
        try:
            offsets = committed_offsets(consumer, partitions_of(consumer, [topic]))
        finally:
            consumer.close(timeout_ms=1_000)
    except KafkaError as error:
        raise _unreadable(kafka, topic, error) from None
    return {tp.partition: each.offset for tp, each in offsets.items()}


def narrow(partition: int, found: Bounds) -> dict[int, tuple[int, int]]:
    """Narrow bounds to one partition; the ranges of the others become empty."""
    return {p: (first if p == partition else end, end) for p, (first, end) in found.items()}


def scan(kafka: Kafka, topic: str, wanted: Bounds) -> Iterator[Record]:
    """Read the committed records within bounds, each partition in offset order.

    Args:
        kafka: How to reach the cluster.
        topic: The topic to read.
        wanted: The bounds of every partition; (end, end) skips one.

    Raises:
        KafkaUnavailable: No broker answers, or it stops sending records.
    """
    ends = {p: end for p, (first, end) in wanted.items() if first < end}
    if not ends:
        return
    positions = {(topic, p): first for p, (first, _) in wanted.items()}
    try:
        with LogReader(kafka, [topic], positions) as reader:
            yield from records_before(reader, topic, ends)
    except KafkaError as error:
        raise _unreadable(kafka, topic, error) from None


def records_before(reader: LogReader, topic: str, ends: Mapping[int, int]) -> Iterator[Record]:
    """The records of a topic from where the reader is up to an offset of each partition.

    Raises:
        KafkaUnavailable: The broker stops sending records.
        KafkaError: It cannot be reached.
    """
    left = {p: end for p, end in ends.items() if not _reached(reader, topic, p, end)}
    last_received = time.monotonic()
    while left:
        polled = reader.poll(500)
        for tp, records in polled.items():
            end = ends.get(tp.partition, 0)
            yield from (record for record in records if record.offset < end)
        # By position, not by offsets seen: the last may be transaction markers.
        left = {p: end for p, end in left.items() if not _reached(reader, topic, p, end)}
        now = time.monotonic()
        last_received = now if polled else last_received
        if left and now - last_received > SILENCE_TIMEOUT_S:
            name = full_name(reader.kafka.name, topic)
            raise KafkaUnavailable(f"the broker stopped sending records of {name}")


def in_chunks(records: Iterable[Record], size: int = 5_000) -> Iterator[list[Record]]:
    """Split records into lists of `size`."""
    chunk: list[Record] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _unreadable(kafka: Kafka, topic: str, error: KafkaError) -> KafkaUnavailable:
    name = full_name(kafka.name, topic)
    return KafkaUnavailable(f"{name} cannot be read: {one_line(error)}")


def _reached(reader: LogReader, topic: str, partition: int, end: int) -> bool:
    return reader.position(TopicPartition(topic, partition)) >= end
