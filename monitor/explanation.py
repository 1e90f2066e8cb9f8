"""One request, explained in text and with a picture."""

from functools import partial
from html import escape

from msgspec import UNSET
from nicegui import ui

from monitor import charts
from monitor.widgets import Chart, quiet, table
from ops.explain import Explanation, Value


def show_explanation(found: Explanation) -> None:
    """Show all that is known about a request."""
    ui.html("".join(f"<div>{line}</div>" for line in _explained(found)), sanitize=False)
    if found.contributions is not None:
        shown = found.contributions
        chart = Chart(
            f"What each feature adds to the log-odds of {shown.of}",
            f"{shown.base_value:+.3f} without any feature, {shown.sum:+.3f} with all: probability "
            f"{shown.probability:.4f}",
        )
        chart.show(
            partial(charts.contributions, shown),
            height=90 + 24 * min(len(shown.features), charts.CONTRIBUTIONS + 1),
        )
    if found.message is not None and found.message.details:
        rows = [
            (
                escape(one.column),
                escape("" if one.sent is UNSET else repr(one.sent)),
                escape(_read_as(one)),
                escape(one.kind),
            )
            for one in found.message.details
        ]
        ui.html(table(("column", "sent", "read as", "kind"), rows), sanitize=False)


def _read_as(value: Value) -> str:
    if value.kind == "as sent":  # by the rules of a model that was pruned
        return ""
    return "missing" if value.read is None else str(value.read)


def _explained(found: Explanation) -> list[str]:
    lines = [f"<b>{escape(found.request_id)}</b> {quiet('from ' + found.source)}"]
    if found.message is None:
        lines.append(quiet("its message is not known"))
    elif found.message.rejected:
        lines.append(f'<span class="bad">rejected: {escape(found.message.rejected)}</span>')
    if found.answer is not None:
        label = f" ({escape(str(found.answer.label))})" if found.answer.label else ""
        lines.append(
            f"predicted {found.answer.prediction}{label}, probability "
            f"{escape(str(found.answer.probability))}, by model {found.answer.model_id}"
        )
    elif found.message is not None and not found.message.rejected:
        lines.append(quiet("no prediction yet"))
    if found.model is not None and found.model.pruned:
        lines.append(quiet(f"model {found.model.model_id} was pruned: it explains no more"))
    outcome = found.outcome.outcome if found.outcome else None
    lines.append(f"outcome {escape(outcome)}" if outcome else quiet("outcome not known yet"))
    if found.rejected_outcome is not None:
        lines.append(
            f'<span class="bad">its outcome {escape(found.rejected_outcome)} is no class</span>'
        )
    if found.recomputed is not None:
        same = "the same bits" if found.recomputed.same_bits else "DIFFERENT bits"
        lines.append(quiet(f"scored again: {same}"))
    lines += [f'<span class="warn">{escape(line)}</span>' for line in found.gone]
    return lines
