"""Drives transactions of version 2 (KIP-890); kafka-python 3.0.12 knows only their messages.

In version 1 a producer asks the coordinator to add each partition that it is about to write, and
the group whose offsets it is about to commit: two requests that all others wait for. In version 2
the broker that receives records or offsets adds them, so they are sent at once. Every transaction
has its own epoch: the response to EndTxn names the next one, and a request that arrives late
is refused by its epoch. https://cwiki.apache.org/confluence/x/B40ODg
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from kafka import KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.producer.sender import Sender
from kafka.producer.transaction_manager import (
    EndTxnHandler,
    Priority,
    ProducerIdAndEpoch,
    TransactionalRequestResult,
    TransactionManager,
    TxnOffsetCommitHandler,
    TxnRequestHandler,
)
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse
from kafka.protocol.producer import (
    EndTxnRequest,
    EndTxnResponse,
    ProduceRequest,
    TxnOffsetCommitRequest,
)
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

FEATURE = "transaction.version"
#: The versions of the requests that belong to version 2. Later Produce requests have ids of topics.
PRODUCE_VERSION = 12
TXN_OFFSET_COMMIT_VERSION = 5
END_TXN_VERSION = 5
#: The coordinator ends a transaction of this epoch with a new producer id, an earlier one with the
#: same.
LAST_EPOCH = 2**15 - 2

T = TypeVar("T", bound=Any)


def use_if_supported(producer: KafkaProducer) -> None:
    """Let a producer that is not initialised yet use version 2 if its cluster does.

    The cluster is asked before the producer initialises.
    """
    producer._transaction_manager._enqueue_request(_FeaturesHandler(producer))


def has_used_up_its_epochs(producer: KafkaProducer) -> bool:
    """Whether the next transaction would end with a new producer id.

    Nobody could say whose a transaction is that a broker leaves open then: only its last producer
    id is known of a transactional id. `init_transactions` takes a new producer id as well, after
    what is open has been ended.
    """
    return bool(producer._transaction_manager.producer_id_and_epoch.epoch >= LAST_EPOCH)


class _FeaturesHandler(TxnRequestHandler):  # type: ignore[misc]
    """Asks any broker for the features of the cluster.

    A feature is on only while all brokers support it: none of them needs to be asked for the
    versions of requests that it accepts.
    """

    priority = Priority.FIND_COORDINATOR  # before InitProducerId
    coordinator_type = None

    def __init__(self, producer: KafkaProducer) -> None:
        super().__init__(producer._transaction_manager)
        self._sender = producer._sender
        config = producer._sender._client._manager.config
        self.request = ApiVersionsRequest(
            client_software_name=config["client_software_name"],
            client_software_version=config["client_software_version"],
        )

    def handle_response(self, response: ApiVersionsResponse) -> None:
        """Change the classes of what the producer consists of; it has sent nothing yet."""
        levels = {one.name: one.max_version_level for one in response.finalized_features or ()}
        if levels.get(FEATURE, 0) >= 2:
            self.transaction_manager.__class__ = _TransactionManager
            self._sender.__class__ = _Sender
        self._result.done()


class _TransactionManager(TransactionManager):  # type: ignore[misc]
    def maybe_add_partition_to_transaction(self, tp: TopicPartition) -> None:
        with self._lock:
            self._fail_if_not_ready_for_send()
            self._partitions_in_transaction.add(tp)
            self._transaction_started = True

    def send_offsets_to_transaction(
        self,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        group_metadata: ConsumerGroupMetadata,
    ) -> TransactionalRequestResult:
        with self._lock:
            self._maybe_fail_with_error()
            self._pending_txn_offset_commits = dict(offsets)
            self._transaction_started = True
            handler = _TxnOffsetCommitHandler(
                self, group_metadata, self._pending_txn_offset_commits, None
            )
            self._enqueue_request(handler)
            return handler.result

    def _begin_completing_transaction(self, committed: bool) -> TransactionalRequestResult:
        handler = _EndTxnHandler(self, committed)
        self._enqueue_request(handler)
        return handler.result


class _Sender(Sender):  # type: ignore[misc]
    def _produce_request(self, *args: object) -> ProduceRequest:
        return _in_version(PRODUCE_VERSION, super()._produce_request(*args))


class _TxnOffsetCommitHandler(TxnOffsetCommitHandler):  # type: ignore[misc]
    def _build_request(self) -> TxnOffsetCommitRequest:
        return _in_version(TXN_OFFSET_COMMIT_VERSION, super()._build_request())


class _EndTxnHandler(EndTxnHandler):  # type: ignore[misc]
    def __init__(self, manager: TransactionManager, committed: bool) -> None:
        super().__init__(manager, committed)
        self.request: EndTxnRequest = _in_version(END_TXN_VERSION, self.request)

    def handle_response(self, response: EndTxnResponse) -> None:
        """Take over the next epoch; its sequence numbers begin at 0."""
        manager = self.transaction_manager
        if kafka_errors.for_code(response.error_code) is kafka_errors.NoError:
            manager.set_producer_id_and_epoch(
                ProducerIdAndEpoch(response.producer_id, response.producer_epoch)
            )
            manager._sequence_numbers.clear()
        super().handle_response(response)


def _in_version(version: int, request: T) -> T:
    request._min_version = request._max_version = version
    return request
