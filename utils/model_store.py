"""Bundles: a model and its preprocessor, kept together, immutable and checked.

    models/<model_id>/     model.txt · features.json · manifest.json
    models/current.json    which one serves
    models/history.jsonl   every bundle ever made and every rollback, one line each

A writer (initialize, the trainer's child, the command line) holds the lock of the
folder; a reader needs none, for nothing is ever changed in place. Loading runs no code
from a bundle: it is text, JSON and LightGBM's own format.

    python -m utils.model_store list
    python -m utils.model_store show 3
    python -m utils.model_store rollback 3
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import lightgbm as lgb
import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from utils import process
from utils.feature_tools import FeatureTools, message_type
from utils.messages import BadRecord, Decoder
from utils.settings import Settings

MODEL, FEATURES, MANIFEST = "model.txt", "features.json", "manifest.json"
CURRENT, HISTORY, LOCK, TEMPORARY = "current.json", "history.jsonl", ".lock", ".tmp-"

MIB = 1024 * 1024
#: The most bytes that are read of a file; a larger one is refused unread.
LARGEST = {MODEL: 512 * MIB, FEATURES: 64 * MIB, MANIFEST: 64 * MIB, CURRENT: 64 * 1024}

#: Golden rows are reproduced to this; on one machine they are the same bits.
TOLERANCE = 1e-12
#: How many lines of the history go into a new manifest.
REMEMBERED = 20
LIBRARIES = ("lightgbm", "numpy", "pandas", "scikit-learn", "scipy", "hyperopt", "msgspec")

ModelId = Annotated[int, msgspec.Meta(ge=1)]


class ModelStoreError(Exception):
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


class _Current(msgspec.Struct, frozen=True):
    model_id: ModelId


@dataclass(frozen=True)
class Bundle:
    """A model and its preprocessor, verified; safe to share between threads."""

    model_id: int
    booster: lgb.Booster
    features: FeatureTools
    manifest: dict[str, Any]
    decoder: Decoder

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


class ModelStore:
    """The bundles of one folder.

    Args:
        path: `models/`; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.RLock()
        self._depth = 0

    # Reading: no lock, whatever a writer does meanwhile.

    def current_id(self) -> int:
        """Which bundle serves.

        Raises:
            BundleError: current.json is missing, damaged or names no bundle.
        """
        model_id = self._named_current()
        while model_id not in self.on_disk():
            # A writer may have replaced and pruned it between the two looks.
            model_id, before = self._named_current(), model_id
            if model_id == before:
                raise BundleError(
                    f"{self.path / CURRENT} names bundle {model_id}, which is not there; choose "
                    "another: python -m utils.model_store rollback N"
                )
        return model_id

    def load(self, model_id: int) -> Bundle:
        """Read a bundle and verify all of it before any use.

        Args:
            model_id: The bundle's number.

        Raises:
            BundleError: Something is missing, damaged, too large, not a plain file or
                does not score its golden rows as recorded.
        """
        try:
            with _opened(self.path / str(model_id)) as folder:
                contents = _read_bundle(folder)
            return _verified(model_id, contents)
        except (OSError, ValueError, BadRecord, lgb.basic.LightGBMError) as error:
            raise BundleError(f"bundle {model_id} in {self.path}: {_reason(error)}") from None

    def load_current(self) -> Bundle:
        """Load the bundle that serves, also while writers replace and prune.

        Raises:
            BundleError: It does not load.
        """
        while True:
            model_id = self.current_id()
            try:
                return self.load(model_id)
            except BundleError:
                if self.current_id() == model_id:
                    raise

    def on_disk(self) -> list[int]:
        """The bundles that have not been pruned, oldest first, whole or damaged.

        Raises:
            BundleError: The folder cannot be read.
        """
        try:
            with os.scandir(self.path) as entries:
                return sorted(
                    int(entry.name)
                    for entry in entries
                    if _is_id(entry.name) and entry.is_dir(follow_symlinks=False)
                )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise BundleError(f"cannot read {self.path}: {_reason(error)}") from None

    def history(self) -> list[dict[str, Any]]:
        """Every bundle ever made and every rollback, oldest first.

        A bundle: `model_id`, `parent_id`, `created`, `accepted`, `batch_ids`, `gate`,
        `metrics`, `rows`. A rollback: `rollback_to`, `from`, `reason`, `created`.

        Raises:
            ModelStoreError: The file cannot be read, or a line is damaged.
        """
        return self._read_history()[0]

    def bundle_for(self, batch_id: str) -> dict[str, Any] | None:
        """The history's line of the bundle that answered a retrain request, or None."""
        lines = reversed(self.history())
        return next((line for line in lines if batch_id in line.get("batch_ids", ())), None)

    def next_id(self) -> int:
        """A number that no bundle has had; it is yours only inside `writing`."""
        known: list[int] = [line["model_id"] for line in self.history() if "model_id" in line]
        there = [int(path.name) for path in self.path.glob("[1-9]*") if _is_id(path.name)]
        return max([0, *known, *there]) + 1

    # Writing.

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers out, of this process and of others; may be nested.

        Raises:
            ModelStoreError: The folder cannot be written to.
        """
        with self._mutex:
            if self._depth:
                yield
                return
            with _told(f"cannot lock {self.path}"):
                self.path.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._depth = 1
                yield
            finally:
                self._depth = 0
                os.close(lock)  # releases it, as the end of the process would

    def publish(
        self,
        draft: Draft,
        accepted: bool = True,
        *,
        keep_extra: int | None = None,
        on_step: Callable[[str], object] = lambda step: None,
    ) -> int:
        """Make a draft a bundle, and the one that serves if it was accepted.

        1. Write the three files into a temporary folder and sync them ("written").
        2. Rename the folder to the bundle's number ("renamed").
        3. Append the bundle's line to the history ("recorded").
        4. If accepted, replace current.json ("serving").
        5. Prune ("pruned").

        A crash between two steps is mended by `reconcile`; trouble with the disk takes
        back what was done.

        Args:
            draft: What the training made.
            accepted: Whether the gate let it through; a refused bundle is kept but does
                not serve.
            keep_extra: Bundles to keep besides the serving one; None prunes nothing.
            on_step: Told the name of each step once it is done.

        Returns:
            The bundle's number.

        Raises:
            BundleError: The draft does not make a usable bundle.
            ModelStoreError: It could not be written; the old state is kept.
        """
        with self.writing():
            self.reconcile()
            model_id = self.next_id()
            manifest, files = _render(draft, model_id, accepted, self.history())
            history_size = self._history_size()
            temporary = self.path / f"{TEMPORARY}{model_id}"
            try:
                # 1
                _write_folder(temporary, files)
                on_step("written")
                # 2
                temporary.rename(self.path / str(model_id))
                _sync_folder(self.path)
                on_step("renamed")
                # 3
                self._append(_history_line(manifest))
                on_step("recorded")
                # 4
                if accepted:
                    self._replace_current(model_id)
                    on_step("serving")
            except OSError as error:
                self._take_back(model_id, history_size)
                raise ModelStoreError(
                    f"cannot write bundle {model_id} in {self.path}: {_reason(error)}"
                ) from None
            # 5
            if keep_extra is not None:
                # The bundle is published; what cannot be cleared away now goes next time.
                with suppress(ModelStoreError):
                    self.prune(keep_extra)
                on_step("pruned")
            return model_id

    def rollback(self, model_id: int, reason: str) -> int | None:
        """Let an older (or a refused) bundle serve, if it loads.

        Args:
            model_id: The bundle to serve from now on.
            reason: For the history.

        Returns:
            The bundle that served until now, None if there was none. When it is
            `model_id` itself, nothing is written.

        Raises:
            BundleError: The bundle does not load.
            ModelStoreError: It could not be written; the old state is kept.
        """
        with self.writing(), _told(f"cannot roll back to bundle {model_id}"):
            self.reconcile()
            self.load(model_id)
            served = serving(self.history())
            if served != model_id:
                size = self._history_size()
                self._append(_rollback_line(model_id, served, reason))
                try:
                    self._replace_current(model_id)
                except OSError:
                    self._cut_history(size)
                    raise
            return served

    def prune(self, keep_extra: int) -> list[int]:
        """Delete old bundles, never the serving one.

        Kept besides it are `keep_extra` bundles: accepted ones first, then those that a
        rollback took out of service, then refused ones; of each the newest first.

        Returns:
            The bundles deleted.

        Raises:
            BundleError: It is not known which one serves.
            ModelStoreError: One could not be deleted.
        """
        with self.writing(), _told(f"cannot prune {self.path}"):
            lines = self.history()
            safe = {self.current_id(), serving(lines)}
            extras = [model_id for model_id in _best_first(lines) if model_id not in safe]
            there = self.on_disk()
            unknown = [model_id for model_id in there if model_id not in safe.union(extras)]
            extras = [model_id for model_id in extras if model_id in there] + unknown[::-1]
            for model_id in extras[keep_extra:]:
                self._discard(model_id)
            return extras[keep_extra:]

    def reconcile(self) -> list[str]:
        """Mend what a killed writer left half done; called when a writer starts.

        1. Remove temporary files and folders.
        2. Drop the history's last line if it is torn.
        3. Append the lines of bundles newer than the history's last, if they load. A
           history that is lost begins with what the newest manifest remembers.
        4. Make current.json name what the history says.

        Returns:
            A line for each thing mended, and for each bundle that does not load.

        Raises:
            ModelStoreError: The disk is in the way, or the history is damaged.
        """
        with self.writing(), _told(f"cannot mend {self.path}"):
            notes = self._remove_temporary()  # 1
            lines, whole = self._read_history()
            if whole < self._history_size():  # 2
                self._cut_history(whole)
                notes.append(f"dropped the torn last line of {HISTORY}")
            notes += self._record_unrecorded(lines)  # 3
            return notes + self._follow_history()  # 4

    def _named_current(self) -> int:
        if not self.path.is_dir():
            raise BundleError(f"no models in {self.path}: run initialize.py first")
        try:
            with _opened(self.path) as folder:
                return msgspec.json.decode(_read(folder, CURRENT), type=_Current).model_id
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{self.path / CURRENT}: {_reason(error)}") from None

    def _remove_temporary(self) -> list[str]:
        notes = []
        for left in self.path.glob(f"{TEMPORARY}*"):
            _remove(left)
            notes.append(f"removed {left.name}, left by a writer that was killed")
        return notes

    def _record_unrecorded(self, lines: list[dict[str, Any]]) -> list[str]:
        last = max((line["model_id"] for line in lines if "model_id" in line), default=0)
        found, notes = [], []
        for model_id in self.on_disk():
            if model_id > last:
                try:
                    found.append(self.load(model_id).manifest)
                except BundleError as error:
                    notes.append(f"not recorded: {error}")
        lost = found[-1]["history"] if found and not lines else []
        known = {line.get("model_id") for line in lost}
        for line in lost:
            self._append(line)
        for manifest in found:
            if manifest["model_id"] not in known:
                self._append(_history_line(manifest))
                notes.append(f"recorded bundle {manifest['model_id']}")
        if lost:
            self._trust_current()
        return notes

    def _trust_current(self) -> None:
        """After the loss of the history, what serves is what current.json says."""
        with suppress(BundleError):
            current, served = self.current_id(), serving(self.history())
            if current != served:
                self._append(_rollback_line(current, served, "the history was lost"))

    def _follow_history(self) -> list[str]:
        served = serving(self.history())
        try:
            current, was = self.current_id(), "out of date"
        except BundleError as error:
            current, was = None, str(error)
        if served is None or served == current or served not in self.on_disk():
            return []
        self._replace_current(served)
        return [f"{CURRENT} names bundle {served} again (it was: {was})"]

    def _replace_current(self, model_id: int) -> None:
        temporary = self.path / f"{TEMPORARY}{CURRENT}"
        try:
            _write_file(temporary, _pretty({"model_id": model_id, "since": _now()}))
            temporary.replace(self.path / CURRENT)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(self.path)

    def _read_history(self) -> tuple[list[dict[str, Any]], int]:
        """The history and how many bytes of it are whole lines."""
        path = self.path / HISTORY
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise ModelStoreError(f"cannot read {path}: {_reason(error)}") from None
        # Only a line with its end was ever acted on, so one without can be dropped.
        whole = content.rfind(b"\n") + 1
        lines = []
        for number, text in enumerate(content[:whole].splitlines(), start=1):
            try:
                lines.append(_checked_line(msgspec.json.decode(text)))
            except (ValueError, RecursionError) as error:
                raise ModelStoreError(f"{path}, line {number}: {_reason(error)}") from None
        return lines, whole

    def _history_size(self) -> int:
        try:
            return (self.path / HISTORY).stat().st_size
        except FileNotFoundError:
            return 0

    def _append(self, line: Mapping[str, Any]) -> None:
        size = self._history_size()
        try:
            with (self.path / HISTORY).open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._cut_history(size)
            raise
        if not size:
            _sync_folder(self.path)

    def _cut_history(self, size: int) -> None:
        with suppress(FileNotFoundError):
            os.truncate(self.path / HISTORY, size)

    def _take_back(self, model_id: int, history_size: int) -> None:
        """Undo a publication that failed, unless it has become the one that serves."""
        _remove(self.path / f"{TEMPORARY}{model_id}")
        with suppress(BundleError):
            if self.current_id() == model_id:
                return
        with suppress(OSError):  # else `reconcile` finishes it
            if self._history_size() > history_size:
                self._cut_history(history_size)
            self._discard(model_id)

    def _discard(self, model_id: int) -> None:
        # Renamed first: a reader finds a whole bundle or none.
        with suppress(FileNotFoundError):
            gone = self.path / f"{TEMPORARY}gone-{model_id}"
            (self.path / str(model_id)).rename(gone)
            _remove(gone)


def serving(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Which bundle serves, by the history; None before the first accepted one.

    >>> serving([{"model_id": 1, "accepted": True}, {"model_id": 2, "accepted": False}])
    1
    """
    served: int | None = None
    for line in history:
        if "rollback_to" in line:
            served = line["rollback_to"]
        elif line["accepted"]:
            served = line["model_id"]
    return served


def _best_first(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """Every bundle ever made, the one most worth keeping first."""
    accepted, taken_back = {}, set()
    for line in history:
        if "rollback_to" in line:
            taken_back.discard(line["rollback_to"])
            taken_back.add(line["from"])
        else:
            accepted[line["model_id"]] = line["accepted"]
    return sorted(
        accepted,
        key=lambda model_id: (accepted[model_id], model_id not in taken_back, model_id),
        reverse=True,
    )


def _checked_line(line: Any) -> dict[str, Any]:
    if isinstance(line, dict):
        if type(line.get("rollback_to")) is int and "from" in line:
            return line
        if type(line.get("model_id")) is int and type(line.get("accepted")) is bool:
            return line
    raise ValueError("neither a bundle nor a rollback")


def _history_line(manifest: Mapping[str, Any]) -> dict[str, Any]:
    names = ("model_id", "parent_id", "created", "accepted", "batch_ids", "gate", "metrics")
    return {name: manifest[name] for name in names} | {"rows": manifest["training"].get("rows")}


def _rollback_line(to: int, served: int | None, reason: str) -> dict[str, Any]:
    return {"rollback_to": to, "from": served, "reason": reason, "created": _now()}


# A bundle's bytes: made, written, read, verified.


def _render(
    draft: Draft, model_id: int, accepted: bool, history: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest of a draft, and its three files by name."""
    files = {MODEL: draft.model_text.encode(), FEATURES: draft.features.to_json()}
    try:
        golden = _with_probabilities(draft, files)
        manifest = _plain(
            {
                "model_id": model_id,
                "parent_id": draft.parent_id,
                "created": _now(),
                "accepted": accepted,
                "batch_ids": list(draft.batch_ids),
                "hyperparameters": draft.hyperparameters,
                "seed": draft.seed,
                "training": draft.training,
                "metrics": draft.metrics,
                "gate": draft.gate,
                "versions": _versions(),
                "sha256": {name: _sha256(content) for name, content in files.items()},
                "golden": golden,
                "history": history[-REMEMBERED:],
            }
        )
        manifest["manifest_sha256"] = _manifest_sha256(manifest)
        msgspec.convert(manifest, _Manifest)  # what is published can be loaded
    except (ValueError, TypeError, BadRecord, lgb.basic.LightGBMError) as error:
        raise BundleError(f"the draft of bundle {model_id}: {_reason(error)}") from None
    return manifest, files | {MANIFEST: _pretty(manifest)}


def _with_probabilities(draft: Draft, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    rows = [{"data": _plain(dict(row))} for row in draft.golden_rows]
    bundle = _assembled(0, {}, files)  # from the bytes, as whoever loads it will
    probabilities = _score_rows(bundle, [row["data"] for row in rows])
    return [
        {**row, "probability": probability}
        for row, probability in zip(rows, probabilities.tolist(), strict=True)
    ]


def _assembled(model_id: int, manifest: dict[str, Any], files: Mapping[str, bytes]) -> Bundle:
    features = FeatureTools.from_json(files[FEATURES])
    booster = lgb.Booster(model_str=files[MODEL].decode())
    columns, classes = len(features.feature_names), len(features.classes)
    if booster.num_feature() != columns:
        raise ValueError(
            f"{MODEL} has {booster.num_feature()} features, {FEATURES} makes {columns}"
        )
    if booster.num_model_per_iteration() != (1 if classes == 2 else classes):
        raise ValueError(f"{MODEL} does not predict the {classes} classes of {FEATURES}")
    return Bundle(model_id, booster, features, manifest, Decoder(message_type(features)))


def _score_rows(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Score rows as the predictor scores messages: from bytes."""
    values = [msgspec.json.encode({"request_id": "golden", "data": row}) for row in rows]
    decoded = [bundle.decoder(value).data for value in values]
    return bundle.score(bundle.features.transform_rows(decoded))


def _verified(model_id: int, files: Mapping[str, bytes]) -> Bundle:
    """Check in the order of what may be trusted: hashes, then the parts, then golden rows."""
    manifest, checked = _read_manifest(files[MANIFEST])
    if checked.model_id != model_id:
        raise ValueError(f"{MANIFEST} is that of bundle {checked.model_id}")
    if set(checked.sha256) != {MODEL, FEATURES}:  # names are compared, never used as paths
        raise ValueError(f"{MANIFEST} has hashes of other files than {MODEL} and {FEATURES}")
    for name, expected in checked.sha256.items():
        if _sha256(files[name]) != expected:
            raise ValueError(f"{name} does not match its SHA-256")
    bundle = _assembled(model_id, manifest, files)
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
        raise ValueError(f"{MANIFEST}: {_reason(error)}") from None
    if _manifest_sha256(manifest) != checked.manifest_sha256:
        raise ValueError(f"{MANIFEST} does not match its SHA-256")
    return manifest, checked


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """The hash of what a manifest says, itself and the layout left out."""
    said = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return _sha256(msgspec.json.encode(said, order="sorted"))


def _read_bundle(folder: int) -> dict[str, bytes]:
    names = {MODEL, FEATURES, MANIFEST}
    there = set(os.listdir(folder))
    if there - names:
        raise ValueError(f"{min(there - names)!r} does not belong there")
    return {name: _read(folder, name) for name in sorted(names)}


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A folder's descriptor: what is read through it is of one folder, renamed or not."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield folder
    finally:
        os.close(folder)


def _read(folder: int, name: str) -> bytes:
    """A plain file's content, if it is one and not too large."""
    # Neither follows a link nor waits for the other end of a pipe.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a plain file")
        if status.st_size > LARGEST[name]:
            raise ValueError(f"{name} is too large: {status.st_size} of {LARGEST[name]} bytes")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    path.mkdir()
    for name, content in files.items():
        _write_file(path / name, content)
    _sync_folder(path)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    with _opened(path) as folder:
        os.fsync(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_id(name: str) -> bool:
    return re.fullmatch("[1-9][0-9]{0,15}", name, re.ASCII) is not None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    return versions


def _plain(value: Any) -> Any:
    """What JSON keeps of a value: numpy's numbers as numbers, NaN as None."""

    def without_numpy(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"JSON has no {type(value).__name__}")

    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=without_numpy))


def _pretty(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _reason(error: Exception) -> str:
    """An error as one line, without paths that its caller names anyway."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{Path(os.fsdecode(error.filename)).name}: " if error.filename else ""
        return named + error.strerror
    return process.one_line(error)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn trouble with the disk into one line."""
    try:
        yield
    except OSError as error:
        raise ModelStoreError(f"{what}: {_reason(error)}") from None


# The command line.


def announce_rollback(settings: Settings, model_id: int, from_id: int | None, reason: str) -> None:
    """Tell every running predictor to swap to `model_id`.

    Raises:
        ModelStoreError: It could not be sent; they read current.json when they start.
    """
    from utils import kafka_io  # only this command needs a broker

    record = {"rollback": True, "model_id": model_id, "from_model_id": from_id, "reason": reason}
    try:
        kafka_io.announce(settings, record)
    except kafka_io.KafkaUnavailable as error:
        raise ModelStoreError(
            f"bundle {model_id} serves from the next start on, but running predictors could "
            f"not be told (run this again to tell them): {error}"
        ) from None


def _list(settings: Settings, arguments: argparse.Namespace) -> None:
    """Every bundle ever made."""
    store = ModelStore(settings.models_dir)
    there = store.on_disk()
    try:
        current = store.current_id()
    except BundleError as error:
        current = None
        print(f"model_store: {error}", file=sys.stderr)
    table = Table(caption="log loss on the validation rows")
    for heading in ("model", "parent", "created", "accepted", "serving"):
        table.add_column(heading, justify="right" if heading in ("model", "parent") else "left")
    for heading in ("log loss", "parent's", "rows", "on disk"):
        table.add_column(heading, justify="left" if heading == "on disk" else "right")
    for line in store.history():
        if "model_id" in line:
            table.add_row(*_cells(line, current, there))
    console = Console()
    if not console.is_terminal:
        console.width = 120  # whole lines for grep
    console.print(table)


def _cells(line: Mapping[str, Any], current: int | None, there: Sequence[int]) -> list[str]:
    model_id, metrics = line["model_id"], line.get("metrics") or {}

    def log_loss(side: str) -> str:
        value = (metrics.get(side) or {}).get("log_loss")
        return "" if value is None else f"{value:.4f}"

    return [
        str(model_id),
        str(line.get("parent_id") or ""),
        str(line.get("created", ""))[:16].replace("T", " "),
        "yes" if line["accepted"] else "refused",
        "serving" if model_id == current else "",
        log_loss("challenger"),
        log_loss("champion"),
        str(line.get("rows") or ""),
        "yes" if model_id in there else "pruned",
    ]


def _show(settings: Settings, arguments: argparse.Namespace) -> None:
    """A bundle's manifest, once the bundle is verified."""
    store, model_id = ModelStore(settings.models_dir), arguments.model_id
    if model_id in store.on_disk():
        shown = store.load(model_id).manifest
    else:
        lines = [line for line in store.history() if line.get("model_id") == model_id]
        if not lines:
            raise ModelStoreError(f"there never was a bundle {model_id} in {store.path}")
        shown = lines[0]
        print(f"bundle {model_id} was pruned; the history remembers:", file=sys.stderr)
    print(json.dumps(shown, indent=2, ensure_ascii=False))


def _rollback(settings: Settings, arguments: argparse.Namespace) -> None:
    """Let an older bundle serve, here and in every running predictor."""
    model_id = arguments.model_id
    from_id = ModelStore(settings.models_dir).rollback(model_id, arguments.reason)
    announce_rollback(settings, model_id, from_id, arguments.reason)
    was = "as before" if from_id == model_id else f"instead of {from_id}" if from_id else "now"
    print(f"bundle {model_id} serves {was}; running predictors have been told")


def _parser() -> argparse.ArgumentParser:
    parser = process.parser("The models: which there are, what is in one, go back to one.")
    parser.prog = "python -m utils.model_store"
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help=_list.__doc__, description=_list.__doc__)
    listing.set_defaults(run=_list)
    for name, run in (("show", _show), ("rollback", _rollback)):
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.add_argument("model_id", type=int, metavar="N", help="the bundle's number")
        command.set_defaults(run=run)
    command.add_argument(
        "--reason", default="asked for by hand", help="kept in the history (%(default)s)"
    )
    return parser


def main() -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args()
    return process.run(
        lambda settings: arguments.run(settings, arguments), errors=[ModelStoreError]
    )


if __name__ == "__main__":
    # Run as a script this file is another module than the one that others import, with
    # exceptions of its own; so the imported one does the work.
    from utils.model_store import main as imported_main

    sys.exit(imported_main())
