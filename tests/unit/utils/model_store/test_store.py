"""The model store on a real disk: killed and concurrent writers, damaged files, full disks."""

import json
import os
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.errors import one_line
from tests.unit.utils.model_store.samples import (
    Damage,
    replace_by_pipe,
    replace_by_symlink,
    state,
    write_nested_json,
)
from utils.feature_tools import FeatureTools
from utils.model_store import BundleError, Draft, ModelStore, ModelStoreError
from utils.model_store.manifest import RolledBack, published


def to_parts(draft: Draft) -> dict[str, Any]:
    """A draft in a form that can be sent to another process."""
    return {**vars(draft), "features": draft.features.to_json()}


def from_parts(parts: dict[str, Any]) -> Draft:
    return Draft(**{**parts, "features": FeatureTools.from_json(parts["features"])})


def temporary_files(store: ModelStore) -> list[str]:
    return [path.name for path in store.path.glob(".tmp*")]


def test_refused_bundle_is_kept_but_does_not_serve(store: ModelStore, draft: Draft) -> None:
    with pytest.raises(BundleError, match=r"initialize\.py"):
        store.current_id()
    store.publish(draft)
    assert store.publish(draft, accepted=False) == 2
    assert store.current_id() == 1
    assert store.load(2).manifest.accepted is False
    assert store.load_current().model_id == 1


# Killed writers

STEPS = ("written", "renamed", "recorded", "serving")


def publish_and_die(path: str, made: dict[str, Any], last_step: str) -> None:
    def on_step(step: str) -> None:
        if step == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    ModelStore(Path(path)).publish(from_parts(made), on_step=on_step)


@pytest.mark.parametrize("last_step", STEPS)
def test_store_recovers_from_a_writer_killed_after_any_step(
    store: ModelStore, draft: Draft, processes: Any, last_step: str
) -> None:
    store.publish(draft)
    store.publish(draft)
    process = processes.Process(
        target=publish_and_die,
        args=(str(store.path), to_parts(replace(draft, batch_ids=["b"])), last_step),
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    # Readers need no recovery: they see the old bundle or the new one.
    done = STEPS.index(last_step)
    assert store.load_current().model_id == (2 if done < STEPS.index("serving") else 3)

    store.reconcile()
    is_published = done >= STEPS.index("renamed")
    assert store.load_current().model_id == (3 if is_published else 2)
    assert [line.model_id for line in published(store.history())] == (
        [1, 2, 3] if is_published else [1, 2]
    )
    assert ("b" in store.trainings_for(["b"])) == is_published
    assert not temporary_files(store)
    assert store.reconcile() == []
    assert store.publish(draft) == (4 if is_published else 3)


def test_reconcile_removes_leftovers_of_a_killed_writer(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    (store.path / ".tmp-2").mkdir()
    (store.path / ".tmp-2" / "model.txt").write_text("half a mod")
    (store.path / ".tmp-current.json").write_text('{"mod')
    with (store.path / "history.jsonl").open("a") as file:
        file.write('{"model_id": 2, "acc')
    assert [line.model_id for line in published(store.history())] == [1]
    assert len(store.reconcile()) == 3
    assert not temporary_files(store)
    assert store.publish(draft) == 2
    assert [line.model_id for line in published(store.history())] == [1, 2]


def test_reconcile_finishes_an_interrupted_rollback(store: ModelStore, draft: Draft) -> None:
    for _ in range(3):
        store.publish(draft)
    served = (store.path / "current.json").read_bytes()
    store.rollback(1, "test")
    (store.path / "current.json").write_bytes(served)
    assert store.reconcile()
    assert store.current_id() == 1


def test_unloadable_new_folder_does_not_serve(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    shutil.copytree(store.path / "1", store.path / "2")
    assert "bundle 2" in store.reconcile()[0]
    assert store.current_id() == 1
    assert store.publish(draft) == 3  # the id is used up all the same


def test_lost_history_is_rebuilt(store: ModelStore, draft: Draft) -> None:
    for batch in ("a", "b", "c", "d"):
        store.publish(replace(draft, batch_ids=[batch]))
        store.prune(1)
    store.rollback(3, "test")
    lines = published(store.history())
    (store.path / "history.jsonl").unlink()
    store.reconcile()
    assert published(store.history()) == lines
    assert store.current_id() == 3
    assert store.publish(draft) == 5


def test_damaged_history_is_one_line(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    path = store.path / "history.jsonl"
    whole = path.read_bytes()
    for damaged in (b"{\n", b"[]\n", b'{"model_id": "1", "accepted": true}\n', b"\xff\n"):
        path.write_bytes(damaged + whole)
        for use in (store.history, store.reconcile, lambda: store.publish(draft)):
            with pytest.raises(ModelStoreError, match="line 1") as error:
                use()
            one_line(error.value)
    assert store.load_current().model_id == 1  # readers do not need the history
    path.write_bytes(whole)
    assert store.publish(draft) == 2


# Concurrent writers and readers


def publish_many(path: str, made: dict[str, Any], times: int, keep_extra: int | None) -> None:
    store, draft = ModelStore(Path(path)), from_parts(made)
    for _ in range(times):
        store.publish(replace(draft, batch_ids=[str(os.getpid())]))
        if keep_extra is not None:
            store.prune(keep_extra)


def test_concurrent_writers_get_different_ids(
    store: ModelStore, draft: Draft, processes: Any
) -> None:
    made = to_parts(draft)
    writers = [
        processes.Process(target=publish_many, args=(str(store.path), made, 4, None))
        for _ in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    lines = published(store.history())
    assert [line.model_id for line in lines] == list(range(1, 13))
    for writer in writers:
        assert sum(line.batch_ids == [str(writer.pid)] for line in lines) == 4
    assert store.load_current().model_id == 12


def test_reader_sees_only_whole_bundles(store: ModelStore, draft: Draft, processes: Any) -> None:
    store.publish(draft)
    writer = processes.Process(target=publish_many, args=(str(store.path), to_parts(draft), 25, 0))
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(store.load_current().model_id)
    writer.join()
    assert writer.exitcode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert store.on_disk() == [26]


# A damaged current.json


CURRENTS: dict[str, Damage] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(30)),
    "half": lambda path: path.write_text('{"model_'),
    "not UTF-8": lambda path: path.write_bytes(b'{"model_id": "\xff"}'),
    "nested": write_nested_json,
    "a list": lambda path: path.write_text("[2]"),
    "nothing": lambda path: path.write_text("null"),
    "no model": lambda path: path.write_text("{}"),
    "text": lambda path: path.write_text('{"model_id": "../2"}'),
    "true": lambda path: path.write_text('{"model_id": true}'),
    "a fraction": lambda path: path.write_text('{"model_id": 1.5}'),
    "zero": lambda path: path.write_text('{"model_id": 0}'),
    "enormous": lambda path: path.write_text('{"model_id": 1' + "0" * 5000 + "}"),
    "not there": lambda path: path.write_text('{"model_id": 77}'),
    "huge": lambda path: os.truncate(path, 2**40),
    "a link": replace_by_symlink,
    "a pipe": replace_by_pipe,
}


@pytest.mark.parametrize("name", CURRENTS)
def test_damaged_current_json_is_one_line_and_repaired(
    store: ModelStore, draft: Draft, name: str
) -> None:
    store.publish(draft)
    store.publish(draft)
    CURRENTS[name](store.path / "current.json")
    with pytest.raises(BundleError) as error:
        store.load_current()
    assert "current.json" in one_line(error.value)
    assert len(str(error.value)) < 400
    assert store.load(2).model_id == 2
    assert "current.json names bundle 2 again" in store.reconcile()[0]
    assert store.load_current().model_id == 2


# Pruning and rollback


@pytest.mark.parametrize(
    ("accepted", "keep_extra", "kept"),
    [
        ("aaaa", 0, [4]),
        ("aaaa", 1, [3, 4]),
        ("aaaa", 9, [1, 2, 3, 4]),
        ("arrr", 0, [1]),
        ("arrr", 2, [1, 3, 4]),
        ("aarr", 1, [1, 2]),
        ("aara", 2, [1, 2, 4]),
        ("aarar", 3, [1, 2, 4, 5]),
    ],
)
def test_pruning_prefers_accepted_and_newer_bundles(
    store: ModelStore, draft: Draft, accepted: str, keep_extra: int, kept: list[int]
) -> None:
    for letter in accepted:
        store.publish(draft, accepted=letter == "a")
    serving = store.current_id()
    gone = store.prune(keep_extra)
    assert store.on_disk() == kept
    assert sorted(gone + kept) == list(range(1, len(accepted) + 1))
    assert store.load_current().model_id == serving
    assert not temporary_files(store)
    assert store.prune(keep_extra) == []
    assert len(store.history()) == len(accepted)


def test_model_ids_are_never_reused(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    for number in range(2, 6):
        assert store.publish(draft, accepted=False) == number
        store.prune(0)
        assert store.on_disk() == [1]
    assert ModelStore(store.path).next_id() == 6


def test_numbers_that_only_the_log_knows_are_never_reused(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    store.publish(draft)
    store.rollback(1, "a test")
    assert store.record_absent([1, 4, 3, 3]) == [3, 4]
    assert store.record_absent([1, 4]) == []
    assert store.current_id() == 1 and store.reconcile() == []
    with pytest.raises(BundleError, match=r"model 4 is not in this home"):
        store.rollback(4, "a test")
    assert ModelStore(store.path).publish(replace(draft, parent_id=1)) == 5
    assert [store.why_gone(model_id).split(",")[0] for model_id in (2, 3, 6)] == [
        *("was pruned", "is not in this home", "never existed")
    ]
    (store.path / "history.jsonl").unlink()  # the newest manifest repeats it
    assert store.reconcile() and ModelStore(store.path).record_absent([3, 4]) == []
    assert store.prune(0) == [1, 2]


def test_pruning_without_current_json_deletes_nothing(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    store.publish(draft)
    (store.path / "current.json").unlink()
    with pytest.raises(BundleError):
        store.prune(0)
    assert store.on_disk() == [1, 2]


def test_rollback_changes_the_serving_bundle(store: ModelStore, draft: Draft) -> None:
    for _ in range(3):
        store.publish(draft)
    assert store.rollback(2, "worse than its parent") == 3
    assert store.load_current().model_id == 2
    last = store.history()[-1]
    assert last == RolledBack(
        rollback_to=2, from_id=3, reason="worse than its parent", created=last.created
    )
    written = (store.path / "history.jsonl").read_bytes().splitlines()[-1]
    assert json.loads(written) == {
        "rollback_to": 2,
        "from": 3,
        "reason": "worse than its parent",
        "created": last.created,
    }
    assert store.rollback(2, "again") == 2
    assert len(store.history()) == 4
    assert store.reconcile() == []
    # The bundle that was rolled back is the first accepted one to be pruned.
    assert store.publish(replace(draft, parent_id=2)) == 4
    store.prune(1)
    assert store.on_disk() == [2, 4]
    before = state(store)
    with pytest.raises(BundleError, match="model 3 was pruned; there are 2 and 4"):
        store.rollback(3, "gone")
    assert state(store) == before


def test_rollback_recovers_from_a_lost_serving_bundle(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    store.publish(draft)
    shutil.rmtree(store.path / "2")
    with pytest.raises(BundleError, match="rollback N"):
        store.load_current()
    store.reconcile()  # does not choose a bundle by itself
    with pytest.raises(BundleError):
        store.load_current()
    assert store.rollback(1, "2 is lost") == 2
    assert store.load_current().model_id == 1


# Full disks


def test_full_disk_at_any_write_keeps_the_old_state(small_disk: Path, draft: Draft) -> None:
    store = ModelStore(small_disk / "models")
    # Each history line fills a page, so that writing it runs out of space too.
    draft = replace(draft, batch_ids=["x" * 4000])
    store.publish(draft)
    filler = small_disk / "filler"
    page = os.statvfs(small_disk).f_frsize
    before, failures = state(store), 0
    while True:
        with filler.open("wb") as file:
            free = os.statvfs(small_disk).f_bavail - failures
            file.write(bytes(free * page))
        try:
            model_id = store.publish(draft)
            break
        except ModelStoreError as error:
            assert "No space left" in str(error)
            assert "\n" not in str(error)
        assert state(store) == before
        assert not temporary_files(store)
        assert store.load_current().model_id == 1
        filler.unlink()
        failures += 1
    assert failures >= 5  # model, features, manifest (two or more), history, current
    assert model_id == 2
    assert store.load_current().model_id == 2


def publish_with_a_limit(path: str, made: dict[str, Any], limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        ModelStore(Path(path)).publish(from_parts(made))
    except ModelStoreError as error:
        assert "File too large" in str(error)
        os._exit(17)


def test_file_size_limit_keeps_the_old_state(
    store: ModelStore, draft: Draft, processes: Any
) -> None:
    store.publish(draft)
    before = state(store)
    process = processes.Process(
        target=publish_with_a_limit, args=(str(store.path), to_parts(draft), 3000)
    )
    process.start()
    process.join()
    assert process.exitcode == 17
    assert state(store) == before
    assert not temporary_files(store)
