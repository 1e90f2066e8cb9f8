"""Prints an explanation of a prediction as text."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ops.explain import (
    TOLERANCE,
    Contributions,
    Explanation,
    KnownOutcome,
    Message,
    Model,
    Place,
    Recomputed,
    Value,
    value_text,
)
from utils import messages
from utils.metrics import Comparison, Metrics
from utils.model_store.manifest import MemoryRecord
from utils.values import shown


def show(found: Explanation, console: Console) -> None:
    """Print an explanation."""
    say = _Lines(console)
    say("request", f"{found.request_id!r}, from {found.source}")
    if (found.sent or 0) > 1:
        say("", f"sent {found.sent} times; this is about the latest")
    _show_message(say, console, found.message)
    _show_predictions(say, found)
    _show_outcome(say, found.outcome)
    if (found.outcomes or 0) > 1:
        say("", f"the latest of {found.outcomes} records on {messages.OUTCOMES}")
    if found.rejected_outcome is not None:
        say("rejected", f"the outcome inside the message, {found.rejected_outcome!r}, is no class")
    if found.model is not None:
        _show_model(say, found.model)
    if found.contributions is not None and found.recomputed is not None:
        _show_contributions(say, console, found.contributions, found.recomputed)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, name: str, text: str) -> None:
        self._console.print(f"[bold]{name:<12}[/]{escape(text)}", highlight=False, soft_wrap=True)


def _show_message(say: _Lines, console: Console, message: Message | None) -> None:
    if message is None:
        say("message", "none is known")
    elif message.values is None:
        rejected = message.rejected and f"rejected: {message.rejected}"
        why = rejected or "its values are no longer known"
        say("message", f"{_at(messages.APP_MESSAGES, message)}: {why}")
    else:
        say("message", _at(messages.APP_MESSAGES, message))
        _show_values(console, message.details)


def _show_values(console: Console, values: Sequence[Value]) -> None:
    table = Table(caption="lenient: written in another way than in the data set")
    for heading in ("column", "sent", "understood", ""):
        table.add_column(heading)
    for value in values:
        sent = "(not sent)" if value.sent is UNSET else shown(value.sent)
        kind = "" if value.kind == "known" else value.kind
        read = "" if kind == "as sent" else value_text(value.read)
        table.add_row(escape(value.column), escape(sent), escape(read), kind)
    console.print(table)


def _show_predictions(say: _Lines, found: Explanation) -> None:
    if not found.predictions:
        say("prediction", "none")
    for line in found.gone:
        say("", line)
    for each in found.predictions:
        name = "prediction" if each is found.answer else "(another)"
        decided = "" if each.label is UNSET else f"{each.prediction} ({each.label}), "
        say(
            name,
            f"{decided}probability {each.probability!r}, by model {each.model_id}; "
            f"{_at(messages.PREDICTIONS, each)}",
        )
    if found.predictions and found.message is not None and found.answer is None:
        say("", "none of them answers the latest message")


def _show_outcome(say: _Lines, outcome: KnownOutcome | None) -> None:
    if outcome is None:
        say("outcome", "not known yet")
    elif outcome.partition is None or outcome.offset is None or outcome.timestamp is None:
        say("outcome", f"{outcome.outcome}, inside the message")
    else:
        place = Place(outcome.partition, outcome.offset, outcome.timestamp)
        say("outcome", f"{outcome.outcome}, {_at(messages.OUTCOMES, place)}")


def _show_model(say: _Lines, model: Model) -> None:
    if model.absent:
        why = "NOT IN THIS HOME: only the log knows it (was the home restored from a backup?)"
        say("model", f"{model.model_id}, {why}")
        return
    accepted = {True: "accepted", False: "refused", None: "not in the history"}[model.accepted]
    parent = f"parent {model.parent_id}" if model.parent_id else "no parent"
    say("model", f"{model.model_id}, {parent}, made {model.created}, {accepted}")
    if model.pruned:
        say("", "PRUNED: its bundle was deleted, so no contributions; the rest is from the history")
    read = [
        f"{topic}-{number} up to {end}"
        for topic, partitions in (model.offsets or {}).items()
        for number, end in partitions.items()
    ]
    base = str(model.base_data_sha256)[:12]
    say("trained on", f"{model.rows} rows: data set {base}..., {', '.join(read) or 'no messages'}")
    for line in _weights(model.memory):
        say("", line)
    if model.metrics is not None:
        for name, metrics in (
            ("its figures", model.metrics.challenger),
            ("its parent's", model.metrics.champion),
        ):
            if metrics is not None:
                say(name, _figures(metrics))
    if model.gate is not None:
        say("gate", _figures(model.gate))


def _weights(memory: MemoryRecord | None) -> list[str]:
    """How much each row counts."""
    if memory is None:
        return []
    if not memory.members:
        return ["every row counts alike"]
    sharpness = f"then all raw scores times {memory.sharpness:.2f}"
    members = [
        f"{sum(one.weights):.0%} of a model of {one.params['num_leaves']} leaves, in which "
        + (f"a row of {one.half_life:,} outcomes ago counts half" if one.half_life else "all count")
        for one in memory.members
    ]
    first = f"mostly {memory.in_words()} of {memory.outcomes:,}; a row's weight is the sum of"
    return [first, *members, sharpness]


def _figures(figures: Metrics | Comparison) -> str:
    named = msgspec.structs.asdict(figures).items()
    return ", ".join(
        f"{name} {f'{value:.6g}' if isinstance(value, float) else value}" for name, value in named
    )


def _show_contributions(
    say: _Lines, console: Console, parts: Contributions, again: Recomputed
) -> None:
    table = Table(caption=f"what speaks for {escape(parts.of)} (+) and against it (-)")
    for heading in ("feature", "value", "log-odds"):
        table.add_column(heading, justify="right" if heading == "log-odds" else "left")
    for row in parts.features:
        table.add_row(escape(row.name), escape(value_text(row.value)), f"{row.contribution:+.6f}")
    table.add_section()
    table.add_row("base value", "", f"{parts.base_value:+.6f}")
    table.add_row("sum", "", f"{parts.sum:+.6f}")
    console.print(table)
    agrees = "as predicted" if parts.adds_up else "NOT what the model predicts"
    say("adds up", f"the sum gives probability {parts.probability!r}, {agrees} (to {TOLERANCE})")
    same = "the same bits" if again.same_bits else "NOT the same bits"
    say("recomputed", f"{again.probability!r}, {same} as in the prediction's record")


def _at(topic: str, place: Place) -> str:
    then = datetime.fromtimestamp(place.timestamp / 1000, UTC).isoformat(timespec="milliseconds")
    return f"{topic}-{place.partition} offset {place.offset}, {then}"
