"""Turns records into rows to score, predictions and dead letters.

The predictor and the replay of its predictions share this module, so their results agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from utils import messages
from utils.feature_tools import Row
from utils.kafka_io import MAX_MESSAGE_BYTES, Content, Record
from utils.messages import BadRecord, Rejection, label_text
from utils.model_store import Bundle, predicted_codes

#: The most records of one batch. Small enough for short transactions, large enough for a whole
#: fetch (4 MiB hold about 12,000 rows of Adult): splitting a fetch yields unequal batches, and
#: a worker idles while the smaller one is decoded and scored.
MAX_RECORDS = 16_000
#: The most bytes of key and value that a dead letter repeats; the rest of the topic's
#: max.message.bytes is for the headers.
MAX_REPEATED = MAX_MESSAGE_BYTES - 64 * 1024


@dataclass
class DecodedRecords:
    """The result of decoding consecutive records of one partition.

    Attributes:
        rows: The rows to score, in order.
        request_ids: The request ids of the rows.
        known: The offsets of records with a known outcome.
        rejected: The records to send to `dead_letters`.
    """

    rows: list[Row] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    rejected: list[Content] = field(default_factory=list)


def decode_messages(records: Sequence[Record], bundle: Bundle) -> DecodedRecords:
    """Decode and check records of `app_messages` for the bundle's model."""
    decode = bundle.decoder
    usable, found, rejected = [], [], []
    for record in records:
        try:
            message = decode(record.value)
        except BadRecord as reason:
            rejected.append(dead_letter(record, str(reason)))
        else:
            usable.append(record)
            found.append(message)
    rows = [message.data for message in found]
    classes = bundle.features.classes
    known = [
        record.offset
        for record, row in zip(usable, rows, strict=True)
        if row.outcome is not None and label_text(row.outcome) in classes
    ]
    return DecodedRecords(rows, [message.request_id for message in found], known, rejected)


def decode_outcomes(records: Sequence[Record], bundle: Bundle) -> DecodedRecords:
    """Decode and check records of `outcomes`."""
    classes, decoded = bundle.features.classes, DecodedRecords()
    for record in records:
        try:
            outcome = _decode_outcome(record.value).outcome
            if label_text(outcome) not in classes:
                raise BadRecord(f"{outcome!r:.80} is not one of the classes")
        except BadRecord as reason:
            decoded.rejected.append(dead_letter(record, str(reason)))
        else:
            decoded.known.append(record.offset)
    return decoded


_decode_outcome = messages.Decoder(messages.Outcome)


def prediction_records(
    bundle: Bundle, request_ids: Sequence[str], scores: np.ndarray
) -> list[Content]:
    """Build the records of `predictions`.

    Args:
        bundle: The bundle that scored the rows.
        request_ids: The request ids of the rows, in order.
        scores: The result of `Bundle.score` for the rows.
    """
    encode, labels, model_id = msgspec.json.encode, bundle.features.classes, bundle.model_id
    return [
        (
            name.encode(),
            encode(messages.Prediction(name, code, labels[code], probability, model_id)),
            None,
        )
        for name, code, probability in zip(
            request_ids, predicted_codes(scores).tolist(), scores.tolist(), strict=True
        )
    ]


def dead_letter(record: Record, reason: str) -> Content:
    """Build a dead letter: unchanged key and value; origin and reason are in the headers.

    A record that is too large is not repeated; the header `bytes` then holds its size.
    """
    key, value = record.key, record.value
    rejection = Rejection(reason, record.topic, record.partition, record.offset)
    size = len(key or b"") + len(value or b"")
    if size > MAX_REPEATED:
        reason = f"{reason} (too large to be repeated here)"
        rejection = rejection._replace(reason=reason, size=size)
        key = value = None
    return key, value, rejection.to_headers()
