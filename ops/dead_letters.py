"""Shows rejected records, and sends them again once their cause is corrected.

    python -m ops dead-letters list
    python -m ops dead-letters show OFFSET > record.json
    python -m ops dead-letters resend OFFSET --value record.json
    python -m ops dead-letters resend OFFSET [OFFSET ...]
    python -m ops dead-letters resend --all

There are two causes:

- The record is wrong (not JSON, text instead of a number): `show` writes its bytes to a
  file. Correct them; `resend OFFSET --value FILE` sends the file instead.
- The pipeline is wrong (a column of pipeline.toml that should be a category, a class that
  the model does not know): correct pipeline.toml, train a new model with
  `initialize.py --force`, which running predictors load, then `resend` the bytes as they are.

A record is appended to the topic and partition where it was rejected, with its key and, of
its headers, those of its trace. If it is rejected again, that is a new dead letter. Of a
message that has its prediction, because only its outcome was rejected, the outcome alone is
sent, to `outcomes`. Records that were sent again stay on `dead_letters`, are marked in the
list, and are not sent twice: `--all` skips them, and their offsets need `--again`.
"""

from collections.abc import Iterator

import msgspec
from rich.table import Table

from utils import messages, trace_context
from utils.errors import UserError
from utils.kafka_io import Outgoing, Record, TransactionalSender
from utils.kafka_io.log_scan import bounds, narrow, scan
from utils.message_decoder import request_id_of
from utils.messages import Rejection
from utils.settings import Kafka

#: Shown in the list for a record without a value.
NULL = "(tombstone)"
#: How many bytes of a key or value the list shows.
SHOWN = 60
#: The most records and bytes in one transaction.
MAX_RECORDS, MAX_BYTES = 500, 4 * 1024 * 1024
#: The transactional id. It keeps two processes from sending the same records at once.
TRANSACTIONAL_ID = "dead-letters"


def read_letters(kafka: Kafka) -> Iterator[Record]:
    """Every record of `dead_letters`, oldest first."""
    return scan(kafka, messages.DEAD_LETTERS, bounds(kafka, messages.DEAD_LETTERS))


def read_resent_offsets(kafka: Kafka) -> set[int]:
    """The offsets on `dead_letters` of records sent again, according to `retrain_topic`."""
    found: set[int] = set()
    for record in scan(kafka, messages.RETRAIN_TOPIC, bounds(kafka, messages.RETRAIN_TOPIC)):
        try:
            event = messages.decode_event(record.value)
        except messages.BadRecord:
            continue
        if isinstance(event, messages.Resent):
            found.update(event.offsets)
    return found


def original_record(kafka: Kafka, letter: Record) -> Record:
    """The record as it was rejected: the letter, or the original if that was too large.

    Raises:
        UserError: The original has expired.
    """
    rejection = Rejection.from_headers(letter.headers)
    if rejection is None or rejection.size is None:
        return letter
    topic, partition, offset = rejection.topic, rejection.partition, rejection.offset
    within = narrow(partition, bounds(kafka, topic))
    first, end = within.get(partition, (0, 0))
    if first <= offset < end:
        records = scan(kafka, topic, within | {partition: (offset, offset + 1)})
        for record in records:
            if record.offset == offset:
                return record
    raise UserError(f"offset {offset} of {topic}-{partition} is no longer in the log")


def table(kafka: Kafka) -> Table | None:
    """The records as a table, to be printed without markup; None if there are none."""
    resent = read_resent_offsets(kafka)
    shown = Table("offset", "rejected at", "reason", "key", "value", "")
    for letter in read_letters(kafka):
        rejection = Rejection.from_headers(letter.headers)
        origin = _origin(rejection) if rejection else "not written by a predictor"
        reason = rejection.reason if rejection else ""
        value = _abbreviate(
            letter.value, f"({rejection.size} bytes)" if rejection and rejection.size else NULL
        )
        mark = "sent again" if letter.offset in resent else ""
        shown.add_row(str(letter.offset), origin, reason, _abbreviate(letter.key, ""), value, mark)
    return shown if shown.row_count else None


def _origin(rejection: Rejection) -> str:
    return f"{rejection.topic}-{rejection.partition} {rejection.offset}"


def _abbreviate(content: bytes | None, instead: str) -> str:
    if content is None:
        return instead
    return repr(content[:SHOWN])[2:-1] + (" ..." if len(content) > SHOWN else "")


def content(kafka: Kafka, offset: int) -> bytes:
    """One record's bytes, as they were sent.

    Raises:
        UserError: There is no such record, or the original has expired.
    """
    (letter,) = _find_letters(kafka, {offset})
    return original_record(kafka, letter).value or b""


def _find_letters(kafka: Kafka, offsets: set[int]) -> list[Record]:
    found = [letter for letter in read_letters(kafka) if letter.offset in offsets]
    if missing := offsets - {letter.offset for letter in found}:
        raise UserError(f"{messages.DEAD_LETTERS} has no record {min(missing)}")
    return found


def resend(
    kafka: Kafka, offsets: set[int], *, home: str, value: bytes | None = None, again: bool
) -> int:
    """Send records again to where they were rejected, and record that on `retrain_topic`.

    Args:
        kafka: How to reach the cluster.
        offsets: Offsets on `dead_letters`; empty for all records not sent again yet.
        home: The id of the home, which signs the event.
        value: The bytes to send instead of the one record in `offsets`.
        again: Also send records that were sent again before.

    Returns:
        The number of records sent.

    Raises:
        UserError: A record does not exist, does not say where it comes from, or was sent
            again before.
    """
    with TransactionalSender(kafka, TRANSACTIONAL_ID) as writer:
        done = read_resent_offsets(kafka)  # no other process can add to it now
        chosen = iter(_find_letters(kafka, offsets)) if offsets else read_letters(kafka)
        if (twice := offsets & done) and not again:
            raise UserError(
                f"record {min(twice)} was sent again already; --again sends it once more"
            )
        pending = (
            x
            for x in chosen
            if offsets or (x.offset not in done and Rejection.from_headers(x.headers))
        )
        count = 0
        for letters in _split_into_transactions(pending):
            writer.send(_records_to_send(kafka, letters, home, value))
            count += len(letters)
    return count


def _split_into_transactions(found: Iterator[Record]) -> Iterator[list[Record]]:
    """Split records into lists, one for each transaction."""
    letters: list[Record] = []
    size = 0
    for letter in found:
        letters.append(letter)
        rejection = Rejection.from_headers(letter.headers)
        size += (rejection and rejection.size) or len(letter.value or b"")
        if len(letters) >= MAX_RECORDS or size >= MAX_BYTES:
            yield letters
            letters, size = [], 0
    if letters:
        yield letters


def _records_to_send(
    kafka: Kafka, letters: list[Record], home: str, value: bytes | None
) -> list[Outgoing]:
    """The records to send, and the record that announces them."""
    found = []
    for letter in letters:
        rejection = Rejection.from_headers(letter.headers)
        if rejection is None:
            raise UserError(f"record {letter.offset} does not say where it comes from")
        record = original_record(kafka, letter)
        found.append(_record_to_send(rejection, record, value))
    announcement = messages.Resent(offsets=[letter.offset for letter in letters])
    found.append(Outgoing(messages.RETRAIN_TOPIC, 0, *messages.encode_event(announcement, home)))
    return found


def _record_to_send(rejection: Rejection, record: Record, value: bytes | None) -> Outgoing:
    """The record as it was sent, or its outcome alone if the message has its prediction."""
    key = record.key if rejection.key is None else rejection.key or None
    trace = trace_context.trace_headers(record.headers) or None
    if rejection.outcome is None or value is not None:
        sent = record.value if value is None else value
        return Outgoing(rejection.topic, rejection.partition, key, sent, trace)
    outcome = messages.Outcome(
        request_id_of(record.value) or "", msgspec.json.decode(rejection.outcome)
    )
    encoded = msgspec.json.encode(outcome)
    return Outgoing(messages.OUTCOMES, rejection.partition, key, encoded, trace)
