"""Turns records into rows to score, predictions and dead letters.

The predictor and the replay of its predictions share this module, so their results agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from utils import messages, trace_context
from utils.feature_tools import Row, ValueTally
from utils.kafka_io import (
    LARGEST_COMPRESSED,
    MAX_MESSAGE_BYTES,
    Content,
    Headers,
    Record,
    TopicSettings,
)
from utils.message_decoder import request_id_of, unknown_class
from utils.messages import BadRecord, Rejection
from utils.model_store import Bundle, predicted_codes
from utils.values import NO_CLASS

#: The most records of one batch. Small enough for short transactions, large enough for a whole
#: fetch (4 MiB hold about 12,000 rows of Adult): splitting a fetch yields unequal batches, and
#: a worker idles while the smaller one is decoded and scored.
MAX_RECORDS = 16_000
#: The most bytes of a dead letter's headers: a reason of 32 KiB at most, and the trace context.
MAX_LETTER_HEADERS = 64 * 1024
#: The most bytes of a dead letter's headers besides the reason and the trace context.
LETTER_PLACE = 512
#: The most bytes of a prediction besides its request_id, its label and its headers.
PREDICTION_NUMBERS = 256
#: The most bytes of a message's headers that its prediction repeats. The largest prediction is
#: half as large as a record may be (`messages.MAX_REQUEST_ID`), so it always fits with them.
MAX_HEADERS = 64 * 1024
#: The most bytes that a header takes besides its name and value: their lengths.
_HEADER_NUMBERS = 10


@dataclass(frozen=True)
class Limits:
    """The largest records that the topics take to which a predictor writes.

    Attributes:
        prediction: The most bytes of a prediction.
        letter: The most bytes of a dead letter.
    """

    prediction: int = MAX_MESSAGE_BYTES
    letter: int = MAX_MESSAGE_BYTES

    @classmethod
    def of(cls, found: Mapping[str, TopicSettings]) -> "Limits":
        """The limits by the topics' settings."""
        sizes = (found.get(topic) for topic in (messages.PREDICTIONS, messages.DEAD_LETTERS))
        return cls(*(MAX_MESSAGE_BYTES if one is None else one.largest_record for one in sizes))

    def longest_id(self, bundle: Bundle) -> int:
        """The most characters of a request_id with which a prediction fits in any case."""
        # In JSON a character of it takes up to six bytes, and as a key up to four.
        return (self.prediction - MAX_HEADERS - _other_bytes(bundle)) // 10

    def allow(self, request_id: str, headers: Headers, bundle: Bundle) -> bool:
        """Whether the prediction of a message is small enough."""
        size = len(request_id.encode()) + len(msgspec.json.encode(request_id))
        return size + _other_bytes(bundle) + _size_of(headers) <= self.prediction


#: Of topics that initialize.py could create as it wants to.
NO_LIMITS = Limits()


@dataclass
class DecodedRecords:
    """The result of decoding consecutive records of one partition.

    Attributes:
        rows: The rows to score, in order.
        request_ids: The request ids of the rows.
        timestamps: Those of the rows' records, in milliseconds since 1970.
        known: The offsets of records with a known outcome.
        rejected: The records to send to `dead_letters`.
        unknown_outcomes: How many of those are messages that are scored all the same, because
            only their outcome is of no known class.
        headers: By row, the headers of its message, if it has any; the prediction repeats them.
        headers_left_out: How many messages have headers that are too large for that.
    """

    rows: list[Row] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    timestamps: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    rejected: list[Content] = field(default_factory=list)
    unknown_outcomes: int = 0
    headers: dict[int, Headers] = field(default_factory=dict)
    headers_left_out: int = 0

    def keep_headers(self, headers: Headers) -> None:
        """Keep the headers of the message of the last row, unless they are too large."""
        if _size_of(headers) <= MAX_HEADERS:
            self.headers[len(self.rows) - 1] = headers
        else:
            self.headers_left_out += 1


def _other_bytes(bundle: Bundle) -> int:
    """The most bytes of a prediction besides its request_id and its headers."""
    classes = bundle.features.classes
    return PREDICTION_NUMBERS * len(classes) + 6 * max(map(len, classes))


def _size_of(headers: Headers) -> int:
    return sum(len(name.encode()) + len(value or b"") + _HEADER_NUMBERS for name, value in headers)


def decode_messages(
    records: Sequence[Record],
    bundle: Bundle,
    tally: ValueTally | None = None,
    limits: Limits = NO_LIMITS,
) -> DecodedRecords:
    """Decode and check records of `app_messages` for the bundle's model.

    Args:
        records: The records.
        bundle: The bundle whose model will score the rows.
        tally: Values that are read leniently are added to it.
        limits: A message whose prediction would be too large is rejected.
    """
    decode, codes = bundle.decoder, bundle.features.class_codes
    decoded = DecodedRecords()
    rows, request_ids, known = decoded.rows, decoded.request_ids, decoded.known
    timestamps, longest_id = decoded.timestamps, limits.longest_id(bundle)
    lenient = [0] * len(bundle.features.columns)
    for record in records:
        try:
            message = decode(record.value, lenient)
        except BadRecord as fault:
            decoded.rejected.append(dead_letter(record, str(fault), limits=limits))
            continue
        if len(message.request_id) > longest_id and not limits.allow(
            message.request_id, record.headers, bundle
        ):
            reason = f"the prediction would be larger than {messages.PREDICTIONS} takes"
            decoded.rejected.append(dead_letter(record, reason, limits=limits))
            continue
        row = message.data
        rows.append(row)
        request_ids.append(message.request_id)
        timestamps.append(record.timestamp)
        if record.headers:
            decoded.keep_headers(record.headers)
        code = codes[row.outcome]
        if code >= 0:
            known.append(record.offset)
        elif code == NO_CLASS:
            decoded.unknown_outcomes += 1
            reason = unknown_class(row.outcome, bundle.features)
            outcome = msgspec.json.encode(row.outcome)
            decoded.rejected.append(dead_letter(record, reason, outcome, limits=limits))
    if tally is not None:
        tally[2] += lenient
    return decoded


def decode_outcomes(
    records: Sequence[Record],
    bundle: Bundle,
    tally: ValueTally | None = None,
    limits: Limits = NO_LIMITS,
) -> DecodedRecords:
    """Decode and check records of `outcomes`; they add nothing to the tally."""
    decode, decoded = bundle.outcome_decoder, DecodedRecords()
    for record in records:
        try:
            decode(record.value)
        except BadRecord as reason:
            decoded.rejected.append(dead_letter(record, str(reason), limits=limits))
        else:
            decoded.known.append(record.offset)
    return decoded


#: The function for each topic that a predictor reads.
DECODERS = {messages.APP_MESSAGES: decode_messages, messages.OUTCOMES: decode_outcomes}


def predictions(
    bundle: Bundle, request_ids: Sequence[str], scores: np.ndarray
) -> Iterator[messages.Prediction]:
    """The predictions of rows.

    Args:
        bundle: The bundle that scored the rows.
        request_ids: The request ids of the rows, in order.
        scores: The result of `Bundle.score` for the rows.
    """
    labels, model_id = bundle.features.classes, bundle.model_id
    for name, code, probability in zip(
        request_ids, predicted_codes(scores).tolist(), scores.tolist(), strict=True
    ):
        yield messages.Prediction(name, code, labels[code], probability, model_id)


def prediction_records(
    bundle: Bundle,
    request_ids: Sequence[str],
    scores: np.ndarray,
    headers: Mapping[int, Headers] | None = None,
) -> list[Content]:
    """Build the records of `predictions`.

    A prediction has the headers of its message, in their order: values that are null and names
    that stand there twice are kept, and bytes of a name that are no UTF-8 become U+FFFD.

    Args:
        bundle: The bundle that scored the rows.
        request_ids: The request ids of the rows, in order.
        scores: The result of `Bundle.score` for the rows.
        headers: `DecodedRecords.headers` of the rows.
    """
    encode = msgspec.json.encode
    records: list[Content] = [
        (prediction.request_id.encode(), encode(prediction), None)
        for prediction in predictions(bundle, request_ids, scores)
    ]
    if headers:
        for row, sent in headers.items():
            key, value, _ = records[row]
            records[row] = key, value, sent
    return records


def dead_letter(
    record: Record, reason: str, outcome: bytes | None = None, *, limits: Limits = NO_LIMITS
) -> Content:
    """Build a dead letter: the unchanged value; origin and reason are in the headers.

    Its key is the record's request_id, so that whoever sent it can find it; if that cannot be
    read, it is the record's key. A record that is too large is not repeated; the header `bytes`
    then holds its size, and an outcome that is too large even alone is null. Of the record's own
    headers only the trace context is passed on: others could be taken for those of the
    rejection.

    Args:
        record: The record as it was sent.
        reason: Why it was rejected.
        outcome: The outcome as JSON, of a message of which only that was rejected.
        limits: The largest dead letter.
    """
    if len(record.value or b"") > LARGEST_COMPRESSED:
        reason = f"more than {LARGEST_COMPRESSED} bytes once it is decompressed"
    value, request_id = record.value, request_id_of(record.value)
    key = record.key if request_id is None else request_id.encode()
    rejection = Rejection(
        reason,
        record.topic,
        record.partition,
        record.offset,
        outcome=outcome,
        key=None if key == record.key else record.key or b"",
    )
    trace = trace_context.trace_headers(record.headers) if record.headers else []
    size = len(key or b"") + len(record.key or b"") + len(value or b"")
    largest = limits.letter - MAX_LETTER_HEADERS
    if size + len(outcome or b"") > largest:
        reason = f"{reason} (too large to be repeated here)"
        if largest < 0:  # even for a reason; a character of it takes at most four bytes
            reason, trace = reason[: (limits.letter - LETTER_PLACE) // 4], []
        if outcome is not None and len(outcome) > largest:
            outcome = b"null"
        rejection = rejection._replace(reason=reason, size=size, key=None, outcome=outcome)
        key = value = None
    return key, value, [*rejection.to_headers(), *trace]
