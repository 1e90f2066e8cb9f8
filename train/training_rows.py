"""The rows to learn from: the base data and the messages with a known outcome."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from utils import data_set, preprocess_data, splits
from utils.data_set import DataSet
from utils.feature_tools import FeatureTools
from utils.message_store import Offsets, Snapshot
from utils.model_store import Bundle
from utils.model_store.manifest import PublishedModel, TrainingRecord
from utils.settings import ColumnType, Data, Settings


@dataclass(frozen=True)
class Rows:
    """All rows to learn from, in a reproducible order.

    The base data (the data set's training file) come first, in the file's order, then the
    messages with a known outcome in the order in which the outcomes became known.

    Attributes:
        ids: The id of each row: `base-<line>` or the request_id.
        frame: The raw feature columns.
        labels: The class of each row by name.
        validation: Whether each row is for validation, and so never trained on; those are
            rows of the base data alone, messages are judged before they are learnt from.
        types: The type of each feature column.
        base_sha256: The SHA-256 of the base data's file.
        offsets: The offsets up to which the log was read, by (topic, partition).
        topic_ids: Kafka's ids of those topics.
        base: The number of rows of the base data.
        sent_after: (messages,), how many outcomes were known when each was sent.
    """

    ids: list[str]
    frame: pd.DataFrame
    labels: np.ndarray
    validation: np.ndarray
    types: Mapping[str, ColumnType]
    base_sha256: str
    offsets: Offsets = field(default_factory=dict)
    topic_ids: dict[str, str] = field(default_factory=dict)
    base: int = 0
    sent_after: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @cached_property
    def training(self) -> tuple[pd.DataFrame, np.ndarray]:
        """The frame and the labels of the training rows."""
        return self.frame[~self.validation], self.labels[~self.validation]

    @property
    def training_base(self) -> int:
        """How many of the training rows are of the base data; they come first."""
        return int((~self.validation[: self.base]).sum())

    @cached_property
    def held_out(self) -> tuple[pd.DataFrame, np.ndarray]:
        """The frame and the labels of the validation rows."""
        return self.frame[self.validation], self.labels[self.validation]


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
    return replace(
        base,
        ids=base.ids + ids,
        frame=pd.DataFrame(columns, copy=False),
        labels=np.concatenate([base.labels, np.asarray(snapshot.outcomes, dtype=object)]),
        validation=np.concatenate([base.validation, np.zeros(len(ids), dtype=bool)]),
        sent_after=np.searchsorted(snapshot.known_at, snapshot.sent_at, side="left"),
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
    return Rows(ids.tolist(), frame, labels, validation, found.types, sha256, base=len(frame))


def base_of(rows: Rows) -> Rows:
    """The base data alone."""
    end = rows.base
    return replace(
        rows,
        ids=rows.ids[:end],
        frame=rows.frame.iloc[:end],
        labels=rows.labels[:end],
        validation=rows.validation[:end],
        sent_after=rows.sent_after[:0],
    )


def fit_preprocessor(rows: Rows, problem: Problem) -> FeatureTools:
    """Fit the preprocessor on the training rows."""
    return fit_preprocessor_on(*rows.training, rows, problem)


def fit_preprocessor_on(
    frame: pd.DataFrame, labels: np.ndarray, rows: Rows, problem: Problem
) -> FeatureTools:
    """Fit the preprocessor on some rows of a data set."""
    target = pd.Series(labels, index=frame.index, name=problem.data.target)
    whole = pd.concat([frame, target], axis=1)
    return preprocess_data.fit_features(whole, problem.data, rows.types, problem.classes)


def training_matrix(rows: Rows, features: FeatureTools) -> tuple[np.ndarray, np.ndarray]:
    """The encoded training rows and their class codes, without unknown classes."""
    frame, labels = rows.training
    codes = features.encode_target(labels)
    usable = codes >= 0
    return features.transform(frame)[usable], codes[usable]


def offsets_by_topic(offsets: Offsets) -> dict[str, dict[str, int]]:
    """Nest offsets by topic and partition, as in the manifest."""
    nested: dict[str, dict[str, int]] = {}
    for (topic, partition), offset in sorted(offsets.items()):
        nested.setdefault(topic, {})[str(partition)] = offset
    return nested


def training_offsets(
    training: TrainingRecord | PublishedModel, now: Mapping[str, str] | None = None
) -> Offsets:
    """The offsets up to which a training read the log; the inverse of `offsets_by_topic`.

    Args:
        training: The manifest's record of the training, or its line of the history.
        now: The topics' current ids; a topic that was recreated since is left out.
    """
    then = training.topic_ids or {}
    others = {t for t, topic_id in (now or {}).items() if then.get(t, topic_id) != topic_id}
    return {
        (topic, int(partition)): offset
        for topic, partitions in (training.offsets or {}).items()
        for partition, offset in partitions.items()
        if topic not in others
    }
