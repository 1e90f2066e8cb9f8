"""The store of bundles: the bundles, the serving one, and the history.

    models/<model_id>/     model.txt · features.json · manifest.json
    models/current.json    the id of the serving bundle
    models/history.jsonl   every bundle ever published and every rollback, one line each

A writer (initialize, the trainer's worker process, the command line) holds the folder's
lock. A reader needs no lock, because files are replaced as a whole.
"""

import fcntl
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from utils.durable_files import (
    open_folder,
    read_plain,
    remove,
    sync_folder,
    write_file,
    write_folder,
)
from utils.errors import describe_error
from utils.messages import BadRecord
from utils.model_store.bundle import (
    Bundle,
    BundleError,
    Draft,
    ModelStoreError,
    disk_errors_as,
    load_bundle,
    render,
    to_pretty_json,
    utc_now,
)
from utils.model_store.manifest import (
    AbsentModels,
    HistoryLine,
    ModelId,
    PublishedModel,
    RolledBack,
    absent,
    decode_history_line,
    published,
)

CURRENT, HISTORY, LOCK, TEMPORARY = "current.json", "history.jsonl", ".lock", ".tmp-"
#: The largest accepted size of current.json, in bytes.
LARGEST_CURRENT = 64 * 1024


class _Current(msgspec.Struct, frozen=True):
    model_id: ModelId


@dataclass(frozen=True)
class _History:
    """What was read of the history, so that only what was appended since is read again.

    Attributes:
        lines: The complete lines.
        size: Their size in bytes.
        last: The bytes of the last one, by which the file is recognised.
    """

    lines: tuple[HistoryLine, ...] = ()
    size: int = 0
    last: bytes = b""

    def extended(self, file: BinaryIO) -> "_History":
        """This, and what the file has beyond it.

        Raises:
            BadRecord: A line is damaged.
            OSError: The file cannot be read.
        """
        file.seek(self.size - len(self.last))
        content = file.read()
        if not content.startswith(self.last):  # cut since, or another file
            return _History().extended(file)
        # A line without its newline was never acted on, so it can be dropped.
        content = content[len(self.last) : content.rfind(b"\n") + 1]
        texts, lines = content.splitlines(keepends=True), list(self.lines)
        for text in texts:
            try:
                lines.append(decode_history_line(text))
            except BadRecord as error:
                raise BadRecord(f"line {len(lines) + 1}: {error}") from None
        return _History(tuple(lines), self.size + len(content), texts[-1] if texts else self.last)


class ModelStore:
    """The bundles of one folder.

    Args:
        path: `models/`; created by the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.RLock()
        self._depth = 0
        self._history = _History()

    # Reading: needs no lock, also while a writer is at work.

    def current_id(self) -> int:
        """The id of the serving bundle.

        Raises:
            BundleError: current.json is missing, damaged or names no bundle.
        """
        model_id = self._named_current()
        while model_id not in self.on_disk():
            # A writer may have replaced and pruned it between the two reads.
            model_id, before = self._named_current(), model_id
            if model_id == before:
                raise BundleError(
                    f"{self.path / CURRENT} names bundle {model_id}, which is not there; choose "
                    "another: python -m ops rollback N"
                )
        return model_id

    def load(self, model_id: int) -> Bundle:
        """Read a bundle and verify all of it before any use.

        Args:
            model_id: The bundle's number.

        Raises:
            BundleError: A file is missing, damaged, too large or not a regular file, or
                the golden rows do not score as recorded.
        """
        return load_bundle(self.path / str(model_id))

    def load_current(self) -> Bundle:
        """Load the serving bundle, also while writers replace and prune bundles.

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
        """The ids of the bundles that have not been pruned, oldest first, also damaged ones.

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
            raise BundleError(f"cannot read {self.path}: {describe_error(error)}") from None

    def history(self) -> list[HistoryLine]:
        """Every bundle ever published and every rollback, oldest first.

        Raises:
            ModelStoreError: The file cannot be read, or a line is damaged.
        """
        return self._read_history()[0]

    def published(self, model_id: int) -> PublishedModel | None:
        """A bundle's line of the history, also after it was pruned; None if it never existed."""
        lines = published(self.history())
        return next((line for line in lines if line.model_id == model_id), None)

    def describe_missing(self, model_id: int) -> str:
        """What became of a bundle that is not there, and which are, in one line.

        Raises:
            ModelStoreError: The folder or the history cannot be read.
        """
        there = [str(each) for each in self.on_disk()]
        if not there and not self.history():
            return f"no models in {self.path}: run initialize.py first"
        listed = " and ".join(part for part in (", ".join(there[:-1]), *there[-1:]) if part)
        be = "is" if len(there) == 1 else "are"
        return f"model {model_id} {self.why_gone(model_id)}; there {be} {listed or 'none'}"

    def trainings_for(self, batch_ids: Iterable[str]) -> dict[str, PublishedModel]:
        """The history lines of the bundles that answered retrain requests, by batch id."""
        asked = set(batch_ids)
        return {
            batch_id: line
            for line in published(self.history())
            for batch_id in asked.intersection(line.batch_ids)
        }

    def next_id(self) -> int:
        """A model id that was never used; it stays free only inside `writing`."""
        history = self.history()
        known = [*absent(history), *(line.model_id for line in published(history))]
        there = [int(path.name) for path in self.path.glob("[1-9]*") if _is_id(path.name)]
        return max([0, *known, *there]) + 1

    def why_gone(self, model_id: int) -> str:
        """Why a bundle is not on disk, to follow its number in a sentence."""
        if self.published(model_id) is not None:
            return "was pruned"
        if model_id in absent(self.history()):
            return "is not in this home, only in the log (was the home restored from a backup?)"
        return "never existed"

    # Writing.

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the store against other writers, in this and other processes; reentrant.

        Raises:
            ModelStoreError: The folder cannot be written to.
        """
        with self._mutex:
            if self._depth:
                yield
                return
            with disk_errors_as(f"cannot lock {self.path}"):
                self.path.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._depth = 1
                yield
            finally:
                self._depth = 0
                os.close(lock)  # releases the lock

    def publish(
        self,
        draft: Draft,
        accepted: bool = True,
        *,
        on_step: Callable[[str], object] = lambda step: None,
    ) -> int:
        """Publish a draft as a bundle, which serves if it was accepted.

        1. Write the three files into a temporary folder and sync them ("written").
        2. Rename the folder to the bundle's number ("renamed").
        3. Append the bundle's line to the history ("recorded").
        4. If accepted, replace current.json ("serving").

        `reconcile` repairs the store after a crash between two steps; an OSError undoes the
        steps done so far.

        Args:
            draft: The result of the training.
            accepted: Whether the gate accepted it; a refused bundle is kept but does not
                serve.
            on_step: Called with the name of each step once it is done.

        Returns:
            The bundle's number.

        Raises:
            BundleError: The draft would not load as a bundle.
            ModelStoreError: The bundle could not be written; the old state is kept.
        """
        with self.writing():
            self.reconcile()
            model_id = self.next_id()
            manifest, files = render(draft, model_id, accepted, self.history())
            history_size = self._history_size()
            temporary = self.path / f"{TEMPORARY}{model_id}"
            try:
                # 1
                write_folder(temporary, files)
                on_step("written")
                # 2
                temporary.rename(self.path / str(model_id))
                sync_folder(self.path)
                on_step("renamed")
                # 3
                self._append(manifest.history_line())
                on_step("recorded")
                # 4
                if accepted:
                    self._replace_current(model_id)
                    on_step("serving")
            except OSError as error:
                self._take_back(model_id, history_size)
                raise ModelStoreError(
                    f"cannot write bundle {model_id} in {self.path}: {describe_error(error)}"
                ) from None
            return model_id

    def record_absent(self, known: Iterable[int]) -> list[int]:
        """Record the numbers of bundles that the home lacks; `next_id` stays above them.

        Args:
            known: The numbers that were used according to the log.

        Returns:
            Those that the home lacks and that were not recorded before, ascending.

        Raises:
            ModelStoreError: They could not be recorded.
        """
        with self.writing(), disk_errors_as(f"cannot write to {self.path}"):
            history = self.history()
            here = {*absent(history), *(line.model_id for line in published(history))}
            lacking = sorted({*known} - here - {*self.on_disk()})
            if lacking:
                self._append(AbsentModels(absent=lacking, created=utc_now()))
            return lacking

    def rollback(self, model_id: int, reason: str) -> int | None:
        """Make an older (or a refused) bundle the serving one, if it loads.

        Args:
            model_id: The bundle to serve from now on.
            reason: The reason for the rollback, kept in the history.

        Returns:
            The bundle that served before, or None. If it is `model_id`, nothing is
            written.

        Raises:
            BundleError: The bundle does not load, was pruned or never existed.
            ModelStoreError: The rollback could not be written; the old state is kept.
        """
        self._check_there(model_id)  # before anything is written
        with self.writing(), disk_errors_as(f"cannot roll back to bundle {model_id}"):
            self.reconcile()
            self._check_there(model_id)
            self.load(model_id)
            served = serving_id(self.history())
            if served != model_id:
                size = self._history_size()
                self._append(_rollback_line(model_id, served, reason))
                try:
                    self._replace_current(model_id)
                except OSError:
                    self._cut_history(size)
                    raise
            return served

    def _check_there(self, model_id: int) -> None:
        if model_id not in self.on_disk():
            raise BundleError(self.describe_missing(model_id))

    def prune(self, keep_extra: int) -> list[int]:
        """Delete old bundles, never the serving one.

        `keep_extra` more bundles are kept: accepted ones before those that a rollback
        replaced, those before refused ones, and newer before older ones.

        Returns:
            The ids of the deleted bundles.

        Raises:
            BundleError: The serving bundle is not known.
            ModelStoreError: A bundle could not be deleted.
        """
        with self.writing(), disk_errors_as(f"cannot prune {self.path}"):
            lines = self.history()
            safe = {self.current_id(), serving_id(lines)}
            extras = [model_id for model_id in _best_first(lines) if model_id not in safe]
            there = self.on_disk()
            unknown = [model_id for model_id in there if model_id not in safe.union(extras)]
            extras = [model_id for model_id in extras if model_id in there] + unknown[::-1]
            for model_id in extras[keep_extra:]:
                self._discard(model_id)
            return extras[keep_extra:]

    def reconcile(self) -> list[str]:
        """Repair the store after a writer was killed; called when a writer starts.

        1. Remove temporary files and folders.
        2. Drop the history's last line if it is incomplete.
        3. Append a line for each bundle newer than the history's last, if it loads. A
           lost history is restored from the lines that the newest manifest repeats.
        4. Make current.json name the bundle that serves according to the history.

        Returns:
            A line of text for each repair, and for each bundle that does not load.

        Raises:
            ModelStoreError: The disk cannot be read or written, or the history is damaged.
        """
        with self.writing(), disk_errors_as(f"cannot repair {self.path}"):
            notes = self._remove_temporary()  # 1
            lines, whole = self._read_history()
            if whole < self._history_size():  # 2
                self._cut_history(whole)
                notes.append(f"dropped the incomplete last line of {HISTORY}")
            notes += self._record_unrecorded(lines)  # 3
            return notes + self._follow_history()  # 4

    def _named_current(self) -> int:
        no_models = BundleError(f"no models in {self.path}: run initialize.py first")
        if not self.path.is_dir():
            raise no_models
        try:
            with open_folder(self.path) as folder:
                return msgspec.json.decode(
                    read_plain(folder, CURRENT, LARGEST_CURRENT), type=_Current
                ).model_id
        except (OSError, ValueError, RecursionError) as error:
            missing = isinstance(error, FileNotFoundError)
            # A fresh clone has the folder, with nothing but a README.md.
            if missing and not self.on_disk() and not self._history_size():
                raise no_models from None
            raise BundleError(
                f"{self.path / CURRENT}: {describe_error(error)} (initialize.py repairs it)"
            ) from None

    def _remove_temporary(self) -> list[str]:
        notes = []
        for path in self.path.glob(f"{TEMPORARY}*"):
            remove(path)
            notes.append(f"removed {path.name}, left by a killed process")
        return notes

    def _record_unrecorded(self, lines: Sequence[HistoryLine]) -> list[str]:
        last = max((line.model_id for line in published(lines)), default=0)
        found, notes = [], []
        for model_id in self.on_disk():
            if model_id > last:
                try:
                    found.append(self.load(model_id).manifest)
                except BundleError as error:
                    notes.append(f"not recorded: {error}")
        lost: list[HistoryLine] = []
        if found and not lines:
            lost = [decode_history_line(bytes(line)) for line in found[-1].history]
        for line in lost:
            self._append(line)
        known = {line.model_id for line in published(lost)}
        for manifest in found:
            if manifest.model_id not in known:
                self._append(manifest.history_line())
                notes.append(f"recorded bundle {manifest.model_id}")
        if lost:
            self._trust_current()
        return notes

    def _trust_current(self) -> None:
        """Record in a restored history that the bundle of current.json serves."""
        with suppress(BundleError):
            current, served = self.current_id(), serving_id(self.history())
            if current != served:
                self._append(_rollback_line(current, served, "the history was lost"))

    def _follow_history(self) -> list[str]:
        served = serving_id(self.history())
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
            write_file(temporary, to_pretty_json({"model_id": model_id, "since": utc_now()}))
            temporary.replace(self.path / CURRENT)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.path)

    def _read_history(self) -> tuple[list[HistoryLine], int]:
        """Read the history; returns its lines and the size of the complete lines in bytes."""
        path = self.path / HISTORY
        with self._mutex:
            try:
                with path.open("rb") as file:
                    self._history = self._history.extended(file)
            except FileNotFoundError:
                self._history = _History()
            except OSError as error:
                raise ModelStoreError(f"cannot read {path}: {describe_error(error)}") from None
            except BadRecord as error:
                raise ModelStoreError(f"{path}, {describe_error(error)}") from None
            return list(self._history.lines), self._history.size

    def _history_size(self) -> int:
        try:
            return (self.path / HISTORY).stat().st_size
        except FileNotFoundError:
            return 0

    def _append(self, line: HistoryLine) -> None:
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
            sync_folder(self.path)

    def _cut_history(self, size: int) -> None:
        with suppress(FileNotFoundError):
            os.truncate(self.path / HISTORY, size)

    def _take_back(self, model_id: int, history_size: int) -> None:
        """Undo a failed publication, unless the bundle serves already."""
        remove(self.path / f"{TEMPORARY}{model_id}")
        with suppress(BundleError):
            if self.current_id() == model_id:
                return
        with suppress(OSError):  # if this fails, `reconcile` repairs the store later
            if self._history_size() > history_size:
                self._cut_history(history_size)
            self._discard(model_id)

    def _discard(self, model_id: int) -> None:
        # Renamed first, so that a reader finds a complete bundle or none.
        with suppress(FileNotFoundError):
            gone = self.path / f"{TEMPORARY}gone-{model_id}"
            (self.path / str(model_id)).rename(gone)
            remove(gone)


def serving_id(history: Iterable[HistoryLine]) -> int | None:
    """The id of the serving bundle according to the history; None if none was accepted.

    >>> first = PublishedModel(model_id=1, accepted=True)
    >>> serving_id([first, PublishedModel(model_id=2, accepted=False)])
    1
    """
    served: int | None = None
    for line in history:
        if isinstance(line, RolledBack):
            served = line.rollback_to
        elif isinstance(line, PublishedModel) and line.accepted:
            served = line.model_id
    return served


def _best_first(history: Iterable[HistoryLine]) -> list[int]:
    """The ids of all published bundles in the order in which `prune` keeps them."""
    accepted: dict[int, bool] = {}
    taken_back: set[int | None] = set()
    for line in history:
        if isinstance(line, RolledBack):
            taken_back.discard(line.rollback_to)
            taken_back.add(line.from_id)
        elif isinstance(line, PublishedModel):
            accepted[line.model_id] = line.accepted
    return sorted(
        accepted,
        key=lambda model_id: (accepted[model_id], model_id not in taken_back, model_id),
        reverse=True,
    )


def _rollback_line(to: int, served: int | None, reason: str) -> RolledBack:
    return RolledBack(rollback_to=to, from_id=served, reason=reason, created=utc_now())


def _is_id(name: str) -> bool:
    return re.fullmatch("[1-9][0-9]{0,15}", name, re.ASCII) is not None
