"""What goes into the message store and what comes out of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

#: The next offset to read, by (topic, partition).
Offsets = dict[tuple[str, int], int]


#: Partition, offset and timestamp (milliseconds since 1970) of a record.
LogPlace = tuple[int, int, int]


class StoredMessage(NamedTuple):
    """A message as `ingest` takes it.

    Attributes:
        request_id: Its name.
        partition: Of `app_messages`.
        offset: In that partition.
        timestamp: Milliseconds since 1970.
        values: As `FeatureTools.row_values` gives them.
        outcome: The class it carried, None without one.
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
        messages: Of `app_messages`.
        outcomes: (request_id, outcome, partition, offset, timestamp).
        predictions: (request_id, model_id, probability or list of them, partition,
            offset, timestamp).
        offsets: The next to read, of the partitions that were read.
        topic_ids: What Kafka calls the topics; one that is made again has another id.
    """

    messages: list[StoredMessage] = field(default_factory=list)
    outcomes: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    predictions: list[tuple[str, int, float | list[float], int, int, int]] = field(
        default_factory=list
    )
    offsets: Offsets = field(default_factory=dict)
    topic_ids: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Messages whose outcome is known, by (partition, offset), as of one moment.

    Attributes:
        request_ids: (rows,), str.
        frame: The raw feature columns: float64, or categories of str; NaN where missing.
        outcomes: (rows,), str: the classes by name.
        offsets: How far the log had been read.
        topic_ids: Whose offsets those are.
    """

    request_ids: npt.NDArray[np.object_]
    frame: "pd.DataFrame"
    outcomes: npt.NDArray[np.object_]
    offsets: Offsets
    topic_ids: dict[str, str]


class StoredRequest(NamedTuple):
    """What the store knows of one request.

    Attributes:
        request_id: Its name.
        values: Raw values by column; None without a message.
        message: Where the message is; None without one.
        outcome: The outcome that counts; None while it is not known.
        late_outcome: Where its record on `outcomes` is; None without one.
        model_id: Of the model that predicted; None without a prediction.
        probability: Of the positive class, or one for each class.
        prediction: Where the prediction is; None without one.
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
class Judged:
    """The predictions of one model, in the order they were made.

    Attributes:
        model_id: The model.
        probabilities: (rows,) or (rows, classes), of those whose outcome is known.
        outcomes: (rows,), str: their outcomes.
        missing_since: (predictions without an outcome,), when each was made,
            milliseconds since 1970, oldest first.
    """

    model_id: int
    probabilities: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.object_]
    missing_since: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """How much there is: of each kind, then outcomes without a message, and refused ones."""

    messages: int
    known_outcomes: int
    predictions: int
    unmatched_outcomes: int
    refused_outcomes: int
