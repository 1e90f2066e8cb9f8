"""Opens Kafka clients, and reports connection errors in one line."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from utils.errors import UserError
from utils.kafka_io import connection
from utils.kafka_io.lasting import remedy
from utils.kafka_io.naming import full_name
from utils.kafka_io.record_batches import PartitionRecords
from utils.settings import Kafka

BOOTSTRAP_TIMEOUT_MS = 5_000
REQUEST_TIMEOUT_MS = 10_000
#: For each step of a transaction and each query of committed offsets. A killed broker
#: leaves requests unanswered, and predictions stop until the client times out. A short
#: timeout is safe: the next poll reads the committed offsets again.
OPERATION_TIMEOUT_MS = 5_000
#: A broker that has just restarted reports "no offset committed" for about half a second
#: to groups that have one. The answer is trusted only if it lasts this long.
NO_OFFSET_TIMEOUT_S = 5.0
#: The most bytes of a request with several batches of records: some clusters take 1 MiB. With its
#: envelope a request stays below that.
REQUEST_BYTES = 1024 * 1024 - 64 * 1024
#: How often the client refreshes its metadata, and so notices new partitions.
METADATA_MAX_AGE_MS = 5_000


class KafkaUnavailable(UserError):
    """The cluster cannot be used now; its text is one line meant for the user."""


#: Errors that callers retry: they end when the cluster has recovered.
RETRIABLE_ERRORS = (KafkaError, KafkaUnavailable)


class Refused(KafkaUnavailable):
    """A broker is up but not trusted, or it denies access: retrying does not help."""


def client_settings(kafka: Kafka) -> dict[str, object]:
    """The settings of every Kafka client, as keyword arguments.

    Raises:
        TokenError: The client would need a token, and there is none.
    """
    servers = [server.strip() for server in kafka.bootstrap_servers.split(",")]
    settings: dict[str, object] = {
        "bootstrap_servers": servers,
        "security_protocol": kafka.security_protocol,
        "kafka_client": partial(connection.Client, kafka.name),
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        # Enough for the last of them, if all others accept connections and never answer.
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS
        + (len(servers) - 1) * connection.BOOTSTRAP_ATTEMPT_MS,
        "reconnect_backoff_max_ms": 1_000,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }
    if kafka.security_protocol.startswith("SASL"):
        settings["sasl_mechanism"] = kafka.sasl_mechanism
        if kafka.sasl_mechanism == "OAUTHBEARER":
            # Imported here: the HTTP client takes 20 ms, and other logins need none.
            from utils.kafka_io.oauth import token_provider

            provider = settings["sasl_oauth_token_provider"] = token_provider(kafka)
            provider.token()  # its error is clearer here than inside the client
        elif kafka.sasl_password is not None:
            settings["sasl_plain_username"] = kafka.sasl_username
            settings["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
    if kafka.ssl_cafile is not None:
        settings["ssl_cafile"] = str(kafka.ssl_cafile)
    if kafka.ssl_certfile is not None:  # each connection reads them again, and so finds new ones
        settings["ssl_certfile"] = str(kafka.ssl_certfile)
        settings["ssl_keyfile"] = kafka.ssl_keyfile and str(kafka.ssl_keyfile)
        settings["ssl_password"] = kafka.key_password or ""  # None would ask on the terminal
    return settings


def open_producer(kafka: Kafka, **more: object) -> KafkaProducer:
    """Open a producer that divides what is to be sent into requests that any broker takes."""
    producer = KafkaProducer(
        **client_settings(kafka),
        metrics_enabled=False,
        allow_auto_create_topics=False,
        compression_type=None if kafka.compression == "none" else kafka.compression,
        **more,
    )
    # A record that is larger is sent alone; the producer's own option would limit records, too.
    producer._sender.config["max_request_size"] = REQUEST_BYTES
    return producer


def open_consumer(kafka: Kafka, **more: object) -> KafkaConsumer:
    """Open a consumer of committed records; it returns them as `record_batches.Record`."""
    # No deserialisers: one that raises makes the next poll() hang.
    consumer = KafkaConsumer(
        **client_settings(kafka),
        metrics_enabled=False,
        isolation_level="read_committed",
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        fetch_max_wait_ms=500,
        # Fetch sessions save little with few partitions and are another source of errors.
        enable_incremental_fetch_sessions=False,
        max_partition_fetch_bytes=4 * 1024 * 1024,
        **more,
    )
    consumer._fetcher.PartitionRecords = PartitionRecords
    _fetch_when_all_is_read(consumer._fetcher)
    _return_when_full(consumer._fetcher)
    return consumer


def _fetch_when_all_is_read(fetcher: Fetcher) -> None:
    """Send the next fetch request only when all fetched records have been returned.

    By default the client sends it while records of one partition are still buffered, and so
    for the other partitions alone. If those are empty, the broker delays its response for
    up to `fetch_max_wait_ms`, and the client sends that broker no other fetch request
    meanwhile: the partition that has records waits for the empty ones.
    """
    send_fetches = fetcher.send_fetches

    def send_when_all_is_read() -> list[object]:
        return [] if fetcher._next_partition_records else send_fetches()

    fetcher.send_fetches = send_when_all_is_read


def _return_when_full(fetcher: Fetcher) -> None:
    """Return fewer records than asked for when they hold many bytes (`TAKE_BYTES`)."""
    append = fetcher._append

    def append_until_full(drained: object, part: PartitionRecords, most: int, *more: object) -> int:
        count: int = append(drained, part, most, *more)
        return most if part.is_full else count  # as if nothing more was wanted

    fetcher._append = append_until_full


def raise_if_lasting(error: Exception) -> None:
    """Raise `Refused` in place of an error that waiting does not cure; else do nothing.

    Raises:
        Refused: One line that says what to change.
    """
    if isinstance(error, Refused):
        raise error
    if text := remedy(error):
        raise Refused(text) from None


@contextmanager
def translate_connection_errors(kafka: Kafka) -> Iterator[None]:
    """Turn the errors of opening a client into a one-line `KafkaUnavailable`.

    Raises:
        KafkaUnavailable: The client could not connect; `Refused` if a retry is useless.
    """
    try:
        yield
    except (KafkaError, OSError, ValueError) as error:
        if connection.is_refusal(error):
            raise Refused(connection.refusal(kafka, error)) from None
        raise_if_lasting(error)
        raise KafkaUnavailable(
            f"no Kafka broker answers at {kafka.bootstrap_servers} with "
            f"{kafka.security_protocol} (start one: python -m utils.broker)"
        ) from None


def open_admin(kafka: Kafka) -> KafkaAdminClient:
    """Open an admin client.

    Raises:
        KafkaUnavailable: No broker answers, or it denies access.
    """
    with translate_connection_errors(kafka):
        return KafkaAdminClient(**client_settings(kafka))


def check_broker(kafka: Kafka) -> None:
    """Connect to the cluster once and disconnect.

    Raises:
        KafkaUnavailable: No broker answers, or it denies access.
    """
    open_admin(kafka).close()


def wait_for_broker(kafka: Kafka, seconds: float) -> None:
    """Wait until the cluster accepts connections.

    Raises:
        KafkaUnavailable: No connection within `seconds`, or the broker denies access.
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
    """All partitions of the topics that are in the client's metadata."""
    return [
        TopicPartition(topic, partition)
        for topic in topics
        for partition in sorted(consumer.partitions_for_topic(topic) or ())
    ]


def positions_of(consumer: KafkaConsumer) -> dict[TopicPartition, int]:
    """The next offset of each assigned partition whose position is known."""
    found = {tp: consumer.position(tp, timeout_ms=1_000) for tp in consumer.assignment()}
    return {tp: position for tp, position in found.items() if position is not None}


def committed_offsets(
    consumer: KafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """The offsets that the consumer's group has committed, of partitions that have one."""
    # In one request, whatever their number. Without a timeout it retries forever and ignores
    # signals.
    found: dict[TopicPartition, OffsetAndMetadata] = consumer._coordinator.fetch_committed_offsets(
        list(partitions), timeout_ms=OPERATION_TIMEOUT_MS
    )
    return found


def log_offsets(
    ask: Callable[..., dict[TopicPartition, int]],
    partitions: Iterable[TopicPartition],
    timeout_ms: int = REQUEST_TIMEOUT_MS,
) -> dict[TopicPartition, int]:
    """The first or last offset of partitions, by a consumer's method for that.

    Raises:
        KafkaError: The broker does not say, or not of a partition that was just added.
    """
    try:
        return ask(list(partitions), timeout_ms=timeout_ms)
    except KeyError as missing:
        raise kafka_errors.LeaderNotAvailableError(f"{missing.args[0]} is new") from None


def in_words(partitions: Iterable[TopicPartition], pipeline: str) -> str:
    """Partitions of a pipeline as text for the user.

    >>> in_words((TopicPartition("app_messages", number) for number in (0, 2, 3, 4, 6)), "")
    'app_messages-0, 2 to 4, 6'
    >>> in_words([TopicPartition("outcomes", 0)], "fraud")
    'fraud.outcomes-0'
    """
    numbers: dict[str, list[int]] = {}
    for tp in sorted(partitions):
        numbers.setdefault(tp.topic, []).append(tp.partition)
    return ", ".join(
        f"{full_name(pipeline, topic)}-{_ranges(found)}" for topic, found in numbers.items()
    )


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as ranges."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and groups[-1][-1] == number - 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(
        f"{group[0]} to {group[-1]}" if len(group) > 2 else ", ".join(map(str, group))
        for group in groups
    )
