"""Opens transactional producers, and runs one transaction.

kafka-python 3.0.12 is not exactly-once by itself; each workaround names the fault it avoids.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.errors import KafkaError
from kafka.producer.producer_batch import FinalState, ProducerBatch
from kafka.producer.transaction_manager import TransactionalRequestResult
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from utils.kafka_io import record_batches, transactions_v2
from utils.kafka_io.clients import (
    OPERATION_TIMEOUT_MS,
    REQUEST_TIMEOUT_MS,
    Refused,
    open_producer,
)
from utils.kafka_io.hanging_transactions import init_and_resolve
from utils.kafka_io.naming import full_name
from utils.kafka_io.record_batches import Content
from utils.settings import Kafka

#: A crashed producer's open transaction blocks its successor for at most this long (its
#: offsets are unknown until it is aborted). A live producer opens a transaction only when
#: all records are ready, and commits it within milliseconds.
TRANSACTION_TIMEOUT_MS = 4_000
#: The most bytes of a record batch; by default a broker accepts up to 1 MiB.
BATCH_BYTES = 512 * 1024


class Position(NamedTuple):
    """The next offset to read of a partition, and the metadata to commit with it."""

    offset: int
    metadata: str = ""


def open_transactional_producer(
    kafka: Kafka, name: str, *, may_have_open_transaction: bool = True, **more: object
) -> KafkaProducer:
    """Open a transactional producer that is ready to begin a transaction.

    It can be used until `is_lost`; then a new one takes its place.

    Args:
        kafka: How to reach the cluster.
        name: The transactional id.
        may_have_open_transaction: False if the last transaction of this id is known to have
            ended; this saves some requests.
        more: Further options of the producer.

    Raises:
        KafkaError: The transactional id could not be initialised.
    """
    producer = open_producer(
        kafka,
        transactional_id=name,
        transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        delivery_timeout_ms=REQUEST_TIMEOUT_MS,
        **more,
    )
    try:
        _retry_lost_coordinator_requests(producer)
        _fail_when_a_connection_is_lost(producer)
        transactions_v2.use_if_supported(producer)
        if may_have_open_transaction:
            init_and_resolve(kafka, producer, name)
        else:
            producer.init_transactions()
    except BaseException:
        discard(producer)
        raise
    return producer


def is_lost(producer: KafkaProducer) -> bool:
    """Whether the producer has failed for good, lost a connection, or used up its epochs."""
    failed = bool(producer._transaction_manager.has_fatal_error())
    return failed or transactions_v2.has_used_up_its_epochs(producer)


def commit(
    producer: KafkaProducer,
    membership: ConsumerGroupMetadata | None,
    records: Mapping[TopicPartition, Sequence[Content]],
    positions: Mapping[TopicPartition, Position],
) -> None:
    """Send positions and records in one transaction.

    1. Begin. 2. Send the positions, fenced by the membership that polled them. They go first: while
    the last transaction is still completing, a broker refuses positions at once, and they are sent
    again; records it holds for 20 ms. 3. Send all records. 4. Wait until the positions and all
    records are acknowledged (a commit can succeed without records that have expired). 5. Commit.
    """
    producer.begin_transaction()  # 1
    manager, sent = producer._transaction_manager, None
    if positions:  # 2
        offsets = {
            tp: OffsetAndMetadata(position.offset, position.metadata, -1)
            for tp, position in positions.items()
        }
        sent = manager.send_offsets_to_transaction(offsets, membership)
    batches = enqueue_batches(producer, records)  # 3
    if sent is not None:  # 4
        await_result(producer, sent)
    producer.flush(timeout=OPERATION_TIMEOUT_MS / 1000)
    for batch in batches:
        if batch.final_state is not FinalState.SUCCEEDED:
            raise_delivery_error(batch, producer._sender._client.pipeline)
    await_result(producer, manager.begin_commit())  # 5


def await_result(producer: KafkaProducer, result: TransactionalRequestResult) -> None:
    """Wait for the transaction coordinator's answer to a request.

    The public calls have no timeout, and hung after a restart of the broker.

    Raises:
        KafkaTimeoutError: The coordinator does not answer.
    """
    producer._sender.wakeup()
    if not result.wait(timeout_ms=OPERATION_TIMEOUT_MS):
        raise kafka_errors.KafkaTimeoutError("the transaction coordinator does not answer")


def enqueue_batches(
    producer: KafkaProducer, records: Mapping[TopicPartition, Sequence[Content]]
) -> list[ProducerBatch]:
    """Do what the producer's `send` does, for whole batches instead of single records.

    `send` checks, locks and creates a future for each record, which took more time than
    scoring it; here a record costs little more than copying its bytes.
    """
    accumulator, queued, now = producer._accumulator, [], int(time.time() * 1000)
    codec = producer.config["compression_attrs"]
    for tp, contents in records.items():
        if tp.partition not in producer.partitions_for(tp.topic):
            raise kafka_errors.UnknownTopicOrPartitionError(
                f"there is no {tp.topic}-{tp.partition}"
            )
        producer._transaction_manager.maybe_add_partition_to_transaction(tp)
        batches = [
            ProducerBatch(tp, batch)
            for batch in record_batches.encode_batches(
                contents, timestamp=now, largest=BATCH_BYTES, codec=codec
            )
        ]
        with accumulator._tp_lock(tp):
            for batch in batches:
                accumulator._incomplete.add(batch)
            accumulator._batches[tp].extend(batches)
        queued += batches
    producer._sender.wakeup()
    return queued


def raise_delivery_error(batch: ProducerBatch, pipeline: str) -> NoReturn:
    """Say why a batch of a pipeline was not acknowledged.

    Raises:
        Refused: The topic takes no record so large.
        KafkaTimeoutError: It may be acknowledged when it is sent again.
    """
    topic, future = full_name(pipeline, batch.topic_partition.topic), batch.produce_future
    record_error = future.value[2] if future.is_done and future.value else None
    error = record_error(0) if record_error else "no answer"
    if isinstance(error, kafka_errors.MessageSizeTooLargeError):
        raise Refused(f"{topic} takes no record so large; give it a larger max.message.bytes")
    raise kafka_errors.KafkaTimeoutError(f"{topic} has not acknowledged every record: {error}")


def _retry_lost_coordinator_requests(producer: KafkaProducer) -> None:
    """Retry a transactional request whose coordinator has just become unavailable.

    If `await_ready` raises, the sender drops the request and its caller waits forever; if
    it returns False, the sender retries the request.
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


def _fail_when_a_connection_is_lost(producer: KafkaProducer) -> None:
    """Make the loss of a connection fatal to the producer, whatever it is doing.

    The broker may have restarted, and may have left the last transaction open on a
    partition even though it had acknowledged the commit. If the producer went on, its next
    transaction would decide about those records as well: they were lost if it was aborted.
    """
    manager = producer._transaction_manager
    # The client's own recovery, a new epoch, would also hide what the coordinator decided.
    manager._supports_epoch_bump = lambda: False

    def fail() -> None:
        if not manager.has_fatal_error():
            error = kafka_errors.KafkaConnectionError("lost the connection to a broker")
            manager.transition_to_fatal_error(error)

    producer._sender._client.on_lost_connection(fail)


def discard(producer: KafkaProducer) -> None:
    """Close a producer in any state.

    The next init_transactions with the same transactional id aborts an open transaction.
    """
    # force_close first: close() alone waits for records that may never be sent.
    producer._sender.force_close()
    try:
        producer.close(timeout=1)
    except KafkaError:
        logging.getLogger(__name__).debug("closing a producer failed", exc_info=True)
