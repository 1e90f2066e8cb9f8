"""The consume-transform-produce loop's partner."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.structs import ConsumerGroupMetadata, MemberState

from utils.errors import UserError
from utils.kafka_io.clients import (
    OPERATION_TIMEOUT_MS,
    committed_offset,
    open_consumer,
    translate_connection_errors,
)
from utils.kafka_io.record_batches import Content, Record
from utils.kafka_io.topics import MAX_MESSAGE_BYTES
from utils.kafka_io.transactions import (
    Position,
    abort_hanging_transactions,
    commit,
    discard,
    open_transactional_producer,
)
from utils.settings import Kafka

SESSION_TIMEOUT_MS = 2_000
HEARTBEAT_INTERVAL_MS = 500
#: A restarted broker has answered "no offset committed" for half a second to groups that
#: had one; only an answer that stays the same for this long is believed.
NO_OFFSET_TIMEOUT_S = 5.0


class Fenced(UserError):
    """Another process has taken this one's place in the group; it has to end."""


class _RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes that the assignment changed: inside the listener no offset can be fetched."""

    def __init__(self) -> None:
        self.happened = True

    def on_partitions_revoked(self, revoked: object) -> None:
        self.happened = True

    def on_partitions_assigned(self, assigned: object) -> None:
        self.happened = True


@dataclass(frozen=True)
class Polled:
    """What one `ExactlyOnce.poll` returned.

    Attributes:
        records: By partition, in offset order.
        restored: None, or the partitions now assigned with their committed positions:
            whatever was remembered of any partition before is void, and whatever was
            polled before and not committed comes again.
    """

    records: dict[TopicPartition, list[Record]]
    restored: dict[TopicPartition, Position] | None = None
    membership: ConsumerGroupMetadata | None = None
    epoch: int = 0


class ExactlyOnce:
    """A group member whose output and consumed offsets commit together.

    After any error of `poll` or `commit` the object is still good: the next `poll`
    replaces the producer (which aborts what was open), reads the committed positions
    again and goes on from there.

    Args:
        kafka: How to reach the cluster.
        group: The consumer group.
        topics: What it reads; co-partitioned topics arrive with the same numbers.
        instance_id: A name that no other living process has and that a restarted one has
            again: transactional id and static membership in one. A process restarted
            under its name takes over at once instead of waiting for its own death to
            be noticed.
        max_records: The most records that one poll returns.
        report: Told in one line what a user should know (records expired, a wait).
    """

    def __init__(
        self,
        kafka: Kafka,
        *,
        group: str,
        topics: Sequence[str],
        instance_id: str,
        max_records: int,
        report: Callable[[str], None],
    ) -> None:
        self._kafka = kafka
        self._group = group
        self._topics = list(topics)
        self._instance_id = instance_id
        self._max_records = max_records
        self._report = report
        self._rebalance = _RebalanceListener()
        self._epoch = 0
        self._failed = False
        self._producer: KafkaProducer | None = None
        self._producer_is_new = False
        # The last process of this instance_id may have been killed.
        self._may_have_open_transaction = True
        self._newest: dict[TopicPartition, int] = {}
        #: Where partitions begin of which nothing is committed; the next commit says so,
        #: or each restart would have to wait for an answer to believe again.
        self._beginnings: dict[TopicPartition, Position] = {}
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="committer")
        self._in_flight: tuple[Future[None], Callable[[], None]] | None = None
        with translate_connection_errors(kafka):
            # Before joining: it aborts what this instance_id's last process left open. The
            # partitions may be with others by now, who wait for just that.
            self._replace_producer()
            self._consumer = self._join()

    def _join(self) -> KafkaConsumer:
        consumer = open_consumer(
            self._kafka,
            group_id=self._group,
            group_instance_id=self._instance_id,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
            partition_assignment_strategy=(RangePartitionAssignor,),
            auto_offset_reset="none",
            max_poll_records=self._max_records,
        )
        # Known before joining: a member that leads the group hands out no partition of a
        # topic that it has not heard of yet, and when word comes at the wrong moment it
        # does not do so later.
        missing = [topic for topic in self._topics if not consumer.partitions_for_topic(topic)]
        if missing:
            self._report(f"waiting for topic {', '.join(missing)} (initialize.py creates it)")
        consumer.subscribe(self._topics, listener=self._rebalance)
        # What is known now is no change: else the first word after joining looks like
        # one, and every member joins twice.
        coordinator = consumer._coordinator
        coordinator._handle_metadata_update(coordinator._cluster)
        return consumer

    def poll(self, timeout_ms: int) -> Polled:
        """Fetch records, or learn of a new assignment.

        Raises:
            KafkaError: Something went wrong; poll again.
            Fenced: Another process runs under this instance_id.
        """
        coordinator = self._consumer._coordinator
        if coordinator.rejoining:
            # A join that a poll began and did not live to see the end of. When it began
            # because topics changed, joining itself makes the client forget why, and no
            # poll would ever take up its result: neither in the group nor out of it.
            coordinator.request_rejoin()
        try:
            records = self._consumer.poll(timeout_ms)
        except (kafka_errors.NoOffsetForPartitionError, kafka_errors.OffsetOutOfRangeError):
            self._failed, records = True, {}
        except kafka_errors.FencedInstanceIdError:
            raise Fenced(f"another process runs as {self._instance_id}; this one ends") from None
        # Right after poll(), never later: the client forgets its generation when it
        # leaves the group, and the broker lets a member without one commit unfenced.
        membership = self._consumer.group_metadata()
        if membership.state != MemberState.STABLE or not membership.member_id:
            self._failed = self._failed or bool(records)
            return Polled({})
        if self._rebalance.happened or self._failed:
            self.wait_for_commit()
            return self._restore(membership)
        return Polled(records, None, membership, self._epoch)

    def _restore(self, membership: ConsumerGroupMetadata) -> Polled:
        """Take up the assigned partitions where the group has committed them."""
        self._failed = True
        self._rebalance.happened = False
        self._epoch += 1
        self._replace_producer()
        self._beginnings.clear()
        assigned = sorted(self._consumer.assignment())
        positions = {tp: self._position(tp) for tp in assigned}
        for tp, position in positions.items():
            self._consumer.seek(tp, position.offset)
        self._failed = False
        return Polled({}, positions, membership, self._epoch)

    def _position(self, tp: TopicPartition) -> Position:
        """The committed position of a partition, wary of a broker just restarted.

        It may say that the group has no offset, an old one, or that the log ends before
        it; what it still says after a while is believed.
        """
        newest = self._newest.get(tp, -1)
        deadline = time.monotonic() + NO_OFFSET_TIMEOUT_S
        while True:
            committed = committed_offset(self._consumer, tp)
            starts = self._consumer.beginning_offsets([tp], timeout_ms=OPERATION_TIMEOUT_MS)
            ends = self._consumer.end_offsets([tp], timeout_ms=OPERATION_TIMEOUT_MS)
            if committed is not None and newest <= committed.offset <= ends[tp]:
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if committed is None:
            self._report(f"{tp.topic}-{tp.partition} has no committed offset: from its start")
            self._beginnings[tp] = Position(starts[tp])
            return self._beginnings[tp]
        if starts[tp] <= committed.offset <= ends[tp]:
            self._newest[tp] = committed.offset
            return Position(committed.offset, committed.metadata or "")
        self._newest.pop(tp, None)
        self._report(
            f"{tp.topic}-{tp.partition}: offset {committed.offset} is not in the log any more "
            f"({starts[tp]} to {ends[tp]}); going on at {starts[tp]}"
        )
        expired = committed.offset < starts[tp]  # else it is another log, made again
        return Position(starts[tp], (committed.metadata or "") if expired else "")

    def _replace_producer(self) -> None:
        """A producer that has aborted keeps the aborted offsets: never used again."""
        if self._producer is not None:
            if self._producer_is_new:
                return  # spares a starting process the time
            discard(self._producer)
            self._producer = None
        self._producer = open_transactional_producer(
            self._kafka,
            self._instance_id,
            retry_backoff_ms=5,  # commits wait this long on CONCURRENT_TRANSACTIONS
            linger_ms=0,
            max_request_size=MAX_MESSAGE_BYTES,
            max_block_ms=OPERATION_TIMEOUT_MS,
        )
        self._producer.init_transactions()
        if self._may_have_open_transaction:
            manager = self._producer._transaction_manager
            abort_hanging_transactions(self._kafka, manager.producer_id_and_epoch.producer_id)
            self._may_have_open_transaction = False
        self._producer_is_new = True

    def commit(
        self,
        polled: Polled,
        records: Mapping[TopicPartition, Sequence[Content]],
        positions: Mapping[TopicPartition, Position],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to commit records and positions in one transaction, all or nothing.

        The result comes with `wait_for_commit`, with the next commit, or with a poll that
        has to know because partitions have moved.

        Args:
            polled: What the positions come from.
            records: What to send, by where to.
            positions: Where each partition goes on.
            then: Called by that call, in its thread, when the transaction has committed.

        Raises:
            KafkaError: Of this transaction or the one before. Nothing may be assumed; the
                next poll finds out what is committed and takes up from there.
        """
        self.wait_for_commit()
        if polled.epoch != self._epoch or self._rebalance.happened or self._failed:
            self._failed = True
            raise kafka_errors.CommitFailedError("the assignment changed meanwhile")
        assert self._producer is not None
        positions = {**self._beginnings, **positions}
        self._producer_is_new = False
        self._may_have_open_transaction = True
        committed = self._committer.submit(
            commit, self._producer, polled.membership, records, positions
        )

        def on_committed() -> None:
            self._may_have_open_transaction = False
            self._beginnings.clear()
            self._newest.update((tp, position.offset) for tp, position in positions.items())
            then()

        self._in_flight = committed, on_committed

    def wait_for_commit(self) -> None:
        """Wait until what is being committed is.

        Raises:
            KafkaError: As `commit` does.
        """
        if self._in_flight is None:
            return
        (committed, on_committed), self._in_flight = self._in_flight, None
        try:
            committed.result()
        except BaseException:
            self._failed = True
            raise
        on_committed()

    def close(self) -> None:
        """Leave; nothing is open between two commits, so nothing is lost."""
        self._committer.shutdown()
        if self._producer is not None:
            discard(self._producer)
        self._consumer.close(autocommit=False, timeout_ms=2_000)
