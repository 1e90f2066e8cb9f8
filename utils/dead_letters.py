"""Shows the records that could not be used, and sends them again once mended.

    python -m utils.dead_letters list
    python -m utils.dead_letters show OFFSET > record.json
    python -m utils.dead_letters resend OFFSET --value record.json
    python -m utils.dead_letters resend OFFSET [OFFSET ...]
    python -m utils.dead_letters resend --all

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

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from utils import messages, process
from utils.kafka_io import KafkaError, KafkaUnavailable, Outgoing, Together
from utils.log_scan import bounds, only, scan
from utils.settings import Kafka, Settings

#: What the list shows for a record without a value.
NULL = "(tombstone)"
#: How much of a key or value the list shows, bytes.
SHOWN = 60
#: How much is sent in one transaction: records, and bytes.
AT_ONCE, BYTES_AT_ONCE = 500, 4 * 1024 * 1024
#: Its transactions' name: two that send again at the same time would send twice.
WRITER = "dead-letters"


class Origin(NamedTuple):
    """Where a record was rejected, and why; `size` only of one too large to be repeated."""

    topic: str
    partition: int
    offset: int
    reason: str
    size: int | None

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition} {self.offset}"


def letters(kafka: Kafka) -> Iterator[Any]:
    """Every record of `dead_letters`, oldest first."""
    return scan(kafka, messages.DEAD_LETTERS, bounds(kafka, messages.DEAD_LETTERS))


def sent_again(kafka: Kafka) -> set[int]:
    """The offsets on `dead_letters` of what was sent again, as `retrain_topic` tells."""
    decode, found = messages.Decoder(messages.Resent), set[int]()
    for record in scan(kafka, messages.RETRAIN_TOPIC, bounds(kafka, messages.RETRAIN_TOPIC)):
        try:
            found.update(decode(record.value).offsets)
        except messages.BadRecord:
            continue  # the others' announcements travel here too
    return found


def origin(letter: Any) -> Origin | None:
    """Where a record was rejected, and why; None if it has not the predictor's headers."""
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in letter.headers}
    try:
        return Origin(
            headers["topic"],
            int(headers["partition"]),
            int(headers["offset"]),
            headers["reason"],
            int(headers["bytes"]) if "bytes" in headers else None,
        )
    except (KeyError, ValueError):
        return None


def original(kafka: Kafka, letter: Any) -> Any:
    """The record as it was rejected: the letter, or what was too large to be repeated in it.

    Raises:
        UserError: It has expired where it was.
    """
    place = origin(letter)
    if place is None or place.size is None:
        return letter
    topic, partition, offset, *_ = place
    within = only(partition, bounds(kafka, topic))
    first, end = within.get(partition, (0, 0))
    if first <= offset < end:
        there = scan(kafka, topic, within | {partition: (offset, offset + 1)})
        for record in there:
            if record.offset == offset:
                return record
    raise process.UserError(f"offset {offset} of {topic}-{partition} is not there any more")


def show_all(arguments: argparse.Namespace, settings: Settings) -> None:
    """Print the records as a table."""
    again = sent_again(settings.kafka)
    table = Table("offset", "rejected at", "reason", "key", "value", "")
    for letter in letters(settings.kafka):
        place = origin(letter)
        where = str(place) if place else "not by a predictor"
        reason = place.reason if place else ""
        value = _shown(letter.value, f"({place.size} bytes)" if place and place.size else NULL)
        mark = "sent again" if letter.offset in again else ""
        table.add_row(str(letter.offset), where, reason, _shown(letter.key, ""), value, mark)
    # What strangers sent is shown as it is.
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(table if table.row_count else "no record was rejected")


def _shown(content: bytes | None, instead: str) -> str:
    if content is None:
        return instead
    return repr(content[:SHOWN])[2:-1] + (" ..." if len(content) > SHOWN else "")


def show(arguments: argparse.Namespace, settings: Settings) -> None:
    """Write one record's bytes."""
    (letter,) = _chosen(settings.kafka, {arguments.offset})
    sys.stdout.buffer.write(original(settings.kafka, letter).value or b"")


def _chosen(kafka: Kafka, offsets: set[int]) -> list[Any]:
    found = [letter for letter in letters(kafka) if letter.offset in offsets]
    if missing := offsets - {letter.offset for letter in found}:
        raise process.UserError(f"{messages.DEAD_LETTERS} has no record {min(missing)}")
    return found


def resend(arguments: argparse.Namespace, settings: Settings) -> None:
    """Send records back to where they were rejected, and note on the log that they were."""
    kafka, wanted = settings.kafka, set(arguments.offsets)
    if bool(wanted) == arguments.all:
        raise process.UserError("say which: offsets from `list`, or --all")
    if arguments.value is not None and len(wanted) != 1:
        raise process.UserError("--value mends one record: name its offset alone")
    try:
        mended = None if arguments.value is None else arguments.value.read_bytes()
    except OSError as error:
        raise process.UserError(f"cannot read {arguments.value}: {error.strerror}") from None
    with Together(kafka, WRITER) as writer:
        done = sent_again(kafka)  # once nobody else can add to it
        chosen = iter(_chosen(kafka, wanted)) if wanted else letters(kafka)
        if (twice := wanted & done) and not arguments.again:
            raise process.UserError(
                f"record {min(twice)} was sent again already; --again if need be"
            )
        left = (x for x in chosen if wanted or (x.offset not in done and origin(x)))
        count = 0
        for some in _portions(left):
            writer.send(_mended(kafka, some, mended))
            count += len(some)
    print(f"sent {count} again")


def _portions(found: Iterator[Any]) -> Iterator[list[Any]]:
    """As many as go into one transaction."""
    some: list[Any] = []
    size = 0
    for letter in found:
        some.append(letter)
        place = origin(letter)
        size += (place and place.size) or len(letter.value or b"")
        if len(some) >= AT_ONCE or size >= BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _mended(kafka: Kafka, some: list[Any], value: bytes | None) -> list[Outgoing]:
    """The records to send, and the one that tells of them."""
    found = []
    for letter in some:
        place = origin(letter)
        if place is None:
            raise process.UserError(f"record {letter.offset} does not say where it comes from")
        record = original(kafka, letter)
        sent = record.value if value is None else value
        found.append(Outgoing(place.topic, place.partition, record.key, sent))
    told = messages.Resent(offsets=[letter.offset for letter in some])
    found.append(Outgoing(messages.RETRAIN_TOPIC, 0, None, msgspec.json.encode(told)))
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = process.parser(__doc__ or "")
    commands = parser.add_subparsers(required=True, metavar="list | show | resend")
    commands.add_parser("list", help="what was rejected, where and why").set_defaults(run=show_all)
    one = commands.add_parser("show", help="one record's bytes, to be mended in a file")
    one.add_argument("offset", type=int, metavar="OFFSET", help="as `list` shows")
    one.set_defaults(run=show)
    again = commands.add_parser("resend", help="send records back to where they were rejected")
    again.add_argument("offsets", nargs="*", type=int, metavar="OFFSET", help="as `list` shows")
    again.add_argument("--all", action="store_true", help="all that were not sent again yet")
    again.add_argument("--value", type=Path, metavar="FILE", help="send these bytes instead")
    again.add_argument("--again", action="store_true", help="also what was sent again already")
    again.set_defaults(run=resend)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = arguments()
    sys.exit(process.run(partial(chosen.run, chosen), errors=[KafkaUnavailable, KafkaError]))
