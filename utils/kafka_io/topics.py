"""The topics, made as they have to be, and a first offset for each group."""

from collections.abc import Iterable, Mapping, Sequence

from kafka import errors as kafka_errors
from kafka.admin import NewTopic
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from utils import messages
from utils.kafka_io.clients import (
    REQUEST_TIMEOUT_MS,
    KafkaUnavailable,
    committed_offset,
    open_admin,
    open_consumer,
    partitions_of,
)
from utils.settings import Kafka

#: What the topics created here take. A prediction repeats its request_id, and a rejected
#: record gains headers, so both can be larger than the message was.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


def ensure_topics(kafka: Kafka, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Create the topics that are missing, and give each group a first offset.

    Committing an offset for every partition at set-up lets readers tell a partition
    that was never read from a broker that has not loaded its offsets yet.

    Args:
        groups: For each consumer group the topics that it reads.

    Returns:
        The names of the topics created.

    Raises:
        KafkaUnavailable: The cluster cannot be reached or refuses.
    """
    wanted = dict.fromkeys(messages.CO_PARTITIONED, kafka.partitions)
    wanted |= {messages.RETRAIN_TOPIC: 1, messages.DEAD_LETTERS: 1}
    admin = open_admin(kafka)
    try:
        existing = set(admin.list_topics())
        missing = [topic for topic in wanted if topic not in existing]
        if missing:
            admin.create_topics(
                [_new_topic(topic, wanted[topic]) for topic in missing],
                raise_errors=False,  # another initialize.py may create them as well
            )
            admin.wait_for_topics(missing, timeout_ms=REQUEST_TIMEOUT_MS)
    except KafkaError as error:
        raise KafkaUnavailable(f"cannot create the topics: {error}") from None
    finally:
        admin.close()
    for group, topics in groups.items():
        _commit_first_offsets(kafka, group, topics)
    return missing


def _new_topic(topic: str, partitions: int) -> NewTopic:
    if topic in (messages.PREDICTIONS, messages.DEAD_LETTERS):
        configs = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    elif topic in (messages.APP_MESSAGES, messages.OUTCOMES):
        # Whatever a producer compresses with (the client here lacks most of it), the broker
        # unpacks, and refuses what is too large only then.
        configs = {"compression.type": "uncompressed"}
    else:
        configs = {}
    return NewTopic(
        topic,
        num_partitions=partitions,
        replication_factor=-1,  # as the cluster thinks best
        topic_configs=configs,
    )


def _commit_first_offsets(kafka: Kafka, group: str, topics: Iterable[str]) -> None:
    consumer = open_consumer(kafka, group_id=group)
    try:
        partitions = partitions_of(consumer, topics)
        if any(committed_offset(consumer, tp) is not None for tp in partitions):
            return  # the group has a life of its own already
        consumer.assign(partitions)
        starts = consumer.beginning_offsets(partitions, timeout_ms=REQUEST_TIMEOUT_MS)
        consumer.commit(
            {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in starts.items()},
            timeout_ms=REQUEST_TIMEOUT_MS,
        )
    except kafka_errors.CommitFailedError:
        return  # the group is running
    except KafkaError as error:
        raise KafkaUnavailable(f"cannot set up group {group}: {error}") from None
    finally:
        consumer.close()
