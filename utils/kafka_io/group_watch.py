"""Makes a group assign partitions that none of its members reads.

Only the leader of a group notices that a topic has more partitions. A static member that restarts
within its session gets its old assignment back, without the new partitions; and if it was the
leader, kafka-python 3.0.12 does not know, so that nobody watches until the next rebalance (the
Java client got KIP-814 for that).
"""

import time
from collections.abc import Sequence
from contextlib import closing

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import MemberToRemove

from utils.kafka_io.clients import open_admin
from utils.settings import Kafka

#: How often it is looked whether the group's partitions are those that were last seen.
LOOK_EVERY_S = 1.0
#: How long a leader may take to assign new partitions.
LEADER_TIMEOUT_S = 2.0


class GroupWatch:
    """Watches that some member reads each partition.

    Args:
        kafka: How to reach the cluster.
        group: The consumer group.
        topics: The topics that it reads.
        instance_id: This member's.
    """

    def __init__(self, kafka: Kafka, group: str, topics: Sequence[str], instance_id: str) -> None:
        self._kafka = kafka
        self._group = group
        self._topics = topics
        self._instance_id = instance_id
        self._look_at = 0.0
        self._seen: object = None
        self._is_whole = False

    def look(self, consumer: KafkaConsumer) -> None:
        """Leave the group if it has to assign again; the consumer then joins by itself.

        Args:
            consumer: This member.

        Raises:
            KafkaError, KafkaUnavailable: The broker does not say; look again later.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        there = {
            TopicPartition(topic, number)
            for topic in self._topics
            for number in consumer._cluster.partitions_for_topic(topic) or ()
        }
        now_seen = there, consumer.group_metadata().generation_id
        if now_seen != self._seen:
            self._seen, self._is_whole = now_seen, False
            self._look_at = now + LEADER_TIMEOUT_S
            return
        self._is_whole = self._is_whole or there <= consumer.assignment()
        if not self._is_whole:
            self._is_whole = self._look_at_all(there)

    def has_other(self, member_id: str) -> bool:
        """Whether another process is the member of this instance id.

        Raises:
            KafkaError, KafkaUnavailable: The broker does not say.
        """
        with closing(open_admin(self._kafka)) as admin:
            members = admin.describe_groups([self._group])[self._group]["members"]
        ids = {one["member_id"] for one in members if one["group_instance_id"] == self._instance_id}
        return bool(ids) and member_id not in ids

    def _look_at_all(self, there: set[TopicPartition]) -> bool:
        """Whether the group reads all partitions; if not, its first member leaves."""
        with closing(open_admin(self._kafka)) as admin:
            group = admin.describe_groups([self._group])[self._group]
            if group["group_state"] != "Stable":
                return False
            read = {
                TopicPartition(topic["topic"], number)
                for member in group["members"]
                for topic in member["member_assignment"]["assigned_partitions"]
                for number in topic["partitions"]
            }
            first = min(member["group_instance_id"] or "" for member in group["members"])
            if not there <= read and first == self._instance_id:
                admin.remove_group_members(
                    self._group, [MemberToRemove(group_instance_id=self._instance_id)]
                )
            return there <= read
