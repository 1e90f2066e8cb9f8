"""Writes records outside the loop: one by one, or several in one transaction."""

from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.producer.future import FutureRecordMetadata

from utils import home, messages
from utils.kafka_io.clients import (
    OPERATION_TIMEOUT_MS,
    REQUEST_TIMEOUT_MS,
    RETRIABLE_ERRORS,
    KafkaUnavailable,
    open_producer,
    translate_connection_errors,
)
from utils.kafka_io.transactions import (
    await_result,
    discard,
    is_lost,
    open_transactional_producer,
)
from utils.settings import Kafka, Settings

#: The most bytes of one record; the limit of a topic is enforced by the broker.
LARGEST_REQUEST = 100 * 1024 * 1024


class Outgoing(NamedTuple):
    """A record to send; with `partition` None the key's hash decides."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] | None = None


class Sender:
    """Writes records one by one with an idempotent producer (acks=all)."""

    def __init__(self, kafka: Kafka, *, linger_ms: int = 0) -> None:
        with translate_connection_errors(kafka):
            self._producer = open_producer(
                kafka,
                acks="all",
                enable_idempotence=True,
                linger_ms=linger_ms,
                batch_size=256 * 1024,
                max_block_ms=60_000,
                max_request_size=LARGEST_REQUEST,
            )

    def send(self, record: Outgoing) -> FutureRecordMetadata:
        """Queue a record; returns a future whose `get(timeout)` waits for the broker."""
        return self._producer.send(
            record.topic,
            value=record.value,
            key=record.key,
            headers=record.headers,
            partition=record.partition,
        )

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until the broker has acknowledged all records, at most `timeout` seconds."""
        self._producer.flush(timeout)

    def close(self) -> None:
        """Send the queued records and release the connection.

        Whether they were acknowledged, only `flush` or their futures tell.
        """
        with suppress(KafkaError):
            self._producer.close(timeout=5)

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TransactionalSender:
    """Writes records in transactions; read_committed consumers see all records of one or none.

    Args:
        kafka: How to reach the cluster.
        name: The transactional id: a newer producer with the same id fences this one.
    """

    def __init__(self, kafka: Kafka, name: str) -> None:
        self._kafka = kafka
        self._name = name
        self._failed = False
        with translate_connection_errors(kafka):
            self._producer = self._open()

    def _open(self) -> KafkaProducer:
        return open_transactional_producer(
            self._kafka,
            self._name,
            max_block_ms=REQUEST_TIMEOUT_MS,
            max_request_size=LARGEST_REQUEST,
        )

    def send(self, outgoing: Iterable[Outgoing]) -> None:
        """Send records in one transaction and wait for its commit.

        Consumers of these partitions wait meanwhile, so keep transactions small.

        Raises:
            KafkaError: The transaction failed and none of its records become visible. Only
                if the broker did not answer is its outcome unknown.
            KafkaUnavailable: No broker answers; nothing was sent.
        """
        while self._failed or is_lost(self._producer):
            self._replace()
        producer, manager = self._producer, self._producer._transaction_manager
        self._failed = True
        producer.begin_transaction()
        try:
            futures = [
                producer.send(topic, value=value, key=key, headers=headers, partition=partition)
                for topic, partition, key, value, headers in outgoing
            ]
            producer.flush(timeout=OPERATION_TIMEOUT_MS / 1000)
            for future in futures:
                future.get(timeout=0)
        except BaseException:
            # A new producer aborts the transaction; else it ends when its time is over.
            with suppress(*RETRIABLE_ERRORS):
                self._replace()
            raise
        await_result(producer, manager.begin_commit())
        self._failed = False

    def _replace(self) -> None:
        discard(self._producer)
        self._producer = self._open()
        self._failed = False

    def __enter__(self) -> "TransactionalSender":
        return self

    def __exit__(self, *exception: object) -> None:
        discard(self._producer)


def announce(settings: Settings, event: messages.Event) -> int:
    """Send one event to `retrain_topic` in the name of this home; returns its offset.

    Raises:
        KafkaUnavailable: It could not be sent.
        UserError: The home has no identity and cannot get one.
    """
    encoded = messages.encode_event(event, home.identify(settings).id)
    with Sender(settings.kafka) as sender:
        try:
            sent = sender.send(Outgoing(messages.RETRAIN_TOPIC, 0, *encoded)).get(timeout=30)
            return int(sent.offset)
        except KafkaError as error:
            raise KafkaUnavailable(f"the announcement was not accepted: {error}") from None
