"""Writing outside of the loop: record by record, or some of them in one transaction."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.producer.future import FutureRecordMetadata

from utils import messages
from utils.kafka_io.clients import (
    OPERATION_TIMEOUT_MS,
    REQUEST_TIMEOUT_MS,
    KafkaUnavailable,
    client_settings,
    translate_connection_errors,
)
from utils.kafka_io.transactions import await_result, discard, open_transactional_producer
from utils.settings import Kafka, Settings

#: The most bytes of one request; what a topic takes is for its broker to say.
LARGEST_REQUEST = 100 * 1024 * 1024


class Outgoing(NamedTuple):
    """A record to send; `partition` None leaves the choice to the key's hash."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] | None = None


class Sender:
    """Writes records one by one, acknowledged and without duplicates of its own."""

    def __init__(self, kafka: Kafka, *, linger_ms: int = 0) -> None:
        with translate_connection_errors(kafka):
            self._producer = KafkaProducer(
                **client_settings(kafka),
                metrics_enabled=False,
                acks="all",
                enable_idempotence=True,
                linger_ms=linger_ms,
                batch_size=256 * 1024,
                max_block_ms=60_000,
                max_request_size=LARGEST_REQUEST,
                allow_auto_create_topics=False,
            )

    def send(self, record: Outgoing) -> FutureRecordMetadata:
        """Queue a record; the returned future's `get(timeout)` waits for the broker."""
        return self._producer.send(
            record.topic,
            value=record.value,
            key=record.key,
            headers=record.headers,
            partition=record.partition,
        )

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until all that was sent is acknowledged; seconds."""
        self._producer.flush(timeout)

    def close(self) -> None:
        """Send what is queued and release the connection."""
        self._producer.close(timeout=5)

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TransactionalSender:
    """Writes records in one transaction: its readers see all of them or none.

    Args:
        kafka: How to reach the cluster.
        name: Only one such writer is at work: a newer one of the same name ends it.
    """

    def __init__(self, kafka: Kafka, name: str) -> None:
        with translate_connection_errors(kafka):
            self._producer = open_transactional_producer(
                kafka, name, max_block_ms=REQUEST_TIMEOUT_MS, max_request_size=LARGEST_REQUEST
            )
            self._producer.init_transactions()

    def send(self, outgoing: Iterable[Outgoing]) -> None:
        """Send them and wait until they are committed.

        Until then whoever reads these partitions waits too: not too much at once.

        Raises:
            KafkaError: None of them will be seen, unless the broker did not answer.
        """
        producer, manager = self._producer, self._producer._transaction_manager
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
            await_result(producer, manager.begin_abort())
            raise
        await_result(producer, manager.begin_commit())

    def __enter__(self) -> "TransactionalSender":
        return self

    def __exit__(self, *exception: object) -> None:
        discard(self._producer)


def announce(settings: Settings, record: messages.Event) -> None:
    """Send one record to `retrain_topic` and wait for its acknowledgement.

    Raises:
        KafkaUnavailable: It could not be sent.
    """
    with Sender(settings.kafka) as sender:
        value = msgspec.json.encode(record)
        try:
            sender.send(Outgoing(messages.RETRAIN_TOPIC, 0, None, value)).get(timeout=30)
        except KafkaError as error:
            raise KafkaUnavailable(f"the announcement was not accepted: {error}") from None
