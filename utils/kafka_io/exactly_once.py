"""Consumer and producer whose records and offsets commit together."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.structs import ConsumerGroupMetadata, MemberState

from utils.errors import UserError
from utils.kafka_io.clients import (
    OPERATION_TIMEOUT_MS,
    Refused,
    open_admin,
    open_consumer,
    translate_connection_errors,
)
from utils.kafka_io.group_watch import GroupWatch
from utils.kafka_io.naming import full_name, full_names
from utils.kafka_io.positions import Positions, Resume
from utils.kafka_io.record_batches import Content, Record
from utils.kafka_io.topic_settings import broker_setting
from utils.kafka_io.transactions import (
    Position,
    commit,
    discard,
    is_lost,
    open_transactional_producer,
)
from utils.settings import Kafka

#: The session that is asked for; a cluster may allow only longer ones.
SESSION_TIMEOUT_MS = 2_000
LONGEST_SESSION_MS = 300_000
SHORTEST_SESSION = "group.min.session.timeout.ms"
HEARTBEAT_INTERVAL_MS = 500
#: A broker that answers no heartbeat for this long counts as silent. The client itself notices a
#: connection that is still open only when a request has timed out.
SILENT_S = 5.0


class Fenced(UserError):
    """Another process has joined the group under this instance id; this one has to end."""


class _RebalanceListener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Records that the assignment changed; offsets cannot be fetched inside a listener."""

    def __init__(self) -> None:
        self.happened = True

    def on_partitions_revoked(self, revoked: object) -> None:
        self.happened = True

    def on_partitions_assigned(self, assigned: object) -> None:
        self.happened = True


@dataclass(frozen=True)
class Polled:
    """The result of one `ExactlyOnce.poll`.

    Attributes:
        records: By partition, in offset order.
        restored: The assigned partitions that are read, with their committed positions, after
            a rebalance, an error or a change of what is read; else None. The caller drops its
            state of all partitions; records that were polled but not committed are polled again.
        held_back: The assigned partitions that are not read yet, then.
    """

    records: dict[TopicPartition, list[Record]]
    restored: dict[TopicPartition, Position] | None = None
    membership: ConsumerGroupMetadata | None = None
    epoch: int = 0
    held_back: frozenset[TopicPartition] = frozenset()


class ExactlyOnce:
    """A member of a consumer group whose output and consumed offsets commit together.

    The object stays usable after any error of `poll` or `commit`: the next `poll` replaces
    the producer (which ends an open transaction), reads the committed positions again and
    continues from there.

    Args:
        kafka: How to reach the cluster.
        group: The consumer group.
        topics: The topics to read; of co-partitioned topics, a member is assigned the same
            partition numbers.
        instance_id: The transactional id and the static member id. No two running
            processes share one; a process that restarts with the same id takes over at
            once instead of waiting for the session of its predecessor to time out.
        max_records: The most records that one poll returns.
        report: Called with one line of text for the user (records expired, a wait).
        answers: By topic, the one that answers go to, with the same partition number. A
            partition without such a counterpart is not read.
        resume: Takes the first offsets of partitions without a committed offset, and returns
            the positions of those of which something was done all the same.
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
        answers: Mapping[str, str] | None = None,
        resume: Resume = lambda starts: {},
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
        self._was_fenced = False
        self._producer: KafkaProducer | None = None
        self._producer_is_new = False
        # The last process of this instance_id may have been killed.
        self._may_have_open_transaction = True
        self._watch = GroupWatch(kafka, group, topics, instance_id)
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="committer")
        self._in_flight: tuple[Future[None], Callable[[], None]] | None = None
        with translate_connection_errors(kafka):
            # Before joining: this ends the transaction that the last process of this
            # instance_id left open. Its partitions may be assigned to other members by
            # now, which wait for its end.
            self._replace_producer()
            self._consumer = self._join()
        self._positions = Positions(self._consumer, answers or {}, resume, report)

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
        # Fetch the topics' metadata before joining: a group leader assigns no partitions of
        # a topic that is not in its metadata, and if the metadata arrives at the wrong
        # moment, it does not assign them later either.
        missing = [topic for topic in self._topics if not consumer.partitions_for_topic(topic)]
        if missing:
            names = full_names(self._kafka.name, missing)
            self._report(f"waiting for topic {names} (initialize.py creates it)")
        consumer.subscribe(self._topics, listener=self._rebalance)
        # Take the current metadata as the baseline: otherwise the first update after joining
        # counts as a change, and every member joins twice.
        coordinator = consumer._coordinator
        coordinator._handle_metadata_update(coordinator._cluster)
        return consumer

    @property
    def missing_topics(self) -> list[str]:
        """The topics to read that do not exist."""
        there = self._consumer._cluster.partitions_for_topic
        return [topic for topic in self._topics if not there(topic)]

    def silence(self) -> str:
        """A line that the broker answers no heartbeat of this member any more; empty if it does."""
        heartbeat = self._consumer._coordinator.heartbeat
        seconds = time.monotonic() - max(heartbeat.last_receive, heartbeat.last_reset)
        return f"the broker has not answered for {seconds:.0f} s" if seconds > SILENT_S else ""

    def lag(self) -> dict[TopicPartition, int]:
        """How many records of each partition that is read are not read yet.

        By what the client knows, without asking the broker: the end of a partition came with its
        last fetch. A partition of which nothing was fetched yet is left out.
        """
        found = {}
        for tp, state in list(self._consumer._subscription.assignment.items()):
            if state.highwater is not None and state.position is not None and not state.paused:
                found[tp] = max(state.highwater - state.position.offset, 0)
        return found

    def poll(self, timeout_ms: int) -> Polled:
        """Fetch records, or return a new assignment.

        Raises:
            KafkaError: The poll failed; poll again.
            Fenced: Another process runs under this instance_id.
        """
        if hidden := self._consumer._cluster.unauthorized_topics & {*self._topics}:
            raise kafka_errors.TopicAuthorizationFailedError(hidden)  # else it is as if missing
        self._watch.look(self._consumer)
        coordinator = self._consumer._coordinator
        if coordinator.rejoining:
            # A previous poll began this join and returned before it ended. If changed
            # topics had caused it, the client has cleared that cause by joining, and no
            # later poll would complete the join: the member would hang half joined.
            coordinator.request_rejoin()
        try:
            records = self._consumer.poll(timeout_ms)
        except (kafka_errors.NoOffsetForPartitionError, kafka_errors.OffsetOutOfRangeError):
            self._failed, records = True, {}
        except kafka_errors.FencedInstanceIdError:
            raise self._fenced() from None
        except kafka_errors.InvalidSessionTimeoutError:
            self._lengthen_session()
            return Polled({})
        # Right after poll(), not later: the client loses its generation when it leaves
        # the group, and the broker does not fence commits of a member without one.
        membership = self._consumer.group_metadata()
        if membership.state != MemberState.STABLE or not membership.member_id:
            self._failed = self._failed or bool(records)
            return Polled({})
        if self._rebalance.happened or self._failed or self._may_read_more():
            self.wait_for_commit()
            return self._restore(membership)
        if self._in_flight is None:
            self._replace_lost_producer()
        return Polled(records, None, membership, self._epoch)

    def _restore(self, membership: ConsumerGroupMetadata) -> Polled:
        """Seek the assigned partitions to their committed positions; hold back the others."""
        self._failed = True
        if self._was_fenced:  # by another process, or by its own former self after a freeze
            if self._watch.has_other(membership.member_id):
                raise self._fenced()
            self._was_fenced = False
        self._rebalance.happened = False
        self._epoch += 1
        self._replace_producer()
        assert self._producer is not None
        assigned = self._consumer.assignment()
        positions, beginnings = self._positions.find(assigned, self._producer)
        for tp in assigned:
            if tp in positions:
                self._consumer.seek(tp, positions[tp].offset)
                self._consumer.resume(tp)
            else:
                self._consumer.pause(tp)
                self._consumer.seek(tp, 0)  # the client wants to know one; nothing is fetched
        self._failed = False
        polled = Polled(
            {}, positions, membership, self._epoch, frozenset(assigned - set(positions))
        )
        if beginnings:  # or else the next start would wait for them again
            self.commit(polled, {}, beginnings)
            self.wait_for_commit()
        return polled

    def _lengthen_session(self) -> None:
        """Ask for the shortest session that the cluster allows, at the next join."""
        coordinator = self._consumer._coordinator
        asked = coordinator.config["session_timeout_ms"]
        with closing(open_admin(self._kafka)) as admin:
            shortest = int(broker_setting(admin, SHORTEST_SESSION) or 2 * asked)
        if not asked < shortest <= LONGEST_SESSION_MS:
            raise Refused(
                f"the broker refuses a session of {asked / 1000:g} s: {SHORTEST_SESSION} and "
                f"group.max.session.timeout.ms have to allow one of 2 s to 5 min"
            )
        for config in (coordinator.config, coordinator.heartbeat.config):
            config["session_timeout_ms"] = shortest
        self._report(
            f"the broker allows no session under {shortest / 1000:g} s ({SHORTEST_SESSION}): after "
            "that time others go on with the partitions of a process that was killed"
        )

    def _fenced(self) -> Fenced:
        return Fenced(
            f"another process runs as {full_name(self._kafka.name, self._instance_id)} (a machine "
            "of the same name, with a home at the same place?); this one ends"
        )

    def _may_read_more(self) -> bool:
        return self._producer is not None and self._positions.may_find_more(self._producer)

    def _replace_producer(self) -> None:
        """Open a new producer: one that has aborted keeps the offsets of that transaction."""
        if self._producer is not None:
            lost = is_lost(self._producer)
            if self._producer_is_new and not lost:
                return  # saves time at the start of the process
            self._may_have_open_transaction = self._may_have_open_transaction or lost
            discard(self._producer)
            self._producer = None
        self._producer = open_transactional_producer(
            self._kafka,
            self._instance_id,
            may_have_open_transaction=self._may_have_open_transaction,
            retry_backoff_ms=5,  # commits wait this long on CONCURRENT_TRANSACTIONS
            linger_ms=0,
            max_block_ms=OPERATION_TIMEOUT_MS,
        )
        self._may_have_open_transaction = False
        self._producer_is_new = True

    def _replace_lost_producer(self) -> None:
        """Replace a producer that has lost a connection while no commit was in progress.

        The broker may have restarted and left the last transaction open on a partition,
        although its commit has succeeded. Its readers wait, even if there is nothing to do.
        """
        if self._producer is not None and is_lost(self._producer):
            self._failed = True
            self._replace_producer()
            self._failed = False

    def commit(
        self,
        polled: Polled,
        records: Mapping[TopicPartition, Sequence[Content]],
        positions: Mapping[TopicPartition, Position],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Start to commit records and positions in one transaction, in the background.

        `wait_for_commit`, the next `commit`, or a `poll` after a rebalance waits for the
        result and raises its error.

        Args:
            polled: The poll that the positions come from.
            records: The records to send, by target partition.
            positions: The next position of each consumed partition.
            then: Called after the transaction has committed, by the call that waited for
                it and in that call's thread.

        Raises:
            KafkaError: This transaction or the previous one failed. Its outcome may be
                unknown; the next poll continues from what is committed.
        """
        self.wait_for_commit()
        if polled.epoch != self._epoch or self._rebalance.happened or self._failed:
            self._failed = True
            raise kafka_errors.CommitFailedError("the assignment changed meanwhile")
        assert self._producer is not None
        self._replace_lost_producer()
        self._producer_is_new = False
        self._may_have_open_transaction = True
        committed = self._committer.submit(
            commit, self._producer, polled.membership, records, positions
        )

        def on_committed() -> None:
            self._may_have_open_transaction = False
            self._positions.note_committed(positions)
            then()

        self._in_flight = committed, on_committed

    def wait_for_commit(self) -> None:
        """Wait for the end of the commit in progress, if there is one.

        Raises:
            KafkaError: As `commit` does.
        """
        if self._in_flight is None:
            return
        (committed, on_committed), self._in_flight = self._in_flight, None
        try:
            committed.result()
        except BaseException as error:
            self._failed = True
            self._was_fenced = self._was_fenced or "Fenced" in str(error)
            raise
        on_committed()

    def close(self) -> None:
        """Leave the group. No transaction is open between commits, so nothing is lost."""
        self._committer.shutdown()
        if self._producer is not None:
            discard(self._producer)
        self._consumer.close(autocommit=False, timeout_ms=2_000)
