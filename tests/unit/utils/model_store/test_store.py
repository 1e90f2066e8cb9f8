"""Bundles on a real disk: killed writers, damaged files, full disks, two writers at once."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import msgspec
import numpy as np
import pandas as pd
import pytest

from ops import __main__ as ops_command
from utils.feature_tools import FeatureTools
from utils.model_store import BundleError, Draft, ModelStore, ModelStoreError
from utils.model_store.bundle import seal, sha256
from utils.settings import ROOT

FILES = ("model.txt", "features.json", "manifest.json")


def make_draft(classes: int = 2, rounds: int = 5) -> Draft:
    """A real model of 400 made-up rows."""
    random = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "size": random.normal(size=400),
            "age": random.integers(1, 90, size=400).astype(float),
            "colour": random.choice(["red", "green", "blue"], size=400).astype(object),
            "shape": random.choice(["round", "square"], size=400).astype(object),
        }
    )
    score = frame["size"] + (frame["colour"] == "red") + random.normal(size=400) / 2
    codes = np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]))
    names = tuple(f"class {code}" for code in range(classes))
    features = FeatureTools().fit(
        frame,
        target="kind",
        numerical=["size", "age"],
        categorical=["colour", "shape"],
        crosses=[("colour", "shape")],
        classes=names,
    )
    params: dict[str, Any] = {"objective": "binary", "num_leaves": 7}
    if classes > 2:
        params |= {"objective": "multiclass", "num_class": classes}
    params |= {"verbosity": -1, "num_threads": 1, "deterministic": True, "force_row_wise": True}
    booster = lgb.train(params, lgb.Dataset(features.transform(frame), codes), rounds)
    golden = [*frame.head(3).to_dict("records"), {"size": None, "colour": "never seen"}, {"age": 3}]
    return Draft(
        model_text=booster.model_to_string(),
        features=features,
        hyperparameters={**params, "num_boost_round": np.int64(rounds)},
        seed=7,
        training={"base_data_sha256": "0" * 64, "rows": 400, "offsets": {"app_messages": {0: 25}}},
        golden_rows=golden,
        metrics={"challenger": {"log_loss": np.float64(0.25), "auc": np.nan}, "champion": None},
    )


@pytest.fixture(scope="module")
def draft() -> Draft:
    return make_draft()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightgbm", "pandas", "msgspec", "rich.table", "pydantic"])
    return context


def parts(draft: Draft) -> dict[str, Any]:
    """A draft as another process can be handed it."""
    return {**vars(draft), "features": draft.features.to_json()}


def joined(parts: dict[str, Any]) -> Draft:
    return Draft(**{**parts, "features": FeatureTools.from_json(parts["features"])})


def temporary_files(store: ModelStore) -> list[str]:
    return [path.name for path in store.path.glob(".tmp*")]


def state(store: ModelStore) -> dict[str, bytes]:
    """Every file's content but that of the lock, by name."""
    return {
        str(path.relative_to(store.path)): path.read_bytes()
        for path in store.path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def one_line(error: Any) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


# What a bundle is.


def test_a_bundle_comes_back_as_it_was_published(store: ModelStore, draft: Draft) -> None:
    first = store.publish(draft)
    gate = {"worse": np.bool_(False)}
    second = store.publish(replace(draft, parent_id=first, batch_ids=["a-0-25"], gate=gate))
    assert (first, second, store.current_id()) == (1, 2, 2)
    assert sorted(path.name for path in (store.path / "2").iterdir()) == sorted(FILES)
    bundle = store.load(2)
    manifest = bundle.manifest
    assert bundle.parent_id == 1
    assert manifest["hyperparameters"]["num_boost_round"] == 5
    assert manifest["training"]["offsets"] == {"app_messages": {"0": 25}}
    assert manifest["metrics"]["challenger"] == {"log_loss": 0.25, "auc": None}
    assert manifest["versions"]["lightgbm"] == lgb.__version__
    assert manifest["gate"] == {"worse": False}
    assert [line["model_id"] for line in manifest["history"]] == [1]
    assert len(manifest["golden"]) == 5
    assert store.trainings_for(["a-0-25", "b-0-25"]) == {"a-0-25": store.history()[1]}


@pytest.mark.parametrize("classes", [2, 4])
def test_a_row_scores_the_same_bits_alone_and_among_others(store: ModelStore, classes: int) -> None:
    draft = make_draft(classes)
    bundle = store.load(store.publish(draft))
    values = [
        msgspec.json.encode({"request_id": str(n), "data": {"size": n / 7, "age": n % 90}})
        for n in range(300)
    ]
    rows = bundle.features.transform_rows([bundle.decoder(value).data for value in values])
    together = bundle.score(rows)
    assert together.shape == ((300,) if classes == 2 else (300, classes))
    assert together.dtype == np.float64
    alone = np.concatenate([bundle.score(rows[n : n + 1]) for n in range(300)])
    assert alone.tobytes() == together.tobytes()
    original = lgb.Booster(model_str=draft.model_text).predict(rows)
    assert np.asarray(original).tobytes() == together.tobytes()


def test_a_refused_bundle_is_kept_but_does_not_serve(store: ModelStore, draft: Draft) -> None:
    with pytest.raises(BundleError, match=r"initialize\.py"):
        store.current_id()
    store.publish(draft)
    assert store.publish(draft, accepted=False) == 2
    assert store.current_id() == 1
    assert store.load(2).manifest["accepted"] is False
    assert store.load_current().model_id == 1


@pytest.mark.parametrize(
    "change",
    [
        {"golden_rows": []},
        {"golden_rows": [{"size": "text"}]},
        {"golden_rows": [{"size": object()}]},
        {"model_text": "garbage"},
        {"metrics": {"challenger": {1, 2, object()}}},
    ],
    ids=["no row", "wrong type", "not JSON", "no model", "figures not JSON"],
)
def test_a_draft_that_cannot_be_loaded_is_not_published(
    store: ModelStore, draft: Draft, change: dict[str, Any]
) -> None:
    store.publish(draft)
    before = state(store)
    with pytest.raises(BundleError) as error:
        store.publish(replace(draft, **change))
    assert "bundle 2" in one_line(error)
    assert state(store) == before


# Writers that are killed.

STEPS = ("written", "renamed", "recorded", "serving")


def publish_and_die(path: str, made: dict[str, Any], last_step: str) -> None:
    def on_step(step: str) -> None:
        if step == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    ModelStore(Path(path)).publish(joined(made), on_step=on_step)


@pytest.mark.parametrize("last_step", STEPS)
def test_a_writer_killed_after_any_step(
    store: ModelStore, draft: Draft, processes: Any, last_step: str
) -> None:
    store.publish(draft)
    store.publish(draft)
    process = processes.Process(
        target=publish_and_die,
        args=(str(store.path), parts(replace(draft, batch_ids=["b"])), last_step),
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    # A reader needs no mending: it has the old bundle or the new one.
    done = STEPS.index(last_step)
    assert store.load_current().model_id == (2 if done < STEPS.index("serving") else 3)

    store.reconcile()
    born = done >= STEPS.index("renamed")
    assert store.load_current().model_id == (3 if born else 2)
    assert [line["model_id"] for line in store.history()] == ([1, 2, 3] if born else [1, 2])
    assert ("b" in store.trainings_for(["b"])) == born
    assert not temporary_files(store)
    assert store.reconcile() == []
    assert store.publish(draft) == (4 if born else 3)


def test_what_a_killed_writer_left_is_cleared_away(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    (store.path / ".tmp-2").mkdir()
    (store.path / ".tmp-2" / "model.txt").write_text("half a mod")
    (store.path / ".tmp-current.json").write_text('{"mod')
    with (store.path / "history.jsonl").open("a") as file:
        file.write('{"model_id": 2, "acc')
    assert [line["model_id"] for line in store.history()] == [1]
    assert len(store.reconcile()) == 3
    assert not temporary_files(store)
    assert store.publish(draft) == 2
    assert [line["model_id"] for line in store.history()] == [1, 2]


def test_a_rollback_killed_before_current_is_finished(store: ModelStore, draft: Draft) -> None:
    for _ in range(3):
        store.publish(draft)
    served = (store.path / "current.json").read_bytes()
    store.rollback(1, "test")
    (store.path / "current.json").write_bytes(served)
    assert store.reconcile()
    assert store.current_id() == 1


def test_a_new_folder_that_does_not_load_never_serves(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    shutil.copytree(store.path / "1", store.path / "2")
    assert "bundle 2" in store.reconcile()[0]
    assert store.current_id() == 1
    assert store.publish(draft) == 3  # the number is taken all the same


def test_a_lost_history_is_made_again(store: ModelStore, draft: Draft) -> None:
    for batch in ("a", "b", "c", "d"):
        store.publish(replace(draft, batch_ids=[batch]))
        store.prune(1)
    store.rollback(3, "test")
    lines = [line for line in store.history() if "model_id" in line]
    (store.path / "history.jsonl").unlink()
    store.reconcile()
    assert [line for line in store.history() if "model_id" in line] == lines
    assert store.current_id() == 3
    assert store.publish(draft) == 5


def test_a_damaged_history_is_one_clear_line(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    path = store.path / "history.jsonl"
    whole = path.read_bytes()
    for damaged in (b"{\n", b"[]\n", b'{"model_id": "1", "accepted": true}\n', b"\xff\n"):
        path.write_bytes(damaged + whole)
        for use in (store.history, store.reconcile, lambda: store.publish(draft)):
            with pytest.raises(ModelStoreError, match="line 1") as error:
                use()
            one_line(error)
    assert store.load_current().model_id == 1  # who only reads is not concerned
    path.write_bytes(whole)
    assert store.publish(draft) == 2


# Several at once.


def publish_many(path: str, made: dict[str, Any], times: int, keep_extra: int | None) -> None:
    store, draft = ModelStore(Path(path)), joined(made)
    for _ in range(times):
        store.publish(replace(draft, batch_ids=[str(os.getpid())]))
        if keep_extra is not None:
            store.prune(keep_extra)


def test_writers_at_once_get_numbers_of_their_own(
    store: ModelStore, draft: Draft, processes: Any
) -> None:
    made = parts(draft)
    writers = [
        processes.Process(target=publish_many, args=(str(store.path), made, 4, None))
        for _ in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    lines = store.history()
    assert [line["model_id"] for line in lines] == list(range(1, 13))
    for writer in writers:
        assert sum(line["batch_ids"] == [str(writer.pid)] for line in lines) == 4
    assert store.load_current().model_id == 12


def test_a_reader_sees_whole_bundles_only(store: ModelStore, draft: Draft, processes: Any) -> None:
    store.publish(draft)
    writer = processes.Process(target=publish_many, args=(str(store.path), parts(draft), 25, 0))
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(store.load_current().model_id)
    writer.join()
    assert writer.exitcode == 0
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert store.on_disk() == [26]


# Bundles that are not what they should be.

Damage = Callable[[Path], object]


def forge(folder: Path, **changes: Any) -> None:
    """Change a manifest and make its hashes right again, as one who means harm would."""
    manifest = json.loads((folder / "manifest.json").read_bytes()) | changes
    for name in ("model.txt", "features.json"):
        if "sha256" not in changes:
            manifest["sha256"][name] = sha256((folder / name).read_bytes())
    manifest.pop("manifest_sha256")
    (folder / "manifest.json").write_bytes(seal(manifest))


def without_a_feature(folder: Path) -> None:
    features = json.loads((folder / "features.json").read_bytes())
    del features["numerical"]["age"]
    features["order"].remove("age")
    (folder / "features.json").write_text(json.dumps(features))
    forge(folder)


def with_other_scaling(folder: Path) -> None:
    features = json.loads((folder / "features.json").read_bytes())
    features["numerical"]["size"] = [-1.0, 1.0]
    (folder / "features.json").write_text(json.dumps(features))
    forge(folder)


def with_another_class(folder: Path) -> None:
    features = json.loads((folder / "features.json").read_bytes())
    features["classes"].append("one more")
    (folder / "features.json").write_text(json.dumps(features))
    forge(folder)


def with_garbage(folder: Path) -> None:
    (folder / "model.txt").write_text("garbage")
    forge(folder)


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def halved(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def as_symlink(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def nested(path: Path) -> None:
    path.write_text('{"model_id":' + "[" * 100_000)


OUTSIDE = {"model.txt": "0" * 64, "features.json": "0" * 64, "../../outside": "0" * 64}

DAMAGES: dict[str, tuple[Damage, str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder), "No such file"),
    "empty folder": (emptied, "No such file"),
    "folder a link": (as_symlink, "bundle 1"),
    "one file more": (lambda folder: (folder / "run.pkl").touch(), "'run.pkl' does not belong"),
    "path that climbs": (lambda folder: forge(folder, sha256=OUTSIDE), "hashes of other files"),
    "path that is absolute": (
        lambda folder: forge(folder, sha256={"/etc/passwd": "0" * 64}),
        "hashes of other files",
    ),
    "feature missing": (without_a_feature, "5 features, features.json makes 4"),
    "other scaling": (with_other_scaling, "golden rows do not score"),
    "other classes": (with_another_class, "does not predict the 3 classes"),
    "no golden rows": (lambda folder: forge(folder, golden=[]), "golden"),
    "golden rows of another model": (
        lambda folder: forge(folder, golden=[{"data": {"age": 3}, "probability": 0.123}]),
        "golden rows do not score",
    ),
    "golden rows of several classes": (
        lambda folder: forge(folder, golden=[{"data": {"age": 3}, "probability": [0.5, 0.5]}]),
        "golden rows do not score",
    ),
    "golden rows that do not decode": (
        lambda folder: forge(folder, golden=[{"data": {"age": "x"}, "probability": 0.5}]),
        "Expected `float",
    ),
    "another's number": (lambda folder: forge(folder, model_id=3), "that of bundle 3"),
    "manifest a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest"),
    "manifest nested": (lambda folder: nested(folder / "manifest.json"), "manifest"),
    "manifest edited": (
        lambda folder: (folder / "manifest.json").write_bytes(
            (folder / "manifest.json").read_bytes().replace(b'"seed": 7', b'"seed": 8')
        ),
        "manifest.json does not match",
    ),
    "garbage with the right hash": (with_garbage, "Model file"),
}

FILE_DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff"), ""),
    "truncated": (halved, ""),
    "huge": (lambda path: os.truncate(path, 2**40), "too large"),
    "a link": (as_symlink, ""),
    "a pipe": (as_pipe, "not a plain file"),
    "a folder": (as_folder, "not a plain file"),
}


def refusal(store: ModelStore) -> str:
    with pytest.raises(BundleError) as error:
        store.load(1)
    text = one_line(error)
    assert "bundle 1 " in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_bundle_is_refused_with_a_line(
    store: ModelStore, draft: Draft, name: str
) -> None:
    store.publish(draft)
    damage, reason = DAMAGES[name]
    damage(store.path / "1")
    assert reason in refusal(store)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", FILE_DAMAGES)
def test_a_damaged_file_is_refused_with_a_line(
    store: ModelStore, draft: Draft, name: str, file: str
) -> None:
    store.publish(draft)
    damage, reason = FILE_DAMAGES[name]
    damage(store.path / "1" / file)
    text = refusal(store)
    assert file in text
    assert reason in text


def test_any_flipped_bit_is_noticed(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    for name in FILES:
        path = store.path / "1" / name
        whole = path.read_bytes()
        for place in range(0, len(whole), 1 + len(whole) // 150):
            flipped = bytearray(whole)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            refusal(store)
        path.write_bytes(whole)
    assert store.load(1).model_id == 1


CURRENTS: dict[str, Damage] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(30)),
    "half": lambda path: path.write_text('{"model_'),
    "not UTF-8": lambda path: path.write_bytes(b'{"model_id": "\xff"}'),
    "nested": nested,
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
    "a link": as_symlink,
    "a pipe": as_pipe,
}


@pytest.mark.parametrize("name", CURRENTS)
def test_a_damaged_current_is_a_line_and_is_mended(
    store: ModelStore, draft: Draft, name: str
) -> None:
    store.publish(draft)
    store.publish(draft)
    CURRENTS[name](store.path / "current.json")
    with pytest.raises(BundleError) as error:
        store.load_current()
    assert "current.json" in one_line(error)
    assert len(str(error.value)) < 400
    assert store.load(2).model_id == 2
    assert "current.json names bundle 2 again" in store.reconcile()[0]
    assert store.load_current().model_id == 2


# Pruning and going back.


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
def test_pruning_keeps_accepted_before_refused_and_new_before_old(
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


def test_a_number_is_never_used_twice(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    for number in range(2, 6):
        assert store.publish(draft, accepted=False) == number
        store.prune(0)
        assert store.on_disk() == [1]
    assert ModelStore(store.path).next_id() == 6


def test_pruning_without_knowing_which_serves_deletes_nothing(
    store: ModelStore, draft: Draft
) -> None:
    store.publish(draft)
    store.publish(draft)
    (store.path / "current.json").unlink()
    with pytest.raises(BundleError):
        store.prune(0)
    assert store.on_disk() == [1, 2]


def test_going_back(store: ModelStore, draft: Draft) -> None:
    for _ in range(3):
        store.publish(draft)
    assert store.rollback(2, "worse than its parent") == 3
    assert store.load_current().model_id == 2
    assert store.history()[-1] == {
        "rollback_to": 2,
        "from": 3,
        "reason": "worse than its parent",
        "created": store.history()[-1]["created"],
    }
    assert store.rollback(2, "again") == 2
    assert len(store.history()) == 4
    assert store.reconcile() == []
    # What was taken out of service is the first accepted one to go.
    assert store.publish(replace(draft, parent_id=2)) == 4
    store.prune(1)
    assert store.on_disk() == [2, 4]
    before = state(store)
    with pytest.raises(BundleError, match="bundle 3 "):
        store.rollback(3, "gone")
    assert state(store) == before


def test_going_back_is_the_way_out_when_the_serving_bundle_is_gone(
    store: ModelStore, draft: Draft
) -> None:
    store.publish(draft)
    store.publish(draft)
    shutil.rmtree(store.path / "2")
    with pytest.raises(BundleError, match="rollback N"):
        store.load_current()
    store.reconcile()  # does not choose by itself
    with pytest.raises(BundleError):
        store.load_current()
    assert store.rollback(1, "2 is lost") == 2
    assert store.load_current().model_id == 1


# Disks that are full.


def test_a_full_disk_at_any_moment_keeps_the_old_state(small_disk: Path, draft: Draft) -> None:
    store = ModelStore(small_disk / "models")
    # History lines of a page each, so that this step runs out of space too.
    draft = replace(draft, gate={"why": "x" * 4000})
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
        ModelStore(Path(path)).publish(joined(made))
    except ModelStoreError as error:
        assert "File too large" in str(error)
        os._exit(17)


def test_a_file_that_cannot_be_written_whole(
    store: ModelStore, draft: Draft, processes: Any
) -> None:
    store.publish(draft)
    before = state(store)
    process = processes.Process(
        target=publish_with_a_limit, args=(str(store.path), parts(draft), 3000)
    )
    process.start()
    process.join()
    assert process.exitcode == 17
    assert state(store) == before
    assert not temporary_files(store)


# The command line.


def command(home: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops", *arguments],
        cwd=ROOT,
        env={**os.environ, "PIPELINE_HOME": str(home), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def run_main(home: Path, arguments: list[str]) -> None:
    os.environ["PIPELINE_HOME"] = str(home)
    sys.argv = ["ops", *arguments]
    sys.stdout, sys.stderr = (home / "out").open("w"), (home / "err").open("w")
    sys.exit(ops_command.main())


@pytest.fixture
def quick_command(processes: Any) -> Callable[..., tuple[int, str, str]]:
    """The same in a process that need not import everything again."""

    def run(home: Path, *arguments: str) -> tuple[int, str, str]:
        process = processes.Process(target=run_main, args=(home, list(arguments)))
        process.start()
        process.join()
        return process.exitcode, (home / "out").read_text(), (home / "err").read_text()

    return run


def test_list_and_show(store: ModelStore, draft: Draft, quick_command: Any) -> None:
    home = store.path.parent
    store.publish(draft)
    store.publish(
        replace(
            draft,
            parent_id=1,
            metrics={"challenger": {"log_loss": 0.2742}, "champion": {"log_loss": 0.2751}},
        ),
    )
    store.prune(0)
    store.publish(replace(draft, parent_id=2), accepted=False)

    listed = command(home, "list")
    assert listed.returncode == 0, listed.stderr
    lines = [line.split() for line in listed.stdout.splitlines() if line[2:3].isspace()]
    rows = {cells[1]: cells for cells in lines if len(cells) > 3 and cells[1].isdigit()}
    assert set(rows) == {"1", "2", "3"}
    assert "pruned" in rows["1"]
    assert {"serving", "0.2742", "0.2751", "400"} <= set(rows["2"])
    assert "refused" in rows["3"]

    status, out, err = quick_command(home, "show", "2")
    assert (status, err) == (0, "")
    assert json.loads(out) == store.load(2).manifest

    status, out, err = quick_command(home, "show", "1")
    assert status == 0
    assert json.loads(out)["model_id"] == 1
    assert "pruned" in err


def test_errors_are_one_line(store: ModelStore, draft: Draft, quick_command: Any) -> None:
    store.publish(draft)
    (store.path / "1" / "model.txt").write_text("garbage")
    for arguments in (["show", "1"], ["show", "7"], ["rollback", "7"], ["rollback", "1"]):
        status, out, err = quick_command(store.path.parent, *arguments)
        assert (status, out) == (1, "")
        assert len(err.splitlines()) == 1, err
        assert arguments[1] in err
    status, out, err = quick_command(store.path.parent, "--help")
    assert status == 0
    assert "rollback" in out
    assert "PIPELINE_HOME" in out


def test_a_rollback_without_a_broker_says_what_it_did(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    store.publish(draft)
    done = command(
        store.path.parent,
        *("rollback", "1", "--reason", "a test"),
        KAFKA_BOOTSTRAP_SERVERS="localhost:1",
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "running predictors could not be told" in done.stderr
    assert store.load_current().model_id == 1
    assert store.history()[-1]["reason"] == "a test"
