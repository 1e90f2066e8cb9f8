"""Reports the live quality of each model's predictions."""

import time
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from train import live, live_inputs, racing
from train.input_drift import Shift, column_shifts, prediction_shift
from train.quality import Quality, measure_quality
from train.training_rows import Problem, base_rows
from utils.data_set import DataError
from utils.feature_tools import FeatureTools
from utils.kafka_io import TopicPartition
from utils.message_store import Batch, Counts, MessageStore, ModelPredictions, RawLog
from utils.message_store.ingest import RecordDecoder, kafka_records
from utils.messages import APP_MESSAGES
from utils.metrics import Metrics, ValueShares
from utils.model_store import Bundle, ModelStore
from utils.model_store.manifest import published
from utils.settings import Settings
from utils.value_counts import KINDS, shares

#: How many classes a line names.
NAMED = 12


def show(settings: Settings, last: int, console: Console) -> None:
    """Print each model's live quality, from the message store.

    Args:
        settings: The pipeline's settings.
        last: How many of the latest outcomes each model's second row covers.
        console: Where to print.

    Raises:
        StoreError, ModelStoreError: The message store or the models cannot be read.
    """
    models = ModelStore(settings.models_dir)
    serving = models.load(models.current_id())
    features = serving.features
    others = {
        line.model_id: line
        for line in published(models.history())
        if line.classes
        and (line.target, sorted(line.classes)) != (features.target, sorted(features.classes))
    }
    with MessageStore.open(settings.messages_url, features) as store:
        judged, counts = store.predictions_by_model(), store.counts()
        values, latest = store.value_shares(), latest_messages(store.raw_log, features, last)
    now = time.time() * 1000
    figures = [
        measure_quality(one, features, last=last, now=now)
        for one in judged
        if one.model_id not in others
    ]
    console.print(table(figures, last))
    for one in judged:
        if (line := others.get(one.model_id)) is not None:
            console.print(
                f"model {one.model_id} is not judged: its {one.predictions} predictions are of "
                f"{line.target!r} with the classes {', '.join(line.classes[:NAMED])}",
                markup=False,
                highlight=False,
            )
    for text in not_here(models, judged):
        console.print(text, markup=False, highlight=False)
    for text in learning(settings, serving):
        console.print(text, markup=False, highlight=False)
    console.print(totals(counts), highlight=False)
    console.print(values_table(values, value_shares(latest, features), features.columns))
    if latest.messages:
        show_input_drift(settings, serving, latest, console)


def not_here(models: ModelStore, judged: Sequence[ModelPredictions]) -> list[str]:
    """A line for each model that has predicted and is unknown to this home."""
    known = {line.model_id for line in published(models.history())}
    return [
        f"model {one.model_id} is not in this home (was it restored from a backup?): of its "
        f"{one.predictions} predictions, only the records are left"
        for one in judged
        if one.model_id not in known
    ]


def learning(settings: Settings, serving: Bundle) -> list[str]:
    """What the serving model learns from, whether loss or inputs move, what retraining gained."""
    memory = serving.manifest.training.memory
    found = [
        f"model {serving.model_id} learns from {memory.in_words() if memory else 'everything'}"
    ]
    lines = live.in_words(settings), live_inputs.in_words(settings)
    found += [line for line in lines if line is not None]
    state = racing.state_of(settings)
    if state is not None and state.turned_at:
        ago = state.done - state.turned_at
        found.append(
            f"the world turned round {ago:,} outcomes ago: by then a model of recent outcomes was "
            "worse than guessing"
        )
    total = state.total() if state is not None else None
    if state is not None and total is not None and (rows := total.rows):
        served, first = total.served / rows, total.first / rows
        gained = "gained" if served <= first else "LOST"
        found.append(
            f"retraining has {gained} {abs(first - served):.4f} nats a prediction so far: log "
            f"loss {served:.4f} on {rows:,} outcomes, where model {state.first_model} would have "
            f"had {first:.4f}"
        )
    return found


def table(figures: list[Quality], last: int) -> Table:
    """A table with two rows per model: over all predictions, and over the last ones."""
    shown = Table(caption="calibration: mean gap between probability and frequency (0 is best)")
    for heading in ("model", "over", "predictions", "with outcome", "missing"):
        shown.add_column(heading, justify="left" if heading == "over" else "right")
    for heading in ("oldest", "median", "log loss", "AUC", "accuracy", "calibration"):
        shown.add_column(heading, justify="right")
    for one in figures:
        shown.add_row(
            str(one.model_id),
            "all",
            str(one.known + one.missing),
            str(one.known),
            str(one.missing),
            age(one.oldest),
            age(one.median),
            *_cells(one.overall),
        )
        rows = str(one.last.rows)
        shown.add_row("", f"last {last}", "", rows, "", "", "", *_cells(one.last), end_section=True)
    return shown


def latest_messages(copy: RawLog, features: FeatureTools, last: int) -> Batch:
    """The last messages that were scored, without those that were rejected."""
    bounds = copy.bounds(APP_MESSAGES)
    latest = {number: (max(first, end - last), end) for number, (first, end) in bounds.items()}
    records = [
        record for chunk in copy.chunks(APP_MESSAGES, latest) for record in kafka_records(chunk)
    ]
    records.sort(key=lambda record: record.timestamp)
    place = TopicPartition(APP_MESSAGES, 0)  # all that matters here are the values
    return RecordDecoder(features).batch({place: records[-last:]}) if records else Batch()


def value_shares(found: Batch, features: FeatureTools) -> ValueShares:
    """The shares of values in messages that the model was not trained on as they are."""
    if found.tally is None:
        return ValueShares()
    return shares(len(found.messages), found.tally, features.columns)


def show_input_drift(settings: Settings, serving: Bundle, latest: Batch, console: Console) -> None:
    """Print how far the last messages are from the data set; a line of text without that."""
    try:
        shifts = input_shifts(settings, serving, latest)
    except DataError as error:
        line = f"the messages are not compared with the data set: {error}"
        console.print(line, markup=False, highlight=False)
        return
    console.print(drift_table(shifts, len(latest.messages)))


def input_shifts(settings: Settings, serving: Bundle, latest: Batch) -> list[Shift]:
    """How far each column of some messages, and what is predicted for them, is from the data set.

    Raises:
        DataError: The data set cannot be read.
    """
    base = base_rows(Problem.of(settings, serving))
    features = serving.features
    columns = zip(*(message.values for message in latest.messages), strict=True)
    recent = pd.DataFrame(dict(zip(features.columns, columns, strict=True)))
    numbers = [name for name in features.columns if name not in features.categorical]
    recent = recent.astype(dict.fromkeys(numbers, float))
    shifts = column_shifts(base.frame, recent, features)
    scores = [
        serving.score(features.transform(frame[list(features.columns)]))
        for frame in (base.held_out[0], recent)
    ]
    return shifts + prediction_shift(scores[0], scores[1], features.classes)


def drift_table(shifts: Sequence[Shift], rows: int) -> Table:
    """A table of columns and predictions, the largest shift first."""
    shown = Table(
        title=f"drift of the last {rows:,} messages against the data set",
        caption="PSI: population stability index over ten bins; some from 0.1, strong from 0.25 "
        "on, unless so few messages differ that much by chance",
    )
    shown.add_column("column")
    shown.add_column("PSI", justify="right")
    shown.add_column("drift")
    for shift in sorted(shifts, key=lambda shift: -shift.psi):
        shown.add_row(escape(shift.name), f"{shift.psi:.3f}", shift.word)
    return shown


def values_table(values: ValueShares, recent: ValueShares, columns: Sequence[str]) -> Table:
    """A table of the columns with values that the model was not trained on as they are."""
    shown = Table(
        title=f"values that are missing, unknown, leniently read or other: in all {values.rows:,} "
        f"messages, and in the last {recent.rows:,}",
        caption="unknown: a category that training did not see; leniently read: written in "
        "another way than in the data set; other: none of the most frequent categories, which "
        "alone were learnt one by one",
    )
    shown.add_column("column")
    for kind in KINDS:
        shown.add_column(kind, justify="right")
        shown.add_column(f"last {recent.rows:,}", justify="right")
    for name in columns:
        cells = [
            f"{getattr(each, kind)[name]:.2%}" if name in getattr(each, kind) else ""
            for kind in KINDS
            for each in (values, recent)
        ]
        if any(cells):
            shown.add_row(escape(name), *cells)
    if not shown.row_count:
        shown.add_row("(none)")
    return shown


def totals(counts: Counts) -> str:
    """A line of text with the totals of the store."""
    return (
        f"{counts.messages} messages, {counts.known_outcomes} of them with an outcome; "
        f"{counts.predictions} predictions; {counts.unmatched_outcomes} outcomes without a "
        f"message, {counts.rejected_outcomes} rejected (unknown class); replaced by a later one: "
        f"{counts.superseded_messages} messages, {counts.superseded_outcomes} outcomes; "
        f"{counts.misdated_records} records without a sensible timestamp"
    )


def age(seconds: float | None) -> str:
    """A duration as text for display.

    >>> [age(seconds) for seconds in (None, 4.2, 130, 9000, 400000)]
    ['', '4 s', '2 min', '2.5 h', '4.6 d']
    """
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86400 else f"{seconds / 86400:.1f} d"


def _cells(metrics: Metrics) -> list[str]:
    figures = (metrics.log_loss, metrics.auc, metrics.accuracy, metrics.calibration)
    return ["" if figure is None else f"{figure:.4f}" for figure in figures]
