"""The topics, the consumer groups, and the records of each topic with their decoder.

Values are JSON in UTF-8. Records are msgspec structs: decoding checks types in C, and the
error for an invalid record says where and why.
"""

import uuid
from collections.abc import Iterable, Mapping
from typing import Annotated, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from utils.metrics import Comparison, Metrics, ValueShares
from utils.values import Label

APP_MESSAGES = "app_messages"
PREDICTIONS = "predictions"
OUTCOMES = "outcomes"
RETRAIN_TOPIC = "retrain_topic"
DEAD_LETTERS = "dead_letters"

#: Topics that share one number of partitions, so that a request, its prediction and its
#: outcome have the same partition number.
CO_PARTITIONED = (APP_MESSAGES, PREDICTIONS, OUTCOMES)

TOPICS = (*CO_PARTITIONED, RETRAIN_TOPIC, DEAD_LETTERS)

#: The consumer groups and the topics that they read.
PREDICTOR_GROUP = "predictor"
TRAINER_GROUP = "trainer"
GROUPS = {PREDICTOR_GROUP: (APP_MESSAGES, OUTCOMES), TRAINER_GROUP: (RETRAIN_TOPIC,)}

#: How the ids of retrain requests begin that no predictor has counted, and their reasons.
_REASONS = {"manual-": "manual", "age-": "age", "drift-": "drift", "input-drift-": "input drift"}

#: The most characters of a request_id. A prediction contains it twice, with at most eight
#: bytes per character, and must fit into a record (`kafka_io.MAX_MESSAGE_BYTES`).
MAX_REQUEST_ID = 2**20

#: 2000-01-01 in milliseconds since 1970. A timestamp before it makes no sense: it is missing (0 or
#: negative), or in seconds.
OLDEST_MS = 946_684_800_000

RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REQUEST_ID)]

#: The reason to reject a record without a value.
TOMBSTONE = "no value (a tombstone)"
#: The exceptions of msgspec for bytes that it cannot decode.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class BadRecord(Exception):
    """A record that cannot be used; the text is the reason, on one line."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """A record of `outcomes`."""

    request_id: RequestId
    outcome: Label


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """A record of `predictions`."""

    request_id: str
    prediction: int
    label: str
    probability: float | list[float]
    model_id: int


class HomeEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What every record of `retrain_topic` has.

    Attributes:
        home: The id of the home whose script has written it (`utils.home`); unset by versions
            that did not know it.
    """

    home: str | UnsetType = UNSET


class HomeMark(HomeEvent, frozen=True, kw_only=True, gc=False):
    """A record on `retrain_topic`: whose topics these are.

    Attributes:
        home: The home's id.
        path: The home's folder.
        taken_over: Whether they were another home's before.
    """

    home_mark: bool = True
    home: str
    path: str
    taken_over: bool = False


class RetrainRequest(HomeEvent, frozen=True, kw_only=True, gc=False):
    """A record on `retrain_topic`: train now.

    >>> RetrainRequest(reason="manual", batch_id="manual-1").end is None
    True

    Attributes:
        reason: `count` (a predictor has counted enough outcomes), or `manual`, `age` or `drift`.
        batch_id: The request's id; of a count, its topic, partition and first offset.
        topic: The topic of the range that was counted; without a range, nothing of it is set.
        partition: Its partition.
        first_offset: Its first offset.
        last_offset: Its last offset, inclusive.
        count: The number of known outcomes in it.
    """

    retrain: bool = True
    reason: str = "count"
    batch_id: str
    topic: str | UnsetType = UNSET
    partition: int | UnsetType = UNSET
    first_offset: int | UnsetType = UNSET
    last_offset: int | UnsetType = UNSET
    count: int | UnsetType = UNSET

    @property
    def end(self) -> tuple[tuple[str, int], int] | None:
        """The range's (topic, partition) and the offset after it; None without a range."""
        topic, partition, last = self.topic, self.partition, self.last_offset
        if topic is UNSET or partition is UNSET or last is UNSET:
            return None
        return (topic, partition), last + 1


def reason_of(batch_id: str) -> str:
    """The reason of a retrain request, from its id, which is all that a manifest keeps of it.

    >>> [reason_of(id) for id in ("outcomes-0-25", "drift-3-900", "input-drift-3-900", "manual-1")]
    ['count', 'drift', 'input drift', 'manual']
    """
    for prefix, reason in _REASONS.items():
        if batch_id.startswith(prefix):
            return reason
    return "count"


class TrainingCompleted(HomeEvent, frozen=True, kw_only=True, gc=True):
    """A record on `retrain_topic`: a training is done, whether its model serves or not.

    Attributes:
        batch_id: The request that it answers; None for a first model.
        requests: The number of requests that the training answers.
        parent_id: The model that served before.
        rows: The number of rows that the model was fitted on.
        challenger: The model's metrics on the validation rows.
        champion: The serving model's metrics on the same rows.
        gate: The comparison of both.
        values: Which values of all messages so far were missing, unknown or leniently read.
        recent_values: The same of the last messages.
    """

    training_completed: bool = True
    model_id: int
    accepted: bool
    batch_id: str | None
    requests: int | UnsetType = UNSET
    parent_id: int | UnsetType | None = UNSET
    rows: int | UnsetType | None = UNSET
    challenger: Metrics | UnsetType | None = UNSET
    champion: Metrics | UnsetType | None = UNSET
    gate: Comparison | UnsetType | None = UNSET
    values: ValueShares | UnsetType = UNSET
    recent_values: ValueShares | UnsetType = UNSET


class ModelLoaded(HomeEvent, frozen=True, kw_only=True, gc=False):
    """A record on `retrain_topic`: a predictor serves another model.

    Attributes:
        model_id: The model.
        predictor: The predictor's instance id; unset by versions that did not give it.
    """

    model_loaded: bool = True
    model_id: int
    predictor: str | UnsetType = UNSET


class PredictorStarted(HomeEvent, frozen=True, kw_only=True, gc=False):
    """A record on `retrain_topic`: a predictor has started.

    Attributes:
        model_id: The model that it serves first.
        predictor: Its instance id.
    """

    predictor_started: bool = True
    model_id: int
    predictor: str


class Rollback(HomeEvent, frozen=True, kw_only=True, gc=False):
    """A record on `retrain_topic`: an older model serves again."""

    rollback: bool = True
    model_id: int
    from_model_id: int | None
    reason: str


class Resent(HomeEvent, frozen=True, kw_only=True, gc=False):
    """A record on `retrain_topic`: records of `dead_letters` were sent again."""

    resent: bool = True
    offsets: list[int]


#: Every record of `retrain_topic`.
Event = (
    RetrainRequest
    | TrainingCompleted
    | ModelLoaded
    | PredictorStarted
    | Rollback
    | Resent
    | HomeMark
)


def encode_event(event: Event, home: str) -> tuple[bytes, bytes, None]:
    """An event as key, value and headers of its record, in the name of a home.

    A compacted topic refuses records without a key, and keeps the newest of those with the same:
    each event has a key of its own.
    """
    value = msgspec.json.encode(msgspec.structs.replace(event, home=home))
    return uuid.uuid4().hex.encode(), value, None


T = TypeVar("T")


class KeyedUnion(Generic[T]):
    """Decodes JSON objects of several struct types, each identified by a key of its own.

    msgspec's tagged unions need one key with a different value for each type. Here the key
    itself is the tag; an object in which no such key is set belongs to none of the types.

    Args:
        types: The struct type for each key.
    """

    def __init__(self, types: Mapping[str, type[T]]) -> None:
        fields = [(key, msgspec.Raw, msgspec.Raw(b"null")) for key in types]
        self._decode_tags = msgspec.json.Decoder(msgspec.defstruct("Tags", fields)).decode
        self._decoders = {key: msgspec.json.Decoder(one).decode for key, one in types.items()}

    def __call__(self, value: bytes | None) -> T:
        """Decode one object.

        Raises:
            BadRecord: The value is a tombstone, not JSON, or of none of the types.
        """
        if value is None:
            raise BadRecord(TOMBSTONE)
        try:
            tags = self._decode_tags(value)
            for key, decode in self._decoders.items():
                if bytes(getattr(tags, key)) not in (b"null", b"false"):
                    return decode(value)
        except DECODE_ERRORS as error:
            raise BadRecord(decode_error_text(error)) from None
        raise BadRecord(f"has none of {', '.join(self._decoders)}")


def decode_error_text(error: Exception) -> str:
    """The text of one of `DECODE_ERRORS` on one line."""
    return str(error).replace("\n", " ") or type(error).__name__


class Rejection(NamedTuple):
    """Why and where a record was rejected, as in the headers of its dead letter.

    Attributes:
        reason: The reason, on one line.
        topic: The topic of the record.
        partition: The partition of the record.
        offset: The offset of the record.
        size: The size in bytes of a record too large for its dead letter; otherwise None.
        outcome: The outcome as JSON, of a message that has its prediction: only its outcome
            was rejected. Otherwise None.
        key: The record's own key, if the dead letter has another; empty if it had none.
    """

    reason: str
    topic: str
    partition: int
    offset: int
    size: int | None = None
    outcome: bytes | None = None
    key: bytes | None = None

    def to_headers(self) -> list[tuple[str, bytes | None]]:
        """The headers of the dead letter."""
        headers: dict[str, bytes | None] = {
            "reason": self.reason.encode(),
            "topic": self.topic.encode(),
            "partition": str(self.partition).encode(),
            "offset": str(self.offset).encode(),
        }
        if self.size is not None:
            headers["bytes"] = str(self.size).encode()
        if self.outcome is not None:
            headers["outcome"] = self.outcome
        if self.key is not None:
            headers["key"] = self.key
        return list(headers.items())

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes | None]]) -> "Rejection | None":
        """Read the headers of a dead letter; None if no predictor has written them."""
        values = {name: value or b"" for name, value in headers}
        texts = {name: value.decode("utf-8", "replace") for name, value in values.items()}
        try:
            return cls(
                texts["reason"],
                texts["topic"],
                int(texts["partition"]),
                int(texts["offset"]),
                int(texts["bytes"]) if "bytes" in texts else None,
                outcome=values.get("outcome"),
                key=values.get("key"),
            )
        except (KeyError, ValueError):
            return None


class Decoder(Generic[T]):
    """Decodes the values of one topic into a struct."""

    def __init__(self, record_type: type[T]) -> None:
        self._decode = msgspec.json.Decoder(record_type).decode

    def __call__(self, value: bytes | None) -> T:
        """Decode one record's value.

        Raises:
            BadRecord: The value is a tombstone, not JSON, not UTF-8, nested too deeply or
                not of the record type.
        """
        if value is None:
            raise BadRecord(TOMBSTONE)
        try:
            return self._decode(value)
        except DECODE_ERRORS as error:
            raise BadRecord(decode_error_text(error)) from None


decode_event: KeyedUnion[Event] = KeyedUnion(
    {
        "retrain": RetrainRequest,
        "training_completed": TrainingCompleted,
        "model_loaded": ModelLoaded,
        "predictor_started": PredictorStarted,
        "rollback": Rollback,
        "resent": Resent,
        "home_mark": HomeMark,
    }
)
