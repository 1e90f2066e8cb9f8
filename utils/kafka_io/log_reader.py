"""Reads whole partitions without a consumer group."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaTimeoutError

from utils.kafka_io.clients import (
    METADATA_MAX_AGE_MS,
    REQUEST_TIMEOUT_MS,
    log_offsets,
    open_admin,
    open_consumer,
    partitions_of,
    positions_of,
    translate_connection_errors,
)
from utils.kafka_io.record_batches import Record
from utils.settings import Kafka


@dataclass(frozen=True)
class LogNow:
    """Kafka's ids of the topics, and a topic's offsets after the last record, committed or not."""

    topic_ids: dict[str, str]
    written_ends: dict[TopicPartition, int]


@dataclass
class LogReader:
    """Reads all partitions of topics without a consumer group, committed records only.

    Args:
        kafka: How to reach the cluster.
        topics: The topics; partitions that are added later are read too.
        positions: The first offset, by (topic, partition); others begin at `default`.
        default: "earliest" or "latest".
        max_records: The most records that one poll returns.
    """

    kafka: Kafka
    topics: Sequence[str]
    positions: Mapping[tuple[str, int], int] = field(default_factory=dict)
    default: str = "earliest"
    max_records: int = 5_000

    def __post_init__(self) -> None:
        with translate_connection_errors(self.kafka):
            self._consumer: KafkaConsumer = open_consumer(
                self.kafka,
                auto_offset_reset="earliest",
                max_poll_records=self.max_records,
            )
            self._assigned: set[TopicPartition] = set()
            self._look_again_at = 0.0
            self._take_new_partitions()

    def _take_new_partitions(self) -> None:
        if time.monotonic() < self._look_again_at:
            return
        self._look_again_at = time.monotonic() + METADATA_MAX_AGE_MS / 1000
        new = [tp for tp in partitions_of(self._consumer, self.topics) if tp not in self._assigned]
        if not new:
            return
        # assign() resets positions, so they are read first and restored below.
        kept = positions_of(self._consumer)
        if self.default == "latest" and not self._assigned:
            ends = log_offsets(self._consumer.end_offsets, new)
        else:
            ends = log_offsets(self._consumer.beginning_offsets, new)
        self._assigned.update(new)
        self._consumer.assign(sorted(self._assigned))
        for tp in new:
            self._consumer.seek(tp, self.positions.get((tp.topic, tp.partition), ends[tp]))
        for tp, position in kept.items():
            self._consumer.seek(tp, position)

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Record]]:
        """The next records by partition; empty when none came in time."""
        self._take_new_partitions()
        if not self._assigned:
            time.sleep(timeout_ms / 1000)
            return {}
        records: dict[TopicPartition, list[Record]] = self._consumer.poll(timeout_ms)
        return records

    def topic_ids(self) -> dict[str, str]:
        """The topics' ids in Kafka; a topic that is deleted and recreated gets another id."""
        ids = {topic: self._consumer._cluster.topic_id(topic) for topic in self.topics}
        return {topic: str(topic_id) for topic, topic_id in ids.items() if topic_id}

    def position(self, tp: TopicPartition) -> int:
        """The next offset to read; it also moves past records that were deleted."""
        position: int | None = self._consumer.position(tp, timeout_ms=REQUEST_TIMEOUT_MS)
        if position is None:
            raise KafkaTimeoutError(f"no broker answers where {tp.topic}-{tp.partition} begins")
        return position

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Read on from an offset, or from the first one if there is no such offset."""
        self._consumer.seek(tp, offset)

    def ends(self) -> dict[TopicPartition, int]:
        """The offset after the last committed record, by partition."""
        return log_offsets(self._consumer.end_offsets, sorted(self._assigned))

    def ask(self, topic: str) -> "LogNow":
        """Ask the broker how its logs are now; what the client knows may be seconds old.

        A transaction ends on one partition after the other: a consumer that has read one of its
        records may find the others still uncommitted, and `ends` before them.

        Args:
            topic: The topic whose ends are asked for.
        """
        wanted = {tp: OffsetSpec.LATEST for tp in self._assigned if tp.topic == topic}
        admin = open_admin(self.kafka)  # the consumer can ask only for committed ends
        try:
            topics = admin.describe_topics(list(self.topics))
            found = admin.list_partition_offsets(wanted) if wanted else {}
        finally:
            admin.close()
        return LogNow(
            {one["name"]: str(one["topic_id"]) for one in topics if one["topic_id"]},
            {tp: end.offset for tp, end in found.items()},
        )

    def close(self) -> None:
        """Release the connection."""
        self._consumer.close(timeout_ms=1_000)

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def partition_bounds(kafka: Kafka, topic: str) -> dict[int, tuple[int, int]]:
    """The first offset and the offset after the last committed record, by partition."""
    with LogReader(kafka, [topic]) as reader:
        consumer, partitions = reader._consumer, sorted(reader._assigned)
        starts = log_offsets(consumer.beginning_offsets, partitions)
        ends = reader.ends()
        return {tp.partition: (starts[tp], ends[tp]) for tp in partitions}
