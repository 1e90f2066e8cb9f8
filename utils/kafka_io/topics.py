"""Creates the topics, and commits a first offset for each consumer group."""

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

#: max.message.bytes of `predictions` and `dead_letters`. A prediction repeats its request_id
#: and a rejected record gains headers, so both can be larger than the original message.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
#: How long to retry committing a group's first offsets.
SETUP_TIMEOUT_S = 60.0


def ensure_topics(kafka: Kafka, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Create the missing topics, and commit a first offset for each consumer group.

    With an offset committed for every partition, "no offset committed" never means a new
    partition: it comes from a broker that has not loaded its offsets yet.

    Args:
        kafka: How to reach the cluster.
        groups: The topics that each consumer group reads.

    Returns:
        The names of the topics created.

    Raises:
        KafkaUnavailable: The cluster cannot be reached, or it rejects the request.
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
        # Producers may use any codec; kafka-python lacks most of them, so the broker stores
        # the records uncompressed. It checks their size only after decompression.
        configs = {"compression.type": "uncompressed"}
    else:
        configs = {}
    return NewTopic(
        topic,
        num_partitions=partitions,
        replication_factor=-1,  # the cluster's default
        topic_configs=configs,
    )


def _commit_first_offsets(kafka: Kafka, group: str, topics: Iterable[str]) -> None:
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay

    # A new broker first creates its topic of offsets: seconds on a slow machine.
    timed_out = retry_if_exception_type(kafka_errors.KafkaTimeoutError)
    retrying = Retrying(retry=timed_out, stop=stop_after_delay(SETUP_TIMEOUT_S), reraise=True)
    try:
        retrying(_try_to_commit_first_offsets, kafka, group, topics)
    except kafka_errors.CommitFailedError:
        return  # the group is running
    except KafkaError as error:
        raise KafkaUnavailable(f"cannot set up group {group}: {error}") from None


def _try_to_commit_first_offsets(kafka: Kafka, group: str, topics: Iterable[str]) -> None:
    consumer = open_consumer(kafka, group_id=group)
    try:
        partitions = partitions_of(consumer, topics)
        if any(committed_offset(consumer, tp) is not None for tp in partitions):
            return  # the group has committed offsets already
        consumer.assign(partitions)
        starts = consumer.beginning_offsets(partitions, timeout_ms=REQUEST_TIMEOUT_MS)
        consumer.commit(
            {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in starts.items()},
            timeout_ms=REQUEST_TIMEOUT_MS,
        )
    finally:
        consumer.close()
