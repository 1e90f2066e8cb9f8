"""Creates the topics, and commits a first offset for each consumer group."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import NewTopic
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from utils import messages
from utils.errors import one_line
from utils.kafka_io.clients import (
    NO_OFFSET_TIMEOUT_S,
    REQUEST_TIMEOUT_MS,
    KafkaUnavailable,
    committed_offsets,
    log_offsets,
    open_admin,
    open_consumer,
    partitions_of,
)
from utils.kafka_io.naming import all_topics, full_name, full_names
from utils.kafka_io.topic_settings import LARGE, MAX_MESSAGE_BYTES
from utils.settings import Kafka

#: How long to retry committing a group's first offsets.
SETUP_TIMEOUT_S = 60.0


def ensure_topics(kafka: Kafka, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Create what is missing of the topics, and commit a first offset for each consumer group.

    With an offset committed for every partition, "no offset committed" never means a new
    partition: it comes from a broker that has not loaded its offsets yet. Topics that answers
    and outcomes go to get as many partitions as `app_messages` has.

    Args:
        kafka: How to reach the cluster.
        groups: The topics that each consumer group reads.

    Returns:
        What was done, in lines of text for the user.

    Raises:
        KafkaUnavailable: The cluster cannot be reached, or it rejects the request.
    """
    name = partial(full_name, kafka.name)
    admin = open_admin(kafka)
    try:
        there = {
            topic["name"]: len(topic["partitions"])
            for topic in admin.describe_topics(sorted({*messages.TOPICS} & {*admin.list_topics()}))
        }
        count = there.get(messages.APP_MESSAGES, kafka.partitions)
        wanted = dict.fromkeys(messages.CO_PARTITIONED, count)
        wanted |= {messages.RETRAIN_TOPIC: 1, messages.DEAD_LETTERS: 1}
        missing = [topic for topic in wanted if topic not in there]
        more = {
            topic: count for topic in messages.CO_PARTITIONED if there.get(topic, count) < count
        }
        done = _create(admin, [_new_topic(topic, wanted[topic]) for topic in missing], name)
        if more:
            admin.create_partitions(more, raise_errors=False)
    except KafkaError as error:
        what = f"cannot create {all_topics(kafka.name)}"
        raise KafkaUnavailable(f"{what}: {one_line(error)}") from None
    finally:
        admin.close()
    for group, topics in groups.items():
        _commit_first_offsets(kafka, group, topics, missing)
    return done + [
        f"{name(topic)} has {count} partitions now, as {name(messages.APP_MESSAGES)}"
        for topic, count in more.items()
    ]


def wait_for_topics(
    kafka: Kafka,
    topics: Sequence[str],
    *,
    seconds: float,
    pause: Callable[[float], bool],
    report: Callable[[str], None],
) -> bool:
    """Wait until topics exist; what is waited for is said once.

    Args:
        kafka: How to reach the cluster.
        topics: The topics.
        seconds: How long to wait.
        pause: Sleeps for some seconds; returns whether to stop waiting.
        report: Called with one line of text for the user.

    Returns:
        Whether they exist; False after a stop.

    Raises:
        KafkaUnavailable: No broker answers, or they do not exist in time.
    """
    until, reported = time.monotonic() + seconds, False
    admin = open_admin(kafka)
    try:
        while missing := sorted(set(topics) - set(admin.list_topics())):
            line = f"topic {full_names(kafka.name, missing)} (initialize.py creates it)"
            if time.monotonic() > until:
                raise KafkaUnavailable(f"after {seconds:g} s there is no {line}")
            if not reported:
                report(f"waiting for {line}")
                reported = True
            if pause(0.2):
                return False
    except KafkaError as error:
        raise KafkaUnavailable(f"the topics cannot be listed: {error}") from None
    finally:
        admin.close()
    return True


def _new_topic(topic: str, partitions: int) -> NewTopic:
    return NewTopic(
        topic,
        num_partitions=partitions,
        replication_factor=-1,  # the cluster's default
        topic_configs={"max.message.bytes": str(MAX_MESSAGE_BYTES)} if topic in LARGE else {},
    )


def _create(
    admin: KafkaAdminClient, topics: Sequence[NewTopic], name: Callable[[str], str]
) -> list[str]:
    """Create topics, without the settings that the cluster does not let this user choose.

    Args:
        admin: A client.
        topics: The topics.
        name: Returns a topic's name in Kafka.

    Returns:
        What was done, in lines of text for the user.

    Raises:
        KafkaError: A topic cannot be created.
    """
    if not topics:
        return []
    done = [f"topics created: {', '.join(name(topic.name) for topic in topics)}"]
    refused = []
    for topic, error in _try_to_create(admin, topics):
        if not topic.topic_configs or isinstance(error, kafka_errors.AuthorizationError):
            raise error
        refused.append(topic)
        wanted = ", ".join(topic.topic_configs)
        refusal = f"the cluster does not let {wanted} be set ({one_line(error)})"
        done.append(f"{name(topic.name)}: {refusal}")
        topic.topic_configs = {}
    for _, error in _try_to_create(admin, refused):
        raise error
    admin.wait_for_topics([topic.name for topic in topics], timeout_ms=REQUEST_TIMEOUT_MS)
    return done


def _try_to_create(
    admin: KafkaAdminClient, topics: Sequence[NewTopic]
) -> list[tuple[NewTopic, KafkaError]]:
    """Create topics; returns those that could not be created, and why."""
    if not topics:
        return []
    answer = admin.create_topics(topics, raise_errors=False)
    errors = {
        one["name"]: kafka_errors.for_code(one["error_code"])(one["error_message"] or "")
        for one in answer["topics"]
        # Another initialize.py may create them as well.
        if one["error_code"] not in (0, kafka_errors.TopicAlreadyExistsError.errno)
    }
    return [(topic, errors[topic.name]) for topic in topics if topic.name in errors]


def _commit_first_offsets(
    kafka: Kafka, group: str, topics: Iterable[str], created: Sequence[str]
) -> None:
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay

    # A new broker first creates its topic of offsets: seconds on a slow machine.
    timed_out = retry_if_exception_type(kafka_errors.KafkaTimeoutError)
    retrying = Retrying(retry=timed_out, stop=stop_after_delay(SETUP_TIMEOUT_S), reraise=True)
    try:
        retrying(_try_to_commit_first_offsets, kafka, group, topics, created)
    except kafka_errors.CommitFailedError:
        return  # the group is running
    except KafkaError as error:
        name = full_name(kafka.name, group)
        raise KafkaUnavailable(f"cannot set up group {name}: {error}") from None


def _try_to_commit_first_offsets(
    kafka: Kafka, group: str, topics: Iterable[str], created: Sequence[str]
) -> None:
    consumer = open_consumer(kafka, group_id=group)
    try:
        new = _without_offset(consumer, partitions_of(consumer, topics))
        if any(tp.topic not in created for tp in new):
            time.sleep(NO_OFFSET_TIMEOUT_S)
            new = _without_offset(consumer, new)
        if not new:
            return
        consumer.assign(new)
        starts = log_offsets(consumer.beginning_offsets, new)
        consumer.commit(
            {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in starts.items()},
            timeout_ms=REQUEST_TIMEOUT_MS,
        )
    finally:
        consumer.close()


def _without_offset(
    consumer: KafkaConsumer, partitions: list[TopicPartition]
) -> list[TopicPartition]:
    committed = committed_offsets(consumer, partitions)
    return [tp for tp in partitions if tp not in committed]
