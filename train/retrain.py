"""One training from start to end: rows in, bundle out. Does not depend on Kafka."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from train import evaluate, fit, gate, optimisers, profile
from train.results import Judgement, Result
from train.search import Best, Progress, SearchSpec, search
from train.tracking import outbox
from utils import data_set, preprocess_data, splits
from utils.data_set import DataSet
from utils.feature_tools import FeatureTools
from utils.message_store import MessageStore, Offsets, Snapshot
from utils.metrics import BothMetrics
from utils.model_store import Bundle, BundleError, Draft, ModelStore, ModelStoreError
from utils.model_store.manifest import TrainingRecord, TrialRecord
from utils.settings import ColumnType, Data, Settings
from utils.values import Label

GOLDEN_ROWS = 5
#: The fewest outcomes for a judgement, which compares the serving model with its parent.
JUDGE_ROWS = 100
#: The most outcomes of a judgement, so that its cost does not grow with the log.
JUDGE_LATEST = 20_000
#: The serving model is rolled back if it is worse than its parent by more than this many
#: standard errors. The gate uses one; a judgement needs more, because it is repeated often.
JUDGE_ERRORS = 3.0


@dataclass(frozen=True)
class Rows:
    """All rows to learn from, in a reproducible order.

    The base data (the data set's training file) come first, in the file's order, then the
    messages with a known outcome by (partition, offset).

    Attributes:
        ids: The id of each row: `base-<line>` or the request_id.
        frame: The raw feature columns.
        labels: The class of each row by name.
        validation: Whether each row is for validation, and so never trained on.
        types: The type of each feature column.
        base_sha256: The SHA-256 of the base data's file.
        offsets: The offsets up to which the log was read, by (topic, partition).
        topic_ids: Kafka's ids of those topics.
    """

    ids: list[str]
    frame: pd.DataFrame
    labels: np.ndarray
    validation: np.ndarray
    types: Mapping[str, ColumnType]
    base_sha256: str
    offsets: Offsets = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)

    @cached_property
    def training(self) -> tuple[pd.DataFrame, np.ndarray]:
        """The frame and the labels of the training rows."""
        return self.frame[~self.validation], self.labels[~self.validation]

    @cached_property
    def held_out(self) -> tuple[pd.DataFrame, np.ndarray]:
        """The frame and the labels of the validation rows."""
        return self.frame[self.validation], self.labels[self.validation]


class Timer:
    """Measures how long the parts of a training take.

    Attributes:
        seconds: The duration of each part by its name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Measure the block."""
        started = time.monotonic()
        yield
        self.seconds[part] = time.monotonic() - started


@dataclass(frozen=True)
class Problem:
    """What is learnt, and by which rules: pipeline.toml's, or those of the serving bundle.

    A retraining repeats the rules of the serving bundle, whatever pipeline.toml says by then,
    so that the new model can be compared with it. `initialize.py --force` takes new ones.

    Attributes:
        data: The data set and its target.
        folder: The folder of the data set's files.
        types: The types of the feature columns; None to infer them from the file.
        classes: The classes in the order of their codes; None to take those of the file.
        outcomes_from: By partition of `outcomes`, the first offset of this target.
    """

    data: Data
    folder: Path
    types: Mapping[str, ColumnType] | None = None
    classes: tuple[str, ...] | None = None
    outcomes_from: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, bundle: Bundle | None) -> "Problem":
        """The problem of a bundle; that of pipeline.toml without one."""
        if bundle is None:
            return cls(settings.data, settings.data_dir)
        features = bundle.features
        return cls(
            bundle.manifest.training.problem(settings.data),
            settings.data_dir,
            features.types,
            features.classes,
            bundle.manifest.training.outcomes_from,
        )


def gather_rows(problem: Problem, snapshot: Snapshot | None) -> Rows:
    """Combine the base data and the messages."""
    base = base_rows(problem)
    if snapshot is None:
        return base
    base = replace(base, offsets=snapshot.offsets, topic_ids=snapshot.topic_ids)
    if not len(snapshot.request_ids):
        return base
    ids = list(snapshot.request_ids)
    columns = {name: _concatenate(base.frame[name], snapshot.frame[name]) for name in base.frame}
    chosen = splits.is_validation_row(snapshot.frame[list(base.frame.columns)])
    return replace(
        base,
        ids=base.ids + ids,
        frame=pd.DataFrame(columns, copy=False),
        labels=np.concatenate([base.labels, np.asarray(snapshot.outcomes, dtype=object)]),
        validation=np.concatenate([base.validation, chosen]),
    )


def _concatenate(first: "pd.Series", second: "pd.Series") -> "pd.Series | pd.Categorical":
    """Concatenate two columns; categories stay categories."""
    if isinstance(first.dtype, pd.CategoricalDtype):
        return union_categoricals([_as_text_categories(first), _as_text_categories(second)])
    return pd.concat([first, second], ignore_index=True)


def _as_text_categories(column: "pd.Series") -> pd.Categorical:
    """Convert the categories to plain text, whatever type pandas has inferred."""
    names = pd.Categorical(column)
    return pd.Categorical.from_codes(names.codes, categories=names.categories.astype(object))


def base_rows(problem: Problem) -> Rows:
    """The base data without the rows for testing; the file is read again only if it has changed.

    Raises:
        data_set.DataError: The file cannot be read.
    """
    path, stamp = problem.folder / problem.data.train, None
    with suppress(OSError):  # reported when the file is read
        written = path.stat()
        stamp = written.st_mtime_ns, written.st_size
    types = None if problem.types is None else tuple(problem.types.items())
    return _read_base_rows(path, problem.data, types, stamp)


@lru_cache(maxsize=1)
def _read_base_rows(
    path: Path,
    data: Data,
    types: tuple[tuple[str, ColumnType], ...] | None,
    _stamp: tuple[int, int] | None,
) -> Rows:
    found = data_set.read_data(path, data, None if types is None else dict(types))
    return rows_of(found, path, data)


def rows_of(found: DataSet, path: Path, data: Data) -> Rows:
    """The rows of a data set's training file, without those for testing."""
    labels = found.frame[data.target].to_numpy(dtype=object)
    frame = found.frame[list(found.types)]
    ids = np.array([f"base-{line}" for line in range(len(frame))], dtype=object)
    names = [name for name, kind in found.types.items() if kind == "category"]
    # Each training needs the distinct values of these columns several times.
    frame = frame.astype(dict.fromkeys(names, "category"))
    if not data.test:
        kept = ~splits.is_test_row(frame)
        frame, labels, ids = frame[kept].reset_index(drop=True), labels[kept], ids[kept]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    validation = splits.is_validation_row(frame)
    return Rows(ids.tolist(), frame, labels, validation, found.types, sha256)


def fit_preprocessor(rows: Rows, problem: Problem) -> FeatureTools:
    """Fit the preprocessor on the training rows."""
    frame, labels = rows.training
    target = pd.Series(labels, index=frame.index, name=problem.data.target)
    whole = pd.concat([frame, target], axis=1)
    return preprocess_data.fit_features(whole, problem.data, rows.types, problem.classes)


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
) -> Result:
    """Search, fit, compare with the champion and publish.

    1. Gather the rows.
    2. Fit the preprocessor.
    3. Search, starting from the champion's parameters.
    4. Fit the model.
    5. Gate: compare both models on the validation rows, which neither was trained on.
    6. Publish the bundle.

    Args:
        settings: The pipeline's settings.
        snapshot: The messages with their outcomes; None to learn from the base data alone.
        hyper: The optimiser's name.
        evals: Evaluations of the search.
        batch_ids: The ids of the retrain requests that this training answers.
        base: The base data, to train a first model: by pipeline.toml, without a champion, so
            without warm start and gate. An optimiser with a memory keeps it.
        outcomes_from: With `base`: by partition of `outcomes`, the first offset of its target.
        progress: Called with (done, total, best loss) after each evaluation.
    """
    timer, store = Timer(), ModelStore(settings.models_dir)
    with timer("reading"):
        champion = None if base else serving_bundle(store)
        problem = Problem.of(settings, champion)
        if outcomes_from is not None:
            problem = replace(problem, outcomes_from=outcomes_from)
        rows = base or gather_rows(problem, snapshot)  # 1
        features = fit_preprocessor(rows, problem)  # 2
        X, y = training_matrix(rows, features)
    spec = SearchSpec(
        X=X,
        y=y,
        features=features,
        evals=evals,
        seed=settings.training.seed,
        n_folds=settings.training.folds,
        start_from=champion.manifest.hyperparameters if champion else None,
        threads=os.cpu_count() or 1,
        memory=settings.searches_dir,
        progress=progress,
    )
    with timer("searching"):
        best = search(optimisers.get(hyper), spec)  # 3
    with timer("fitting"):
        booster = fit.fit(  # 4
            X, y, features, best.params, best.rounds, threads=spec.threads, seed=spec.seed
        )
    with timer("gate"):
        model_text = fit.model_text(booster)
        verdict = gate.compare(  # 5
            booster, model_text, features, champion, rows.held_out, spec.threads
        )
    draft = Draft(
        parent_id=champion.model_id if champion else None,
        model_text=model_text,
        features=features,
        hyperparameters={**best.params, "num_boost_round": best.rounds},
        seed=spec.seed,
        training=_training_record(problem, rows, spec, hyper, best, timer),
        metrics=BothMetrics(verdict.challenger, verdict.champion),
        gate=verdict.comparison,
        batch_ids=list(batch_ids),
        golden_rows=_golden_rows(rows, features),
    )
    with timer("publishing"):
        model_id = _publish(settings, store, draft, accepted=verdict.accepted)  # 6
    return Result(
        model_id,
        verdict.accepted,
        draft.parent_id,
        len(y),
        verdict.challenger,
        verdict.champion,
        verdict.comparison,
        {name: round(value, 3) for name, value in timer.seconds.items()},
        best.learnt_from,
        profile.majority(y, features.encode_target(rows.held_out[1]), len(features.classes)),
    )


def _training_record(
    problem: Problem, rows: Rows, spec: SearchSpec, hyper: str, best: Best, timer: Timer
) -> TrainingRecord:
    return TrainingRecord(
        rows=len(spec.y),
        classes=spec.features.classes,
        base_data=problem.data.train,
        data=problem.data.model_dump(mode="json", exclude={"files"}),
        base_data_sha256=rows.base_sha256,
        offsets=offsets_by_topic(rows.offsets),
        topic_ids=rows.topic_ids,
        outcomes_from=problem.outcomes_from,
        hyper=hyper,
        evaluations=best.evaluations,
        learnt_from=best.learnt_from,
        cv_loss=best.loss,
        trials=[TrialRecord(**asdict(trial)) for trial in best.trials],
        seconds=dict(timer.seconds),
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


def training_matrix(rows: Rows, features: FeatureTools) -> tuple[np.ndarray, np.ndarray]:
    """The encoded training rows and their class codes, without unknown classes."""
    frame, labels = rows.training
    codes = features.encode_target(labels)
    usable = codes >= 0
    return features.transform(frame)[usable], codes[usable]


def _golden_rows(rows: Rows, features: FeatureTools) -> list[dict[str, Label | None]]:
    frame = rows.held_out[0] if rows.validation.any() else rows.frame
    return list(
        preprocess_data.records(frame[list(features.columns)].head(GOLDEN_ROWS), rows.types)
    )


def judge(settings: Settings, messages: MessageStore) -> Judgement | None:
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
    newer = messages.newer_than(read, JUDGE_LATEST)
    codes = champion.features.encode_target(newer.outcomes)
    frame, codes = newer.frame[codes >= 0], codes[codes >= 0]
    if len(codes) < JUDGE_ROWS or not gate.are_comparable(parent, champion.features):
        return None
    losses = [
        evaluate.row_losses(bundle.score(bundle.features.transform(frame)), codes)
        for bundle in (parent, champion)
    ]
    comparison = evaluate.paired_comparison(*losses)
    demoted = comparison.mean_difference > JUDGE_ERRORS * comparison.standard_error
    if demoted:
        reason = (
            f"on {len(codes)} newer outcomes its log loss is {comparison.mean_difference:.4f} "
            f"(standard error {comparison.standard_error:.4f}) worse than its parent's"
        )
        store.rollback(parent.model_id, reason=reason)
    return Judgement(champion.model_id, parent.model_id, len(codes), demoted, comparison)


def offsets_by_topic(offsets: Offsets) -> dict[str, dict[str, int]]:
    """Nest offsets by topic and partition, as in the manifest."""
    nested: dict[str, dict[str, int]] = {}
    for (topic, partition), offset in sorted(offsets.items()):
        nested.setdefault(topic, {})[str(partition)] = offset
    return nested


def training_offsets(training: TrainingRecord, now: Mapping[str, str] | None = None) -> Offsets:
    """The offsets up to which a training read the log; the inverse of `offsets_by_topic`.

    Args:
        training: The manifest's record of the training.
        now: The topics' current ids; a topic that was recreated since is left out.
    """
    then = training.topic_ids
    others = {t for t, topic_id in (now or {}).items() if then.get(t, topic_id) != topic_id}
    return {
        (topic, int(partition)): offset
        for topic, partitions in training.offsets.items()
        for partition, offset in partitions.items()
        if topic not in others
    }


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
    features = fit_preprocessor(rows, problem)
    matrix, codes = training_matrix(rows, features)
    parameters = dict(manifest.hyperparameters)
    rounds = int(parameters.pop("num_boost_round"))
    booster = fit.fit(
        matrix,
        codes,
        features,
        parameters,
        rounds,
        threads=os.cpu_count() or 1,
        seed=manifest.seed,
    )
    return features, fit.model_text(booster)
