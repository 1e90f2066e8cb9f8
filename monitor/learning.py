"""What the stores show: the models, how well they predict, what moves, and for whom.

Both stores are read only. The message store is asked for aggregates, and rarely where that takes
long (`monitor.pace`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

from monitor.pace import Pace
from ops import report
from train import adapt, live, racing
from train.input_drift import Shift
from utils.data_set import DataError
from utils.errors import UserError, one_line
from utils.message_store import (
    Block,
    GroupSummary,
    MessageStore,
    ModelSummary,
    Offsets,
    StoreError,
)
from utils.messages import reason_of
from utils.metrics import LiveLoss, ValueShares
from utils.model_store import Bundle, ModelStore
from utils.model_store.manifest import HistoryLine, PublishedModel, RolledBack, published
from utils.settings import Settings

#: How many requests the live figures cover, and how many points their curve has.
RECENT, POINTS = 5_000, 40
#: How many requests the groups are counted over.
SLICED = 20_000
#: How many messages are compared with the data set.
COMPARED = 500
#: The most models that are listed, and the most points of their chart.
LISTED = 200
#: Blocks of the race are merged until they have this many outcomes, or there are few enough.
LEAST_OUTCOMES, MOST_GAINS = 100, 60


@dataclass(frozen=True)
class Model:
    """A model for the list.

    Attributes:
        line: Its line of the history.
        reason: Why it was trained.
        serving: Whether it serves.
        on_disk: Whether its bundle is still there.
        taken_back: Why it was rolled back; empty if it was not.
    """

    line: PublishedModel
    reason: str
    serving: bool
    on_disk: bool
    taken_back: str = ""


@dataclass(frozen=True)
class Gain:
    """What was served, and what the first model would have had, over some outcomes.

    Attributes:
        until: How many outcomes there were up to its end.
        outcomes: How many it covers.
        served: The mean log loss of the real predictions, in nats.
        first: That of the first model on the same outcomes.
    """

    until: int
    outcomes: int
    served: float
    first: float


@dataclass(frozen=True)
class Learning:
    """The stores at one moment.

    Attributes:
        problems: What cannot be shown now and why, by the part of the page.
        target: What is predicted.
        classes: Its classes; of two, the second is the positive one.
        serving: The number of the serving model; 0 before there is one.
        models: The newest models, newest first.
        n_models: How many there are in all.
        totals: What each model's predictions were worth, by model.
        totals_at: When they were counted, in seconds since 1970.
        recent: The same over the last requests.
        blocks: The curve over the last requests.
        gains: The curve of what retraining gained.
        gained: The same over all outcomes; None before any.
        words: Lines of text: what is learnt from, whether something moves, what was gained.
        live: The loss of the last outcomes, and what was to be expected; None before any.
        values: The shares of values that are not what training had, of all messages.
        latest_values: The same of the last messages.
        shifts: How far the last messages are from the data set.
        groups: By column, the groups, or why there are none.
    """

    problems: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    classes: tuple[str, ...] = ()
    serving: int = 0
    models: Sequence[Model] = ()
    n_models: int = 0
    totals: Mapping[int, ModelSummary] = field(default_factory=dict)
    totals_at: float = 0.0
    recent: Mapping[int, ModelSummary] = field(default_factory=dict)
    blocks: Sequence[Block] = ()
    gains: Sequence[Gain] = ()
    gained: Gain | None = None
    words: Sequence[str] = ()
    live: LiveLoss | None = None
    values: ValueShares = field(default_factory=ValueShares)
    latest_values: ValueShares = field(default_factory=ValueShares)
    shifts: Sequence[Shift] = ()
    groups: Mapping[str, Sequence[GroupSummary] | str] = field(default_factory=dict)


class LearningWatch:
    """Reads the stores, step by step.

    Args:
        settings: The pipeline's settings.
        is_watched: Whether somebody looks; what takes long waits for that.
    """

    def __init__(self, settings: Settings, is_watched: Callable[[], bool]) -> None:
        self._settings = settings
        self._is_watched = is_watched
        self._models = ModelStore(settings.models_dir)
        self._bundle: Bundle | None = None
        self._store: MessageStore | None = None
        self._stamp: tuple[object, ...] = ()
        # The store's offsets when a part was last read; it need not be read again before they move.
        self._offsets: dict[str, Offsets] = {}
        # What takes long, and how often it may run.
        of_store = {
            "recent": (Pace(2.0, 0.05), self._read_recent),
            "totals": (Pace(5.0), self._read_totals),
            "values": (Pace(5.0, 0.05), self._read_values),
            "groups": (Pace(10.0), self._read_groups),
            "inputs": (Pace(15.0), self._read_inputs),
        }
        self._parts = {**of_store, "state": (Pace(5.0), self._read_state)}
        self._of_store = of_store.keys()
        self.now = Learning()

    def step(self) -> Learning:
        """Read what is due; errors are part of the result."""
        try:
            self._follow_models()
            self._note("models", "")
        except UserError as error:
            self._note("models", one_line(error))
        if self._bundle is not None and self._is_watched():
            for name, (pace, read) in self._parts.items():
                if pace.is_due():
                    with pace.run():
                        self._read(name, read)
        return self.now

    def _read(self, name: str, read: Callable[[], None]) -> None:
        try:
            if name not in self._of_store:
                read()
            elif (offsets := self._opened().offsets()) != self._offsets.get(name):
                read()
                self._offsets[name] = offsets
            self._note(name, "")
        except UserError as error:
            self._note(name, one_line(error))
            if isinstance(error, StoreError):
                self.close()  # it is opened again, perhaps with other columns

    def _note(self, part: str, problem: str) -> None:
        if self.now.problems.get(part, "") != problem:
            others = {name: text for name, text in self.now.problems.items() if name != part}
            self.now = replace(self.now, problems=others | ({part: problem} if problem else {}))

    def close(self) -> None:
        """Close the message store."""
        if self._store is not None:
            self._store.close()
        self._store = None
        self._offsets.clear()

    # Models.

    def _follow_models(self) -> None:
        """Notice another serving model, a new one or a pruned one, at the cost of a few stats."""
        folder = self._settings.models_dir
        stamp = tuple(map(_stamp_of, (folder, folder / "current.json", folder / "history.jsonl")))
        if stamp == self._stamp:
            return
        serving = self._models.current_id()
        if self._bundle is None or self._bundle.model_id != serving:
            self._bundle = self._models.load(serving)
            self.close()
        history, there = self._models.history(), set(self._models.on_disk())
        lines = published(history)
        back = _taken_back(history)
        features = self._bundle.features
        self.now = replace(
            self.now,
            target=features.target,
            classes=tuple(features.classes),
            serving=serving,
            n_models=len(lines),
            models=tuple(
                Model(
                    line,
                    _reasons(line),
                    line.model_id == serving,
                    line.model_id in there,
                    back.get(line.model_id, ""),
                )
                for line in lines[: -LISTED - 1 : -1]
            ),
        )
        self._stamp = stamp

    # The message store.

    def _opened(self) -> MessageStore:
        assert self._bundle is not None
        if self._store is None:
            self._store = MessageStore.open(self._settings.messages_url, self._bundle.features)
        return self._store

    def _read_recent(self) -> None:
        found = self._opened().recent(RECENT, POINTS)
        self.now = replace(
            self.now,
            recent={one.model_id: one for one in found.models},
            blocks=found.blocks,
        )

    def _read_totals(self) -> None:
        found = self._opened().model_summaries()
        self.now = replace(
            self.now, totals={one.model_id: one for one in found}, totals_at=time.time()
        )

    def _read_values(self) -> None:
        self.now = replace(self.now, values=self._opened().value_shares())

    def _read_groups(self) -> None:
        groups: dict[str, Sequence[GroupSummary] | str] = {}
        for column in self._settings.monitor.slices:
            try:
                groups[column] = self._opened().slices(column, SLICED)
            except ValueError:
                groups[column] = (
                    f"the model has no column {column!r}: see [monitor] slices in pipeline.toml"
                )
        self.now = replace(self.now, groups=groups)

    def _read_inputs(self) -> None:
        assert self._bundle is not None
        latest = report.latest_messages(self._opened().raw_log, self._bundle.features, COMPARED)
        if not latest.messages:
            return
        self.now = replace(
            self.now, latest_values=report.value_shares(latest, self._bundle.features)
        )
        try:
            shifts = report.input_shifts(self._settings, self._bundle, latest)
        except DataError as error:
            raise UserError(f"the messages are not compared with the data set: {error}") from None
        self.now = replace(
            self.now, shifts=sorted(shifts, key=lambda shift: shift.psi, reverse=True)
        )

    # What the trainer has written down.

    def _read_state(self) -> None:
        assert self._bundle is not None
        state = racing.state_of(self._settings)
        total = state.total() if state is not None else None
        self.now = replace(
            self.now,
            words=report.learning(self._settings, self._bundle),
            live=live.figures(self._settings),
            gains=_gains(state.blocks if state is not None else ()),
            gained=_gain(total.rows, total) if total is not None and total.rows else None,
        )


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _reasons(line: PublishedModel) -> str:
    """Why a model was trained, for a reader."""
    found = dict.fromkeys(map(reason_of, line.batch_ids))
    return ", ".join(found) if found else "first model" if line.parent_id is None else "by hand"


def _taken_back(history: Sequence[HistoryLine]) -> dict[int, str]:
    """Of the models that were rolled back and have not served since, why."""
    found: dict[int, str] = {}
    for line in history:
        if isinstance(line, RolledBack):
            found.pop(line.rollback_to, None)
            if line.from_id and line.from_id != line.rollback_to:
                found[line.from_id] = f"model {line.rollback_to} again: {line.reason}"
    return found


def _gains(all_blocks: Sequence[adapt.Block]) -> list[Gain]:
    blocks: list[adapt.Block] = []
    least = max(LEAST_OUTCOMES, sum(block.rows for block in all_blocks) // MOST_GAINS)
    for each in all_blocks:
        if blocks and blocks[-1].rows < least:
            blocks[-1] = blocks[-1].plus(each)
        else:
            blocks.append(each)
    if len(blocks) > 1 and blocks[-1].rows < least:
        blocks[-2:] = [blocks[-2].plus(blocks[-1])]
    ends = accumulate(block.rows for block in blocks)
    return [_gain(end, block) for end, block in zip(ends, blocks, strict=True) if block.rows]


def _gain(until: int, block: adapt.Block) -> Gain:
    return Gain(until, block.rows, block.served / block.rows, block.first / block.rows)
