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
from typing import Annotated, Any

import msgspec
import numpy as np

from utils.boosting import lgb
from utils.durable_files import open_folder, read_plain
from utils.errors import UserError, describe_error
from utils.feature_tools import FeatureTools, IntegerCodes, MessageDecoder
from utils.messages import BadRecord

MODEL, FEATURES, MANIFEST = "model.txt", "features.json", "manifest.json"

MIB = 1024 * 1024
#: The most bytes that are read of a file; a larger one is refused unread.
LARGEST = {MODEL: 512 * MIB, FEATURES: 64 * MIB, MANIFEST: 64 * MIB}

#: Golden rows are reproduced to this; on one machine they are the same bits.
TOLERANCE = 1e-12
#: How many lines of the history go into a new manifest.
REMEMBERED = 20
LIBRARIES = ("lightgbm", "numpy", "pandas", "scikit-learn", "scipy", "hyperopt", "msgspec")

ModelId = Annotated[int, msgspec.Meta(ge=1)]


class ModelStoreError(UserError):
    """The store cannot do it; the text is one line meant for the user."""


class BundleError(ModelStoreError):
    """A bundle, or what names it, cannot be used; the text names it and says why."""


@dataclass(frozen=True)
class Draft:
    """What a training hands over to become a bundle. Figures may be numpy's.

    Attributes:
        model_text: LightGBM's text format.
        features: The preprocessor, fitted.
        hyperparameters: With `num_boost_round`.
        training: What was learnt from: `base_data_sha256`, `rows`, `offsets` as
            {topic: {partition: next offset}}, ...
        golden_rows: A few rows as a client may send them ({column: value}), at least one.
        metrics: `challenger` and `champion` on the validation rows, each a dict or None.
        gate: What the gate compared and decided; None where there was no champion.
        batch_ids: The retrain requests that this training answers.
        parent_id: The bundle it was to replace; None for the first.
    """

    model_text: str
    features: FeatureTools
    hyperparameters: Mapping[str, Any]
    seed: int
    training: Mapping[str, Any]
    golden_rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None
    batch_ids: Sequence[str] = ()
    parent_id: int | None = None


class _GoldenRow(msgspec.Struct, frozen=True):
    data: dict[str, Any]
    probability: float | list[float]


class _Manifest(msgspec.Struct, frozen=True):
    """What is checked of a manifest; the rest is for people and for `rebuild`."""

    model_id: ModelId
    parent_id: ModelId | None
    created: str
    accepted: bool
    batch_ids: list[str]
    gate: dict[str, Any] | None
    metrics: dict[str, Any]
    training: dict[str, Any]
    history: list[dict[str, Any]]
    sha256: dict[str, str]
    manifest_sha256: str
    golden: Annotated[list[_GoldenRow], msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class Bundle:
    """A model and its preprocessor, verified; safe to share between threads."""

    model_id: int
    booster: lgb.Booster
    features: FeatureTools
    manifest: dict[str, Any]
    decoder: MessageDecoder

    @property
    def parent_id(self) -> int | None:
        """The bundle that this one was to replace."""
        parent: int | None = self.manifest["parent_id"]
        return parent

    def score(self, matrix: np.ndarray) -> np.ndarray:
        """Probabilities for rows that `features` has transformed.

        A row's are the same bits whether it is scored alone or among others.

        Args:
            matrix: float64, (rows, features).

        Returns:
            float64: (rows,) for two classes, that of class 1; else (rows, classes).
        """
        # One thread: waking a second one costs 0.6 ms a call, more than most batches take.
        return np.asarray(self.booster.predict(matrix, num_threads=1))


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
    draft: Draft, model_id: int, accepted: bool, history: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest of a draft, and its three files by name.

    Raises:
        BundleError: The draft does not make a usable bundle.
    """
    files = {MODEL: draft.model_text.encode(), FEATURES: draft.features.to_json()}
    try:
        golden = _score_golden_rows(draft, files)
        manifest = _to_json_types(
            {
                "model_id": model_id,
                "parent_id": draft.parent_id,
                "created": utc_now(),
                "accepted": accepted,
                "batch_ids": list(draft.batch_ids),
                "hyperparameters": draft.hyperparameters,
                "seed": draft.seed,
                "training": draft.training,
                "metrics": draft.metrics,
                "gate": draft.gate,
                "versions": _versions(),
                "sha256": {name: sha256(content) for name, content in files.items()},
                "golden": golden,
                "history": history[-REMEMBERED:],
            }
        )
        content = seal(manifest)
        _read_manifest(content)  # what is published can be loaded
    except (ValueError, TypeError, BadRecord, lgb.basic.LightGBMError) as error:
        raise BundleError(f"the draft of bundle {model_id}: {describe_error(error)}") from None
    return manifest, files | {MANIFEST: content}


def _score_golden_rows(draft: Draft, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    rows = [{"data": _to_json_types(dict(row))} for row in draft.golden_rows]
    bundle = _assemble(0, {}, files)  # from the bytes, as whoever loads it will
    probabilities = _score_rows(bundle, [row["data"] for row in rows])
    return [
        {**row, "probability": probability}
        for row, probability in zip(rows, probabilities.tolist(), strict=True)
    ]


def _assemble(model_id: int, manifest: dict[str, Any], files: Mapping[str, bytes]) -> Bundle:
    features = FeatureTools.from_json(files[FEATURES])
    booster = lgb.Booster(model_str=files[MODEL].decode())
    columns, classes = len(features.feature_names), len(features.classes)
    if booster.num_feature() != columns:
        raise ValueError(
            f"{MODEL} has {booster.num_feature()} features, {FEATURES} makes {columns}"
        )
    if booster.num_model_per_iteration() != (1 if classes == 2 else classes):
        raise ValueError(f"{MODEL} does not predict the {classes} classes of {FEATURES}")
    return Bundle(model_id, booster, features, manifest, MessageDecoder(features))


def _score_rows(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Score rows as the predictor scores messages: from bytes."""
    values = [msgspec.json.encode({"request_id": "golden", "data": row}) for row in rows]
    decoded = [bundle.decoder(value).data for value in values]
    return bundle.score(bundle.features.transform_rows(decoded))


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
    manifest, checked = _read_manifest(files[MANIFEST])
    if checked.model_id != model_id:
        raise ValueError(f"{MANIFEST} is that of bundle {checked.model_id}")
    if set(checked.sha256) != {MODEL, FEATURES}:  # names are compared, never used as paths
        raise ValueError(f"{MANIFEST} has hashes of other files than {MODEL} and {FEATURES}")
    # Before LightGBM sees it: a truncated model text ends the process (segmentation fault).
    for name, expected in checked.sha256.items():
        if sha256(files[name]) != expected:
            raise ValueError(f"{name} does not match its SHA-256")
    bundle = _assemble(model_id, manifest, files)
    scored = _score_rows(bundle, [row.data for row in checked.golden])
    recorded = np.array([row.probability for row in checked.golden], dtype=np.float64)
    if scored.shape != recorded.shape or not (np.abs(scored - recorded) <= TOLERANCE).all():
        raise ValueError("the golden rows do not score as recorded")
    return bundle


def _read_manifest(content: bytes) -> tuple[dict[str, Any], _Manifest]:
    try:
        manifest = msgspec.json.decode(content)
        checked = msgspec.convert(manifest, _Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST}: {describe_error(error)}") from None
    seal = checked.manifest_sha256.encode()
    if sha256(content.replace(b'"%b"' % seal, b'""', 1)) != checked.manifest_sha256:
        raise ValueError(f"{MANIFEST} does not match its SHA-256")
    return manifest, checked


def seal(manifest: Mapping[str, Any]) -> bytes:
    """A manifest's bytes, beginning with the hash of all of them but the hash itself."""
    content = to_pretty_json({"manifest_sha256": ""} | dict(manifest))
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


def _to_json_types(value: Any) -> Any:
    """What JSON keeps of a value: numpy's numbers as numbers, NaN as None."""

    def without_numpy(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"JSON has no {type(value).__name__}")

    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=without_numpy))


def to_pretty_json(value: Any) -> bytes:
    """JSON for people to read."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


@contextmanager
def disk_errors_as(what: str) -> Iterator[None]:
    """Turn trouble with the disk into one line."""
    try:
        yield
    except OSError as error:
        raise ModelStoreError(f"{what}: {describe_error(error)}") from None
