"""Watches whether the inputs and the predictions move away from what was learnt last.

The recent rows are the last `RECENT` whose outcome became known since the newest training. They
are compared with the last `LEARNT` rows that this training has learnt from, base data in front
of the messages. A strong drift of a column or of the predictions asks for a retraining.

It cannot loop. The training that answers has learnt the recent rows, so they belong to
what the next ones are compared with, whether its model serves or was refused. Each training is
followed by at most one alarm, and an alarm by `drift_interval` outcomes without another. Once
`LEARNT` outcomes after a lasting change are learnt, nothing is left to compare them with but
themselves: two requests at the default interval. Inputs that alternate ask at each turn.

Rows without an outcome do not count, since a retraining could not learn from them. So nothing is
asked for while trainings are less than `RECENT` outcomes apart: they come sooner anyway.

What it knows is in `searches/input_drift.json`. An alarm stands until a training comes after it,
so a trainer that is killed between alarm and request makes the same request.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
import pandas as pd

from train.input_alarm import InputAlarm, Moved
from train.input_alarm import in_words as moved_in_words
from train.input_drift import Shift, column_shifts, prediction_shift
from train.training_rows import Problem, Rows, base_rows, training_offsets
from utils import durable_files
from utils.data_set import DataError
from utils.message_store import Counts, KnownPredictions, Offsets, Snapshot
from utils.model_store import Bundle
from utils.model_store.manifest import HistoryLine, published
from utils.settings import Settings

FILE = "input_drift.json"
#: The number of recent rows. With 100 chance alone gives 12 alarms in 20,000 outcomes of Adult,
#: with 200 there are 0.12 (`python -m benchmarks inputs`).
RECENT = 200
#: The number of rows to compare them with. With more, a lasting change would ask more often
#: until most of them are from after it.
LEARNT = 500


class Watch(msgspec.Struct, kw_only=True):
    """The state of the watch, the content of its file.

    Attributes:
        outcomes: The number of known outcomes at the last measurement.
        largest: The largest shift then; None before the first measurement.
        alarm: The last alarm.
    """

    outcomes: int = 0
    largest: Moved | None = None
    alarm: InputAlarm | None = None


class StoredRows(Protocol):
    """What the watch reads of a `MessageStore`."""

    def newer_than(self, offsets: Offsets, limit: int | None = None) -> Snapshot:
        """Messages with an outcome, where either is at or after the given offsets."""

    def older_than(self, offsets: Offsets, limit: int) -> Snapshot:
        """The others."""

    def known_since(self, offsets: Offsets, limit: int) -> KnownPredictions:
        """The real predictions with an outcome, where a record is at or after the offsets."""

    def known_before(self, offsets: Offsets, limit: int) -> KnownPredictions:
        """The others."""

    def topic_ids(self) -> dict[str, str]:
        """Kafka's ids of the topics."""

    def counts(self) -> Counts:
        """The number of known outcomes, among others."""


def look(
    settings: Settings, messages: StoredRows, serving: Bundle, history: Sequence[HistoryLine]
) -> InputAlarm | None:
    """Compare the recent rows with what was learnt; returns the alarm that stands, if any.

    Args:
        settings: The pipeline's settings.
        messages: The message store.
        serving: The serving model.
        history: The lines of the model store's history.

    Raises:
        StoreError: The message store cannot be read.
        OSError: The state cannot be written.
    """
    path, newest = settings.searches_dir / FILE, published(history)[-1]
    watch = read(path)
    if watch.alarm is not None and watch.alarm.model_id == newest.model_id:
        return watch.alarm
    offsets = training_offsets(newest, messages.topic_ids())
    shifts = measure(settings, messages, serving, offsets)
    if not shifts:
        return None
    watch.outcomes = messages.counts().known_outcomes
    watch.largest = _moved(shifts)[0]
    strong = _moved([shift for shift in shifts if shift.word == "strong"])
    alarm = None
    if strong and not _is_too_soon(watch, settings.training.drift_interval):
        alarm = watch.alarm = InputAlarm(
            batch_id=f"input-drift-{newest.model_id}-{watch.outcomes}",
            at=watch.outcomes,
            model_id=newest.model_id,
            moved=tuple(strong),
            recent=RECENT,
            learnt=LEARNT,
        )
    write(path, watch)
    return alarm


def measure(
    settings: Settings, messages: StoredRows, serving: Bundle, offsets: Offsets
) -> list[Shift]:
    """The shift of each column and of the predictions.

    The predictions are those that were made, none of which had seen its outcome. They are
    compared once `LEARNT` of them are learnt. Scores of the base data would not do in their
    place: those of training rows are surer, and held-out rows are chosen by their content, so
    they are another mixture where few contents repeat.

    Args:
        settings: The pipeline's settings.
        messages: The message store.
        serving: The serving model.
        offsets: The offsets up to which the newest training has read the log.

    Returns:
        Nothing if there are too few rows, or no base data, without which no training succeeds.
    """
    recent = messages.newer_than(offsets, RECENT)
    if len(recent.request_ids) < RECENT:
        return []
    try:
        base = base_rows(Problem.of(settings, serving))
    except DataError:
        return []
    older = messages.older_than(offsets, LEARNT).frame
    learnt = learnt_last(base, older, settings.training.seed)
    if len(learnt) < LEARNT:
        return []
    shifts = column_shifts(learnt, recent.frame, serving.features)
    made = messages.known_since(offsets, RECENT).probabilities
    before = messages.known_before(offsets, LEARNT).probabilities
    if len(made) == RECENT and len(before) == LEARNT:
        shifts += prediction_shift(before, made, serving.features.classes)
    return shifts


def learnt_last(base: Rows, messages: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The last `LEARNT` rows: the messages, with a sample of the base data if they are too few.

    Args:
        base: The base data.
        messages: The raw feature columns of the last messages that were learnt.
        seed: Of the sample.
    """
    places = np.flatnonzero(~base.validation)
    count = min(LEARNT - len(messages), len(places))
    if not count:
        return messages
    chosen = np.random.default_rng(seed).choice(places, count, replace=False)
    sample = base.frame.iloc[chosen]
    return pd.concat([sample, messages], ignore_index=True) if len(messages) else sample


def _moved(shifts: Sequence[Shift]) -> list[Moved]:
    """The largest PSI first."""
    return [Moved(shift.name, shift.psi) for shift in sorted(shifts, key=lambda one: -one.psi)]


def _is_too_soon(watch: Watch, interval: int) -> bool:
    # Fewer outcomes than at the alarm: the log was recreated, so counting starts again.
    return watch.alarm is not None and 0 <= watch.outcomes - watch.alarm.at < interval


def in_words(settings: Settings) -> str | None:
    """Whether the inputs move, in a line; None before anything was measured."""
    watch = read(settings.searches_dir / FILE)
    if watch.largest is None:
        return None
    line = f"inputs: largest shift from what was learnt last: {watch.largest}; "
    if watch.alarm is None:
        return f"{line}no retraining requested so far"
    ago = watch.outcomes - watch.alarm.at
    when = f"{ago:,} outcomes before that" if ago > 0 else "for that"
    return f"{line}retraining requested {when}: {moved_in_words(watch.alarm.moved)}"


def read(path: Path) -> Watch:
    """The state in a file; a new one if there is none, or it is damaged."""
    return durable_files.read_state(path, Watch) or Watch()


def write(path: Path, watch: Watch) -> None:
    """Write the state; a reader or a crash finds the old file or the new one."""
    durable_files.replace_file(path, msgspec.json.encode(watch))
