"""The sections of the page: what is shown of the figures, tab by tab."""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from html import escape
from itertools import groupby
from typing import NamedTuple, Protocol

from nicegui import run, ui

from monitor import charts
from monitor.actions import Actions
from monitor.cluster import Cluster
from monitor.events import Events, Letter
from monitor.explanation import show_explanation
from monitor.learning import LISTED, RECENT, SLICED, Learning, Model
from monitor.widgets import Chart, Html, Text, Tile, clock, number, quiet, rate, share, table
from ops.explain import why
from ops.report import age
from utils.errors import UserError, one_line
from utils.message_store import GroupSummary, Losses, Outstanding
from utils.metrics import Metrics, wilson
from utils.settings import Settings
from utils.value_counts import KINDS, SHOWN

#: How many lines of events are shown.
EVENTS = 16


class Seen(NamedTuple):
    """All figures at one moment."""

    events: Events
    cluster: Cluster
    learning: Learning
    failure: str = ""


class Section(Protocol):
    """A part of the page."""

    def update(self, now: Seen) -> None:
        """Show new figures."""


class Overview:
    """How it goes: the figures that matter, what happens, and who does it.

    Args:
        every: Known outcomes between two retrain requests, before one was seen.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        with ui.element("div").classes("tiles"):
            self._messages = Tile("messages a second", "Sent to app_messages, over 10 seconds")
            self._predictions = Tile(
                "predictions a second", "Committed by all predictors, over 10 seconds"
            )
            self._latency = Tile(
                "latency p50",
                "From a message's timestamp to its prediction's, of samples of the last 10 s",
            )
            self._lag = Tile("waiting", "Messages that predictors have still to read")
            self._model = Tile("serving", "The model that models/current.json names")
            self._loss = Tile(
                "live log loss",
                f"Of the real predictions for the last {RECENT:,} requests, or of all if their "
                "outcomes are still to come, with its 95 % interval, in nats; by model: Models",
            )
            self._accuracy = Tile(
                "live accuracy", "Of the same predictions, with its 95 % interval (Wilson)"
            )
            self._drift = Tile(
                "drift of the live loss",
                "The last 500 outcomes of all models against those before; beyond four standard "
                "errors it has changed",
            )
            self._gained = Tile(
                "gained by retraining",
                "Mean log loss that the first model would have had on the same outcomes, less that "
                "of the real predictions",
            )
            self._outstanding = Tile(
                "outcomes to come", "Predictions of all models whose outcome is not known"
            )
            self._next = Tile("next retraining", "Outcomes still missing until one is requested")
            self._rejected = Tile("rejected", "Records on dead_letters")
        with ui.element("div").classes("columns"):
            with ui.element("div").classes("stack"):
                self._traffic = Chart("Traffic")
                self._lags = Chart("Messages that wait")
                self._partitions = Html("Lag by partition")
            with ui.element("div").classes("stack"):
                self._latencies = Chart("Latency")
                self._running = Html("Predictors")
                self._learnt = Text("What it learns from, and whether the world moves")
            with ui.element("div").classes("stack"):
                self._live = Chart(
                    "Live quality",
                    f"of the last {RECENT:,} requests; the band is the 95 % interval",
                )
                self._events = Html("What happened")

    def update(self, now: Seen) -> None:
        """Show new figures."""
        learning, points = now.learning, now.cluster.points
        self._show_tiles(now)
        self._traffic.show(partial(charts.traffic, points) if len(points) > 1 else None)
        has_latency = any(one.median is not None for one in points)
        self._latencies.show(partial(charts.latency, points) if has_latency else None)
        self._lags.show(partial(charts.lag, points) if len(points) > 1 else None)
        blocks = learning.blocks
        self._live.show(partial(charts.live_loss, blocks) if blocks else None)
        self._running.show(predictors_table(now))
        self._learnt.show(learning.words)
        self._partitions.show(_partitions(now.cluster))
        self._events.show(events_list(now.events))

    def _show_tiles(self, now: Seen) -> None:
        events, cluster, learning, _ = now
        point = cluster.latest
        self._messages.show(number(point.messages if point else None))
        self._predictions.show(number(point.predictions if point else None))
        if point is None or point.median is None:
            self._latency.show("-", "no prediction in 10 s" if point else "")
        else:
            self._latency.show(f"{point.median:,.0f} ms", f"p99 {point.p99:,.0f} ms")
        waiting = point.lag if point else 0
        behind = bool(point and point.predictions and waiting > 10 * point.predictions)
        self._lag.show(number(waiting), "offsets", "warn" if behind else "")
        self._show_model(learning)
        recent = sum((one.losses for one in learning.recent.values()), Losses())
        # Where outcomes come later than the last requests, those of all are older ones.
        everything = sum((one.losses for one in learning.totals.values()), Losses())
        self._show_quality(recent if recent.rows else everything)
        self._show_drift(learning)
        left = sum((one.outstanding for one in learning.totals.values()), Outstanding())
        oldest = left.oldest
        self._outstanding.show(
            number(left.count) if learning.totals_at else "-",
            f"oldest {age(max(0.0, time.time() - oldest / 1000))}" if oldest is not None else "",
        )
        if cluster.counted is not None:
            every = events.every or self._every  # a predictor may have another than this process
            self._next.show(f"in {max(1, every - cluster.counted)}", f"of {every} outcomes")
        count = f"{events.rejected:,}" + ("" if events.read_all else "+")
        self._rejected.show(count, "see Rejected" if events.rejected else "")

    def _show_drift(self, learning: Learning) -> None:
        live = learning.live
        if live is None or live.low is None or live.high is None:
            self._drift.show("-", "too few outcomes to say")
        else:
            expected = f"{live.log_loss:.4f}, expected {live.low:.2f} to {live.high:.2f}"
            if live.log_loss > live.high:
                self._drift.show("risen", expected, "bad")
            elif live.log_loss < live.low:
                self._drift.show("fallen", expected, "good")
            else:
                self._drift.show("none", expected)
        gained = learning.gained
        if gained is None:
            self._gained.show("-", "no training yet")
            return
        difference = gained.first - gained.served
        tone = "warn" if difference < 0 else ""
        self._gained.show(f"{difference:+.4f}", f"first model {gained.first:.4f} nats", tone)

    def _show_model(self, learning: Learning) -> None:
        serving = next((one for one in learning.models if one.serving), None)
        if serving is None:
            self._model.show("-" if not learning.serving else f"model {learning.serving}")
            return
        memory = serving.line.memory or "everything"
        self._model.show(f"model {learning.serving}", f"learnt from {memory}")

    def _show_quality(self, losses: Losses) -> None:
        if losses.log_loss is None:
            self._loss.show("-", "no outcome known yet")
            self._accuracy.show("-", "no outcome known yet")
            return
        error = losses.standard_error
        under = f"± {1.96 * error:.4f}" if error is not None else ""
        self._loss.show(f"{losses.log_loss:.4f}", f"{under} on {losses.rows:,} outcomes")
        low, high = wilson(losses.right, losses.rows)
        self._accuracy.show(f"{losses.right / losses.rows:.1%}", f"{low:.1%} to {high:.1%}")


def predictors_table(now: Seen) -> str:
    """The predictors that run; one that does not serve the model that it should is marked."""
    rows, serving = [], now.learning.serving
    for one in now.cluster.predictors:
        model_id = now.events.models.get(one.instance_id, one.model_id)
        if model_id is None:
            model = quiet("not known before it predicts")
        elif model_id == serving or not serving:
            model = f'<b class="good">model {model_id}</b>'
        else:
            model = f'<b class="bad">model {model_id}, behind: model {serving} serves</b>'
        where = ", ".join(map(str, one.partitions)) or quiet("none: it stands by")
        name = f"{escape(one.instance_id)}<br>{quiet(one.host)}"
        rows.append((name, model, where, f"{one.lag:,}"))
    if not rows:
        return quiet("none runs")
    return table(("predictor", "model", "partitions", "waiting"), rows)


def _partitions(cluster: Cluster) -> str:
    behind = sorted(cluster.lag.items(), key=lambda item: (-item[1], item[0]))
    rows = [(escape(tp.topic), str(tp.partition), f"{waiting:,}") for tp, waiting in behind[:12]]
    left = len(behind) - len(rows)
    more = quiet(f"and {left} more, with less") if left > 0 else ""
    return table(("topic", "partition", "offsets"), rows) + more if rows else quiet("nothing yet")


_TONES = {"accepted": "good", "refused": "warn", "rollback": "bad", "loaded": "good"}


def events_list(found: Events) -> str:
    """The latest events; those of the same text are one line."""
    lines: list[str] = []
    for text, same in groupby(found.latest, key=lambda one: one.text):
        events = list(same)
        # A training answers several requests, each by a record of its own.
        what = "requests" if events[0].kind in ("accepted", "refused") else "times"
        often = f" ({len(events)} {what})" if len(events) > 1 else ""
        lines.append(
            f'<span class="at">{clock(events[0].at)}</span>'
            f'<span class="{_TONES.get(events[0].kind, "")}">{escape(text)}{often}</span>'
        )
    shown = "".join(lines[:EVENTS])
    return f'<div class="events">{shown}</div>' if shown else quiet("nothing yet")


class Models:
    """The line of models: what each learnt, what the gate said, and how well it predicts."""

    def __init__(self, actions: Actions) -> None:
        with ui.element("div").classes("cards"):
            self._gate = Chart(
                "At the gate",
                "log loss on the latest outcomes, which neither had learnt from: a new model, "
                "and what was really served",
            )
            self._gain = Chart(
                "What retraining gained",
                "log loss of the real predictions, and what the first model would have had",
            )
        with ui.element("section").classes("panel"):
            ui.label("Serve another model").classes("card-title")
            with ui.row().classes("items-center w-full"):
                self._choice = ui.select({}, label="model").classes("min-w-[160px]")
                self._reason = ui.input("reason, kept in the history").classes("grow")
                ui.button(
                    "Roll back",
                    on_click=lambda: actions.roll_back(self._choice.value, self._reason.value),
                ).props("no-caps")
        with ui.element("section").classes("panel"):
            self._title = ui.label("").classes("card-title")
            self._rows: list[dict[str, object]] = []
            self._table = ui.table(
                rows=[],
                columns=_columns(MODEL_COLUMNS, wrapped="state"),
                row_key="model",
                pagination=15,
            ).props('flat dense aria-label="models"')

    def update(self, now: Seen) -> None:
        """Show new figures."""
        learning, models = now.learning, now.learning.models
        judged = any(one.line.metrics.champion is not None for one in models)
        self._gate.show(partial(charts.model_line, models) if judged else None)
        gains = learning.gains
        self._gain.show(partial(charts.gains, gains) if len(gains) > 1 else None)
        shown = f", the newest {LISTED} below" if learning.n_models > LISTED else ""
        self._title.text = f"{learning.n_models:,} models{shown}"
        choices = {
            one.line.model_id: f"model {one.line.model_id}"
            for one in models
            if one.on_disk and not one.serving
        }
        if choices != self._choice.options:
            kept = self._choice.value if self._choice.value in choices else None
            self._choice.set_options(choices, value=kept)
        rows = [_model_row(one, learning) for one in models]
        if rows != self._rows:
            self._rows = rows
            self._table.rows = rows
            self._table.update()


def _columns(labels: Mapping[str, str], *, wrapped: str) -> list[dict[str, object]]:
    """The columns of a table: name and label, and the one whose texts may take several lines."""
    return [
        {
            "name": name,
            "label": label,
            "field": name,
            "align": "left",
            "classes": "wrap" if name == wrapped else "",
        }
        for name, label in labels.items()
    ]


LETTER_COLUMNS = {
    "offset": "offset",
    "at": "rejected",
    "reason": "reason",
    "origin": "it was at",
    "key": "key",
    "state": "",
}
MODEL_COLUMNS = {
    "model": "model",
    "state": "state",
    "created": "trained",
    "reason": "because of",
    "rows": "rows",
    "memory": "learnt from",
    "gate": "log loss at the gate, and what was served",
    "verdict": "difference",
    "live": "live log loss (outcomes)",
    "accuracy": "live accuracy",
    "missing": "to come",
}


def _model_row(one: Model, learning: Learning) -> dict[str, object]:
    line, live = one.line, learning.totals.get(one.line.model_id)
    challenger, champion = _loss(line.metrics.challenger), _loss(line.metrics.champion)
    row: dict[str, object] = {
        "model": line.model_id,
        "state": _model_state(one),
        "created": _created(line.created),
        "reason": one.reason,
        "rows": f"{line.rows:,}" if line.rows else "",
        "memory": line.memory or "everything",
        "gate": f"{challenger}, {champion}" if champion else challenger,
        "verdict": line.gate.in_words() if line.gate else "first model",
        "live": "",
        "accuracy": "",
        "missing": "",
    }
    if line.target not in (None, learning.target):
        row["live"] = f"predicts {line.target!r}"
    elif live is not None:
        losses = live.losses
        if losses.log_loss is not None:
            error = 1.96 * (losses.standard_error or 0.0)
            row["live"] = f"{losses.log_loss:.4f} ± {error:.4f} ({losses.rows:,})"
            low, high = wilson(losses.right, losses.rows)
            row["accuracy"] = f"{losses.right / losses.rows:.1%} ({low:.0%} to {high:.0%})"
        row["missing"] = f"{live.outstanding.count:,}" if live.outstanding.count else ""
    return row


def _created(text: str) -> str:
    try:
        return clock(datetime.fromisoformat(text).timestamp())
    except ValueError:  # an old line of the history lacks it
        return text


def _model_state(one: Model) -> str:
    state = "accepted" if one.line.accepted else "refused: worse than what serves"
    if one.line.gate is not None and not one.line.gate.rows and not one.line.accepted:
        state = "refused: not comparable"
    if one.serving:
        state = "serves"
    elif one.taken_back:
        state = f"taken back, {one.taken_back}"
    return state


def _loss(metrics: Metrics | None) -> str:
    known = metrics is not None and metrics.log_loss is not None
    return f"{metrics.log_loss:.4f}" if metrics is not None and known else ""


class Inputs:
    """What is sent: missing, unknown and leniently read values, and how far it has moved."""

    def __init__(self) -> None:
        with ui.element("div").classes("cards"):
            self._shifts = Chart(
                "Shift of each column and of the predictions",
                "the last messages against the data set: population stability index (PSI)",
            )
            self._values = Html(
                "Values that training did not have as they are",
                "unknown: a category that training did not see; leniently read: written in "
                "another way than in the data set; other: none of the most frequent categories",
            )

    def update(self, now: Seen) -> None:
        """Show new figures."""
        found = now.learning.shifts
        height = 60 + 22 * len(found)
        self._shifts.show(partial(charts.shifts, found) if found else None, height=height)
        self._values.show(_value_table(now.learning))


def _value_table(learning: Learning) -> str:
    everything, latest = learning.values, learning.latest_values
    columns = {
        name for values in (everything, latest) for kind in KINDS for name in getattr(values, kind)
    }
    if not everything.rows:
        return quiet("no message yet")
    if not columns:
        return quiet(f"none in {everything.rows:,} messages")
    ranked = sorted(
        columns, key=lambda name: -max(getattr(latest, kind).get(name, 0.0) for kind in KINDS)
    )
    rows = [
        [escape(name)]
        + [
            " / ".join(
                filter(
                    None, (share(getattr(each, kind).get(name)) for each in (everything, latest))
                )
            )
            for kind in KINDS
        ]
        for name in ranked
    ]
    caption = quiet(
        f"of all {everything.rows:,} messages / of the last {latest.rows:,}"
        if latest.rows
        else f"of all {everything.rows:,} messages"
    )
    return caption + table(("column", *(SHOWN[kind] for kind in KINDS)), rows)


class Groups:
    """For whom it predicts how well."""

    def __init__(self) -> None:
        ui.label(
            f"Predictions with a known outcome among the last {SLICED:,} requests, by group, with "
            "95 % intervals (Wilson). [monitor] slices in pipeline.toml names the columns."
        ).classes("quiet")
        self._box = ui.element("div").classes("w-full").style("display:grid;gap:12px")
        self._panels: dict[str, Html] = {}
        with self._box:
            self._none = ui.label("pipeline.toml names no column.").classes("quiet")

    def update(self, now: Seen) -> None:
        """Show new figures."""
        learning = now.learning
        self._none.visible = not learning.groups
        for column, groups in learning.groups.items():
            if column not in self._panels:
                with self._box:
                    self._panels[column] = Html(column, wide=True)
            content = quiet(groups) if isinstance(groups, str) else group_table(groups, learning)
            self._panels[column].show(content)


def group_table(groups: Sequence[GroupSummary], learning: Learning) -> str:
    """Groups side by side; of two classes, with the rates of errors of either kind."""
    if not groups:
        return quiet("no outcome is known yet")
    headings = ["group", "outcomes", "accuracy"]
    binary = len(learning.classes) == 2
    if binary:
        positive = learning.classes[1]
        headings += [f"predicted {positive}", f"really {positive}"]
        headings += ["false alarms among the others", f"missed among {positive}"]
    rows = []
    for one in groups:
        cells = [escape(one.label), f"{one.rows:,}", rate(one.right, one.rows)]
        if binary:
            hits, alarms = one.true_positive or 0, one.false_positive or 0
            misses, others = one.false_negative or 0, one.true_negative or 0
            cells += [rate(hits + alarms, one.rows), rate(hits + misses, one.rows)]
            cells += [rate(alarms, alarms + others), rate(misses, hits + misses)]
        rows.append(cells)
    return table(headings, rows)


class Rejected:
    """Records that could not be scored: why, and a button to send them again."""

    def __init__(self, actions: Actions) -> None:
        self._letters: Mapping[int, Letter] = {}
        self._reasons = Html("Reasons", wide=True)
        with ui.element("section").classes("panel"):
            with ui.row().classes("items-center justify-between w-full"):
                self._title = ui.label("The newest").classes("card-title")
                ui.button(
                    "Send selected again",
                    on_click=lambda: actions.resend(*self._selected()),
                ).props("no-caps")
            self._rows: list[dict[str, object]] = []
            self._table = ui.table(
                rows=[],
                columns=_columns(LETTER_COLUMNS, wrapped="reason"),
                row_key="offset",
                selection="multiple",
                pagination=15,
            ).props('flat dense aria-label="rejected records"')

    def _selected(self) -> tuple[set[int], set[int]]:
        chosen = {int(row["offset"]) for row in self._table.selected}
        return chosen, {n for n in chosen if n in self._letters and self._letters[n].resent}

    def update(self, now: Seen) -> None:
        """Show new figures."""
        events = now.events
        more = "" if events.read_all else f" of the last {events.rejected:,}"
        rows = [(f"{count:,}", escape(reason)) for reason, count in events.reasons.items()]
        self._reasons.show(
            table((f"records{more}", "reason"), rows) if rows else quiet("none was rejected")
        )
        self._letters = {one.offset: one for one in events.letters}
        shown: list[dict[str, object]] = [
            {
                "offset": one.offset,
                "at": clock(one.at),
                "reason": one.reason,
                "origin": one.origin,
                "key": one.key,
                "state": "sent again" if one.resent else "",
            }
            for one in events.letters
        ]
        if shown != self._rows:
            self._rows = shown
            self._table.rows = shown
            self._table.update()


class Request:
    """One request: its message, its prediction, its outcome, and why."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with ui.element("section").classes("panel"):
            ui.label("Look up a request").classes("card-title")
            with ui.row().classes("items-center w-full"):
                self._id = ui.input("request_id").classes("grow").props("clearable")
                self._id.on("keydown.enter", self._look_up)
                ui.button("Explain", on_click=self._look_up).props("no-caps")
            self._result = ui.column().classes("w-full")

    def update(self, now: Seen) -> None:
        """A request that was looked up does not change."""

    async def _look_up(self) -> None:
        request_id = (self._id.value or "").strip()
        if not request_id:
            ui.notify("Type a request_id first.", type="warning")
            return
        self._result.clear()
        with self._result:
            ui.spinner()
        try:
            found = await run.io_bound(why, self._settings, request_id)
            problem = ""
        except UserError as error:
            found, problem = None, one_line(error)
        self._result.clear()
        with self._result:
            if found is None:
                ui.label(problem or "the page is about to end").classes("bad")
            else:
                show_explanation(found)
