"""Shows the records that could not be used, and sends them again once mended.

    python -m ops dead-letters list
    python -m ops dead-letters show OFFSET > record.json
    python -m ops dead-letters resend OFFSET --value record.json
    python -m ops dead-letters resend OFFSET [OFFSET ...]
    python -m ops dead-letters resend --all

What has to be mended is either the record or what refuses it:

- The record is wrong (not JSON, text where a number belongs): `show` writes its bytes into
  a file; change them, and `resend OFFSET --value FILE` sends the file instead.
- The pipeline is wrong (a column of pipeline.toml that should be a category; a class the
  model did not know): change pipeline.toml, make the model anew (`initialize.py --force`;
  running predictors load it), then `resend` the bytes as they are.

A record goes back to the topic and partition where it was rejected, with its key, at the
end; if it is rejected again, that makes a new dead letter. What was sent again stays on
`dead_letters`, marked so, and is not sent a second time: `--all` passes it over, and its
offset needs `--again`.
"""

from collections.abc import Iterator

import msgspec
from rich.table import Table

from utils import messages
from utils.errors import UserError
from utils.kafka_io import Outgoing, Record, TransactionalSender
from utils.kafka_io.log_scan import bounds, only, scan
from utils.messages import Rejection
from utils.settings import Kafka

#: What the list shows for a record without a value.
NULL = "(tombstone)"
#: How much of a key or value the list shows, bytes.
SHOWN = 60
#: How much is sent in one transaction: records, and bytes.
AT_ONCE, BYTES_AT_ONCE = 500, 4 * 1024 * 1024
#: Its transactions' name: two that send again at the same time would send twice.
WRITER = "dead-letters"


def read_letters(kafka: Kafka) -> Iterator[Record]:
    """Every record of `dead_letters`, oldest first."""
    return scan(kafka, messages.DEAD_LETTERS, bounds(kafka, messages.DEAD_LETTERS))


def read_resent_offsets(kafka: Kafka) -> set[int]:
    """The offsets on `dead_letters` of what was sent again, as `retrain_topic` tells."""
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
    """The record as it was rejected: the letter, or what was too large to be repeated in it.

    Raises:
        UserError: It has expired where it was.
    """
    place = Rejection.from_headers(letter.headers)
    if place is None or place.size is None:
        return letter
    _, topic, partition, offset, _ = place
    within = only(partition, bounds(kafka, topic))
    first, end = within.get(partition, (0, 0))
    if first <= offset < end:
        there = scan(kafka, topic, within | {partition: (offset, offset + 1)})
        for record in there:
            if record.offset == offset:
                return record
    raise UserError(f"offset {offset} of {topic}-{partition} is not there any more")


def table(kafka: Kafka) -> Table | None:
    """The records as a table, to be printed without markup; None if there is none."""
    again = read_resent_offsets(kafka)
    shown = Table("offset", "rejected at", "reason", "key", "value", "")
    for letter in read_letters(kafka):
        place = Rejection.from_headers(letter.headers)
        where = _where(place) if place else "not by a predictor"
        reason = place.reason if place else ""
        value = _abbreviate(letter.value, f"({place.size} bytes)" if place and place.size else NULL)
        mark = "sent again" if letter.offset in again else ""
        shown.add_row(str(letter.offset), where, reason, _abbreviate(letter.key, ""), value, mark)
    return shown if shown.row_count else None


def _where(place: Rejection) -> str:
    return f"{place.topic}-{place.partition} {place.offset}"


def _abbreviate(content: bytes | None, instead: str) -> str:
    if content is None:
        return instead
    return repr(content[:SHOWN])[2:-1] + (" ..." if len(content) > SHOWN else "")


def content(kafka: Kafka, offset: int) -> bytes:
    """One record's bytes, as they were sent.

    Raises:
        UserError: There is no such record, or it has expired where it was.
    """
    (letter,) = _find_letters(kafka, {offset})
    return original_record(kafka, letter).value or b""


def _find_letters(kafka: Kafka, offsets: set[int]) -> list[Record]:
    found = [letter for letter in read_letters(kafka) if letter.offset in offsets]
    if missing := offsets - {letter.offset for letter in found}:
        raise UserError(f"{messages.DEAD_LETTERS} has no record {min(missing)}")
    return found


def resend(kafka: Kafka, offsets: set[int], *, value: bytes | None = None, again: bool) -> int:
    """Send records back to where they were rejected, and note on the log that they were.

    Args:
        kafka: How to reach the cluster.
        offsets: On `dead_letters`; none for all that were not sent again yet.
        value: What to send in the place of the one record that is named.
        again: Also what was sent again already.

    Returns:
        How many were sent.

    Raises:
        UserError: A record that is not there, does not say where it comes from, or was sent
            again already.
    """
    with TransactionalSender(kafka, WRITER) as writer:
        done = read_resent_offsets(kafka)  # once nobody else can add to it
        chosen = iter(_find_letters(kafka, offsets)) if offsets else read_letters(kafka)
        if (twice := offsets & done) and not again:
            raise UserError(f"record {min(twice)} was sent again already; --again if need be")
        left = (
            x
            for x in chosen
            if offsets or (x.offset not in done and Rejection.from_headers(x.headers))
        )
        count = 0
        for some in _split_into_transactions(left):
            writer.send(_records_to_send(kafka, some, value))
            count += len(some)
    return count


def _split_into_transactions(found: Iterator[Record]) -> Iterator[list[Record]]:
    """As many as go into one transaction."""
    some: list[Record] = []
    size = 0
    for letter in found:
        some.append(letter)
        place = Rejection.from_headers(letter.headers)
        size += (place and place.size) or len(letter.value or b"")
        if len(some) >= AT_ONCE or size >= BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _records_to_send(kafka: Kafka, some: list[Record], value: bytes | None) -> list[Outgoing]:
    """The records to send, and the one that tells of them."""
    found = []
    for letter in some:
        place = Rejection.from_headers(letter.headers)
        if place is None:
            raise UserError(f"record {letter.offset} does not say where it comes from")
        record = original_record(kafka, letter)
        sent = record.value if value is None else value
        found.append(Outgoing(place.topic, place.partition, record.key, sent))
    told = messages.Resent(offsets=[letter.offset for letter in some])
    found.append(Outgoing(messages.RETRAIN_TOPIC, 0, None, msgspec.json.encode(told)))
    return found
