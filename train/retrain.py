"""One training from start to end: rows in, bundle out. Does not depend on Kafka."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import pandas as pd

from train import adapt, evaluate, fit, gate, optimisers, profile, racing
from train.adapt import Policy, Race
from train.racing import Predictions
from train.results import Judgement, Result
from train.search import Best, Progress, SearchSpec, search
from train.tracking import outbox
from train.training_rows import (
    Problem,
    Rows,
    fit_preprocessor,
    fit_preprocessor_on,
    gather_rows,
    offsets_by_topic,
    training_matrix,
    training_offsets,
)
from utils import preprocess_data
from utils.boosting import lgb
from utils.feature_tools import FeatureTools, IntegerCodes
from utils.message_store import Offsets, Snapshot
from utils.metrics import BothMetrics, Metrics
from utils.model_store import Bundle, BundleError, Draft, ModelStore, ModelStoreError
from utils.model_store.manifest import (
    MemoryRecord,
    Parameters,
    TrainingRecord,
    TrialRecord,
    split_rounds,
)
from utils.settings import Settings
from utils.values import Label

GOLDEN_ROWS = 5
#: The most outcomes of a judgement, so that its cost does not grow with the log.
JUDGE_LATEST = 20_000


class Timer:
    """Measures how long the parts of a training take.

    Args:
        begin: Called with the name of each part that begins.

    Attributes:
        seconds: The duration of each part by its name.
    """

    def __init__(self, begin: Callable[[str], None] = lambda part: None) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = begin

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Measure the block."""
        self._begin(part)
        started = time.monotonic()
        yield
        self.seconds[part] = time.monotonic() - started


def train(
    settings: Settings,
    *,
    snapshot: Snapshot | None,
    hyper: str,
    evals: int,
    batch_ids: Sequence[str] = (),
    base: Rows | None = None,
    outcomes_from: Mapping[int, int] | None = None,
    progress: Progress | None = None,
    begin: Callable[[str], None] = lambda part: None,
    predictions: Predictions = lambda offsets: {},
    policy: Policy | None = None,
    parameters: Parameters | None = None,
) -> Result:
    """Decide how much of the past counts, fit, compare with the champion and publish.

    1. Gather the rows.
    2. Score the new outcomes by the candidates of each memory, which decides the policy.
    3. Search the parameters, starting from the champion's, if one model learns from everything.
    4. Fit the model.
    5. Gate: compare with what was really predicted for the latest outcomes.
    6. Publish the bundle.

    Args:
        settings: The pipeline's settings.
        snapshot: The messages with their outcomes; None to learn from the base data alone.
        hyper: The optimiser's name.
        evals: Evaluations of the search; with one, a retraining keeps the parameters.
        batch_ids: The ids of the retrain requests that this training answers.
        base: The base data, to train a first model: by pipeline.toml, without a champion, so
            without warm start and gate. An optimiser with a memory keeps it.
        outcomes_from: With `base`: by partition of `outcomes`, the first offset of its target.
        progress: Called with (done, total, best loss) after each evaluation.
        begin: Called with the name of each part of the training (`train.progress.PARTS`).
        predictions: Returns the real predictions of what is newer than some offsets, as
            `MessageStore.predictions_since` does.
        policy: The policy, whatever the race says; None to follow the race.
        parameters: With `base` and one evaluation: the first model's, which are not searched.
    """
    timer, store = Timer(begin), ModelStore(settings.models_dir)
    with timer("reading"):
        champion = None if base else serving_bundle(store)
        problem = Problem.of(settings, champion)
        if outcomes_from is not None:
            problem = replace(problem, outcomes_from=outcomes_from)
        rows = base or gather_rows(problem, snapshot)  # 1
    with timer("adapting"):
        race = None
        if champion is not None:
            race = racing.race_of(settings, problem, rows, champion, predictions)  # 2
        policy = policy or (race.wanted() if race else "everything")
        memory = race.memory_record(policy) if race else None
    known = parameters or racing.known_parameters(race, champion)
    with timer("searching"):
        draft_of = _Fitting(rows, problem, settings.training.seed)
        best = draft_of.search(settings, policy, hyper, evals, known, progress)  # 3
    with timer("fitting"):
        fitted = draft_of.fit(memory, best)  # 4
    with timer("gate"):
        verdict = _verdict(race, champion, fitted, policy, rows)  # 5
    draft = Draft(
        parent_id=champion.model_id if champion else None,
        model_text=fitted.text,
        features=fitted.features,
        hyperparameters={**best.params, "num_boost_round": best.rounds},
        seed=settings.training.seed,
        training=_training_record(problem, rows, fitted, hyper, best, timer, memory),
        metrics=BothMetrics(verdict.challenger, verdict.champion),
        gate=verdict.comparison,
        batch_ids=list(batch_ids),
        golden_rows=_golden_rows(rows, fitted.features),
    )
    with timer("publishing"):
        model_id = _publish(settings, store, draft, accepted=verdict.accepted)  # 6
        if race is not None:
            racing.remember(settings, race, policy if verdict.accepted else None, draft, model_id)
    return Result(
        model_id,
        verdict.accepted,
        draft.parent_id,
        fitted.rows,
        verdict.challenger,
        verdict.champion,
        verdict.comparison,
        {name: round(value, 3) for name, value in timer.seconds.items()},
        best.learnt_from,
        _majority(rows, fitted) if champion is None else None,
        memory.in_words() if memory else None,
    )


def prepare(settings: Settings, snapshot: Snapshot | None) -> None:
    """Do ahead of the first training what it need not wait for: read, and fit the candidates."""
    champion = serving_bundle(ModelStore(settings.models_dir))
    problem = Problem.of(settings, champion)
    rows = gather_rows(problem, snapshot)
    if champion is not None:
        racing.race_of(settings, problem, rows, champion, lambda offsets: {}, scores=False)


@dataclass(frozen=True)
class Fitted:
    """A fitted model: its text, its preprocessor and the number of rows that it learnt from."""

    booster: lgb.Booster
    features: FeatureTools
    rows: int
    codes: IntegerCodes

    @property
    def text(self) -> str:
        """The model as a bundle holds it."""
        return fit.model_text(self.booster)


class _Fitting:
    """Searches and fits, each with its own choice of rows; encodes what it needs once."""

    def __init__(self, rows: Rows, problem: Problem, seed: int) -> None:
        self._rows, self._problem, self._seed = rows, problem, seed
        self._threads = os.cpu_count() or 1

    @cached_property
    def _everything(self) -> tuple[FeatureTools, np.ndarray, np.ndarray]:
        features = fit_preprocessor(self._rows, self._problem)
        return features, *training_matrix(self._rows, features)

    def search(
        self,
        settings: Settings,
        policy: Policy,
        hyper: str,
        evals: int,
        known: Parameters | None,
        progress: Progress | None,
    ) -> Best:
        """Search the parameters; without a reason to, keep those that are known."""
        if known is not None and (policy == "recent" or evals == 1):
            return Best(*split_rounds(known), math.nan, 0, 0.0)
        features, X, y = self._everything
        spec = SearchSpec(
            X=X,
            y=y,
            features=features,
            evals=evals,
            seed=self._seed,
            n_folds=settings.training.folds,
            start_from=known,
            threads=self._threads,
            memory=settings.searches_dir,
            progress=progress,
        )
        return search(optimisers.get(hyper), spec)

    def fit(self, memory: MemoryRecord | None, best: Best) -> Fitted:
        """Fit a blend of the memory's members, or one model of everything."""
        if memory is not None and memory.members:
            return fit_blend(self._rows, self._problem, memory, self._seed)
        features, X, y = self._everything
        booster = fit.fit(
            X, y, features, best.params, best.rounds, threads=self._threads, seed=self._seed
        )
        return Fitted(booster, features, len(y), y)


def fit_blend(rows: Rows, problem: Problem, memory: MemoryRecord, seed: int) -> Fitted:
    """Fit a model of several memories, of the rows that they keep alone."""
    frame, labels = rows.training
    # A retraining has the classes of its champion, so their codes need no preprocessor yet.
    codes = pd.Categorical(labels, categories=problem.classes).codes.astype(np.int64)
    usable = np.flatnonzero(codes >= 0)
    base = int((usable < rows.training_base).sum())
    kept = adapt.rows_of_members(memory.members, base, codes[usable])
    # The categories of the base data, and of what the memories keep.
    chosen = np.union1d(np.arange(rows.training_base), usable[kept])
    features = fit_preprocessor_on(frame.iloc[chosen], labels[chosen], rows, problem)
    matrix = features.transform(frame.iloc[usable[kept]])
    booster = adapt.fit_blend(
        memory,
        base,
        codes[usable],
        lambda places: matrix[np.searchsorted(kept, places)],
        features,
        threads=os.cpu_count() or 1,
        seed=seed,
    )
    return Fitted(fit.settle(booster, matrix, features), features, len(kept), codes[usable][kept])


def _verdict(
    race: Race | None, champion: Bundle | None, fitted: Fitted, policy: Policy, rows: Rows
) -> gate.Verdict:
    features = fitted.features
    if race is not None and gate.are_comparable(champion, features):
        return gate.compare(race.latest(gate.LATEST), policy)
    frame, labels = rows.held_out
    codes = features.encode_target(labels)
    scores = fit.predict(fitted.booster, features.transform(frame[codes >= 0]), os.cpu_count() or 1)
    return gate.Verdict(evaluate.metrics(scores, codes[codes >= 0]), is_first=champion is None)


def _majority(rows: Rows, fitted: Fitted) -> Metrics | None:
    codes = fitted.features.encode_target(rows.held_out[1])
    return profile.majority(fitted.codes, codes, len(fitted.features.classes))


def _training_record(
    problem: Problem,
    rows: Rows,
    fitted: Fitted,
    hyper: str,
    best: Best,
    timer: Timer,
    memory: MemoryRecord | None,
) -> TrainingRecord:
    return TrainingRecord(
        rows=fitted.rows,
        classes=fitted.features.classes,
        base_data=problem.data.train,
        data=problem.data.model_dump(mode="json", exclude={"files"}),
        base_data_sha256=rows.base_sha256,
        offsets=offsets_by_topic(rows.offsets),
        topic_ids=rows.topic_ids,
        outcomes_from=problem.outcomes_from,
        hyper=hyper,
        evaluations=best.evaluations,
        learnt_from=best.learnt_from,
        cv_loss=None if math.isnan(best.loss) else best.loss,
        trials=[TrialRecord(**asdict(trial)) for trial in best.trials],
        seconds=dict(timer.seconds),
        memory=memory or MemoryRecord(policy="everything"),
    )


def _publish(settings: Settings, store: ModelStore, draft: Draft, *, accepted: bool) -> int:
    """Publish a draft, keep a copy for MLflow and prune; returns the model's number."""
    model_id = store.publish(draft, accepted=accepted)
    outbox.enqueue(settings, store, model_id)
    with suppress(ModelStoreError):  # retried after the next training
        store.prune(settings.training.extra_models_to_keep)
    return model_id


def serving_bundle(store: ModelStore) -> Bundle | None:
    """The serving bundle; None if there is none, or it does not load."""
    try:
        return store.load_current()
    except BundleError:
        return None


def _golden_rows(rows: Rows, features: FeatureTools) -> list[dict[str, Label | None]]:
    frame = rows.held_out[0] if rows.validation.any() else rows.frame
    return list(
        preprocess_data.records(frame[list(features.columns)].head(GOLDEN_ROWS), rows.types)
    )


class JudgedMessages(Protocol):
    """What a judgement reads of a `MessageStore`."""

    def newer_than(self, offsets: Offsets, limit: int | None = None) -> Snapshot:
        """Messages with an outcome, where either is at or after the given offsets."""

    def predictions_since(self, offsets: Offsets) -> Mapping[str, tuple[int, float | list[float]]]:
        """The real predictions of those messages, by request_id."""

    def topic_ids(self) -> Mapping[str, str]:
        """Kafka's ids of the topics."""


def judge(settings: Settings, messages: JudgedMessages) -> Judgement | None:
    """Roll back to the parent of the serving model if the parent is significantly better.

    Both are compared on outcomes that neither was trained on.

    Returns:
        The judgement; None if there is no parent to roll back to, or too few outcomes.
    """
    store = ModelStore(settings.models_dir)
    champion = serving_bundle(store)
    if champion is None or champion.parent_id is None:
        return None
    try:
        parent = store.load(champion.parent_id)
    except BundleError:
        return None
    read = training_offsets(champion.manifest.training, messages.topic_ids())
    newer, made = messages.newer_than(read, JUDGE_LATEST), messages.predictions_since(read)
    codes = champion.features.encode_target(newer.outcomes)
    ours = [made.get(request_id, (0,))[0] == champion.model_id for request_id in newer.request_ids]
    chosen = (codes >= 0) & np.array(ours, dtype=bool)
    frame, codes, ids = newer.frame[chosen], codes[chosen], newer.request_ids[chosen]
    if not len(codes) or not gate.are_comparable(parent, champion.features):
        return None
    really = np.array([made[request_id][1] for request_id in ids], dtype=np.float64)
    comparison = gate.compare_losses(
        evaluate.row_losses(parent.score(parent.features.transform(frame)), codes),
        evaluate.row_losses(really, codes),
        gate.DEMOTE_AT,
    )
    if comparison.worse:
        reason = (
            f"on {len(codes)} newer outcomes its log loss is {comparison.mean_difference:.4f} "
            f"(standard error {comparison.standard_error:.4f}) worse than its parent's"
        )
        store.rollback(parent.model_id, reason=reason)
    return Judgement(champion.model_id, parent.model_id, len(codes), comparison.worse, comparison)


def retrain_from_manifest(
    settings: Settings, bundle: Bundle, snapshot: Snapshot | None
) -> tuple[FeatureTools, str]:
    """Train a model again from its manifest.

    Args:
        settings: The pipeline's settings.
        bundle: The model.
        snapshot: The messages up to the manifest's offsets.

    Returns:
        The preprocessor, and the text of model.txt.

    Raises:
        ValueError: The base data are not those that the model was trained on.
    """
    manifest, problem = bundle.manifest, Problem.of(settings, bundle)
    rows = gather_rows(problem, snapshot)
    if rows.base_sha256 != manifest.training.base_data_sha256:
        raise ValueError(f"{problem.data.train} is not the file the model was trained on")
    memory = manifest.training.memory
    if memory is None:
        raise ValueError(f"model {manifest.model_id} was trained by an earlier version")
    best = Best(*split_rounds(manifest.hyperparameters), math.nan, 0, 0.0)
    fitted = _Fitting(rows, problem, manifest.seed).fit(memory, best)
    return fitted.features, fitted.text
