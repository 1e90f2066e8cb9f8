"""What a bundle is: a model and its preprocessor, from draft to bytes and back.

A bundle is three files, text and JSON: model.txt, features.json and manifest.json. They
are made here (`render`), and read and verified before any use (`load_bundle`); loading runs no
code from them. Where bundles are kept, and which one serves, is `utils.model_store.store`'s.
"""

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np

from utils.boosting import lgb
from utils.durable_files import open_folder, read_plain
from utils.errors import UserError, describe_error
from utils.feature_tools import FeatureTools, IntegerCodes, MessageDecoder
from utils.figures import BothMetrics, Comparison
from utils.messages import DECODE_ERRORS, BadRecord, Label
from utils.model_store.manifest import (
    GoldenRow,
    HistoryLine,
    Manifest,
    Parameters,
    TrainingRecord,
)

MODEL, FEATURES, MANIFEST = "model.txt", "features.json", "manifest.json"

MIB = 1024 * 1024
#: The most bytes that are read of a file; a larger one is refused unread.
LARGEST = {MODEL: 512 * MIB, FEATURES: 64 * MIB, MANIFEST: 64 * MIB}

#: Golden rows are reproduced to this; on one machine they are the same bits.
TOLERANCE = 1e-12
#: How many lines of the history go into a new manifest.
REMEMBERED = 20
LIBRARIES = ("lightgbm", "numpy", "pandas", "scikit-learn", "scipy", "hyperopt", "msgspec")


class ModelStoreError(UserError):
    """The store cannot do it; the text is one line meant for the user."""


class BundleError(ModelStoreError):
    """A bundle, or what names it, cannot be used; the text names it and says why."""


@dataclass(frozen=True)
class Draft:
    """What a training hands over to become a bundle.

    Attributes:
        model_text: LightGBM's text format.
        features: The preprocessor, fitted.
        hyperparameters: With `num_boost_round`.
        training: What was learnt from, and by which search.
        golden_rows: A few rows as a client may send them ({column: value}), at least one.
        metrics: Its figures and the champion's on the validation rows.
        gate: What the gate compared and decided; None where there was no champion.
        batch_ids: The retrain requests that this training answers.
        parent_id: The bundle it was to replace; None for the first.
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
    """A model and its preprocessor, verified; safe to share between threads."""

    model_id: int
    booster: lgb.Booster
    features: FeatureTools
    manifest: Manifest
    decoder: MessageDecoder

    @property
    def parent_id(self) -> int | None:
        """The bundle that this one was to replace."""
        return self.manifest.parent_id

    def score(self, matrix: np.ndarray) -> np.ndarray:
        """Probabilities for rows that `features` has transformed.

        A row's are the same bits whether it is scored alone or among others.

        Args:
            matrix: float64, (rows, features).

        Returns:
            float64: (rows,) for two classes, that of class 1; else (rows, classes).
        """
        return _score(self.booster, matrix)


def predicted_codes(scores: np.ndarray) -> IntegerCodes:
    """The class of each score: the one rule by which a score becomes a class.

    Args:
        scores: As `Bundle.score` returns them.

    Returns:
        int64, (rows,): the likeliest class, of two as likely the one of lower code.
    """
    codes = scores > 0.5 if scores.ndim == 1 else scores.argmax(axis=1)
    return codes.astype(np.int64)


# A bundle's bytes: made, read, verified.


def render(
    draft: Draft, model_id: int, accepted: bool, history: Sequence[HistoryLine]
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of a draft, and its three files by name.

    Raises:
        BundleError: The draft does not make a usable bundle.
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
        content = seal(msgspec.structs.asdict(manifest))
        manifest = _read_manifest(content)  # what is published can be loaded
    except (ValueError, TypeError, BadRecord, lgb.basic.LightGBMError) as error:
        raise BundleError(f"the draft of bundle {model_id}: {describe_error(error)}") from None
    return manifest, files | {MANIFEST: content}


def _score_golden_rows(draft: Draft, files: Mapping[str, bytes]) -> list[GoldenRow]:
    features, booster = _assemble(files)  # from the bytes, as whoever loads it will
    rows = [msgspec.json.decode(to_json(row)) for row in draft.golden_rows]
    scores = _score_rows(features, booster, rows).tolist()
    return [GoldenRow(row, score) for row, score in zip(rows, scores, strict=True)]


def _assemble(files: Mapping[str, bytes]) -> tuple[FeatureTools, lgb.Booster]:
    """The preprocessor and the model; they have to fit each other."""
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
    """Score rows as the predictor scores messages: from bytes."""
    decode = MessageDecoder(features)
    values = [msgspec.json.encode({"request_id": "golden", "data": row}) for row in rows]
    return _score(booster, features.transform_rows([decode(value).data for value in values]))


def _score(booster: lgb.Booster, matrix: np.ndarray) -> np.ndarray:
    # One thread: waking a second one costs 0.6 ms a call, more than most batches take.
    return np.asarray(booster.predict(matrix, num_threads=1))


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and verify all of it before any use.

    Args:
        path: Its folder, by the name of its number.

    Raises:
        BundleError: Something is missing, damaged, too large, not a plain file or does
            not score its golden rows as recorded.
    """
    try:
        return _verify(int(path.name), _read_files(path))
    except (OSError, ValueError, BadRecord, lgb.basic.LightGBMError) as error:
        raise BundleError(f"bundle {path.name} in {path.parent}: {describe_error(error)}") from None


def _verify(model_id: int, files: Mapping[str, bytes]) -> Bundle:
    """Check in the order of what may be trusted: hashes, then the parts, then golden rows."""
    manifest = _read_manifest(files[MANIFEST])
    if manifest.model_id != model_id:
        raise ValueError(f"{MANIFEST} is that of bundle {manifest.model_id}")
    if set(manifest.sha256) != {MODEL, FEATURES}:  # names are compared, never used as paths
        raise ValueError(f"{MANIFEST} has hashes of other files than {MODEL} and {FEATURES}")
    # Before LightGBM sees it: a truncated model text ends the process (segmentation fault).
    for name, expected in manifest.sha256.items():
        if sha256(files[name]) != expected:
            raise ValueError(f"{name} does not match its SHA-256")
    features, booster = _assemble(files)
    scored = _score_rows(features, booster, [row.data for row in manifest.golden])
    recorded = np.array([row.probability for row in manifest.golden], dtype=np.float64)
    if scored.shape != recorded.shape or not (np.abs(scored - recorded) <= TOLERANCE).all():
        raise ValueError("the golden rows do not score as recorded")
    return Bundle(model_id, booster, features, manifest, MessageDecoder(features))


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
    """A manifest's bytes, beginning with the hash of all of them but the hash itself."""
    content = to_pretty_json({**manifest, "manifest_sha256": ""})
    return content.replace(b'""', b'"%b"' % sha256(content).encode(), 1)


def _read_files(path: Path) -> dict[str, bytes]:
    with open_folder(path) as folder:
        there = set(os.listdir(folder))  # noqa: PTH208 - a descriptor
        if there - set(LARGEST):
            raise ValueError(f"{min(there - set(LARGEST))!r} does not belong there")
        return {name: read_plain(folder, name, LARGEST[name]) for name in sorted(LARGEST)}


def utc_now() -> str:
    """The time as manifests and the history write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256(content: bytes) -> str:
    """The hash as manifests write it."""
    return hashlib.sha256(content).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions


def to_json(value: object) -> bytes:
    """JSON of structs and dicts, with numpy's numbers as numbers and NaN as null."""
    return msgspec.json.encode(value, enc_hook=_without_numpy)


def _without_numpy(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"JSON has no {type(value).__name__}")


def to_pretty_json(value: object) -> bytes:
    """JSON for people to read."""
    return msgspec.json.format(to_json(value), indent=2) + b"\n"


@contextmanager
def disk_errors_as(what: str) -> Iterator[None]:
    """Turn trouble with the disk into one line."""
    try:
        yield
    except OSError as error:
        raise ModelStoreError(f"{what}: {describe_error(error)}") from None
