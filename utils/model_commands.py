"""The model store's command line: `python -m utils.model_store`."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from utils import kafka_io, process
from utils.bundles import BundleError, ModelStoreError
from utils.kafka_io import KafkaUnavailable
from utils.messages import Rollback
from utils.model_store import ModelStore
from utils.process import UserError
from utils.settings import Settings


def announce_rollback(settings: Settings, model_id: int, from_id: int | None, reason: str) -> None:
    """Tell every running predictor to swap to `model_id`.

    Raises:
        ModelStoreError: It could not be sent; they read current.json when they start.
    """
    try:
        kafka_io.announce(
            settings, Rollback(model_id=model_id, from_model_id=from_id, reason=reason)
        )
    except KafkaUnavailable as error:
        raise ModelStoreError(
            f"bundle {model_id} serves from the next start on, but running predictors could "
            f"not be told (run this again to tell them): {error}"
        ) from None


def _list(settings: Settings, arguments: argparse.Namespace) -> None:
    """Every bundle ever made."""
    store = ModelStore(settings.models_dir)
    there = store.on_disk()
    try:
        current = store.current_id()
    except BundleError as error:
        current = None
        print(f"model_store: {error}", file=sys.stderr)
    table = Table(caption="log loss on the validation rows")
    for heading in ("model", "parent", "created", "accepted", "serving"):
        table.add_column(heading, justify="right" if heading in ("model", "parent") else "left")
    for heading in ("log loss", "parent's", "rows", "on disk"):
        table.add_column(heading, justify="left" if heading == "on disk" else "right")
    for line in store.history():
        if "model_id" in line:
            table.add_row(*_cells(line, current, there))
    _wide(Console()).print(table)


def _cells(line: Mapping[str, Any], current: int | None, there: Sequence[int]) -> list[str]:
    model_id, metrics = line["model_id"], line.get("metrics") or {}

    def log_loss(side: str) -> str:
        value = (metrics.get(side) or {}).get("log_loss")
        return "" if value is None else f"{value:.4f}"

    return [
        str(model_id),
        str(line.get("parent_id") or ""),
        str(line.get("created", ""))[:16].replace("T", " "),
        "yes" if line["accepted"] else "refused",
        "serving" if model_id == current else "",
        log_loss("challenger"),
        log_loss("champion"),
        str(line.get("rows") or ""),
        "yes" if model_id in there else "pruned",
    ]


def _show(settings: Settings, arguments: argparse.Namespace) -> None:
    """A bundle's manifest, once the bundle is verified."""
    store, model_id = ModelStore(settings.models_dir), arguments.model_id
    if model_id in store.on_disk():
        shown = store.load(model_id).manifest
    else:
        lines = [line for line in store.history() if line.get("model_id") == model_id]
        if not lines:
            raise ModelStoreError(f"there never was a bundle {model_id} in {store.path}")
        shown = lines[0]
        print(f"bundle {model_id} was pruned; the history remembers:", file=sys.stderr)
    print(json.dumps(shown, indent=2, ensure_ascii=False))


def _rollback(settings: Settings, arguments: argparse.Namespace) -> None:
    """Let an older bundle serve, here and in every running predictor."""
    model_id = arguments.model_id
    from_id = ModelStore(settings.models_dir).rollback(model_id, arguments.reason)
    announce_rollback(settings, model_id, from_id, arguments.reason)
    was = "as before" if from_id == model_id else f"instead of {from_id}" if from_id else "now"
    print(f"bundle {model_id} serves {was}; running predictors have been told")


def _why(settings: Settings, arguments: argparse.Namespace) -> int:
    """Explain a prediction: message, model, and what each feature contributed."""
    from train import explain  # no other module in utils knows `train`

    told = explain.why(settings, arguments.request_id, log=arguments.log)
    if arguments.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        explain.show(told, _wide(Console()))
    return 0


def _replay(settings: Settings, arguments: argparse.Namespace) -> int:
    """Score the log again: the same bits?"""
    from train import reproduce

    with _progress() as bar:
        task = bar.add_task("scoring again", total=None)
        try:
            replayed = reproduce.replay(
                settings,
                first=arguments.first,
                last=arguments.last,
                partition=arguments.partition,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except reproduce.Difference as difference:
            raise UserError(f"DIFFERENT: {difference}") from None
    by_model = ", ".join(f"{n} by model {m}" for m, n in sorted(replayed.reproduced.items()))
    count = sum(replayed.reproduced.values())
    print(f"{count} predictions reproduced bit for bit" + (f": {by_model}" if by_model else ""))
    for model_id, number in sorted(replayed.pruned.items()):
        print(f"{number} cannot be replayed: model {model_id} was pruned")
    if replayed.rejected:
        print(f"{replayed.rejected} messages were rejected, so have no prediction")
    if replayed.unanswered:
        print(f"{replayed.unanswered} messages at the end have no prediction yet")
    for note in replayed.notes:
        print(note)
    return 0


def _rebuild(settings: Settings, arguments: argparse.Namespace) -> int:
    """Train a model again from its manifest and the log: the same bytes?"""
    from train import reproduce

    differences = reproduce.rebuild(settings, arguments.model_id)
    if differences:
        raise UserError(f"model {arguments.model_id} came out DIFFERENT: {'; '.join(differences)}")
    print(f"model {arguments.model_id} was trained again: model.txt and features.json are the same")
    return 0


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _wide(console: Console) -> Console:
    if not console.is_terminal:
        console.width = 120  # whole lines for grep
    return console


def _parser() -> argparse.ArgumentParser:
    parser = process.parser(
        "The models: which there are, what is in one, go back to one; why a prediction came "
        "out as it did, and whether it all comes out the same again."
    )
    parser.prog = "python -m utils.model_store"
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int | None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.set_defaults(run=run)
        return added

    command("list", _list)
    for name, run in (("show", _show), ("rollback", _rollback), ("rebuild", _rebuild)):
        command(name, run).add_argument(
            "model_id", type=int, metavar="N", help="the bundle's number"
        )
    commands.choices["rollback"].add_argument(
        "--reason", default="asked for by hand", help="kept in the history (%(default)s)"
    )
    why = command("why", _why)
    why.add_argument("request_id", metavar="REQUEST_ID", help="whose prediction")
    why.add_argument("--json", action="store_true", help="everything, as JSON")
    why.add_argument(
        "--log", action="store_true", help="read the log even if the message store has it"
    )
    replay = command("replay", _replay)
    offset = process.at_least(0)
    for option, name, text in (
        ("--from", "first", "the first offset of app_messages (the log's first)"),
        ("--to", "last", "the last one, inclusive (the log's last)"),
        ("--partition", "partition", "only this one (all)"),
    ):
        replay.add_argument(option, dest=name, type=offset, metavar="N", help=text)
    replay.set_defaults(first=0)
    return parser


def main() -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args()
    return process.run(
        lambda settings: arguments.run(settings, arguments),
        errors=[ModelStoreError, KafkaUnavailable],
    )
