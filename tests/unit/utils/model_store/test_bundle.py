"""What a bundle is, and how a damaged one is refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import msgspec
import numpy as np
import pytest

from tests.unit.errors import one_line
from tests.unit.utils.model_store.samples import (
    FILES,
    Damage,
    make_draft,
    replace_by_pipe,
    replace_by_symlink,
    state,
    write_nested_json,
)
from utils.metrics import BothMetrics, Comparison, Metrics
from utils.model_store import BundleError, Draft, ModelStore
from utils.model_store.bundle import LARGEST, seal, sha256


def test_loaded_bundle_equals_the_published_draft(store: ModelStore, draft: Draft) -> None:
    first = store.publish(draft)
    gate: Any = Comparison(worse=np.bool_(False))  # type: ignore[arg-type]
    second = store.publish(replace(draft, parent_id=first, batch_ids=["a-0-25"], gate=gate))
    assert (first, second, store.current_id()) == (1, 2, 2)
    assert sorted(path.name for path in (store.path / "2").iterdir()) == sorted(FILES)
    bundle = store.load(2)
    manifest = bundle.manifest
    assert bundle.parent_id == 1
    assert manifest.hyperparameters["num_boost_round"] == 5
    assert manifest.training.offsets == {"app_messages": {"0": 25}}
    assert manifest.metrics.challenger == Metrics(log_loss=0.25, auc=None)
    assert manifest.versions["lightgbm"] == lgb.__version__
    assert manifest.gate == Comparison(worse=False)
    assert [json.loads(bytes(line))["model_id"] for line in manifest.history] == [1]
    assert len(manifest.golden) == 5
    assert store.trainings_for(["a-0-25", "b-0-25"]) == {"a-0-25": store.history()[1]}


@pytest.mark.parametrize("classes", [2, 4])
def test_row_scores_the_same_alone_and_in_a_batch(store: ModelStore, classes: int) -> None:
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


@pytest.mark.parametrize(
    "change",
    [
        {"golden_rows": []},
        {"golden_rows": [{"size": "text"}]},
        {"golden_rows": [{"size": object()}]},
        {"model_text": "garbage"},
        {"metrics": BothMetrics(challenger=object())},  # type: ignore[arg-type]
    ],
    ids=["no row", "wrong type", "not JSON", "no model", "figures not JSON"],
)
def test_unloadable_draft_is_not_published(
    store: ModelStore, draft: Draft, change: dict[str, Any]
) -> None:
    store.publish(draft)
    before = state(store)
    with pytest.raises(BundleError) as error:
        store.publish(replace(draft, **change))
    assert "bundle 2" in one_line(error.value)
    assert state(store) == before


@pytest.mark.parametrize("file", FILES)
def test_draft_beyond_the_limits_of_loading_is_not_published(
    store: ModelStore, draft: Draft, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(draft)
    before, size = state(store), (store.path / "1" / file).stat().st_size
    monkeypatch.setitem(LARGEST, file, size // 2)
    with pytest.raises(BundleError) as error:
        store.publish(draft)
    text = one_line(error.value)
    assert f"bundle 2: {file} is too large: 0.0 MiB of at most 0.0 MiB; the column" in text
    assert "categories: name it in [data] drop, or lower [data] max_categories" in text
    assert state(store) == before
    monkeypatch.setitem(LARGEST, file, 2 * size)
    assert store.load(store.publish(draft)).model_id == 2


def forge(folder: Path, **changes: Any) -> None:
    """Change a manifest and correct its hashes, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_bytes()) | changes
    for name in ("model.txt", "features.json"):
        if "sha256" not in changes:
            manifest["sha256"][name] = sha256((folder / name).read_bytes())
    manifest.pop("manifest_sha256")
    (folder / "manifest.json").write_bytes(seal(manifest))


def remove_feature(folder: Path) -> None:
    features = json.loads((folder / "features.json").read_bytes())
    features["columns"] = [each for each in features["columns"] if each["name"] != "age"]
    (folder / "features.json").write_text(json.dumps(features))
    forge(folder)


def change_scaling(folder: Path) -> None:
    features = json.loads((folder / "features.json").read_bytes())
    (size,) = (each for each in features["columns"] if each["name"] == "size")
    size |= {"low": -1.0, "high": 1.0}
    (folder / "features.json").write_text(json.dumps(features))
    forge(folder)


def add_class(folder: Path) -> None:
    features = json.loads((folder / "features.json").read_bytes())
    features["target"]["classes"].append("one more")
    (folder / "features.json").write_text(json.dumps(features))
    forge(folder)


def replace_model_by_garbage(folder: Path) -> None:
    (folder / "model.txt").write_text("garbage")
    forge(folder)


def remove_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def truncate_to_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


OUTSIDE = {"model.txt": "0" * 64, "features.json": "0" * 64, "../../outside": "0" * 64}


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no folder": (lambda folder: shutil.rmtree(folder), "No such file"),
    "empty folder": (remove_files, "No such file"),
    "folder a link": (replace_by_symlink, "bundle 1"),
    "one file more": (lambda folder: (folder / "run.pkl").touch(), "'run.pkl' does not belong"),
    "path with ..": (lambda folder: forge(folder, sha256=OUTSIDE), "hashes of other files"),
    "absolute path": (
        lambda folder: forge(folder, sha256={"/etc/passwd": "0" * 64}),
        "hashes of other files",
    ),
    "feature missing": (remove_feature, "5 features, features.json makes 4"),
    "other scaling": (change_scaling, "golden rows do not score"),
    "other classes": (add_class, "does not predict the 3 classes"),
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
        "age: 'x' is no number",
    ),
    "another's number": (lambda folder: forge(folder, model_id=3), "belongs to bundle 3"),
    "manifest a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest"),
    "manifest nested": (lambda folder: write_nested_json(folder / "manifest.json"), "manifest"),
    "manifest edited": (
        lambda folder: (folder / "manifest.json").write_bytes(
            (folder / "manifest.json").read_bytes().replace(b'"seed": 7', b'"seed": 8')
        ),
        "manifest.json does not match",
    ),
    "garbage with the right hash": (replace_model_by_garbage, "Model file"),
}


FILE_DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff"), ""),
    "truncated": (truncate_to_half, ""),
    "huge": (lambda path: os.truncate(path, 2**40), "too large"),
    "a link": (replace_by_symlink, ""),
    "a pipe": (replace_by_pipe, "not a plain file"),
    "a folder": (replace_by_folder, "not a plain file"),
}


def refusal(store: ModelStore) -> str:
    with pytest.raises(BundleError) as error:
        store.load(1)
    text = one_line(error.value)
    assert "bundle 1 " in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_bundle_is_refused_in_one_line(store: ModelStore, draft: Draft, name: str) -> None:
    store.publish(draft)
    damage, reason = DAMAGES[name]
    damage(store.path / "1")
    assert reason in refusal(store)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", FILE_DAMAGES)
def test_damaged_bundle_file_is_refused_in_one_line(
    store: ModelStore, draft: Draft, name: str, file: str
) -> None:
    store.publish(draft)
    damage, reason = FILE_DAMAGES[name]
    damage(store.path / "1" / file)
    text = refusal(store)
    assert file in text
    assert reason in text


def test_any_flipped_bit_is_detected(store: ModelStore, draft: Draft) -> None:
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
