"""Keeps the race of the candidates from one training to the next, in memory and in a file."""

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from train import adapt
from train.adapt import Policy, Race, State, Stream
from train.training_rows import (
    Problem,
    Rows,
    base_of,
    fit_preprocessor,
    offsets_by_topic,
    training_offsets,
)
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix
from utils.message_store import Offsets
from utils.model_store import Bundle, Draft
from utils.model_store.manifest import Parameters, TrainingRecord
from utils.settings import Settings

#: The file in searches/.
RACE_FILE = "memories.json"

#: Returns, by request_id, the model and the probability of the real predictions of what is newer
#: than some offsets (`MessageStore.predictions_since`).
Predictions = Callable[[Offsets], Mapping[str, tuple[int, float | list[float]]]]


@dataclass
class _Kept:
    """A race and what is encoded for it, kept by the process that trains."""

    race: Race | None = None
    features: FeatureTools | None = None
    X: Matrix = field(default_factory=lambda: np.empty((0, 0)))
    codes: IntegerCodes = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    ids: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def _kept(path: Path, problem: str) -> _Kept:
    return _Kept()


def race_of(
    settings: Settings,
    problem: Problem,
    rows: Rows,
    champion: Bundle,
    predictions: Predictions,
    *,
    scores: bool = True,
) -> Race:
    """The race, with all outcomes scored that are known.

    Args:
        settings: The pipeline's settings.
        problem: What is learnt.
        rows: The base data and the outcomes.
        champion: The serving bundle; that of a new race is its first model.
        predictions: Returns the real predictions.
        scores: False to fit the candidates alone, ahead of the first training.
    """
    path = settings.searches_dir / RACE_FILE
    features = champion.features
    problem_id = adapt.problem_id(rows.base_sha256, features)
    kept, state = _kept(path, problem_id), adapt.load_state(path)
    if state is None or state.problem != problem_id:
        state = State(
            problem_id,
            dict(champion.manifest.hyperparameters),
            dict(champion.manifest.hyperparameters),
            first_model=champion.model_id,
        )
    if kept.race is None or kept.race.state != state:
        _begin(kept, settings, problem, rows, copy.deepcopy(state))
    race = kept.race
    assert race is not None
    race.shrink(len(rows.ids) - rows.base)
    stream = _stream(kept, rows, race.state, predictions)
    if not scores:
        race.begin(stream)
        return race
    race.update(stream)
    race.state.offsets = offsets_by_topic(rows.offsets)
    if race.state.done - state.done >= adapt.GRID:
        adapt.save_state(path, race.state)  # a kill during the fit does not repeat a long catch-up
    return race


def _begin(kept: _Kept, settings: Settings, problem: Problem, rows: Rows, state: State) -> None:
    base = base_of(rows)
    frame, labels = base.training
    kept.features = fit_preprocessor(base, problem)
    codes = kept.features.encode_target(labels)
    kept.X, kept.codes = kept.features.transform(frame)[codes >= 0], codes[codes >= 0]
    kept.ids = []
    kept.race = Race(state, kept.features, settings.training.seed)


def _stream(kept: _Kept, rows: Rows, state: State, predictions: Predictions) -> Stream:
    features = kept.features
    assert features is not None
    frame, labels = rows.frame.iloc[rows.base :], rows.labels[rows.base :]
    base, same = len(kept.X) - len(kept.ids), _equal_start(kept.ids, ids := rows.ids[rows.base :])
    codes = np.maximum(features.encode_target(labels[same:]), 0)
    kept.X = np.concatenate([kept.X[: base + same], features.transform(frame.iloc[same:])])
    kept.codes = np.concatenate([kept.codes[: base + same], codes])
    kept.ids = ids
    served, model_ids = _served(rows, state, features, predictions)
    return Stream(base, kept.X, kept.codes, rows.sent_after, model_ids, served)


def _equal_start(old: list[str], new: list[str]) -> int:
    """How many ids are the same at the start of both lists.

    Mostly all that were known. A late record, a corrected outcome or a log that was read again
    changes the order in which outcomes became known.
    """
    count = min(len(old), len(new))
    if old[:count] == new[:count]:
        return count
    return next(place for place in range(count) if old[place] != new[place])


def _served(
    rows: Rows, state: State, features: FeatureTools, predictions: Predictions
) -> tuple[Matrix, np.ndarray]:
    ids, classes = rows.ids[rows.base :], len(features.classes)
    served = np.full(len(ids) if classes == 2 else (len(ids), classes), np.nan)
    model_ids = np.zeros(len(ids), dtype=np.int64)
    read = training_offsets(TrainingRecord(offsets=state.offsets, topic_ids=rows.topic_ids))
    made = predictions(read)
    for place, request_id in enumerate(ids[state.done :], state.done):
        if request_id in made:
            model_ids[place], probability = made[request_id]
            with suppress(ValueError):  # the model had other classes
                served[place] = probability
    return served, model_ids


def known_parameters(race: Race | None, champion: Bundle | None) -> Parameters | None:
    """The parameters that the search has found last; None for a first model."""
    if race is not None:
        return race.state.everything
    return champion.manifest.hyperparameters if champion else None


def remember(
    settings: Settings, race: Race, policy: Policy | None, draft: Draft, model_id: int
) -> None:
    """Write what the race remembers, once a training has ended.

    Args:
        settings: The pipeline's settings.
        race: The race.
        policy: That of the model that serves from now on; None if it was refused.
        draft: The model.
        model_id: Its number.
    """
    if policy is not None:
        race.switch(policy, model_id)
        race.state.everything = dict(draft.hyperparameters)
    adapt.save_state(settings.searches_dir / RACE_FILE, race.state)


def state_of(settings: Settings) -> State | None:
    """What the race remembers; None if there was none."""
    return adapt.load_state(settings.searches_dir / RACE_FILE)
