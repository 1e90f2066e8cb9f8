"""Producers of transactions, and one transaction of theirs.

kafka-python 3.0.12 needs help to be exactly-once; each place says against what.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import AbortTransactionSpec
from kafka.errors import KafkaError
from kafka.producer.producer_batch import FinalState, ProducerBatch
from kafka.producer.transaction_manager import TransactionalRequestResult
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from utils import messages
from utils.kafka_io import record_batches
from utils.kafka_io.clients import (
    OPERATION_TIMEOUT_MS,
    REQUEST_TIMEOUT_MS,
    client_settings,
    open_admin,
)
from utils.kafka_io.record_batches import Content
from utils.settings import Kafka

#: So long an open transaction of a writer that died and does not come back keeps its
#: heirs from its partitions (they may not know its offsets before it is aborted). A
#: writer that lives begins one with everything at hand and is done in milliseconds.
TRANSACTION_TIMEOUT_MS = 4_000
#: Of one batch of records; the broker takes up to 1 MiB unless told otherwise.
BATCH_BYTES = 512 * 1024
#: What is written in transactions.
OUTPUT_TOPICS = (messages.PREDICTIONS, messages.RETRAIN_TOPIC, messages.DEAD_LETTERS)
#: Where the broker keeps the offsets of groups.
OFFSETS_TOPIC = "__consumer_offsets"


class Position(NamedTuple):
    """The next offset to read of a partition, and what its reader wants to remember."""

    offset: int
    metadata: str = ""


def open_transactional_producer(kafka: Kafka, name: str, **more: object) -> KafkaProducer:
    """A producer of transactions, `init_transactions` still to be called."""
    producer = KafkaProducer(
        **client_settings(kafka),
        metrics_enabled=False,
        transactional_id=name,
        transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        delivery_timeout_ms=REQUEST_TIMEOUT_MS,
        allow_auto_create_topics=False,
        **more,
    )
    _retry_lost_coordinator_requests(producer)
    return producer


def commit(
    producer: KafkaProducer,
    membership: ConsumerGroupMetadata | None,
    records: Mapping[TopicPartition, Sequence[Content]],
    positions: Mapping[TopicPartition, Position],
) -> None:
    """One transaction.

    1. begin; 2. send everything; 3. the positions, fenced by the membership that polled
    them; 4. wait until every record is acknowledged (a commit can succeed without records
    that have expired) and the positions are; 5. commit.
    """
    producer.begin_transaction()  # 1
    batches = enqueue_batches(producer, records)  # 2
    manager, sent = producer._transaction_manager, None
    if positions:  # 3: on its way while the records are
        offsets = {
            tp: OffsetAndMetadata(position.offset, position.metadata, -1)
            for tp, position in positions.items()
        }
        sent = manager.send_offsets_to_transaction(offsets, membership)
    producer.flush(timeout=OPERATION_TIMEOUT_MS / 1000)  # 4
    for batch in batches:
        if batch.final_state is not FinalState.SUCCEEDED:
            raise kafka_errors.KafkaTimeoutError(delivery_error(batch))
    if sent is not None:
        await_result(producer, sent)
    await_result(producer, manager.begin_commit())  # 5


def await_result(producer: KafkaProducer, result: TransactionalRequestResult) -> None:
    """Wait for what the transaction coordinator was asked.

    The public calls wait without end, and after a broker's restart they did.

    Raises:
        KafkaTimeoutError: It does not answer.
    """
    producer._sender.wakeup()
    if not result.wait(timeout_ms=OPERATION_TIMEOUT_MS):
        raise kafka_errors.KafkaTimeoutError("the transaction coordinator does not answer")


def enqueue_batches(
    producer: KafkaProducer, records: Mapping[TopicPartition, Sequence[Content]]
) -> list[ProducerBatch]:
    """What the producer's `send` does, by whole batches instead of record by record.

    `send` checks, locks and makes a future for each record, which took more time than
    scoring it; here a record costs its bytes.
    """
    accumulator, queued, now = producer._accumulator, [], int(time.time() * 1000)
    for tp, contents in records.items():
        if tp.partition not in producer.partitions_for(tp.topic):
            raise kafka_errors.UnknownTopicOrPartitionError(
                f"there is no {tp.topic}-{tp.partition}"
            )
        producer._transaction_manager.maybe_add_partition_to_transaction(tp)
        batches = [
            ProducerBatch(tp, batch)
            for batch in record_batches.encode_batches(contents, timestamp=now, largest=BATCH_BYTES)
        ]
        with accumulator._tp_lock(tp):
            for batch in batches:
                accumulator._incomplete.add(batch)
            accumulator._batches[tp].extend(batches)
        queued += batches
    producer._sender.wakeup()
    return queued


def delivery_error(batch: ProducerBatch) -> str:
    """What to tell of a batch that was not acknowledged."""
    topic, future = batch.topic_partition.topic, batch.produce_future
    why = future.value[2] if future.is_done and future.value else None  # asked by record
    error = why(0) if why else "no answer"
    if isinstance(error, kafka_errors.MessageSizeTooLargeError):
        return f"{topic} takes no record so large; give it a larger max.message.bytes"
    return f"{topic} has not acknowledged every record: {error}"


def _retry_lost_coordinator_requests(producer: KafkaProducer) -> None:
    """Keep a transactional request whose coordinator has just gone away.

    The sender drops the request, and its caller waits for ever, when `await_ready`
    raises; when it returns False the request is tried again.
    """
    client = producer._sender._client
    await_ready = client.await_ready

    def ready_or_not(*args: object, **kwargs: object) -> bool:
        try:
            return bool(await_ready(*args, **kwargs))
        except KafkaError:
            time.sleep(0.05)
            return False

    client.await_ready = ready_or_not


def abort_hanging_transactions(kafka: Kafka, producer_id: int) -> None:
    """Abort what a partition holds open of a transaction that is over.

    A broker that has just been killed and started can abort a transaction (it timed out
    meanwhile) while the partitions have no leader yet, and then it does not tell them:
    "these partitions are likely deleted already and hence can be skipped". The records
    stay open, readers wait for them, and the same producer's next commit commits them
    too: twice the same prediction. Once `init_transactions` has returned, nothing of
    this producer can rightly be open.
    """
    admin = open_admin(kafka)
    try:
        topics = admin.describe_topics([*OUTPUT_TOPICS, OFFSETS_TOPIC])
        partitions = [
            TopicPartition(topic["name"], partition["partition_index"])
            for topic in topics
            for partition in topic["partitions"]
        ]
        for tp, state in admin.describe_producers(partitions).items():
            for producer in state.active_producers:
                is_open = producer.current_transaction_start_offset >= 0
                if producer.producer_id == producer_id and is_open:
                    admin.abort_transaction(
                        AbortTransactionSpec(
                            tp,
                            producer_id,
                            producer.producer_epoch,
                            max(producer.coordinator_epoch, 0),  # -1 is refused
                        )
                    )
                    logging.getLogger(__name__).warning("aborted what %s kept open", tp)
    except (
        kafka_errors.TopicAuthorizationFailedError,
        kafka_errors.ClusterAuthorizationFailedError,
    ):
        logging.getLogger(__name__).info("not allowed to look for forgotten transactions")
    finally:
        admin.close()


def discard(producer: KafkaProducer) -> None:
    """Close a producer, whatever state it is in.

    An open transaction is aborted by the next init_transactions under the same id.
    """
    # force_close first: close() alone waits for records that may never go.
    producer._sender.force_close()
    try:
        producer.close(timeout=1)
    except KafkaError:
        logging.getLogger(__name__).debug("closing a producer failed", exc_info=True)
