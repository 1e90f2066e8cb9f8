"""Shows the records that could not be used, and sends them again once mended.

    python -m utils.dead_letters list
    python -m utils.dead_letters resend OFFSET [OFFSET ...]
    python -m utils.dead_letters resend OFFSET --value mended.json
    python -m utils.dead_letters resend --all

A record goes back to the topic and partition where it was rejected, with its key. What is
sent again stays on `dead_letters`: the log forgets nothing.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from utils import messages, process
from utils.kafka_io import KafkaError, KafkaUnavailable, Outgoing, Sender
from utils.log_scan import bounds, scan
from utils.settings import Settings

#: How much of a value the list shows, characters.
SHOWN = 60


def letters(settings: Settings) -> Iterator[Any]:
    """Every record of `dead_letters`, oldest first."""
    kafka = settings.kafka
    return scan(kafka, messages.DEAD_LETTERS, bounds(kafka, messages.DEAD_LETTERS))


def origin(letter: Any) -> tuple[str, int, int, str]:
    """Where a record was rejected, and why: (topic, partition, offset, reason).

    Raises:
        UserError: It does not have the headers that the predictor gives.
    """
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in letter.headers}
    try:
        return (
            headers["topic"],
            int(headers["partition"]),
            int(headers["offset"]),
            headers["reason"],
        )
    except (KeyError, ValueError):
        raise process.UserError(
            f"record {letter.offset} of {messages.DEAD_LETTERS} does not say where it comes from"
        ) from None


def show(arguments: argparse.Namespace, settings: Settings) -> None:
    """Print the records as a table."""
    table = Table("offset", "rejected at", "reason", "key", "value")
    count = 0
    for letter in letters(settings):
        topic, partition, offset, reason = origin(letter)
        value = "(tombstone)" if letter.value is None else repr(letter.value[:SHOWN])[2:-1]
        more = "" if letter.value is None or len(letter.value) <= SHOWN else " ..."
        key = "" if letter.key is None else repr(letter.key[:SHOWN])[2:-1]
        table.add_row(
            str(letter.offset), f"{topic}-{partition} {offset}", reason, key, value + more
        )
        count += 1
    console = Console()
    console.print(table if count else "no record was rejected", markup=False)


def resend(arguments: argparse.Namespace, settings: Settings) -> None:
    """Send records back to where they were rejected."""
    wanted = set(arguments.offsets)
    if bool(wanted) == arguments.all:
        raise process.UserError("say which: offsets from `list`, or --all")
    if arguments.value is not None and len(wanted) != 1:
        raise process.UserError("--value mends one record: name its offset alone")
    try:
        mended = None if arguments.value is None else arguments.value.read_bytes()
    except OSError as error:
        raise process.UserError(f"cannot read {arguments.value}: {error.strerror}") from None
    chosen = [letter for letter in letters(settings) if arguments.all or letter.offset in wanted]
    if missing := wanted - {letter.offset for letter in chosen}:
        raise process.UserError(f"{messages.DEAD_LETTERS} has no record {min(missing)}")
    with Sender(settings.kafka) as sender:
        futures = []
        for letter in chosen:
            topic, partition, _, _ = origin(letter)
            value = letter.value if mended is None else mended
            futures.append(sender.send(Outgoing(topic, partition, letter.key, value)))
        sender.flush()
        for future in futures:
            future.get(timeout=30)
    print(f"sent {len(chosen)} again")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = process.parser(__doc__ or "")
    commands = parser.add_subparsers(required=True, metavar="list | resend")
    commands.add_parser("list", help="what was rejected, where and why").set_defaults(run=show)
    again = commands.add_parser("resend", help="send records back to where they were rejected")
    again.add_argument("offsets", nargs="*", type=int, metavar="OFFSET", help="as `list` shows")
    again.add_argument("--all", action="store_true", help="all of them")
    again.add_argument("--value", type=Path, metavar="FILE", help="send these bytes instead")
    again.set_defaults(run=resend)
    return parser.parse_args()


if __name__ == "__main__":
    chosen = arguments()
    sys.exit(process.run(partial(chosen.run, chosen), errors=[KafkaUnavailable, KafkaError]))
