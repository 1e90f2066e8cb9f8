"""The types that the message store takes and returns."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

#: The next offset to read, by (topic, partition).
Offsets = dict[tuple[str, int], int]


#: By partition: the first offset, and the offset after the last.
LogBounds = Mapping[int, tuple[int, int]]

#: Partition, offset and timestamp (milliseconds since 1970) of a record.
LogPlace = tuple[int, int, int]


class SentRecord(Protocol):
    """A record of Kafka or of the copy, without its place."""

    @property
    def offset(self) -> int:
        """The offset in its partition."""

    @property
    def timestamp(self) -> int:
        """Milliseconds since 1970."""

    @property
    def value(self) -> bytes | None:
        """The value; None for a tombstone."""


class RawRecord(NamedTuple):
    """A record as it was sent, but for a timestamp that made no sense.

    Attributes:
        offset: The offset in its partition.
        timestamp: Milliseconds since 1970.
        value: The value; None for a tombstone, and if it was too large to be kept.
        omitted: The size in bytes of a value that was too large to be kept; otherwise 0.
        misdated: Whether its own timestamp made no sense, and was replaced.
    """

    offset: int
    timestamp: int
    value: bytes | None
    omitted: int = 0
    misdated: bool = False


@dataclass(frozen=True)
class RawChunk:
    """Consecutive records of one partition; `topic_id` is Kafka's id of the topic, if known."""

    topic: str
    partition: int
    records: Sequence[RawRecord]
    topic_id: str | None


class StoredMessage(NamedTuple):
    """A message to store.

    Attributes:
        request_id: The id of the request.
        partition: The partition of `app_messages`.
        offset: The offset in that partition.
        timestamp: Milliseconds since 1970.
        values: As `FeatureTools.row_values` returns them.
        outcome: The outcome inside the message, or None.
    """

    request_id: str
    partition: int
    offset: int
    timestamp: int
    values: tuple[float | str | None, ...]
    outcome: str | None


@dataclass
class Batch:
    """Records of the three topics, and the offsets that follow them.

    Attributes:
        messages: The messages of `app_messages`.
        outcomes: (request_id, outcome, partition, offset, timestamp).
        predictions: (request_id, model_id, probability or list of them, partition,
            offset, timestamp).
        tally: The values of the messages that are missing, unknown or leniently read, as
            `FeatureTools.transform_rows` counts them; None if they were not counted.
        offsets: The next offset to read of each partition that was read.
        timestamps: The timestamp of the last record of each partition that was read.
        misdated: The offsets of records whose own timestamps made no sense, by topic and
            partition.
        topic_ids: Kafka's ids of the topics; a recreated topic has another id.
        raw: The records themselves by topic and partition, also rejected ones, to be copied;
            empty if they come from the copy.
    """

    messages: list[StoredMessage] = field(default_factory=list)
    outcomes: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    predictions: list[tuple[str, int, float | list[float], int, int, int]] = field(
        default_factory=list
    )
    tally: npt.NDArray[np.int64] | None = None
    offsets: Offsets = field(default_factory=dict)
    timestamps: dict[tuple[str, int], int] = field(default_factory=dict)
    misdated: Mapping[tuple[str, int], Collection[int]] = field(default_factory=dict)
    topic_ids: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[tuple[str, int], Sequence[SentRecord]] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """All messages with a known outcome at one moment, in the order the outcomes became known.

    A record makes the outcome known: the valid one on `outcomes`, or the message that has the
    outcome inside. The order is that of these records' timestamps; at the same time, messages
    come before records on `outcomes`, and each topic is in the order of (partition, offset).

    Attributes:
        request_ids: (rows,), str.
        frame: The raw feature columns: float64, or categories of str; NaN where missing.
        outcomes: (rows,), str: the classes by name.
        known_at: (rows,), int64: when the outcome became known, in milliseconds since 1970.
        sent_at: (rows,), int64: the message's timestamp.
        offsets: The offsets up to which the log had been read.
        topic_ids: Kafka's ids of those topics.
    """

    request_ids: npt.NDArray[np.object_]
    frame: "pd.DataFrame"
    outcomes: npt.NDArray[np.object_]
    known_at: npt.NDArray[np.int64]
    sent_at: npt.NDArray[np.int64]
    offsets: Offsets
    topic_ids: dict[str, str]


class StoredRequest(NamedTuple):
    """What the store knows about one request.

    Attributes:
        request_id: The id of the request.
        values: Raw values by column; None without a message.
        message: The message's place in the log; None without a message.
        outcome: The valid outcome; None while it is not known.
        late_outcome: The place of its record on `outcomes`; None without one.
        model_id: The model that predicted; None without a prediction.
        probability: The probability of the positive class, or of each class.
        prediction: The prediction's place in the log; None without a prediction.
    """

    request_id: str
    values: dict[str, float | str | None] | None
    message: LogPlace | None
    outcome: str | None
    late_outcome: LogPlace | None
    model_id: int | None
    probability: float | list[float] | None
    prediction: LogPlace | None


@dataclass(frozen=True)
class ModelPredictions:
    """The predictions of one model, in the order in which they were made.

    Attributes:
        model_id: The model.
        probabilities: (rows,) or (rows, classes), of predictions with a known outcome.
        outcomes: (rows,), str: their outcomes.
        predictions: How many there are, also those that cannot be judged.
        missing_since: (predictions without an outcome,), the time of each in
            milliseconds since 1970, oldest first.
    """

    model_id: int
    probabilities: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.object_]
    missing_since: npt.NDArray[np.int64]
    predictions: int = 0


@dataclass(frozen=True)
class KnownPredictions:
    """Predictions of all models whose outcomes are known, in the order in which they became known.

    Attributes:
        probabilities: (rows,) or (rows, classes).
        outcomes: (rows,), str: their outcomes.
        offsets: The offsets up to which the log had been read.
        topic_ids: Kafka's ids of those topics.
    """

    probabilities: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.object_]
    offsets: Offsets
    topic_ids: dict[str, str]


@dataclass(frozen=True)
class Counts:
    """The number of messages and other rows, and of records that the rows do not show.

    Attributes:
        messages: Messages, each request_id once.
        known_outcomes: Those of them with a valid outcome.
        predictions: Predictions, each request_id once.
        unmatched_outcomes: Outcomes without a message.
        rejected_outcomes: Outcomes of an unknown class.
        superseded_messages: Messages that a later one with the same request_id replaced.
        superseded_outcomes: Valid records on `outcomes` that a later one replaced.
        misdated_records: Records of all topics whose own timestamps made no sense.
    """

    messages: int
    known_outcomes: int
    predictions: int
    unmatched_outcomes: int
    rejected_outcomes: int
    superseded_messages: int = 0
    superseded_outcomes: int = 0
    misdated_records: int = 0
