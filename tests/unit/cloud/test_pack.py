"""model.tar.gz."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cloud.pack import pack
from utils.model_store import BundleError, ModelStore


def test_unpacked_model_is_a_store_whose_bundle_serves(three_models: Path, tmp_path: Path) -> None:
    store = ModelStore(three_models)
    packed = pack(store, 3)
    with tarfile.open(fileobj=io.BytesIO(packed.content), mode="r:gz") as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = ModelStore(tmp_path).load_current()
    assert unpacked.model_id == 3
    assert unpacked.manifest == packed.manifest == store.load(3).manifest
    rows = np.array([[0.5, 33.0, 1.0, 0.0, 2.0]])
    assert unpacked.score(rows) == store.load(3).score(rows)


def test_same_bundle_gives_the_same_bytes_on_any_day_and_by_any_owner(
    three_models: Path, tmp_path: Path
) -> None:
    shutil.copytree(three_models, tmp_path / "models", copy_function=shutil.copyfile)
    copied = ModelStore(tmp_path / "models")
    (copied.path / "1" / "model.txt").chmod(0o600)
    assert pack(copied, 1).content == pack(ModelStore(three_models), 1).content
    assert pack(copied, 1).content != pack(copied, 2).content


def test_missing_or_damaged_bundle_is_refused(three_models: Path, tmp_path: Path) -> None:
    shutil.copytree(three_models, tmp_path / "models")
    store = ModelStore(tmp_path / "models")
    with pytest.raises(BundleError, match=r"^model 9 never existed; there are 1, 2 and 3$"):
        pack(store, 9)
    (store.path / "1" / "model.txt").write_text("tree")
    with pytest.raises(BundleError, match="does not match its SHA-256"):
        pack(store, 1)
