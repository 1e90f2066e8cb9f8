"""What was announced and what was rejected: the newest records of two topics.

They are read without joining a group, in a thread of their own, so that a swap shows at once.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from msgspec import UNSET

from monitor.snapshot import Snapshot
from utils import kafka_io, messages
from utils.kafka_io import LogReader, Record, log_scan
from utils.messages import (
    ModelLoaded,
    PredictorStarted,
    Rejection,
    Resent,
    RetrainRequest,
    Rollback,
    TrainingCompleted,
    reason_of,
)
from utils.settings import Kafka

#: How many events and rejected records are shown, and how many offsets back they are read.
SHOWN, READ_BACK = 50, 2_000
#: The topics.
TOPICS = (messages.RETRAIN_TOPIC, messages.DEAD_LETTERS)


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
class Events(Snapshot):
    """The newest events and rejected records.

    Attributes:
        latest: The latest events, newest first.
        models: By predictor, the model that it has loaded last.
        answers: The latest trainings that were requested by hand, by request.
        every: How many outcomes the latest request of a predictor has counted; None before one.
        letters: The latest rejected records, newest first.
        reasons: How often each reason was given, of the records read back.
        rejected: How many records were read back.
        rejected_messages: How many of them are messages without a prediction.
        read_all: Whether those are all rejected records that there are.
    """

    latest: Sequence[Happened] = ()
    models: Mapping[str, int] = field(default_factory=dict)
    answers: Mapping[str, TrainingCompleted] = field(default_factory=dict)
    every: int | None = None
    letters: Sequence[Letter] = ()
    reasons: Mapping[str, int] = field(default_factory=dict)
    rejected: int = 0
    rejected_messages: int = 0
    read_all: bool = True


class EventsWatch:
    """Reads the events and the rejected records, step by step.

    Args:
        kafka: How to reach the cluster.
    """

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._reader: LogReader | None = None
        self._events: deque[Happened] = deque(maxlen=SHOWN)
        self._models: dict[str, int] = {}
        self._every: int | None = None
        self._answers: deque[TrainingCompleted] = deque(maxlen=SHOWN)
        self._letters: deque[Letter] = deque(maxlen=READ_BACK)
        self._rejected_messages = 0
        self._resent: set[int] = set()
        self._from_start = True
        self.now = Events()

    def step(self, timeout_ms: int) -> Events:
        """Read what is new; the broker's errors are part of the result.

        Args:
            timeout_ms: How long to wait for something.
        """
        try:
            if self._reader is None:
                self._reader = self._open()
            if self._read(self._reader, timeout_ms) or self.now.error:
                self._show()
        except kafka_io.RETRIABLE_ERRORS as error:
            self.close()
            self.now = self.now.failed(error)
        return self.now

    def close(self) -> None:
        """Release the connection."""
        reader, self._reader = self._reader, None
        if reader is not None:
            with suppress(Exception):  # whatever a broken connection raises
                reader.close()

    def _open(self) -> LogReader:
        positions = {}
        for topic in TOPICS:
            first, end = log_scan.bounds(self._kafka, topic).get(0, (0, 0))
            positions[topic, 0] = max(first, end - READ_BACK)
            if topic == messages.DEAD_LETTERS:
                self._from_start = positions[topic, 0] == first
        self._events.clear()
        self._letters.clear()
        self._rejected_messages = 0
        return LogReader(self._kafka, TOPICS, positions)

    def _read(self, reader: LogReader, timeout_ms: int) -> int:
        found = reader.poll(timeout_ms)
        for tp, records in found.items():
            for record in records:
                if tp.topic == messages.DEAD_LETTERS:
                    self._take_letter(record)
                else:
                    self._take_event(record)
        return sum(map(len, found.values()))

    def _show(self) -> None:
        newest = list(self._letters)[: -SHOWN - 1 : -1]
        self.now = Events(
            latest=tuple(reversed(self._events)),
            models=dict(self._models),
            answers={one.batch_id: one for one in self._answers if one.batch_id is not None},
            every=self._every,
            letters=tuple(replace(one, resent=one.offset in self._resent) for one in newest),
            reasons=dict(Counter(one.reason for one in self._letters).most_common(SHOWN)),
            rejected=len(self._letters),
            rejected_messages=self._rejected_messages,
            read_all=self._from_start and len(self._letters) < READ_BACK,
        )

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
        if isinstance(event, RetrainRequest) and event.count is not UNSET:
            self._every = event.count
        if isinstance(event, TrainingCompleted) and reason_of(event.batch_id or "") == "manual":
            self._answers.append(event)
        if isinstance(event, Resent):
            self._resent.update(event.offsets)
        found = in_words(event)
        if found is not None:
            self._events.append(Happened(record.timestamp / 1000, *found))


def in_words(event: messages.Event) -> tuple[str, str] | None:
    """The kind of an event and its text for the user; None for one that is no news."""
    match event:
        case RetrainRequest():
            where = f": {event.count} outcomes" if event.count is not UNSET else ""
            return "request", f"retraining requested, {reason_of(event.batch_id)}{where}"
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
