"""Replays a stream through the code that trains, judges and serves, in logical time.

A row of the stream is sent in each tick of the clock, and its outcome becomes known a number of
rows later. Nothing is written but in a temporary folder, and no broker is needed. Retrainings
for drift or age and by hand do not take place.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from train import evaluate, racing
from train.adapt import Policy, State
from train.retrain import judge, train
from train.schedule import JUDGE_EVERY
from train.training_rows import Problem, Rows, gather_rows
from utils.feature_tools import IntegerCodes, Matrix
from utils.message_store import Offsets, Snapshot
from utils.messages import APP_MESSAGES, OUTCOMES
from utils.model_store import Bundle, ModelStore, predicted_codes
from utils.model_store.manifest import Parameters, StandingRecord
from utils.settings import Settings

#: *adaptive* is what the trainer does, *everything* never changes to recent outcomes, *frozen*
#: never trains.
Policies = Literal["adaptive", "everything", "frozen"]

#: Called with (rows done, rows in total).
Progress = Callable[[int, int], object]


@dataclass
class Replay:
    """What came of a replay.

    Attributes:
        codes: (rows,), the classes.
        losses: (rows,), the log loss of each served prediction, in nats.
        correct: (rows,), whether it was right.
        models: (rows,), the model that served.
        first_losses: (rows,), the log loss of the first model.
        first_correct: (rows,), whether it was right.
        everything: (rows,), the log loss of one model of everything, as the mean of up to
            `adapt.GRID` rows; NaN for rows that the race did not score.
        scored: Up to which row the race has scored everything.
        changes: (row, policy), from which row on a model of another policy served.
        trainings: How many there were, `refused` how many of them the gate refused, and
            `rollbacks` how often a model was rolled back.
        seconds: How long all of them took.
        texts: By accepted model, the SHA-256 of its model.txt.
        memories: Of each training, what its model learnt from, in words.
        standings: What other memories would have had.
    """

    codes: IntegerCodes
    losses: Matrix
    correct: npt.NDArray[np.bool_]
    models: npt.NDArray[np.int64]
    first_losses: Matrix
    first_correct: npt.NDArray[np.bool_]
    everything: Matrix
    scored: int = 0
    changes: list[tuple[int, Policy]] = field(default_factory=list)
    trainings: int = 0
    refused: int = 0
    rollbacks: int = 0
    seconds: float = 0.0
    texts: dict[int, str] = field(default_factory=dict)
    memories: list[str] = field(default_factory=list)
    standings: list[StandingRecord] = field(default_factory=list)

    @classmethod
    def of(cls, codes: IntegerCodes) -> "Replay":
        """A replay of rows that are not sent yet."""
        rows = len(codes)
        return cls(
            codes,
            np.zeros(rows),
            np.zeros(rows, bool),
            np.zeros(rows, np.int64),
            np.zeros(rows),
            np.zeros(rows, bool),
            np.full(rows, np.nan),
        )

    def take_blocks(self, state: State) -> None:
        """Take the losses of everything that a race has scored since the last call."""
        end = state.done
        for block in reversed(state.blocks):
            if end <= self.scored:
                break
            self.everything[end - block.rows : end] = block.everything / max(block.rows, 1)
            end -= block.rows
        self.scored = state.done


class LogicalLog:
    """The messages of a stream so far, as the message store would return them.

    Args:
        frame: The raw feature columns of all rows.
        labels: (rows,), the outcomes.
        delay: After how many more rows an outcome becomes known.
    """

    def __init__(self, frame: pd.DataFrame, labels: npt.NDArray[np.object_], delay: int) -> None:
        self._frame, self._labels, self._delay = frame, labels, delay
        self._ids = np.array([f"row-{row}" for row in range(len(frame))], dtype=object)
        self.sent = 0
        self._made: dict[str, tuple[int, float | list[float]]] = {}

    @property
    def known(self) -> int:
        """The number of known outcomes."""
        return max(0, self.sent - self._delay)

    def predict(self, model_id: int, rows: range, probabilities: Matrix) -> None:
        """Record predictions of the next rows."""
        for row, probability in zip(rows, probabilities.tolist(), strict=True):
            self._made[self._ids[row]] = (model_id, probability)
        self.sent = rows.stop

    def snapshot(self) -> Snapshot:
        """All rows with a known outcome."""
        return self._rows(0)

    def newer_than(self, offsets: Offsets, limit: int | None = None) -> Snapshot:
        """Rows whose outcome is newer than the offsets."""
        first = self._first(offsets)
        return self._rows(first if limit is None else max(first, self.known - limit))

    def predictions_since(self, offsets: Offsets) -> Mapping[str, tuple[int, float | list[float]]]:
        """The predictions of rows whose outcome is newer than the offsets."""
        chosen = self._ids[self._first(offsets) : self.known]
        return {request_id: self._made[request_id] for request_id in chosen}

    def topic_ids(self) -> dict[str, str]:
        """Topics are never recreated here."""
        return {}

    def _first(self, offsets: Offsets) -> int:
        place = (OUTCOMES, 0) if self._delay else (APP_MESSAGES, 0)
        return offsets.get(place, 0)

    def _rows(self, first: int) -> Snapshot:
        rows = slice(first, self.known)
        sent_at = np.arange(first, self.known, dtype=np.int64)
        return Snapshot(
            request_ids=self._ids[rows],
            frame=self._frame.iloc[rows].reset_index(drop=True),
            outcomes=self._labels[rows],
            offsets={(APP_MESSAGES, 0): self.sent, (OUTCOMES, 0): self.known if self._delay else 0},
            topic_ids={},
            known_at=sent_at + self._delay,
            sent_at=sent_at,
        )


@dataclass(frozen=True)
class Plan:
    """How a stream is replayed.

    Attributes:
        every: Known outcomes from one training to the next.
        delay: After how many more rows an outcome becomes known.
        evals: Evaluations of the search in each training; one keeps the first model's.
        hyper: The optimiser.
        policy: What decides how much of the past counts.
        first: The parameters of the first model; None to search them.
    """

    every: int
    delay: int = 0
    evals: int = 1
    hyper: str = "hyperopt"
    policy: Policies = "adaptive"
    first: Parameters | None = None


def replay(
    settings: Settings,
    base: Rows,
    frame: pd.DataFrame,
    labels: npt.NDArray[np.object_],
    plan: Plan,
    progress: Progress = lambda done, total: None,
) -> Replay:
    """Replay a stream.

    Args:
        settings: The pipeline's settings; its home must be a temporary one, with the data set.
        base: The base data, from which the first model is trained.
        frame: The raw feature columns of the stream, in the order in which it is sent.
        labels: (rows,), its outcomes, of known classes.
        plan: How it is replayed.
        progress: Called with the progress.
    """
    store = ModelStore(settings.models_dir)
    if not store.on_disk():
        evals = max(plan.evals, 2) if plan.first is None else 1
        train(
            settings,
            snapshot=None,
            hyper=plan.hyper,
            evals=evals,
            base=base,
            parameters=plan.first,
        )
    return _Replaying(settings, store, frame, labels, plan).run(progress)


class _Replaying:
    """A replay while it runs."""

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        frame: pd.DataFrame,
        labels: npt.NDArray[np.object_],
        plan: Plan,
    ) -> None:
        self._settings, self._store, self._plan = settings, store, plan
        self._frame = frame
        self._log = LogicalLog(frame, labels, plan.delay)
        self._first = self._bundle = store.load_current()
        self._policy: Policy = "everything"
        self._judged = 0
        self._found = Replay.of(self._first.features.encode_target(labels))

    def run(self, progress: Progress) -> Replay:
        """Send all rows."""
        log, total = self._log, len(self._frame)
        while log.sent < total:
            upto = min(total, log.sent + _rows_until_due(log, self._plan))
            self._serve(range(log.sent, upto))
            if self._plan.policy != "frozen":
                # In this order, as the trainer: a request goes before a judgement.
                if log.known and log.known % self._plan.every == 0:
                    self._train()
                if log.known - self._judged >= JUDGE_EVERY:
                    self._judge()
            progress(upto, total)
        if self._plan.policy != "frozen" and log.known:
            self._score_rest()
        return self._found

    def _serve(self, rows: range) -> None:
        place, found, bundle = slice(rows.start, rows.stop), self._found, self._bundle
        codes = found.codes[place]
        scores = first = self._score(bundle, place)
        self._log.predict(bundle.model_id, rows, scores)
        if bundle.model_id != self._first.model_id:
            first = self._score(self._first, place)
        found.losses[place] = evaluate.row_losses(scores, codes)
        found.correct[place] = predicted_codes(scores) == codes
        found.models[place] = bundle.model_id
        found.first_losses[place] = evaluate.row_losses(first, codes)
        found.first_correct[place] = predicted_codes(first) == codes

    def _score(self, bundle: Bundle, place: slice) -> Matrix:
        return bundle.score(bundle.features.transform(self._frame.iloc[place]))

    def _train(self) -> None:
        found, plan, began = self._found, self._plan, time.monotonic()
        result = train(
            self._settings,
            snapshot=self._log.snapshot(),
            hyper=plan.hyper,
            evals=plan.evals,
            predictions=self._log.predictions_since,
            policy="everything" if plan.policy == "everything" else None,
        )
        found.seconds += time.monotonic() - began
        found.trainings += 1
        found.refused += not result.accepted
        found.memories.append(result.memory or "")
        if result.accepted:
            self._use(self._store.load(result.model_id))
            found.texts[result.model_id] = self._bundle.manifest.sha256["model.txt"]
        if (state := racing.state_of(self._settings)) is not None:
            found.take_blocks(state)

    def _judge(self) -> None:
        self._judged = self._log.known
        judgement = judge(self._settings, self._log)
        if judgement is not None and judgement.demoted:
            self._found.rollbacks += 1
            self._use(self._store.load_current())

    def _use(self, bundle: Bundle) -> None:
        self._bundle = bundle
        memory = bundle.manifest.training.memory
        policy: Policy = memory.policy if memory else "everything"
        if policy != self._policy:
            self._policy = policy
            self._found.changes.append((self._log.sent, policy))

    def _score_rest(self) -> None:
        """Score the outcomes since the last training by the candidates, too."""
        problem = Problem.of(self._settings, self._bundle)
        race = racing.race_of(
            self._settings,
            problem,
            gather_rows(problem, self._log.snapshot()),
            self._bundle,
            self._log.predictions_since,
        )
        self._found.take_blocks(race.state)
        self._found.standings = list(race.memory_record(race.state.policy).standings)


def _rows_until_due(log: LogicalLog, plan: Plan) -> int:
    """How many rows may be sent before a training or a judgement is due."""
    left = [step - (log.known % step) for step in (plan.every, JUDGE_EVERY)]
    return min(left) + (plan.delay - log.sent if log.sent < plan.delay else 0)
