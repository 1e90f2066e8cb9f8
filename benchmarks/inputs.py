"""How the watch of the inputs does: false alarms, and outcomes until a change is seen.

The rows of Adult's test file, drawn at random, are a stream without drift. In others a column
changes for good from some outcome on: a number by standard deviations, or its commonest category
is replaced by one that training never saw. The trainer's own watch looks after every 50 outcomes;
each alarm is followed by a training, besides those after every so many outcomes.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import Section, Table, Workshop
from train import live_inputs
from train.retrain import train
from train.schedule import JUDGE_EVERY
from train.search_space import space_of
from train.training_rows import Problem, Rows, base_rows, fit_preprocessor
from utils import data_set, download
from utils import settings as settings_module
from utils.feature_tools import Matrix
from utils.message_store import Counts, KnownPredictions, Offsets, Snapshot
from utils.messages import OUTCOMES
from utils.model_store import Bundle, ModelStore
from utils.model_store.manifest import PublishedModel
from utils.settings import Settings

ROUNDS = 100
#: The outcomes of a stream without drift; those before a change, and after it.
STATIONARY, BEFORE, AFTER = 20_000, 1_200, 3_000
#: Outcomes from one training to the next; 0 for none but those that an alarm requests.
EVERY = (0, 250, 1_000)

Change = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass
class Stored:
    """A stream as the message store returns it: message and outcome are one record.

    Attributes:
        frame: The raw feature columns.
        scores: (rows,), what was predicted.
        known: How many of the rows are there.
    """

    frame: pd.DataFrame
    scores: Matrix
    known: int = 0
    history: list[PublishedModel] = field(default_factory=list)

    def trained(self) -> None:
        """Add a training of all that is known to the history."""
        offsets = {OUTCOMES: {"0": self.known}}
        model_id = len(self.history) + 1
        self.history.append(PublishedModel(model_id=model_id, accepted=True, offsets=offsets))

    def newer_than(self, offsets: Offsets, limit: int | None = None) -> Snapshot:
        return self._snapshot(self._newer(offsets, self.known if limit is None else limit))

    def older_than(self, offsets: Offsets, limit: int) -> Snapshot:
        return self._snapshot(self._older(offsets, limit))

    def known_since(self, offsets: Offsets, limit: int) -> KnownPredictions:
        return self._predictions(self._newer(offsets, limit))

    def known_before(self, offsets: Offsets, limit: int) -> KnownPredictions:
        return self._predictions(self._older(offsets, limit))

    def topic_ids(self) -> dict[str, str]:
        return {}

    def counts(self) -> Counts:
        return Counts(self.known, self.known, self.known, 0, 0)

    def _newer(self, offsets: Offsets, limit: int) -> slice:
        return slice(max(offsets[OUTCOMES, 0], self.known - limit), self.known)

    def _older(self, offsets: Offsets, limit: int) -> slice:
        return slice(max(0, offsets[OUTCOMES, 0] - limit), offsets[OUTCOMES, 0])

    def _snapshot(self, rows: slice) -> Snapshot:
        times = np.arange(rows.start, rows.stop, dtype=np.int64)
        ids = times.astype(str).astype(object)
        frame = self.frame.iloc[rows].reset_index(drop=True)
        return Snapshot(ids, frame, ids, times, times, {}, {})

    def _predictions(self, rows: slice) -> KnownPredictions:
        return KnownPredictions(self.scores[rows], np.empty(0, object), {}, {})


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--orders", type=int, default=1 if quick else 12, help="stationary orders")
    parser.add_argument("--changes", type=int, default=1 if quick else 12, help="orders to change")


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    columns = [f"retrained every {every:,}" if every else "not retrained" for every in EVERY]
    alarms = Table(
        "The watch of the inputs", [f"alarms in {STATIONARY:,} outcomes without drift", *columns]
    )
    delays = Table("Outcomes from a change to the request", ["change", *columns])
    with tempfile.TemporaryDirectory() as folder:
        world = _World(Path(folder))
        workshop.say("inputs: without drift")
        found = [
            [len(world.requests(seed, every)) for seed in range(options.orders)] for every in EVERY
        ]
        alarms.add("mean", *(f"{np.mean(each):.2f}" for each in found))
        alarms.add("most", *(str(max(each)) for each in found))
        for name, change in _changes(world.rows).items():
            workshop.say(f"inputs: {name}")
            cells = [_cell(world, change, every, options.changes) for every in EVERY]
            delays.add(name, *cells)
    section = Section("Drift of the inputs", [alarms, delays])
    section.notes.append(
        f"The watch compares the last {live_inputs.RECENT} rows since the newest training with the "
        f"{live_inputs.LEARNT} learnt last, after every {JUDGE_EVERY} outcomes: "
        f"{options.orders} orders without drift. Changes come after {BEFORE:,} outcomes; median / "
        f"most of {options.changes} orders, then the most requests in {AFTER:,} outcomes; - is "
        "no request."
    )
    return section


class _World:
    """A home with a first model of Adult, and the rows of Adult's test file."""

    def __init__(self, home: Path) -> None:
        whole = settings_module.load({})
        for file in whole.data.files:
            download.fetch(file, whole.data_dir, lambda line: None)
        (home / "data").symlink_to(whole.data_dir, target_is_directory=True)
        self._settings: Settings = whole.model_copy(update={"home": home})
        base = base_rows(Problem.of(self._settings, None))
        _train_first(self._settings, base)
        self._serving: Bundle = ModelStore(self._settings.models_dir).load_current()
        data, path = whole.data, whole.data_dir / whole.data.test
        self.rows = data_set.read_data(path, data, base.types).frame[list(base.types)]

    def requests(self, seed: int, every: int, change: Change | None = None) -> list[int]:
        """The numbers of known outcomes at which a retraining is requested."""
        rng, settings = np.random.default_rng(seed), self._with_seed(seed)
        (settings.searches_dir / live_inputs.FILE).unlink(missing_ok=True)
        total = BEFORE + AFTER if change else STATIONARY
        frame = self.rows.iloc[rng.integers(0, len(self.rows), total)].reset_index(drop=True)
        if change:
            frame = pd.concat([frame[:BEFORE], change(frame[BEFORE:])], ignore_index=True)
        scores = self._serving.score(self._serving.features.transform(frame))
        stored, found = Stored(frame, scores), []
        stored.trained()
        for stored.known in range(JUDGE_EVERY, total + 1, JUDGE_EVERY):
            if every and stored.known % every == 0:
                stored.trained()
            alarm = live_inputs.look(settings, stored, self._serving, stored.history)
            if alarm is not None:
                found.append(stored.known)
                stored.trained()
        return found

    def _with_seed(self, seed: int) -> Settings:
        """Settings by which the watch draws another sample of the base data."""
        training = self._settings.training.model_copy(update={"seed": seed})
        return self._settings.model_copy(update={"training": training})


def _train_first(settings: Settings, base: Rows) -> None:
    features = fit_preprocessor(base, Problem.of(settings, None))
    centres = {name: spec.centre for name, spec in space_of(features).items()}
    parameters = {**centres, "learning_rate": 0.1, "num_boost_round": ROUNDS}
    train(settings, snapshot=None, hyper="hyperopt", evals=1, base=base, parameters=parameters)


def _changes(rows: pd.DataFrame) -> dict[str, Change]:
    def add(name: str, deviations: float) -> Change:
        return lambda frame: frame.assign(**{name: frame[name] + deviations * rows[name].std()})

    def replace(name: str, share: float) -> Change:
        shares = rows[name].value_counts(normalize=True)
        category = (shares - share).abs().idxmin()
        return lambda frame: frame.assign(
            **{name: frame[name].astype(object).replace({category: "never seen"})}
        )

    return {
        "age + 1 standard deviation": add("age", 1.0),
        "age + 0.5 standard deviations": add("age", 0.5),
        "hours_per_week + 1 standard deviation": add("hours_per_week", 1.0),
        "workclass: that of 69 % of the rows replaced": replace("workclass", 0.7),
        "occupation: one of 13 % of the rows replaced": replace("occupation", 0.13),
        "education: one of 4 % of the rows replaced": replace("education", 0.04),
    }


def _cell(world: _World, change: Change, every: int, orders: int) -> str:
    found = [
        [at - BEFORE for at in world.requests(1_000 + seed, every, change) if at > BEFORE]
        for seed in range(orders)
    ]
    first = [each[0] for each in found if each]
    if not first:
        return "-"
    missed = f", {orders - len(first)} without" if len(first) < orders else ""
    return f"{np.median(first):.0f} / {max(first)}{missed}; {max(map(len, found))}"
