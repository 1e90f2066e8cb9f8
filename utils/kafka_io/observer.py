"""Looks at a consumer group and at the newest records from outside, and joins nothing."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.structs import OffsetAndMetadata

from utils.kafka_io.clients import (
    METADATA_MAX_AGE_MS,
    REQUEST_TIMEOUT_MS,
    log_offsets,
    open_admin,
    open_consumer,
    translate_connection_errors,
)
from utils.kafka_io.record_batches import Record
from utils.settings import Kafka

#: The most bytes that one look at the newest records of a partition fetches, unless the last
#: batch is larger.
TAIL_BYTES = 64 * 1024
#: The longest one look may take, in milliseconds.
TAIL_TIMEOUT_MS = 2_000


@dataclass(frozen=True)
class Member:
    """A member of a consumer group.

    Attributes:
        instance_id: Its instance id, or what the broker calls it without one.
        host: The address that it is connected from.
        partitions: What it reads; none for a spare one.
    """

    instance_id: str
    host: str
    partitions: tuple[TopicPartition, ...] = ()


@dataclass(frozen=True)
class Observed:
    """A consumer group at one moment.

    Attributes:
        members: Its members, by instance id.
        committed: The committed offset of each partition, with its metadata.
        ends: The offset after the last record of each partition that was asked for.
    """

    members: tuple[Member, ...]
    committed: Mapping[TopicPartition, OffsetAndMetadata]
    ends: Mapping[TopicPartition, int]

    def lag(self) -> dict[TopicPartition, int]:
        """The number of offsets that the group has still to read, by partition."""
        return {
            tp: max(0, self.ends[tp] - each.offset)
            for tp, each in self.committed.items()
            if tp in self.ends
        }


class Observer:
    """Asks for the state of groups and topics, over one connection that is kept.

    Args:
        kafka: How to reach the cluster.

    Raises:
        KafkaUnavailable: No broker answers, or it denies access.
    """

    def __init__(self, kafka: Kafka) -> None:
        self._admin: KafkaAdminClient = open_admin(kafka)
        self._partitions: dict[TopicPartition, OffsetSpec] = {}
        self._look_again_at = 0.0

    def look(self, group: str, topics: Sequence[str]) -> Observed:
        """The group, and where the topics end now.

        Args:
            group: The consumer group.
            topics: The topics whose ends are asked for; always the same ones, or none.

        Raises:
            KafkaError: The broker does not say.
        """
        described = self._admin.describe_groups([group])[group]
        committed = self._admin.list_group_offsets([group])[group]
        if topics and time.monotonic() >= self._look_again_at:
            self._look_again_at = time.monotonic() + METADATA_MAX_AGE_MS / 1000
            self._partitions = {
                TopicPartition(one["name"], each["partition_index"]): OffsetSpec.LATEST
                for one in self._admin.describe_topics(list(topics))
                for each in one["partitions"]
            }
        asked = {tp: how for tp, how in self._partitions.items() if tp.topic in topics}
        ends = {}
        if asked:
            ends = self._admin.list_partition_offsets(asked, timeout_ms=REQUEST_TIMEOUT_MS)
        return Observed(
            tuple(sorted(map(_member, described["members"] or ()), key=lambda m: m.instance_id)),
            {tp: each for tp, each in committed.items() if each is not None and each.offset >= 0},
            {tp: end.offset for tp, end in ends.items()},
        )

    def close(self) -> None:
        """Release the connection."""
        self._admin.close()


def _member(described: Mapping[str, object]) -> Member:
    assignment = described.get("member_assignment") or {}
    assert isinstance(assignment, Mapping)
    return Member(
        str(described["group_instance_id"] or described["member_id"]),
        str(described["client_host"]).lstrip("/"),
        tuple(
            TopicPartition(one["topic"], number)
            for one in assignment.get("assigned_partitions") or ()
            for number in one["partitions"]
        ),
    )


@dataclass
class TailReader:
    """Reads the newest committed records of partitions, again and again.

    Args:
        kafka: How to reach the cluster.

    Raises:
        KafkaUnavailable: No broker answers, or it denies access.
    """

    kafka: Kafka
    _assigned: set[TopicPartition] = field(default_factory=set)

    def __post_init__(self) -> None:
        with translate_connection_errors(self.kafka):
            self._consumer = open_consumer(
                self.kafka,
                auto_offset_reset="earliest",
                max_poll_records=5_000,
            )
        self._consumer._fetcher.config["max_partition_fetch_bytes"] = TAIL_BYTES

    def last(
        self, ends: Mapping[TopicPartition, int], offsets: int
    ) -> dict[TopicPartition, list[Record]]:
        """The records of the last so many offsets, some of which may be those of markers.

        Args:
            ends: The partitions, and the offset after the last record of each.
            offsets: How many offsets of each to look at.

        Raises:
            KafkaError: The broker does not answer.
        """
        wanted = {tp: end for tp, end in ends.items() if end > 0}
        if not wanted:
            return {}
        starts = log_offsets(self._consumer.beginning_offsets, wanted)
        self._consumer.assign(sorted(wanted))
        for tp, end in wanted.items():
            self._consumer.seek(tp, max(starts[tp], end - offsets))
        found: dict[TopicPartition, list[Record]] = {tp: [] for tp in wanted}
        for _ in range(TAIL_TIMEOUT_MS // 100):
            for tp, records in self._consumer.poll(100).items():
                found[tp] += records
            if self._has_reached(wanted):
                break
        return found

    def _has_reached(self, ends: Mapping[TopicPartition, int]) -> bool:
        # By position: the last offsets may be those of markers, or not committed yet.
        return all((self._consumer.position(tp) or 0) >= end for tp, end in ends.items())

    def close(self) -> None:
        """Release the connection."""
        self._consumer.close(timeout_ms=1_000)
