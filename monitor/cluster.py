"""What Kafka shows: rates, latency, lag, predictors, events and rejected records.

Everything is read from outside: no consumer group is joined and nothing is written.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

import msgspec
from msgspec import UNSET

from utils import kafka_io, messages
from utils.errors import one_line
from utils.kafka_io import LogReader, Record, TopicPartition, log_scan
from utils.kafka_io.observer import Observed, Observer, TailReader
from utils.message_decoder import request_id_of
from utils.messages import (
    ModelLoaded,
    PredictorStarted,
    Rejection,
    Resent,
    RetrainRequest,
    Rollback,
    TrainingCompleted,
)
from utils.settings import Kafka

#: Seconds between two looks at the cluster, and between two at the newest records.
LOOK_EVERY, SAMPLE_EVERY = 1.0, 2.0
#: How many offsets of each partition a sample looks at.
SAMPLED = 200
#: The most partitions of a topic that a sample looks at; lag and rates are of all.
SAMPLED_PARTITIONS = 16
#: Seconds over which rates and latencies are given.
WINDOW = 10.0
#: The points of the curves, one for each look.
POINTS = 600
#: How many events and rejected records are shown, and how many offsets back they are read.
SHOWN, READ_BACK = 50, 2_000
#: The topics of a look.
TOPICS = (messages.APP_MESSAGES, messages.PREDICTIONS, messages.OUTCOMES, messages.RETRAIN_TOPIC)


@dataclass(frozen=True)
class Point:
    """A point of the curves; None where nothing is known.

    Attributes:
        at: Seconds since 1970.
        messages: Messages a second.
        predictions: Predictions a second.
        median: The median latency in milliseconds.
        p99: Its 99th percentile.
        lag: Offsets that predictors have still to read.
    """

    at: float
    messages: float | None
    predictions: float | None
    median: float | None
    p99: float | None
    lag: int


@dataclass(frozen=True)
class Predictor:
    """A running predictor.

    Attributes:
        instance_id: Its instance id.
        host: Where it runs.
        partitions: The partitions of `app_messages` that it reads.
        model_id: The model that it serves; None while it has neither said so nor predicted.
        lag: The offsets that it has still to read.
    """

    instance_id: str
    host: str
    partitions: tuple[int, ...]
    model_id: int | None
    lag: int


@dataclass(frozen=True)
class Happened:
    """An event, as text for the user.

    Attributes:
        at: Seconds since 1970.
        kind: "request", "accepted", "refused", "loaded", "rollback", "resent" or "started".
        text: What happened.
    """

    at: float
    kind: str
    text: str


@dataclass(frozen=True)
class Letter:
    """A rejected record.

    Attributes:
        offset: Its offset on `dead_letters`.
        at: Seconds since 1970.
        reason: Why it was rejected.
        origin: Where it was, as text.
        key: Its key.
        resent: Whether it was sent again.
    """

    offset: int
    at: float
    reason: str
    origin: str
    key: str
    resent: bool = False


@dataclass(frozen=True)
class Cluster:
    """The cluster at one moment.

    Attributes:
        at: When it was looked at last, in seconds since 1970; 0 before the first look.
        error: Why it cannot be looked at now; empty while it answers.
        failed_at: Since when, in seconds since 1970.
        latest: The newest point of the curves.
        points: The curves, oldest first.
        lag: The lag of each partition that predictors read.
        predictors: The running predictors.
        trainers: How many trainers are in their group.
        until_retraining: The fewest outcomes that are missing until a partition requests a
            retraining, and how many are needed in all; None before any was counted.
        events: The latest events, newest first.
        letters: The latest rejected records, newest first.
        reasons: How often each reason was given, of the records read back.
        rejected: How many records were read back.
        read_all: Whether that is all of them.
    """

    at: float = 0.0
    error: str = ""
    failed_at: float = 0.0
    latest: Point | None = None
    points: Sequence[Point] = ()
    lag: Mapping[TopicPartition, int] = field(default_factory=dict)
    predictors: tuple[Predictor, ...] = ()
    trainers: int = 0
    until_retraining: tuple[int, int] | None = None
    events: Sequence[Happened] = ()
    letters: Sequence[Letter] = ()
    reasons: Mapping[str, int] = field(default_factory=dict)
    rejected: int = 0
    read_all: bool = True


class _Count(msgspec.Struct):
    """What a predictor notes with its committed offset (`utils.outcome_count`)."""

    count: int = 0


class ClusterWatch:
    """Looks at the cluster, step by step.

    Args:
        kafka: How to reach the cluster.
        every: Known outcomes, per partition, between two retrain requests.
    """

    def __init__(self, kafka: Kafka, every: int) -> None:
        self._kafka = kafka
        self._every = every
        self._open: ExitStack | None = None
        self._points: deque[Point] = deque(maxlen=POINTS)
        self._seen: deque[tuple[float, int, int]] = deque()
        self._rejections: deque[tuple[float, int]] = deque()
        self._latencies: deque[tuple[float, list[float]]] = deque()
        self._density = 1.0
        self._sampled_at = self._looked_at = 0.0
        self._models: dict[str, int] = {}
        self._served: dict[int, int] = {}
        self._events: deque[Happened] = deque(maxlen=SHOWN)
        self._letters: deque[Letter] = deque(maxlen=READ_BACK)
        self._rejected_messages = 0
        self._resent: set[int] = set()
        self._read_all = True
        self.now = Cluster()

    def step(self, timeout_ms: int) -> Cluster:
        """Read new events, and look at the cluster if it is time; never raises its errors.

        Args:
            timeout_ms: How long to wait for events.
        """
        try:
            if self._open is None:
                self._connect()
            self._read_events(timeout_ms)
            if time.monotonic() - self._looked_at >= LOOK_EVERY:
                self._look()
        except kafka_io.RETRIABLE_ERRORS as error:
            self._disconnect()
            failed_at = self.now.failed_at if self.now.error else time.time()
            self.now = replace(self.now, error=one_line(error), failed_at=failed_at)
        return self.now

    def close(self) -> None:
        """Release the connections."""
        self._disconnect()

    def _disconnect(self) -> None:
        if self._open is not None:
            with suppress(Exception):  # whatever a broken connection raises
                self._open.close()
        self._open = None
        self._seen.clear()  # no rate over an outage
        self._rejections.clear()

    def _connect(self) -> None:
        with ExitStack() as opened:
            self._observer = Observer(self._kafka)
            opened.callback(self._observer.close)
            self._tail = TailReader(self._kafka)
            opened.callback(self._tail.close)
            positions = {}
            for topic in (messages.RETRAIN_TOPIC, messages.DEAD_LETTERS):
                first, end = log_scan.bounds(self._kafka, topic).get(0, (0, 0))
                positions[topic, 0] = max(first, end - READ_BACK)
                if topic == messages.DEAD_LETTERS:
                    self._read_all = positions[topic, 0] == first
            topics = [messages.RETRAIN_TOPIC, messages.DEAD_LETTERS]
            self._reader = opened.enter_context(LogReader(self._kafka, topics, positions))
            self._events.clear()
            self._letters.clear()
            self._open = opened.pop_all()

    # Events and rejected records.

    def _read_events(self, timeout_ms: int) -> None:
        for tp, records in self._reader.poll(timeout_ms).items():
            for record in records:
                if tp.topic == messages.DEAD_LETTERS:
                    self._take_letter(record)
                else:
                    self._take_event(record)
        self.now = replace(
            self.now,
            events=tuple(reversed(self._events)),
            letters=self._shown_letters(),
            reasons=dict(Counter(one.reason for one in self._letters).most_common(SHOWN)),
            rejected=len(self._letters),
            read_all=self._read_all and len(self._letters) < READ_BACK,
        )

    def _shown_letters(self) -> tuple[Letter, ...]:
        newest = list(self._letters)[: -SHOWN - 1 : -1]
        return tuple(replace(one, resent=one.offset in self._resent) for one in newest)

    def _take_letter(self, record: Record) -> None:
        rejection = Rejection.from_headers(record.headers)
        reason, origin = "not written by a predictor", ""
        if rejection is not None:
            reason = rejection.reason
            origin = f"{rejection.topic}-{rejection.partition}, offset {rejection.offset}"
            self._rejected_messages += (
                rejection.topic == messages.APP_MESSAGES and rejection.outcome is None
            )
        key = (record.key or b"").decode("utf-8", "replace")[:80]
        self._letters.append(Letter(record.offset, record.timestamp / 1000, reason, origin, key))

    def _take_event(self, record: Record) -> None:
        try:
            event = messages.decode_event(record.value)
        except messages.BadRecord:
            return
        if isinstance(event, ModelLoaded | PredictorStarted) and event.predictor is not UNSET:
            self._models[event.predictor] = event.model_id
        if isinstance(event, Resent):
            self._resent.update(event.offsets)
        found = in_words(event)
        if found is not None:
            self._events.append(Happened(record.timestamp / 1000, *found))

    # The group, the rates and the sample.

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        seen = self._observer.look(messages.PREDICTOR_GROUP, TOPICS)
        trainers = self._observer.look(messages.TRAINER_GROUP, [messages.RETRAIN_TOPIC])
        if self._looked_at - self._sampled_at >= SAMPLE_EVERY:
            self._sampled_at = self._looked_at
            self._sample(seen)
        lag = seen.lag()
        per_second = self._rates(seen)
        median, p99 = self._percentiles()
        waiting = sum(n for tp, n in lag.items() if tp.topic == messages.APP_MESSAGES)
        self._points.append(Point(time.time(), *per_second, median, p99, waiting))
        self.now = replace(
            self.now,
            at=time.time(),
            error="",
            failed_at=0.0,
            latest=self._points[-1],
            points=tuple(self._points),
            lag=lag,
            predictors=tuple(self._predictors(seen, lag)),
            trainers=len(trainers.members),
            until_retraining=self._until_retraining(seen),
        )

    def _rates(self, seen: Observed) -> tuple[float | None, float | None]:
        """Messages and predictions a second.

        Predictions are counted by the offsets that predictors have finished: the offsets of
        `predictions` count the markers of transactions, too. Messages that were rejected have
        none. Where messages are sent in transactions, their own markers are left out by the
        share that records have of the offsets of the last sample.
        """
        ends = sum(end for tp, end in seen.ends.items() if tp.topic == messages.APP_MESSAGES)
        done = sum(
            one.offset for tp, one in seen.committed.items() if tp.topic == messages.APP_MESSAGES
        )
        now = time.monotonic()
        self._seen.append((now, ends, done))
        self._rejections.append((now, self._rejected_messages))
        while now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
            self._rejections.popleft()
        first, first_ends, first_done = self._seen[0]
        if now - first < LOOK_EVERY / 2 or ends < first_ends:
            return None, None
        rejected = self._rejected_messages - self._rejections[0][1]
        sent = (ends - first_ends) * self._density / (now - first)
        made = ((done - first_done) * self._density - rejected) / (now - first)
        return sent, max(0.0, made)

    def _sample(self, seen: Observed) -> None:
        """Read the newest predictions and their messages, for latency, density and models."""
        app = {
            tp: one.offset
            for tp, one in seen.committed.items()
            if tp.topic == messages.APP_MESSAGES and tp.partition < SAMPLED_PARTITIONS
        }
        made = {
            tp: end
            for tp, end in seen.ends.items()
            if tp.topic == messages.PREDICTIONS and tp.partition < SAMPLED_PARTITIONS
        }
        records = self._tail.last(app | made, SAMPLED)
        sent: dict[str, int] = {}
        kept = offsets = 0
        for tp in app:
            found = records.get(tp, [])
            kept += len(found)
            offsets += min(SAMPLED, app[tp]) if found else 0
            sent |= {request_id_of(one.value) or "": one.timestamp for one in found}
        self._density = min(1.0, kept / offsets) if kept else 1.0
        since, latencies = (time.time() - WINDOW) * 1000, []
        for tp in made:
            found = records.get(tp, [])
            if found:
                self._served[tp.partition] = _model_of(found[-1])
            latencies += [
                float(one.timestamp - sent[name])
                for one in found
                if one.timestamp >= since and (name := request_id_of(one.value) or "") in sent
            ]
        now = time.monotonic()
        self._latencies.append((now, latencies))
        while now - self._latencies[0][0] > WINDOW:
            self._latencies.popleft()

    def _percentiles(self) -> tuple[float | None, float | None]:
        """The median latency and its 99th percentile over the last samples, in milliseconds."""
        if not self._latencies or not self._latencies[-1][1]:
            return None, None
        found = sorted(value for _, values in self._latencies for value in values)
        return found[len(found) // 2], found[min(len(found) - 1, int(len(found) * 0.99))]

    def _predictors(self, seen: Observed, lag: Mapping[TopicPartition, int]) -> Iterable[Predictor]:
        for member in seen.members:
            mine = [tp for tp in member.partitions if tp.topic == messages.APP_MESSAGES]
            model_id = self._models.get(member.instance_id)
            if model_id is None:
                served = [self._served[tp.partition] for tp in mine if tp.partition in self._served]
                model_id = max(served, default=None)
            yield Predictor(
                member.instance_id,
                member.host,
                tuple(tp.partition for tp in mine),
                model_id,
                sum(lag.get(tp, 0) for tp in mine),
            )

    def _until_retraining(self, seen: Observed) -> tuple[int, int] | None:
        counts = []
        for one in seen.committed.values():
            with suppress(*messages.DECODE_ERRORS):
                counts.append(msgspec.json.decode(one.metadata or "{}", type=_Count).count)
        return (max(1, self._every - max(counts)), self._every) if counts else None


def _model_of(record: Record) -> int:
    try:
        return messages.Decoder(messages.Prediction)(record.value).model_id
    except messages.BadRecord:  # not written by a predictor
        return 0


def in_words(event: messages.Event) -> tuple[str, str] | None:
    """The kind of an event and its text for the user; None for one that is no news."""
    match event:
        case RetrainRequest():
            where = f": {event.count} outcomes" if event.count is not UNSET else ""
            return "request", f"retraining requested, {messages.reason_of(event.batch_id)}{where}"
        case TrainingCompleted(accepted=True):
            return "accepted", f"model {event.model_id} serves now{_figures(event)}"
        case TrainingCompleted():
            return "refused", f"model {event.model_id} refused, the champion stays{_figures(event)}"
        case ModelLoaded():
            name = f" by {event.predictor}" if event.predictor is not UNSET else ""
            return "loaded", f"model {event.model_id} loaded{name}"
        case PredictorStarted():
            return "started", f"{event.predictor} started with model {event.model_id}"
        case Rollback():
            return "rollback", f"back to model {event.model_id}: {event.reason}"
        case Resent():
            return "resent", f"{len(event.offsets)} rejected records sent again"
    return None


def _figures(event: TrainingCompleted) -> str:
    if event.gate is UNSET or event.gate is None or event.gate.rows < 2:
        return ""
    return f" ({event.gate.in_words()} on {event.gate.rows} outcomes)"
