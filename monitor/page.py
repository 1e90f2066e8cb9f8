"""The page: what is shown, section by section, and kept up to date."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Protocol

from msgspec import UNSET
from nicegui import run, ui

from monitor import charts
from monitor.actions import Actions, Guard
from monitor.cluster import Cluster, Letter
from monitor.figures import Figures
from monitor.learning import LISTED, RECENT, SLICED, Learning, Model
from monitor.widgets import Chart, Text, Tile, clock, number, rate, share, table
from ops.explain import Explanation, Value, why
from ops.report import age
from utils.errors import UserError, one_line
from utils.message_store.summaries import GroupSummary, Losses
from utils.metrics import Metrics, wilson
from utils.settings import Settings
from utils.value_counts import KINDS, SHOWN

#: Seconds between two updates of an open page, and between two of its charts.
UPDATE_EVERY, CHARTS_EVERY = 0.5, 2.0
#: How many lines of events are shown.
EVENTS = 16
STYLE = Path(__file__).with_name("style.css")


class Section(Protocol):
    """A part of the page."""

    def update(self, cluster: Cluster, learning: Learning) -> None:
        """Show new figures."""


class Page:
    """One open page.

    Args:
        settings: The pipeline's settings.
        figures: What is shown.
        guard: Decides who may press buttons.
        token: What the page's address carried.
    """

    def __init__(self, settings: Settings, figures: Figures, guard: Guard, token: str) -> None:
        self._figures = figures
        self._actions = Actions(settings, guard, token)
        self._shown: tuple[Cluster, Learning] | None = None
        self._charts_at = 0.0
        ui.add_css(STYLE)
        ui.colors(primary="#00609c", positive="#00734f", negative="#b3400b")
        self._header()
        self._banner = ui.label("").classes("banner").props('role="alert"')
        with ui.tabs().props("dense align=left mobile-arrows").classes("w-full") as tabs:
            builders: dict[str, Callable[[], Section]] = {
                "Overview": Overview,
                "Models": lambda: Models(self._actions),
                "Inputs": Inputs,
                "Groups": Groups,
                "Rejected": lambda: Rejected(self._actions),
                "Request": lambda: Request(settings),
            }
            for name in builders:
                ui.tab(name)
        self._sections: dict[str, Section] = {}
        with ui.tab_panels(tabs, value="Overview", animated=False).classes("w-full") as panels:
            for name, build in builders.items():
                with ui.tab_panel(name):
                    self._sections[name] = build()
        self._panels = panels
        panels.on_value_change(lambda: self._update(at_once=True))
        self._update()
        ui.timer(UPDATE_EVERY, self._update)

    def _header(self) -> None:
        with ui.header().classes("p-0"), ui.row().classes("head"):
            self._name = ui.label("pipeline").classes("name")
            self._state = ui.label("").classes("quiet")
            ui.space()
            dark = ui.dark_mode(None)  # as the browser says
            ui.button(
                icon="contrast",
                on_click=lambda: dark.set_value({None: True, True: False, False: None}[dark.value]),
            ).props('flat round dense color="grey" aria-label="light, dark or as the system"')
            ui.button("Retrain now", on_click=self._actions.retrain).props("dense no-caps")

    def _update(self, *, at_once: bool = False) -> None:
        now = self._figures.cluster, self._figures.learning
        if at_once or time.monotonic() - self._charts_at >= CHARTS_EVERY:
            self._charts_at = time.monotonic()
        elif self._shown is not None and _same_but_for_time(self._shown, now):
            return
        self._shown = now
        cluster, learning = now
        name = f"{learning.target} pipeline" if learning.target else "pipeline"
        self._name.text = name
        self._state.text = _state(cluster, learning)
        problems = _problems(cluster, learning)
        self._banner.text = " · ".join(problems)
        self._banner.visible = bool(problems)
        section = self._sections.get(str(self._panels.value))
        if section is not None:
            section.update(cluster, learning)


def _same_but_for_time(before: tuple[Cluster, Learning], now: tuple[Cluster, Learning]) -> bool:
    """Whether nothing has happened that is to be shown at once."""
    return before[1] is now[1] and all(
        getattr(before[0], name) == getattr(now[0], name)
        for name in ("error", "predictors", "events", "letters", "at")
    )


def _state(cluster: Cluster, learning: Learning) -> str:
    if not learning.serving:
        return "no model serves yet"
    return f"model {learning.serving} serves" + (
        f" · {clock(cluster.at)}" if cluster.at and not cluster.error else ""
    )


def _problems(cluster: Cluster, learning: Learning) -> list[str]:
    found = []
    if cluster.error:
        seen = f"; what Kafka shows is of {clock(cluster.at)}" if cluster.at else ""
        found.append(
            f"The broker does not answer since {clock(cluster.failed_at)}: {cluster.error}{seen}"
        )
    elif cluster.at and not cluster.predictors:
        found.append("No predictor runs: messages wait for their predictions (predictor.py)")
    elif cluster.at and not cluster.trainers:
        found.append("No trainer runs: retrainings wait (trainer.py)")
    return found + list(dict.fromkeys(learning.problems.values()))


class Overview:
    """How it goes: the figures that matter, what happens, and who does it."""

    def __init__(self) -> None:
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
                f"Of the serving model's predictions among the last {RECENT:,} requests, or of all "
                "if the outcomes of those are still to come, with its 95 % interval, in nats",
            )
            self._accuracy = Tile(
                "live accuracy", "Of the same predictions, with its 95 % interval (Wilson)"
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

    def update(self, cluster: Cluster, learning: Learning) -> None:
        """Show new figures."""
        self._show_tiles(cluster, learning)
        points = cluster.points
        self._traffic.show(charts.traffic(points) if len(points) > 1 else None)
        has_latency = any(one.median is not None for one in points)
        self._latencies.show(charts.latency(points) if has_latency else None)
        self._lags.show(charts.lag(points) if len(points) > 1 else None)
        self._live.show(charts.live_loss(learning.blocks) if learning.blocks else None)
        self._running.show(_predictors(cluster, learning))
        self._learnt.show(learning.words)
        self._partitions.show(_partitions(cluster))
        self._events.show(_events(cluster))

    def _show_tiles(self, cluster: Cluster, learning: Learning) -> None:
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
        # Where outcomes come later than the last requests, the serving model's are older.
        found = [of.get(learning.serving) for of in (learning.recent, learning.totals)]
        judged = [one.losses for one in found if one is not None and one.losses.rows]
        self._show_quality(judged[0] if judged else Losses())
        totals = [one.outstanding for one in learning.totals.values()]
        oldest = min((one.oldest for one in totals if one.oldest is not None), default=None)
        self._outstanding.show(
            number(sum(one.count for one in totals)) if learning.totals_at else "-",
            f"oldest {age(max(0.0, time.time() - oldest / 1000))}" if oldest is not None else "",
        )
        if cluster.until_retraining is not None:
            missing, every = cluster.until_retraining
            self._next.show(f"in {missing}", f"of {every} outcomes")
        count = f"{cluster.rejected:,}" + ("" if cluster.read_all else "+")
        self._rejected.show(count, "see Rejected" if cluster.rejected else "")

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


class Html:
    """A panel with HTML that is sent only when it has changed."""

    def __init__(self, title: str, hint: str = "", *, wide: bool = False) -> None:
        with ui.element("section").classes("panel wide" if wide else "panel"):
            ui.label(title).classes("card-title")
            if hint:
                ui.label(hint).classes("quiet")
            self._html = ui.html("", sanitize=False)

    def show(self, content: str) -> None:
        """Show HTML in which all that others have sent is escaped."""
        self._html.content = content


def _quiet(text: str) -> str:
    return f'<span class="quiet">{escape(text)}</span>'


def _predictors(cluster: Cluster, learning: Learning) -> str:
    rows = []
    for one in cluster.predictors:
        if one.model_id is None:
            model = _quiet("not known before it predicts")
        elif one.model_id == learning.serving or not learning.serving:
            model = f'<b class="good">model {one.model_id}</b>'
        else:
            model = (
                f'<b class="bad">model {one.model_id}, behind: model {learning.serving} serves</b>'
            )
        where = ", ".join(map(str, one.partitions)) or _quiet("none: it stands by")
        name = f"{escape(one.instance_id)}<br>{_quiet(one.host)}"
        rows.append((name, model, where, f"{one.lag:,}"))
    if not rows:
        return _quiet("none runs")
    return table(("predictor", "model", "partitions", "waiting"), rows)


def _partitions(cluster: Cluster) -> str:
    behind = sorted(cluster.lag.items(), key=lambda item: (-item[1], item[0]))
    rows = [(escape(tp.topic), str(tp.partition), f"{waiting:,}") for tp, waiting in behind[:12]]
    left = len(behind) - len(rows)
    more = _quiet(f"and {left} more, with less") if left > 0 else ""
    return table(("topic", "partition", "offsets"), rows) + more if rows else _quiet("nothing yet")


_TONES = {"accepted": "good", "refused": "warn", "rollback": "bad", "loaded": "good"}


def _events(cluster: Cluster) -> str:
    lines: list[str] = []
    for text, same in groupby(cluster.events, key=lambda one: one.text):
        events = list(same)
        # A training answers several requests, each by a record of its own.
        what = "requests" if events[0].kind in ("accepted", "refused") else "times"
        often = f" ({len(events)} {what})" if len(events) > 1 else ""
        lines.append(
            f'<span class="at">{clock(events[0].at)}</span>'
            f'<span class="{_TONES.get(events[0].kind, "")}">{escape(text)}{often}</span>'
        )
    shown = "".join(lines[:EVENTS])
    return f'<div class="events">{shown}</div>' if shown else _quiet("nothing yet")


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

    def update(self, cluster: Cluster, learning: Learning) -> None:
        """Show new figures."""
        models = learning.models
        judged = any(one.line.metrics.champion is not None for one in models)
        self._gate.show(charts.model_line(models) if judged else None)
        self._gain.show(charts.gains(learning.gains) if len(learning.gains) > 1 else None)
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

    def update(self, cluster: Cluster, learning: Learning) -> None:
        """Show new figures."""
        found = learning.shifts
        height = 60 + 22 * len(found)
        self._shifts.show(charts.shifts(found) if found else None, height=height)
        self._values.show(_value_table(learning))


def _value_table(learning: Learning) -> str:
    everything, latest = learning.values, learning.latest_values
    columns = {
        name for values in (everything, latest) for kind in KINDS for name in getattr(values, kind)
    }
    if not everything.rows:
        return _quiet("no message yet")
    if not columns:
        return _quiet(f"none in {everything.rows:,} messages")
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
    caption = _quiet(
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

    def update(self, cluster: Cluster, learning: Learning) -> None:
        """Show new figures."""
        self._none.visible = not learning.groups
        for column, groups in learning.groups.items():
            if column not in self._panels:
                with self._box:
                    self._panels[column] = Html(column, wide=True)
            content = _quiet(groups) if isinstance(groups, str) else _group_table(groups, learning)
            self._panels[column].show(content)


def _group_table(groups: Sequence[GroupSummary], learning: Learning) -> str:
    if not groups:
        return _quiet("no outcome is known yet")
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
            misses, quiet = one.false_negative or 0, one.true_negative or 0
            cells += [rate(hits + alarms, one.rows), rate(hits + misses, one.rows)]
            cells += [rate(alarms, alarms + quiet), rate(misses, hits + misses)]
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

    def update(self, cluster: Cluster, learning: Learning) -> None:
        """Show new figures."""
        more = "" if cluster.read_all else f" of the last {cluster.rejected:,}"
        rows = [(f"{count:,}", escape(reason)) for reason, count in cluster.reasons.items()]
        self._reasons.show(
            table((f"records{more}", "reason"), rows) if rows else _quiet("none was rejected")
        )
        self._letters = {one.offset: one for one in cluster.letters}
        shown: list[dict[str, object]] = [
            {
                "offset": one.offset,
                "at": clock(one.at),
                "reason": one.reason,
                "origin": one.origin,
                "key": one.key,
                "state": "sent again" if one.resent else "",
            }
            for one in cluster.letters
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

    def update(self, cluster: Cluster, learning: Learning) -> None:
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
                _show_explanation(found)


def _show_explanation(found: Explanation) -> None:
    ui.html("".join(f"<div>{line}</div>" for line in _explained(found)), sanitize=False)
    if found.contributions is not None:
        shown = found.contributions
        options = charts.contributions(shown)
        chart = Chart(
            f"What each feature adds to the log-odds of {shown.of}",
            f"{shown.base_value:+.3f} without any feature, {shown.sum:+.3f} with all: probability "
            f"{shown.probability:.4f}",
        )
        chart.show(options, height=90 + 24 * min(len(shown.features), charts.CONTRIBUTIONS + 1))
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
    lines = [f"<b>{escape(found.request_id)}</b> {_quiet('from ' + found.source)}"]
    if found.message is None:
        lines.append(_quiet("its message is not known"))
    elif found.message.rejected:
        lines.append(f'<span class="bad">rejected: {escape(found.message.rejected)}</span>')
    if found.answer is not None:
        label = f" ({escape(str(found.answer.label))})" if found.answer.label else ""
        lines.append(
            f"predicted {found.answer.prediction}{label}, probability "
            f"{escape(str(found.answer.probability))}, by model {found.answer.model_id}"
        )
    elif found.message is not None and not found.message.rejected:
        lines.append(_quiet("no prediction yet"))
    if found.model is not None and found.model.pruned:
        lines.append(_quiet(f"model {found.model.model_id} was pruned: it explains no more"))
    outcome = found.outcome.outcome if found.outcome else None
    lines.append(f"outcome {escape(outcome)}" if outcome else _quiet("outcome not known yet"))
    if found.rejected_outcome is not None:
        lines.append(
            f'<span class="bad">its outcome {escape(found.rejected_outcome)} is no class</span>'
        )
    if found.recomputed is not None:
        same = "the same bits" if found.recomputed.same_bits else "DIFFERENT bits"
        lines.append(_quiet(f"scored again: {same}"))
    lines += [f'<span class="warn">{escape(line)}</span>' for line in found.gone]
    return lines


def build(settings: Settings, figures: Figures, guard: Guard) -> Callable[[str], None]:
    """The function that makes the page for one browser.

    Args:
        settings: The pipeline's settings.
        figures: What is shown.
        guard: Decides who may press buttons.
    """

    def show(token: str = "") -> None:
        figures.viewers += 1

        def gone() -> None:
            figures.viewers -= 1

        ui.context.client.on_delete(gone)
        Page(settings, figures, guard, token)

    return show
