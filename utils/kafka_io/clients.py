"""Clients of the cluster: how they are opened, and what is said when they cannot be."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from utils.errors import UserError
from utils.kafka_io import connection, record_batches
from utils.settings import Kafka

BOOTSTRAP_TIMEOUT_MS = 5_000
REQUEST_TIMEOUT_MS = 10_000
#: For each step of a transaction and each look at the committed offsets. A broker that is
#: killed takes some answers with it, and the client waits them out: this is how long the
#: predictions then stand still. Giving up early is safe: the next poll looks again.
OPERATION_TIMEOUT_MS = 5_000
#: How often topics are looked at for new partitions.
METADATA_MAX_AGE_MS = 5_000


class KafkaUnavailable(UserError):
    """The cluster cannot be used now; its text is one line meant for the user."""


#: What passes when the cluster is well again: call once more.
TROUBLE = (KafkaError, KafkaUnavailable)


class Refused(KafkaUnavailable):
    """There is a broker, but it is not trusted or does not let us in: waiting is no use."""


def client_settings(kafka: Kafka) -> dict[str, object]:
    """What every client needs to reach the cluster."""
    settings: dict[str, object] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "security_protocol": kafka.security_protocol,
        "kafka_client": connection.Client,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "reconnect_backoff_max_ms": 1_000,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }
    if kafka.security_protocol.startswith("SASL"):
        settings["sasl_mechanism"] = kafka.sasl_mechanism
        settings["sasl_plain_username"] = kafka.sasl_username
        if kafka.sasl_password is not None:
            settings["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
    if kafka.ssl_cafile is not None:
        settings["ssl_cafile"] = str(kafka.ssl_cafile)
    return settings


def open_consumer(kafka: Kafka, **more: object) -> KafkaConsumer:
    """A consumer of committed records, which come as `record_batches.Record`."""
    # No deserialiser anywhere: one that raises makes the next poll() hang.
    consumer = KafkaConsumer(
        **client_settings(kafka),
        metrics_enabled=False,
        isolation_level="read_committed",
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        fetch_max_wait_ms=500,
        # They save little with a few partitions, and are one thing more to go wrong.
        enable_incremental_fetch_sessions=False,
        max_partition_fetch_bytes=4 * 1024 * 1024,
        **more,
    )
    consumer._fetcher.PartitionRecords = record_batches.PartitionRecords
    _fetch_when_all_is_read(consumer._fetcher)
    return consumer


def _fetch_when_all_is_read(fetcher: Fetcher) -> None:
    """Ask for more of all partitions together, or not yet.

    The client asks again while a part of what it got of one partition is still to be
    handed out, so for the others alone. When these have nothing, the broker holds the
    answer back for as long as it may (`fetch_max_wait_ms`), and until it comes the client
    asks nothing else of that broker: a full partition waits for the empty ones.
    """
    send_fetches = fetcher.send_fetches

    def later_or_now() -> list[object]:
        return [] if fetcher._next_partition_records else send_fetches()

    fetcher.send_fetches = later_or_now


@contextmanager
def translate_connection_errors(kafka: Kafka) -> Iterator[None]:
    """Open a client inside; what keeps it out becomes one line.

    Raises:
        KafkaUnavailable: That line.
    """
    try:
        yield
    except kafka_errors.AuthorizationError as error:
        raise Refused(f"{kafka.bootstrap_servers} forbids it: {type(error).__name__}") from None
    except (KafkaError, OSError, ValueError) as error:
        if connection.is_refusal(error):
            raise Refused(connection.refusal(kafka, error)) from None
        raise KafkaUnavailable(
            f"no Kafka broker answers at {kafka.bootstrap_servers} with "
            f"{kafka.security_protocol} (start one: python -m utils.broker)"
        ) from None


def open_admin(kafka: Kafka) -> KafkaAdminClient:
    """An admin client.

    Raises:
        KafkaUnavailable: No broker, or it does not let us in.
    """
    with translate_connection_errors(kafka):
        return KafkaAdminClient(**client_settings(kafka))


def check_broker(kafka: Kafka) -> None:
    """Connect once and leave.

    Raises:
        KafkaUnavailable: No broker, or it does not let us in.
    """
    open_admin(kafka).close()


def wait_for_broker(kafka: Kafka, seconds: float) -> None:
    """Wait until the cluster lets us in.

    Raises:
        KafkaUnavailable: It did not, for that long.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return check_broker(kafka)
        except Refused:
            raise
        except KafkaUnavailable:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)


def partitions_of(consumer: KafkaConsumer, topics: Iterable[str]) -> list[TopicPartition]:
    """All partitions of topics, as far as the client knows."""
    return [
        TopicPartition(topic, partition)
        for topic in topics
        for partition in sorted(consumer.partitions_for_topic(topic) or ())
    ]


def positions_of(consumer: KafkaConsumer) -> dict[TopicPartition, int]:
    """The next offset of each assigned partition whose position is known."""
    found = {tp: consumer.position(tp, timeout_ms=1_000) for tp in consumer.assignment()}
    return {tp: position for tp, position in found.items() if position is not None}


def committed_offset(consumer: KafkaConsumer, tp: TopicPartition) -> OffsetAndMetadata | None:
    """What the consumer's group has committed of a partition."""
    # Without a timeout it retries for ever and heeds no signal.
    return consumer.committed(tp, metadata=True, timeout_ms=OPERATION_TIMEOUT_MS)
