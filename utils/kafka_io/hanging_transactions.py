"""Ends transactions that a restarted broker has left open on a partition, as it decided.

A transaction ends when the coordinator writes its decision to its own log; then it sends a
marker to every partition of the transaction. A coordinator that restarts in between sends
the markers again, but it may look for the partitions before it knows their leaders. It then
drops the markers ("these partitions are likely deleted already and hence can be skipped")
and counts the transaction as complete. The records, or the consumed offsets, stay open on
those partitions: consumers wait for them, and the next marker of the same producer decides
what becomes of them.

An open transaction is ended with the decision that the coordinator made, which `init_and_resolve`
reads before `init_transactions` replaces it. A transaction that is still ongoing is first aborted
by a request of its own, because `init_transactions` aborts and forgets at once. The rules rely on
this:

* A state that is neither Ongoing nor about to end is Empty, CompleteCommit or CompleteAbort.
  Empty follows from `init_transactions`, which adds 1 to the producer's epoch, and does not say
  how the last transaction ended.
* With version 1 a commit keeps the epoch in which the transaction began. With version 2 it adds 1.
* This package never asks for an abort. The coordinator aborts by itself, on a timeout or because
  the id is initialised; it adds 1.
* No transaction begins while an earlier one is open on a partition: a producer that loses a
  connection is replaced first (`transactions.open_transactional_producer`).
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import AbortTransactionSpec, TransactionDescription, TransactionState
from kafka.protocol.producer import InitProducerIdRequest

from utils import messages
from utils.kafka_io.clients import OPERATION_TIMEOUT_MS, open_admin
from utils.settings import Kafka

#: The topics that are written in transactions, the broker's committed offsets among them.
TOPICS = (*messages.TOPICS, "__consumer_offsets")
#: A broker that has just restarted may not know every topic yet.
MISSING_TOPICS_TIMEOUT_S = 2.0
RESOLVE_ATTEMPTS = 5
RETRY_S = 0.05

_FORBIDDEN = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailedError,
    kafka_errors.UnsupportedVersionError,  # a broker before Kafka 3.0, or one that is no Kafka
)
T = TypeVar("T")
_log = logging.getLogger(__name__)


class _Open(NamedTuple):
    """An open transaction of a partition."""

    tp: TopicPartition
    epoch: int
    coordinator_epoch: int


def init_and_resolve(kafka: Kafka, producer: KafkaProducer, name: str) -> None:
    """Call `init_transactions`, and end what its predecessors left open on partitions.

    Args:
        kafka: How to reach the cluster.
        producer: A producer that is not initialised yet.
        name: Its transactional id.

    Raises:
        KafkaError: The broker did not answer, or the last transaction is still ending. The
            producer is not usable; a new one may try again.
    """
    admin = open_admin(kafka)
    try:
        _resolve(admin, name)
        producer.init_transactions()
    finally:
        admin.close()


def decision(state: TransactionDescription, epoch: int) -> bool | None:
    """Whether the transaction of this epoch was committed; None if nobody can know.

    Args:
        state: A state of the transactional id that is neither Ongoing nor about to end.
        epoch: The epoch in which the transaction began.
    """
    added = state.producer_epoch - epoch
    if state.state == TransactionState.COMPLETE_COMMIT and added in (0, 1):
        return True
    if state.state == TransactionState.COMPLETE_ABORT and added in (0, 1):
        return False
    # Empty after 0: records that were never in a transaction. After 1: a commit of version 1 and
    # a new producer. After 2: that, in version 2, or an abort and a new producer.
    return {0: False, 1: True}.get(added) if state.state == TransactionState.EMPTY else None


def _resolve(admin: KafkaAdminClient, name: str) -> None:
    """Abort what is ongoing, and end what a restarted broker has left open."""
    try:
        state = _settle(admin, name)
        partitions = _partitions(admin) if state is not None else []
        for _ in range(RESOLVE_ATTEMPTS):
            if state is None:
                return
            hanging = _open_transactions(admin, partitions, state.producer_id)
            if not hanging:
                return
            # If nothing has begun since, what is open belongs to what was decided.
            last, state = state, _settle(admin, name)
            if state == last:
                return _end(admin, last, hanging)
    except _FORBIDDEN as error:
        _pass_over(type(error).__name__)
        return
    raise kafka_errors.KafkaTimeoutError(f"another process writes as {name}")


def _end(admin: KafkaAdminClient, state: TransactionDescription, hanging: list[_Open]) -> None:
    for one in hanging:
        committed = decision(state, one.epoch)
        if committed is None:
            _log.error("a transaction on %s stays open: its outcome is unknown", one.tp)
        else:
            _write_marker(admin, state.producer_id, one, committed)


def _abort(admin: KafkaAdminClient, name: str, ongoing: TransactionDescription) -> None:
    """Let the coordinator abort a transaction, and leave its state at that.

    The first InitProducerId only aborts; a client repeats it until the state is Empty.
    """
    request = InitProducerIdRequest(
        transactional_id=name,
        transaction_timeout_ms=ongoing.transaction_timeout_ms,
        producer_id=-1,
        producer_epoch=-1,
        max_version=4,
    )
    response = admin._manager.run(
        partial(admin._manager.send, request, node_id=ongoing.coordinator_id)
    )
    error = kafka_errors.for_code(response.error_code)
    if error not in (kafka_errors.NoError, kafka_errors.ConcurrentTransactionsError):
        raise error()


def _pass_over(error: str) -> None:
    # Aborting without knowing could lose what was committed; readers that wait lose nothing.
    _log.warning(
        "cannot look for transactions that a restarted broker left open (%s); "
        "if there is one, its readers wait until an administrator ends it",
        error,
    )


def _settle(admin: KafkaAdminClient, name: str) -> TransactionDescription | None:
    """The state after the last transaction, which is aborted if ongoing; None if there was none.

    Raises:
        KafkaTimeoutError: The coordinator does not finish to end the last transaction.
    """

    def describe() -> TransactionDescription:
        found = admin.describe_transactions([name])[name]
        if found.state == TransactionState.ONGOING:
            _abort(admin, name, found)
            found = admin.describe_transactions([name])[name]
        if found.state == TransactionState.ONGOING or found.state.value.startswith("Prepare"):
            raise kafka_errors.KafkaTimeoutError(f"the last transaction of {name} is still ending")
        return found

    try:
        return _retry(describe)
    except kafka_errors.TransactionalIdNotFoundError:
        return None


def _open_transactions(
    admin: KafkaAdminClient, partitions: list[TopicPartition], producer_id: int
) -> list[_Open]:
    """The open transactions of a producer."""
    found = _retry(lambda: admin.describe_producers(partitions))
    return [
        # -1, no marker yet, is refused
        _Open(tp, producer.producer_epoch, max(producer.coordinator_epoch, 0))
        for tp, state in found.items()
        for producer in state.active_producers
        if producer.producer_id == producer_id and producer.current_transaction_start_offset >= 0
    ]


def _partitions(admin: KafkaAdminClient) -> list[TopicPartition]:
    deadline = time.monotonic() + MISSING_TOPICS_TIMEOUT_S
    while True:
        topics = _retry(lambda: admin.describe_topics(list(TOPICS)))
        forbidden = [topic for topic in topics if topic["error_code"] == _FORBIDDEN[0].errno]
        complete = all(topic["partitions"] or topic in forbidden for topic in topics)
        if complete or time.monotonic() > deadline:
            break
        time.sleep(RETRY_S)
    for topic in forbidden:
        _pass_over(topic["name"])
    return [
        TopicPartition(topic["name"], partition["partition_index"])
        for topic in topics
        for partition in topic["partitions"]
    ]


def _write_marker(
    admin: KafkaAdminClient, producer_id: int, hanging: _Open, committed: bool
) -> None:
    """End an open transaction of a partition; the admin client itself can only abort."""
    spec = AbortTransactionSpec(hanging.tp, producer_id, hanging.epoch, hanging.coordinator_epoch)

    async def write() -> None:
        (leader,) = await admin._async_get_leader_for_partitions([spec.topic_partition])
        request = admin._abort_transaction_request(spec)
        request.markers[0].transaction_result = committed
        response = await admin._manager.send(request, node_id=leader)
        admin._abort_transaction_process_response(response, spec)

    # A marker that is written twice changes nothing: the first has ended the transaction.
    _retry(lambda: admin._manager.run(write))
    what = "committed" if committed else "aborted"
    _log.warning("%s a hanging transaction on %s", what, hanging.tp)


def _retry(request: Callable[[], T]) -> T:
    """Repeat a request while its error is one that ends by itself, such as a restart's."""
    deadline = time.monotonic() + OPERATION_TIMEOUT_MS / 1000
    while True:
        try:
            return request()
        except (kafka_errors.RetriableError, kafka_errors.UnknownBrokerIdError):
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)
