"""The bundle: a model and its preprocessor, rendered to files and loaded from them.

A bundle is three files, text and JSON: model.txt, features.json and manifest.json. `render`
creates their content from a draft; `load_bundle` reads and verifies them before any use and
runs no code from them. `utils.model_store.store` keeps the bundles and knows which one serves.
"""

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from utils.boosting import SingleRowPredictor, lgb
from utils.durable_files import open_folder, read_plain
from utils.errors import UserError, describe_error
from utils.feature_tools import FeatureTools, IntegerCodes
from utils.message_decoder import MessageDecoder, OutcomeDecoder
from utils.messages import DECODE_ERRORS, BadRecord
from utils.metrics import BothMetrics, Comparison
from utils.model_store.manifest import (
    GoldenRow,
    HistoryLine,
    Manifest,
    Parameters,
    TrainingRecord,
)
from utils.values import CategoryColumn, Label

MODEL, FEATURES, MANIFEST = "model.txt", "features.json", "manifest.json"

MIB = 1024 * 1024
#: The largest accepted size of each file, in bytes; larger files are neither read nor published.
LARGEST = {MODEL: 512 * MIB, FEATURES: 64 * MIB, MANIFEST: 64 * MIB}

#: The tolerance for scores of golden rows; on one machine they are bitwise equal.
TOLERANCE = 1e-12
#: How many of the history's last lines a new manifest repeats.
REMEMBERED = 20
LIBRARIES = ("lightgbm", "numpy", "pandas", "scikit-learn", "scipy", "hyperopt", "msgspec")


class ModelStoreError(UserError):
    """The store cannot be read or written; the text is one line for the user."""


class BundleError(ModelStoreError):
    """A bundle or current.json cannot be used; the text names it and says why."""


class _TooLarge(ValueError):
    """A file of a bundle is larger than `LARGEST`."""


@dataclass(frozen=True)
class Draft:
    """The result of a training, to become a bundle. Numbers may be numpy's.

    Attributes:
        model_text: The model in LightGBM's text format.
        features: The fitted preprocessor.
        hyperparameters: The hyperparameters, including `num_boost_round`.
        seed: The seed of the training.
        training: The data and the search.
        golden_rows: One or more rows as a client may send them ({column: value}). Their
            scores are recorded, and compared whenever the bundle is loaded.
        metrics: The model's and the champion's metrics on the validation rows.
        gate: The gate's comparison; None if there was no champion.
        batch_ids: The ids of the retrain requests that this training answers.
        parent_id: The champion that the model was trained to replace; None for the first.
    """

    model_text: str
    features: FeatureTools
    hyperparameters: Parameters
    seed: int
    training: TrainingRecord
    golden_rows: Sequence[Mapping[str, Label | None]]
    metrics: BothMetrics = field(default_factory=BothMetrics)
    gate: Comparison | None = None
    batch_ids: Sequence[str] = ()
    parent_id: int | None = None


@dataclass(frozen=True)
class Bundle:
    """A verified model and its preprocessor; safe to share between threads."""

    model_id: int
    booster: lgb.Booster
    features: FeatureTools
    manifest: Manifest
    decoder: MessageDecoder
    outcome_decoder: OutcomeDecoder

    @property
    def parent_id(self) -> int | None:
        """The champion that this bundle was trained to replace, if any."""
        return self.manifest.parent_id

    def score(self, matrix: np.ndarray) -> np.ndarray:
        """Predict probabilities for rows that `features` has transformed.

        A row's result is bitwise the same whether it is scored alone or in a batch.

        Args:
            matrix: float64, (rows, features).

        Returns:
            float64: (rows,) with the probability of class 1 if there are two classes; else
            (rows, classes).
        """
        if len(matrix) == 1 and matrix.flags.c_contiguous:
            return self._single_row.predict(matrix)
        return _score(self.booster, matrix)

    @cached_property
    def _single_row(self) -> SingleRowPredictor:
        return SingleRowPredictor(self.booster)


def predicted_codes(scores: np.ndarray) -> IntegerCodes:
    """The class of each score: the one rule by which a score becomes a class.

    Args:
        scores: As `Bundle.score` returns them.

    Returns:
        int64, (rows,): the most likely class; the lower code if two are equally likely.
    """
    codes = scores > 0.5 if scores.ndim == 1 else scores.argmax(axis=1)
    return codes.astype(np.int64)


# Rendering, reading and verifying a bundle's files


def render(
    draft: Draft, model_id: int, accepted: bool, history: Sequence[HistoryLine]
) -> tuple[Manifest, dict[str, bytes]]:
    """Render a draft: returns its manifest, and the bytes of its three files by name.

    The files are verified as `load_bundle` verifies them.

    Raises:
        BundleError: The draft would not load as a bundle.
    """
    files = {MODEL: draft.model_text.encode(), FEATURES: draft.features.to_json()}
    try:
        manifest = Manifest(
            model_id=model_id,
            parent_id=draft.parent_id,
            created=utc_now(),
            accepted=accepted,
            batch_ids=list(draft.batch_ids),
            hyperparameters=draft.hyperparameters,
            seed=draft.seed,
            training=draft.training,
            metrics=draft.metrics,
            gate=draft.gate,
            versions=_versions(),
            sha256={name: sha256(content) for name, content in files.items()},
            golden=_score_golden_rows(draft, files),
            history=[msgspec.Raw(to_json(line)) for line in history[-REMEMBERED:]],
        )
        files[MANIFEST] = seal(msgspec.structs.asdict(manifest))
        return _verify(model_id, files).manifest, files
    except (ValueError, TypeError, BadRecord, lgb.basic.LightGBMError) as error:
        reason = describe_error(error)
        if isinstance(error, _TooLarge):
            reason += _how_to_shrink(draft.features)
        raise BundleError(f"the draft of bundle {model_id}: {reason}") from None


def _how_to_shrink(features: FeatureTools) -> str:
    """What to do about files that are too large; categories are what makes them large."""
    columns = map(features.column, features.categorical)
    categories = {one.name: one.categories for one in columns if isinstance(one, CategoryColumn)}
    if not categories:
        return ""
    name = max(categories, key=lambda name: sum(map(len, categories[name])))
    return (
        f"; the column {name!r} takes the most, with {len(categories[name]):,} categories: name "
        "it in [data] drop, or lower [data] max_categories, and run `initialize.py --force`"
    )


def _score_golden_rows(draft: Draft, files: Mapping[str, bytes]) -> list[GoldenRow]:
    features, booster = _assemble(files)  # from the bytes, as `load_bundle` does
    rows = [msgspec.json.decode(to_json(row)) for row in draft.golden_rows]
    scores = _score_rows(features, booster, rows).tolist()
    return [GoldenRow(row, score) for row, score in zip(rows, scores, strict=True)]


def _assemble(files: Mapping[str, bytes]) -> tuple[FeatureTools, lgb.Booster]:
    """Load the preprocessor and the model, and check that they fit each other."""
    for name, content in files.items():
        if len(content) > LARGEST[name]:
            size, limit = len(content) / MIB, LARGEST[name] / MIB
            raise _TooLarge(f"{name} is too large: {size:,.1f} MiB of at most {limit:,.1f} MiB")
    features = FeatureTools.from_json(files[FEATURES])
    booster = lgb.Booster(model_str=files[MODEL].decode())
    columns, classes = len(features.feature_names), len(features.classes)
    if booster.num_feature() != columns:
        raise ValueError(
            f"{MODEL} has {booster.num_feature()} features, {FEATURES} makes {columns}"
        )
    if booster.num_model_per_iteration() != (1 if classes == 2 else classes):
        raise ValueError(f"{MODEL} does not predict the {classes} classes of {FEATURES}")
    return features, booster


def _score_rows(
    features: FeatureTools, booster: lgb.Booster, rows: Sequence[Mapping[str, Label | None]]
) -> np.ndarray:
    """Score rows as the predictor scores messages, from JSON bytes."""
    decode = MessageDecoder(features)
    values = [msgspec.json.encode({"request_id": "golden", "data": row}) for row in rows]
    return _score(booster, features.transform_rows([decode(value).data for value in values]))


def _score(booster: lgb.Booster, matrix: np.ndarray) -> np.ndarray:
    # One thread: waking a second one costs 0.6 ms per call, more than most batches take.
    return np.asarray(booster.predict(matrix, num_threads=1))


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and verify all of it before any use.

    Args:
        path: The bundle's folder, named by its number.

    Raises:
        BundleError: A file is missing, damaged, too large or not a regular file, or the
            golden rows do not score as recorded.
    """
    try:
        return _verify(int(path.name), _read_files(path))
    except (OSError, ValueError, BadRecord, lgb.basic.LightGBMError) as error:
        raise BundleError(f"bundle {path.name} in {path.parent}: {describe_error(error)}") from None


def _verify(model_id: int, files: Mapping[str, bytes]) -> Bundle:
    """Verify the manifest and the hashes, then load the parts and score the golden rows."""
    manifest = _read_manifest(files[MANIFEST])
    if manifest.model_id != model_id:
        raise ValueError(f"{MANIFEST} belongs to bundle {manifest.model_id}")
    if set(manifest.sha256) != {MODEL, FEATURES}:  # names are compared, never used as paths
        raise ValueError(f"{MANIFEST} has hashes of other files than {MODEL} and {FEATURES}")
    # Before LightGBM reads the model: a truncated model text crashes it (segmentation fault).
    for name, expected in manifest.sha256.items():
        if sha256(files[name]) != expected:
            raise ValueError(f"{name} does not match its SHA-256")
    features, booster = _assemble(files)
    scored = _score_rows(features, booster, [row.data for row in manifest.golden])
    recorded = np.array([row.probability for row in manifest.golden], dtype=np.float64)
    if scored.shape != recorded.shape or not (np.abs(scored - recorded) <= TOLERANCE).all():
        raise ValueError("the golden rows do not score as recorded")
    return Bundle(
        model_id, booster, features, manifest, MessageDecoder(features), OutcomeDecoder(features)
    )


def _read_manifest(content: bytes) -> Manifest:
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except DECODE_ERRORS as error:
        raise ValueError(f"{MANIFEST}: {describe_error(error)}") from None
    recorded = manifest.manifest_sha256
    if sha256(content.replace(b'"%b"' % recorded.encode(), b'""', 1)) != recorded:
        raise ValueError(f"{MANIFEST} does not match its SHA-256")
    return manifest


def seal(manifest: Mapping[str, object]) -> bytes:
    """Serialize a manifest; its first field is the hash of all the others."""
    content = to_pretty_json({**manifest, "manifest_sha256": ""})
    return content.replace(b'""', b'"%b"' % sha256(content).encode(), 1)


def _read_files(path: Path) -> dict[str, bytes]:
    with open_folder(path) as folder:
        there = set(os.listdir(folder))  # noqa: PTH208 - a descriptor
        if there - set(LARGEST):
            raise ValueError(f"{min(there - set(LARGEST))!r} does not belong to a bundle")
        return {name: read_plain(folder, name, LARGEST[name]) for name in sorted(LARGEST)}


def utc_now() -> str:
    """The current time in the format of manifests and the history."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256(content: bytes) -> str:
    """The SHA-256 in the format of manifests."""
    return hashlib.sha256(content).hexdigest()


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions


def to_json(value: object) -> bytes:
    """Encode a value as JSON; numpy's numbers become numbers, and NaN becomes null."""

    return msgspec.json.encode(value, enc_hook=_without_numpy)


def _without_numpy(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)

    raise TypeError(f"JSON has no {type(value).__name__}")


def to_pretty_json(value: object) -> bytes:
    """Encode a value as indented JSON."""
    return msgspec.json.format(to_json(value), indent=2) + b"\n"


@contextmanager
def disk_errors_as(what: str) -> Iterator[None]:
    """Turn an OSError in the block into a one-line ModelStoreError."""
    try:
        yield
    except OSError as error:
        raise ModelStoreError(f"{what}: {describe_error(error)}") from None
