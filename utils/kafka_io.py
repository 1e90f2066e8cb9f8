"""The one module that talks to Kafka's client.

`ExactlyOnce` is the consume-transform-produce loop's partner: what a step sends and the
offsets it has consumed commit in one transaction. `LogReader` reads partitions without
a group, `Sender` writes without transactions, and the functions create topics and
announce.

kafka-python 3.0.12 needs help to be exactly-once; each place says against what.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import AbortTransactionSpec, NewTopic
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import KafkaError
from kafka.producer.producer_batch import FinalState, ProducerBatch
from kafka.structs import MemberState, OffsetAndMetadata

from utils import kafka_connection, messages, record_batches
from utils.record_batches import Content
from utils.settings import Kafka, Settings

__all__ = [
    "ExactlyOnce",
    "KafkaError",
    "KafkaUnavailable",
    "LogReader",
    "Outgoing",
    "Polled",
    "Position",
    "Sender",
    "Together",
    "TopicPartition",
    "announce",
    "beginning_and_end",
    "check_broker",
    "ensure_topics",
    "wait_for_broker",
]

BOOTSTRAP_TIMEOUT_MS = 5_000
REQUEST_TIMEOUT_MS = 10_000
#: So long an open transaction of a writer that died and does not come back keeps its
#: heirs from its partitions (they may not know its offsets before it is aborted). A
#: writer that lives begins one with everything at hand and is done in milliseconds.
TRANSACTION_TIMEOUT_MS = 4_000
#: For each step of a transaction and each look at the committed offsets. A broker that is
#: killed takes some answers with it, and the client waits them out: this is how long the
#: predictions then stand still. Giving up early is safe: the next poll looks again.
PATIENCE_MS = 5_000
SESSION_TIMEOUT_MS = 2_000
HEARTBEAT_INTERVAL_MS = 500
#: Of one batch of records; the broker takes up to 1 MiB unless told otherwise.
BATCH_BYTES = 512 * 1024
#: What the topics created here take. A prediction repeats its request_id, and a rejected
#: record gains headers, so both can be larger than the message was.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
#: The most bytes of one request; what a topic takes is for its broker to say.
LARGEST_REQUEST = 100 * 1024 * 1024
#: What is written in transactions.
WRITTEN = (messages.PREDICTIONS, messages.RETRAIN_TOPIC, messages.DEAD_LETTERS)
#: Where the broker keeps the offsets of groups.
OFFSETS_TOPIC = "__consumer_offsets"
#: How often topics are looked at for new partitions.
METADATA_MAX_AGE_MS = 5_000
#: A restarted broker has answered "no offset committed" for half a second to groups that
#: had one; only an answer that stays the same for this long is believed.
NO_OFFSET_PATIENCE_S = 5.0


class KafkaUnavailable(Exception):
    """The cluster cannot be used now; its text is one line meant for the user."""


#: What passes when the cluster is well again: call once more.
TROUBLE = (KafkaError, KafkaUnavailable)


class Refused(KafkaUnavailable):
    """There is a broker, but it is not trusted or does not let us in: waiting is no use."""


class Fenced(Exception):
    """Another process has taken this one's place in the group; it has to end."""


class Position(NamedTuple):
    """The next offset to read of a partition, and what its reader wants to remember."""

    offset: int
    metadata: str = ""


class Outgoing(NamedTuple):
    """A record to send; `partition` None leaves the choice to the key's hash."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] | None = None


def client_settings(kafka: Kafka) -> dict[str, Any]:
    """What every client needs to reach the cluster."""
    settings: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "security_protocol": kafka.security_protocol,
        "kafka_client": kafka_connection.Client,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "reconnect_backoff_max_ms": 1_000,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }
    if kafka.security_protocol.startswith("SASL"):
        settings["sasl_mechanism"] = kafka.sasl_mechanism
        settings["sasl_plain_username"] = kafka.sasl_username
        if kafka.sasl_password is not None:
            settings["sasl_plain_password"] = kafka.sasl_password.get_secret_value()
    if kafka.ssl_cafile is not None:
        settings["ssl_cafile"] = str(kafka.ssl_cafile)
    return settings


def _consumer(kafka: Kafka, **more: Any) -> KafkaConsumer:
    """A consumer of committed records, which come as `record_batches.Record`."""
    # No deserialiser anywhere: one that raises makes the next poll() hang.
    consumer = KafkaConsumer(
        **client_settings(kafka),
        metrics_enabled=False,
        isolation_level="read_committed",
        enable_auto_commit=False,
        allow_auto_create_topics=False,
        fetch_max_wait_ms=500,
        # They save little with a few partitions, and are one thing more to go wrong.
        enable_incremental_fetch_sessions=False,
        max_partition_fetch_bytes=4 * 1024 * 1024,
        **more,
    )
    consumer._fetcher.PartitionRecords = record_batches.PartitionRecords
    _fetch_when_all_is_read(consumer._fetcher)
    return consumer


def _fetch_when_all_is_read(fetcher: Any) -> None:
    """Ask for more of all partitions together, or not yet.

    The client asks again while a part of what it got of one partition is still to be
    handed out, so for the others alone. When these have nothing, the broker holds the
    answer back for as long as it may (`fetch_max_wait_ms`), and until it comes the client
    asks nothing else of that broker: a full partition waits for the empty ones.
    """
    send_fetches = fetcher.send_fetches

    def later_or_now() -> Any:
        return [] if fetcher._next_partition_records else send_fetches()

    fetcher.send_fetches = later_or_now


@contextmanager
def _reaching(kafka: Kafka) -> Iterator[None]:
    """Open a client inside; what keeps it out becomes one line.

    Raises:
        KafkaUnavailable: That line.
    """
    try:
        yield
    except kafka_errors.AuthorizationError as error:
        raise Refused(f"{kafka.bootstrap_servers} forbids it: {type(error).__name__}") from None
    except (KafkaError, OSError, ValueError) as error:
        if kafka_connection.is_refusal(error):
            raise Refused(kafka_connection.refusal(kafka, error)) from None
        raise KafkaUnavailable(
            f"no Kafka broker answers at {kafka.bootstrap_servers} with "
            f"{kafka.security_protocol} (start one: python -m utils.broker)"
        ) from None


def _admin(kafka: Kafka) -> KafkaAdminClient:
    with _reaching(kafka):
        return KafkaAdminClient(**client_settings(kafka))


def check_broker(kafka: Kafka) -> None:
    """Connect once and leave.

    Raises:
        KafkaUnavailable: No broker, or it does not let us in.
    """
    _admin(kafka).close()


def wait_for_broker(kafka: Kafka, seconds: float) -> None:
    """Wait until the cluster lets us in.

    Raises:
        KafkaUnavailable: It did not, for that long.
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


def ensure_topics(kafka: Kafka, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Create the topics that are missing, and give each group a first offset.

    Committing an offset for every partition at set-up lets readers tell a partition
    that was never read from a broker that has not loaded its offsets yet.

    Args:
        groups: For each consumer group the topics that it reads.

    Returns:
        The names of the topics created.

    Raises:
        KafkaUnavailable: The cluster cannot be reached or refuses.
    """
    wanted = dict.fromkeys(messages.CO_PARTITIONED, kafka.partitions)
    wanted |= {messages.RETRAIN_TOPIC: 1, messages.DEAD_LETTERS: 1}
    admin = _admin(kafka)
    try:
        existing = set(admin.list_topics())
        missing = [topic for topic in wanted if topic not in existing]
        if missing:
            admin.create_topics(
                [_new_topic(topic, wanted[topic]) for topic in missing],
                raise_errors=False,  # another initialize.py may create them as well
            )
            admin.wait_for_topics(missing, timeout_ms=REQUEST_TIMEOUT_MS)
    except KafkaError as error:
        raise KafkaUnavailable(f"cannot create the topics: {error}") from None
    finally:
        admin.close()
    for group, topics in groups.items():
        _commit_first_offsets(kafka, group, topics)
    return missing


def _new_topic(topic: str, partitions: int) -> NewTopic:
    if topic in (messages.PREDICTIONS, messages.DEAD_LETTERS):
        configs = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    elif topic in (messages.APP_MESSAGES, messages.OUTCOMES):
        # Whatever a producer compresses with (the client here lacks most of it), the broker
        # unpacks, and refuses what is too large only then.
        configs = {"compression.type": "uncompressed"}
    else:
        configs = {}
    return NewTopic(
        topic,
        num_partitions=partitions,
        replication_factor=-1,  # as the cluster thinks best
        topic_configs=configs,
    )


def _commit_first_offsets(kafka: Kafka, group: str, topics: Iterable[str]) -> None:
    consumer = _consumer(kafka, group_id=group)
    try:
        partitions = _partitions(consumer, topics)
        if any(_committed(consumer, tp) is not None for tp in partitions):
            return  # the group has a life of its own already
        consumer.assign(partitions)
        starts = consumer.beginning_offsets(partitions, timeout_ms=REQUEST_TIMEOUT_MS)
        consumer.commit(
            {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in starts.items()},
            timeout_ms=REQUEST_TIMEOUT_MS,
        )
    except kafka_errors.CommitFailedError:
        return  # the group is running
    except KafkaError as error:
        raise KafkaUnavailable(f"cannot set up group {group}: {error}") from None
    finally:
        consumer.close()


def _partitions(consumer: KafkaConsumer, topics: Iterable[str]) -> list[TopicPartition]:
    return [
        TopicPartition(topic, partition)
        for topic in topics
        for partition in sorted(consumer.partitions_for_topic(topic) or ())
    ]


def _positions(consumer: KafkaConsumer) -> dict[TopicPartition, int]:
    """The next offset of each assigned partition whose position is known."""
    found = {tp: consumer.position(tp, timeout_ms=1_000) for tp in consumer.assignment()}
    return {tp: position for tp, position in found.items() if position is not None}


def _committed(consumer: KafkaConsumer, tp: TopicPartition) -> OffsetAndMetadata | None:
    # Without a timeout it retries for ever and heeds no signal.
    return consumer.committed(tp, metadata=True, timeout_ms=PATIENCE_MS)


class _Flag(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes that the assignment changed: inside the listener no offset can be fetched."""

    def __init__(self) -> None:
        self.raised = True

    def on_partitions_revoked(self, revoked: object) -> None:
        self.raised = True

    def on_partitions_assigned(self, assigned: object) -> None:
        self.raised = True


class _Progress:
    """Notices a fetcher that has gone silent although there is something to fetch.

    Seen once, on a loaded machine, right after a rebalance; what the client did wrong
    was not found, so what it fails to do is watched.
    """

    SECONDS = 5.0

    def __init__(self) -> None:
        self._behind: dict[TopicPartition, int] = {}
        self.made()

    def made(self) -> None:
        """Records came."""
        self._behind = {}
        self._look_at = time.monotonic() + self.SECONDS

    def has_stopped(self, consumer: KafkaConsumer) -> bool:
        """Whether committed records have been waiting since the last look, and still are.

        Asks the broker only when nothing came for `SECONDS`.
        """
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + self.SECONDS
        positions = _positions(consumer)
        ends = consumer.end_offsets(sorted(positions), timeout_ms=REQUEST_TIMEOUT_MS)
        behind = {tp: at for tp, at in positions.items() if at < ends[tp]}
        stopped = any(self._behind.get(tp) == position for tp, position in behind.items())
        self._behind = behind
        return stopped


@dataclass(frozen=True)
class Polled:
    """What one `ExactlyOnce.poll` returned.

    Attributes:
        records: By partition, in offset order.
        restored: None, or the partitions now assigned with their committed positions:
            whatever was remembered of any partition before is void, and whatever was
            polled before and not committed comes again.
    """

    records: dict[TopicPartition, list[Any]]
    restored: dict[TopicPartition, Position] | None = None
    membership: Any = None
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
        slot: A name that no other living process has and that a restarted one has
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
        slot: str,
        max_records: int,
        report: Callable[[str], None],
    ) -> None:
        self._kafka = kafka
        self._group = group
        self._topics = list(topics)
        self._slot = slot
        self._max_records = max_records
        self._report = report
        self._rebalance = _Flag()
        self._epoch = 0
        self._failed = False
        self._producer: KafkaProducer | None = None
        self._producer_is_new = False
        self._left_open = True  # this slot's last process may have been killed
        self._newest: dict[TopicPartition, int] = {}
        #: Where partitions begin of which nothing is committed; the next commit says so,
        #: or each restart would have to wait for an answer to believe again.
        self._beginnings: dict[TopicPartition, Position] = {}
        self._progress = _Progress()
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="committer")
        self._under_way: tuple[Future[None], Callable[[], None]] | None = None
        with _reaching(kafka):
            # Before joining: it aborts what this slot's last process left open. The
            # partitions may be with others by now, who wait for just that.
            self._replace_producer()
            self._consumer = self._join()

    def _join(self) -> KafkaConsumer:
        consumer = _consumer(
            self._kafka,
            group_id=self._group,
            group_instance_id=self._slot,
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
            Fenced: Another process runs under this slot.
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
            raise Fenced(f"another process runs as {self._slot}; this one ends") from None
        # Right after poll(), never later: the client forgets its generation when it
        # leaves the group, and the broker lets a member without one commit unfenced.
        membership = self._consumer.group_metadata()
        if membership.state != MemberState.STABLE or not membership.member_id:
            self._failed = self._failed or bool(records)
            return Polled({})
        if self._rebalance.raised or self._failed:
            self.settle()
            return self._restore(membership)
        if records:
            self._progress.made()
        elif self._progress.has_stopped(self._consumer):
            self._report("the client has stopped fetching; connecting anew")
            stuck, self._consumer = self._consumer, self._join()
            self._failed = True
            stuck.close(autocommit=False, timeout_ms=1_000)
            return Polled({})
        return Polled(records, None, membership, self._epoch)

    def _restore(self, membership: Any) -> Polled:
        """Take up the assigned partitions where the group has committed them."""
        self._failed = True
        self._rebalance.raised = False
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
        patient_until = time.monotonic() + NO_OFFSET_PATIENCE_S
        while True:
            committed = _committed(self._consumer, tp)
            starts = self._consumer.beginning_offsets([tp], timeout_ms=PATIENCE_MS)
            ends = self._consumer.end_offsets([tp], timeout_ms=PATIENCE_MS)
            if committed is not None and newest <= committed.offset <= ends[tp]:
                break
            if time.monotonic() > patient_until:
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
            _discard(self._producer)
            self._producer = None
        self._producer = _transactional(
            self._kafka,
            self._slot,
            retry_backoff_ms=5,  # commits wait this long on CONCURRENT_TRANSACTIONS
            linger_ms=0,
            max_request_size=MAX_MESSAGE_BYTES,
            max_block_ms=PATIENCE_MS,
        )
        self._producer.init_transactions()
        if self._left_open:
            manager = self._producer._transaction_manager
            _abort_forgotten(self._kafka, manager.producer_id_and_epoch.producer_id)
            self._left_open = False
        self._producer_is_new = True

    def commit(
        self,
        polled: Polled,
        records: Mapping[TopicPartition, Sequence[Content]],
        positions: Mapping[TopicPartition, Position],
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to commit records and positions in one transaction, all or nothing.

        What comes of it the next call tells, whichever it is; `settle` waits for just that.

        Args:
            polled: What the positions come from.
            records: What to send, by where to.
            positions: Where each partition goes on.
            then: Called by that next call when the transaction has committed.

        Raises:
            KafkaError: Nothing may be assumed; the next poll finds out what is
                committed and takes up from there.
        """
        self.settle()
        if polled.epoch != self._epoch or self._rebalance.raised or self._failed:
            self._failed = True
            raise kafka_errors.CommitFailedError("the assignment changed meanwhile")
        assert self._producer is not None
        positions = {**self._beginnings, **positions}
        self._producer_is_new = False
        self._left_open = True
        committed = self._committer.submit(
            _commit, self._producer, polled.membership, records, positions
        )

        def settled() -> None:
            self._left_open = False
            self._beginnings.clear()
            self._newest.update((tp, position.offset) for tp, position in positions.items())
            then()

        self._under_way = committed, settled

    def settle(self) -> None:
        """Wait until what is being committed is.

        Raises:
            KafkaError: As `commit` does.
        """
        if self._under_way is None:
            return
        (committed, settled), self._under_way = self._under_way, None
        try:
            committed.result()
        except BaseException:
            self._failed = True
            raise
        settled()

    def close(self) -> None:
        """Leave; nothing is open between two commits, so nothing is lost."""
        self._committer.shutdown()
        if self._producer is not None:
            _discard(self._producer)
        self._consumer.close(autocommit=False, timeout_ms=2_000)


def _transactional(kafka: Kafka, name: str, **more: Any) -> KafkaProducer:
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
    _retry_instead_of_forgetting(producer)
    return producer


def _commit(
    producer: KafkaProducer,
    membership: Any,
    records: Mapping[TopicPartition, Sequence[Content]],
    positions: Mapping[TopicPartition, Position],
) -> None:
    """One transaction.

    1. begin; 2. send everything; 3. the positions, fenced by the membership that polled
    them; 4. wait until every record is acknowledged (a commit can succeed without records
    that have expired) and the positions are; 5. commit.
    """
    producer.begin_transaction()  # 1
    batches = _queue(producer, records)  # 2
    manager, sent = producer._transaction_manager, None
    if positions:  # 3: on its way while the records are
        offsets = {
            tp: OffsetAndMetadata(position.offset, position.metadata, -1)
            for tp, position in positions.items()
        }
        sent = manager.send_offsets_to_transaction(offsets, membership)
    producer.flush(timeout=PATIENCE_MS / 1000)  # 4
    for batch in batches:
        if batch.final_state is not FinalState.SUCCEEDED:
            raise kafka_errors.KafkaTimeoutError(_not_taken(batch))
    if sent is not None:
        _finish(producer, sent)
    _finish(producer, manager.begin_commit())  # 5


def _finish(producer: KafkaProducer, result: Any) -> None:
    # The public calls wait without end, and after a broker's restart they did.
    producer._sender.wakeup()
    if not result.wait(timeout_ms=PATIENCE_MS):
        raise kafka_errors.KafkaTimeoutError("the transaction coordinator does not answer")


def _queue(
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
            for batch in record_batches.written(contents, timestamp=now, largest=BATCH_BYTES)
        ]
        with accumulator._tp_lock(tp):
            for batch in batches:
                accumulator._incomplete.add(batch)
            accumulator._batches[tp].extend(batches)
        queued += batches
    producer._sender.wakeup()
    return queued


def _not_taken(batch: ProducerBatch) -> str:
    topic, future = batch.topic_partition.topic, batch.produce_future
    why = future.value[2] if future.is_done and future.value else None  # asked by record
    error = why(0) if why else "no answer"
    if isinstance(error, kafka_errors.MessageSizeTooLargeError):
        return f"{topic} takes no record so large; give it a larger max.message.bytes"
    return f"{topic} has not acknowledged every record: {error}"


def _retry_instead_of_forgetting(producer: KafkaProducer) -> None:
    """Keep a transactional request whose coordinator has just gone away.

    The sender drops the request, and its caller waits for ever, when `await_ready`
    raises; when it returns False the request is tried again.
    """
    client = producer._sender._client
    await_ready = client.await_ready

    def ready_or_not(*args: Any, **kwargs: Any) -> bool:
        try:
            return bool(await_ready(*args, **kwargs))
        except KafkaError:
            time.sleep(0.05)
            return False

    client.await_ready = ready_or_not


def _abort_forgotten(kafka: Kafka, producer_id: int) -> None:
    """Abort what a partition holds open of a transaction that is over.

    A broker that has just been killed and started can abort a transaction (it timed out
    meanwhile) while the partitions have no leader yet, and then it does not tell them:
    "these partitions are likely deleted already and hence can be skipped". The records
    stay open, readers wait for them, and the same producer's next commit commits them
    too: twice the same prediction. Once `init_transactions` has returned, nothing of
    this producer can rightly be open.
    """
    admin = _admin(kafka)
    try:
        topics = admin.describe_topics([*WRITTEN, OFFSETS_TOPIC])
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


def _discard(producer: KafkaProducer) -> None:
    # force_close first: close() alone waits for records that may never go. An open
    # transaction is aborted by the next init_transactions under the same id.
    producer._sender.force_close()
    try:
        producer.close(timeout=1)
    except KafkaError:
        logging.getLogger(__name__).debug("closing a producer failed", exc_info=True)


@dataclass
class LogReader:
    """Reads whole partitions in order, committed records only, without a group.

    Args:
        kafka: How to reach the cluster.
        topics: All their partitions are read, also those added later.
        positions: Where to begin, by (topic, partition); others begin at `default`.
        default: "earliest" or "latest".
    """

    kafka: Kafka
    topics: Sequence[str]
    positions: Mapping[tuple[str, int], int] = field(default_factory=dict)
    default: str = "earliest"
    max_records: int = 5_000

    def __post_init__(self) -> None:
        self._consumer: Any = None
        self._open()

    def _open(self) -> None:
        self._progress = _Progress()
        with _reaching(self.kafka):
            self._consumer = _consumer(
                self.kafka,
                auto_offset_reset="earliest",
                max_poll_records=self.max_records,
            )
            self._assigned: set[TopicPartition] = set()
            self._look_again_at = 0.0
            self._take_new_partitions()

    def _take_new_partitions(self) -> None:
        if time.monotonic() < self._look_again_at:
            return
        self._look_again_at = time.monotonic() + METADATA_MAX_AGE_MS / 1000
        new = [tp for tp in _partitions(self._consumer, self.topics) if tp not in self._assigned]
        if not new:
            return
        # Positions are kept over assign() by asking for them first.
        kept = _positions(self._consumer)
        if self.default == "latest" and not self._assigned:
            ends = self._consumer.end_offsets(new, timeout_ms=REQUEST_TIMEOUT_MS)
        else:
            ends = self._consumer.beginning_offsets(new, timeout_ms=REQUEST_TIMEOUT_MS)
        self._assigned.update(new)
        self._consumer.assign(sorted(self._assigned))
        for tp in new:
            self._consumer.seek(tp, self.positions.get((tp.topic, tp.partition), ends[tp]))
        for tp, position in kept.items():
            self._consumer.seek(tp, position)

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        """The next records by partition; empty when none came in time."""
        if self._consumer is None:
            self._open()
        self._take_new_partitions()
        if not self._assigned:
            time.sleep(timeout_ms / 1000)
            return {}
        records: dict[TopicPartition, list[Any]] = self._consumer.poll(timeout_ms)
        if records:
            self._progress.made()
        elif self._progress.has_stopped(self._consumer):
            reached = {
                (tp.topic, tp.partition): at for tp, at in _positions(self._consumer).items()
            }
            self.positions = {**self.positions, **reached}
            self.close()
            self._open()
        return records

    def topic_ids(self) -> dict[str, str]:
        """What Kafka calls the topics; one that is deleted and made again has another id."""
        ids = {topic: self._consumer._cluster.topic_id(topic) for topic in self.topics}
        return {topic: str(topic_id) for topic, topic_id in ids.items() if topic_id}

    def position(self, tp: TopicPartition) -> int:
        """The next offset to be read; also past records that are no longer there."""
        return int(self._consumer.position(tp, timeout_ms=REQUEST_TIMEOUT_MS))

    def ends(self) -> dict[TopicPartition, int]:
        """For each partition the offset after its last committed record."""
        ends: dict[TopicPartition, int] = self._consumer.end_offsets(
            sorted(self._assigned), timeout_ms=REQUEST_TIMEOUT_MS
        )
        return ends

    def close(self) -> None:
        """Release the connection."""
        if self._consumer is not None:
            self._consumer.close(timeout_ms=1_000)
            self._consumer = None

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Sender:
    """Writes records one by one, acknowledged and without duplicates of its own."""

    def __init__(self, kafka: Kafka, *, linger_ms: int = 0) -> None:
        with _reaching(kafka):
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

    def send(self, record: Outgoing) -> Any:
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


class Together:
    """Writes records in one transaction: its readers see all of them or none.

    Args:
        kafka: How to reach the cluster.
        name: Only one such writer is at work: a newer one of the same name ends it.
    """

    def __init__(self, kafka: Kafka, name: str) -> None:
        with _reaching(kafka):
            self._producer = _transactional(
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
            producer.flush(timeout=PATIENCE_MS / 1000)
            for future in futures:
                future.get(timeout=0)
        except BaseException:
            _finish(producer, manager.begin_abort())
            raise
        _finish(producer, manager.begin_commit())

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, *exception: object) -> None:
        _discard(self._producer)


def announce(settings: Settings, record: Any) -> None:
    """Send one record (a struct or a dict) to `retrain_topic` and wait for its acknowledgement.

    Raises:
        KafkaUnavailable: It could not be sent.
    """
    with Sender(settings.kafka) as sender:
        value = msgspec.json.encode(record)
        try:
            sender.send(Outgoing(messages.RETRAIN_TOPIC, 0, None, value)).get(timeout=30)
        except KafkaError as error:
            raise KafkaUnavailable(f"the announcement was not accepted: {error}") from None


def beginning_and_end(kafka: Kafka, topic: str) -> dict[int, tuple[int, int]]:
    """The first offset and the offset after the last committed record, by partition."""
    with LogReader(kafka, [topic]) as reader:
        consumer, partitions = reader._consumer, sorted(reader._assigned)
        starts = consumer.beginning_offsets(partitions, timeout_ms=REQUEST_TIMEOUT_MS)
        ends = reader.ends()
        return {tp.partition: (starts[tp], ends[tp]) for tp in partitions}
