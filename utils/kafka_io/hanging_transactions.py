"""Ends transactions that a restarted broker has left open on a partition, as it decided.

A transaction ends when the coordinator writes its decision to its own log; then it sends a
marker to every partition of the transaction. A coordinator that restarts in between sends
the markers again, but it may look for the partitions before it knows their leaders. It then
drops the markers ("these partitions are likely deleted already and hence can be skipped")
and counts the transaction as complete. The records, or the consumed offsets, stay open on
those partitions: consumers wait for them, and the next marker of the same producer decides
what becomes of them.

An open transaction is ended with the decision that the coordinator made. `init_and_resolve` reads
that decision before `init_transactions`, which replaces it, and ends what is open; what changed
in between follows from the epochs. The rules rely on this:

* Each `init_transactions` adds 1 to the producer's epoch. If a transaction is open, it is
  aborted with that epoch, and 1 is added once more. The coordinator's own timeout aborts in
  the same way.
* Nothing else aborts: this package never asks for an abort. So a transaction that ended with
  the epoch in which it began was committed.
* kafka-python 3.0.12 speaks the first version of the protocol: a commit keeps the epoch.
* No transaction begins while an earlier one is open on a partition: a producer that loses a
  connection is replaced first (`transactions.open_transactional_producer`).
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import AbortTransactionSpec, TransactionDescription, TransactionState

from utils import messages
from utils.kafka_io.clients import OPERATION_TIMEOUT_MS, open_admin
from utils.settings import Kafka

#: The topics that are written in transactions, the broker's committed offsets among them.
TOPICS = (
    messages.PREDICTIONS,
    messages.RETRAIN_TOPIC,
    messages.DEAD_LETTERS,
    messages.APP_MESSAGES,
    messages.OUTCOMES,
    "__consumer_offsets",
)
#: A broker that has just restarted may not know every topic yet.
MISSING_TOPICS_TIMEOUT_S = 2.0
RESOLVE_ATTEMPTS = 5
RETRY_S = 0.05

_FORBIDDEN = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.TransactionalIdAuthorizationFailedError,
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
        found = _resolve_before(admin, name)
        producer.init_transactions()
        if found is not None:
            now = producer._transaction_manager.producer_id_and_epoch
            _resolve_after(admin, *found, now.producer_id, now.epoch)
    finally:
        admin.close()


def decision(before: TransactionDescription, epoch: int) -> bool:
    """Whether the transaction of this epoch was committed, by a state that is not Ongoing."""
    if epoch == before.producer_epoch:
        return bool(before.state == TransactionState.COMPLETE_COMMIT)
    # An abort would have added 1 to the epoch before `init_transactions` did.
    initialised = (TransactionState.EMPTY, TransactionState.COMPLETE_COMMIT)
    return epoch == before.producer_epoch - 1 and before.state in initialised


def decision_since(before: TransactionDescription, epoch: int, now: int) -> bool | None:
    """Whether what was still undecided `before` was committed; None if nobody can know.

    Args:
        before: The state before `init_transactions`.
        epoch: The epoch of the open transaction.
        now: The epoch that `init_transactions` returned.
    """
    if epoch < before.producer_epoch or now - epoch > 2:
        return None
    return now - epoch == 1


def _resolve_before(
    admin: KafkaAdminClient, name: str
) -> tuple[TransactionDescription, list[TopicPartition]] | None:
    """End what is open and decided.

    Returns:
        The state, and the partitions where something may be open; None if that is nowhere,
        or if asking is forbidden.
    """
    try:
        before = _describe(admin, name)
        partitions = _partitions(admin) if before is not None else []
        for _ in range(RESOLVE_ATTEMPTS):
            if before is None:
                return None
            if before.state == TransactionState.ONGOING:
                return before, partitions
            hanging = _open_transactions(admin, partitions, before.producer_id)
            if not hanging:
                return before, partitions
            # If nothing has begun since, what is open belongs to what was decided.
            last, before = before, _describe(admin, name)
            if before == last:
                for one in hanging:
                    _write_marker(admin, last.producer_id, one, decision(last, one.epoch))
    except _FORBIDDEN as error:
        _pass_over(type(error).__name__)
        return None
    raise kafka_errors.KafkaTimeoutError(f"another process writes as {name}")


def _resolve_after(
    admin: KafkaAdminClient,
    before: TransactionDescription,
    partitions: list[TopicPartition],
    producer_id: int,
    epoch: int,
) -> None:
    """End what is open after `init_transactions`, when its last owner can decide no more."""
    try:
        for one in _open_transactions(admin, partitions, before.producer_id):
            same = producer_id == before.producer_id
            committed = decision_since(before, one.epoch, epoch) if same else None
            if committed is None:
                _log.error("a transaction on %s stays open: its outcome is unknown", one.tp)
            else:
                _write_marker(admin, before.producer_id, one, committed)
    except _FORBIDDEN as error:
        _pass_over(type(error).__name__)


def _pass_over(error: str) -> None:
    # Aborting without knowing could lose what was committed; readers that wait lose nothing.
    _log.warning(
        "not allowed to look for transactions that a restarted broker left open (%s); "
        "if there is one, its readers wait until an administrator ends it",
        error,
    )


def _describe(admin: KafkaAdminClient, name: str) -> TransactionDescription | None:
    """The state of a transactional id that writes no markers now; None if it was never used.

    Raises:
        KafkaTimeoutError: The coordinator does not finish to end the last transaction.
    """

    def describe() -> TransactionDescription:
        found = admin.describe_transactions([name])[name]
        if found.state.value.startswith("Prepare"):
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
