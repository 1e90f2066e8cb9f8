"""What Kafka shows of the work: rates, latency, lag, and the predictors that run.

Everything is read from outside: no consumer group is joined and nothing is written.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from monitor.pace import Pace
from monitor.snapshot import Snapshot
from utils import kafka_io, messages
from utils.kafka_io import Record, TopicPartition
from utils.kafka_io.observer import Observed, Observer, TailReader
from utils.message_decoder import request_id_of
from utils.outcome_count import OutcomeCount
from utils.settings import Kafka

#: Seconds between two looks at the cluster, and between two at the newest records. Where either
#: takes long, as on a busy machine or with large batches, it is rarer.
LOOK_EVERY, SAMPLE_EVERY = 1.0, 2.0
LOOK_SHARE, SAMPLE_SHARE = 0.1, 0.02
#: How many offsets of each partition a sample looks at.
SAMPLED = 200
#: The most partitions of a topic that a sample looks at; lag and rates are of all.
SAMPLED_PARTITIONS = 16
#: Seconds over which rates and latencies are given.
WINDOW = 10.0
#: The points of the curves, one for each look.
POINTS = 600
#: The topics of a look.
TOPICS = (messages.APP_MESSAGES, messages.PREDICTIONS, messages.OUTCOMES)


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
        model_id: The model of its latest prediction; None before one was seen.
        lag: The offsets that it has still to read.
    """

    instance_id: str
    host: str
    partitions: tuple[int, ...]
    model_id: int | None
    lag: int


@dataclass(frozen=True)
class Cluster(Snapshot):
    """The cluster at one moment.

    Attributes:
        at: When it was looked at last, in seconds since 1970; 0 before the first look.
        latest: The newest point of the curves.
        points: The curves, oldest first.
        lag: The lag of each partition that predictors read.
        predictors: The running predictors.
        trainers: How many trainers are in their group.
        counted: The most outcomes that a partition has counted since its last retrain request;
            None before any was counted.
    """

    at: float = 0.0
    latest: Point | None = None
    points: Sequence[Point] = ()
    lag: Mapping[TopicPartition, int] = field(default_factory=dict)
    predictors: tuple[Predictor, ...] = ()
    trainers: int = 0
    counted: int | None = None


class ClusterWatch:
    """Looks at the cluster, step by step.

    Args:
        kafka: How to reach the cluster.
        rejected: Returns how many messages were rejected so far.
    """

    def __init__(self, kafka: Kafka, rejected: Callable[[], int]) -> None:
        self._kafka = kafka
        self._rejected = rejected
        self._open: ExitStack | None = None
        self._points: deque[Point] = deque(maxlen=POINTS)
        # By look: its time, the ends, what predictors have finished, what was rejected.
        self._seen: deque[tuple[float, int, int, int]] = deque()
        self._latencies: deque[tuple[float, list[float]]] = deque()
        self._density = 1.0
        self._look_pace = Pace(LOOK_EVERY, LOOK_SHARE)
        self._sample_pace = Pace(SAMPLE_EVERY, SAMPLE_SHARE)
        self._trainers = 0
        self._served: dict[int, int] = {}
        self.now = Cluster()

    def step(self) -> Cluster:
        """Look if it is time; the broker's errors are part of the result."""
        try:
            if self._open is None:
                self._connect()
            if self._look_pace.is_due():
                with self._look_pace.run():
                    self._look()
        except kafka_io.RETRIABLE_ERRORS as error:
            self.close()
            self.now = self.now.failed(error)
        return self.now

    def close(self) -> None:
        """Release the connections."""
        if self._open is not None:
            with suppress(Exception):  # whatever a broken connection raises
                self._open.close()
        self._open = None
        self._seen.clear()  # no rate over an outage

    def _connect(self) -> None:
        with ExitStack() as opened:
            self._observer = Observer(self._kafka)
            opened.callback(self._observer.close)
            self._tail = TailReader(self._kafka)
            opened.callback(self._tail.close)
            self._open = opened.pop_all()

    def _look(self) -> None:
        predictors = self._observer.look(messages.PREDICTOR_GROUP, TOPICS)
        if self._sample_pace.is_due():
            with self._sample_pace.run():
                self._sample(predictors)
                self._trainers = len(self._observer.look(messages.TRAINER_GROUP, ()).members)
        lag = predictors.lag()
        rates = self._rates(predictors)
        waiting = sum(n for tp, n in lag.items() if tp.topic == messages.APP_MESSAGES)
        self._points.append(Point(time.time(), *rates, *self._percentiles(), waiting))
        self.now = Cluster(
            at=time.time(),
            latest=self._points[-1],
            points=tuple(self._points),
            lag=lag,
            predictors=tuple(self._predictors(predictors, lag)),
            trainers=self._trainers,
            counted=_counted(predictors),
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
        self._seen.append((now, ends, done, self._rejected()))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW:
            self._seen.popleft()
        (began, *before), (_, *after) = self._seen[0], self._seen[-1]
        sent, finished, rejected = (new - old for old, new in zip(before, after, strict=True))
        seconds = now - began
        if seconds < LOOK_EVERY / 2 or sent < 0:  # the second: the topics were made again
            return None, None
        made = finished * self._density - max(0, rejected)
        return sent * self._density / seconds, max(0.0, made) / seconds

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
            served = [self._served[tp.partition] for tp in mine if tp.partition in self._served]
            yield Predictor(
                member.instance_id,
                member.host,
                tuple(tp.partition for tp in mine),
                max(served, default=None),
                sum(lag.get(tp, 0) for tp in mine),
            )


def _counted(seen: Observed) -> int | None:
    counts = (
        OutcomeCount.restore(*tp, every=0, offset=one.offset, metadata=one.metadata or "").count
        for tp, one in seen.committed.items()
    )
    return max(counts, default=None)


def _model_of(record: Record) -> int:
    try:
        return messages.Decoder(messages.Prediction)(record.value).model_id
    except messages.BadRecord:  # not written by a predictor
        return 0
