"""What becomes of records: rows to score, answers, rejections.

The predictor and the replay of what it did both use this, and so agree.
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

#: The most records of one batch: small enough that a transaction is short, large enough for
#: all that a fetch brings (4 MiB are some 12,000 rows of Adult). Of one that is split, the
#: parts are unequal, and while the small one is decoded and scored, somebody waits for work.
MAX_RECORDS = 16_000
#: The most bytes of key and value that a record of `dead_letters` repeats; the rest of what
#: the topic takes is for the headers.
MAX_REPEATED = MAX_MESSAGE_BYTES - 64 * 1024


@dataclass
class DecodedRecords:
    """What consecutive records of one partition came to.

    Attributes:
        rows: Those to be scored, in order.
        request_ids: Theirs.
        known: The offsets whose outcome is known.
        rejected: What goes to `dead_letters`.
    """

    rows: list[Row] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    rejected: list[Content] = field(default_factory=list)


def decode_messages(records: Sequence[Record], bundle: Bundle) -> DecodedRecords:
    """Records of `app_messages`, as the bundle's model wants them."""
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
    """Records of `outcomes`."""
    classes, decoded = bundle.features.classes, DecodedRecords()
    for record in records:
        try:
            outcome = _decode_outcome(record.value).outcome
            if label_text(outcome) not in classes:
                raise BadRecord(f"{outcome!r:.80} is none of the classes")
        except BadRecord as reason:
            decoded.rejected.append(dead_letter(record, str(reason)))
        else:
            decoded.known.append(record.offset)
    return decoded


_decode_outcome = messages.Decoder(messages.Outcome)


def prediction_records(
    bundle: Bundle, request_ids: Sequence[str], scores: np.ndarray
) -> list[Content]:
    """The records of `predictions`.

    Args:
        bundle: The model that scored.
        request_ids: Of the rows, in order.
        scores: As `Bundle.score` returns them for the rows.
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
    """What goes to `dead_letters`: bytes untouched, where it was and why in headers.

    One that is too large to be repeated stays where it is; the header `bytes` says so.
    """
    key, value = record.key, record.value
    rejection = Rejection(reason, record.topic, record.partition, record.offset)
    size = len(key or b"") + len(value or b"")
    if size > MAX_REPEATED:
        reason = f"{reason} (too large to be repeated here)"
        rejection = rejection._replace(reason=reason, size=size)
        key = value = None
    return key, value, rejection.to_headers()
