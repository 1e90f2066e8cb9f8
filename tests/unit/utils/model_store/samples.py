"""Bundles, and ways to damage them, that tests of the model store use."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd

from utils.feature_tools import FeatureTools
from utils.metrics import BothMetrics, Metrics
from utils.model_store import Draft, ModelStore
from utils.model_store.manifest import TrainingRecord

FILES = ("model.txt", "features.json", "manifest.json")


def make_draft(classes: int = 2, rounds: int = 5) -> Draft:
    """A real model of 400 random rows."""
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
        hyperparameters={"num_leaves": 7, "num_boost_round": int_of_numpy(rounds)},
        seed=7,
        training=TrainingRecord(
            base_data_sha256="0" * 64, rows=400, offsets={"app_messages": {"0": 25}}
        ),
        golden_rows=golden,
        metrics=BothMetrics(Metrics(log_loss=np.float64(0.25), auc=np.nan), None),
    )


def int_of_numpy(number: int) -> Any:
    """What a training may hand over in the place of an int."""
    return np.int64(number)


Damage = Callable[[Path], object]


def replace_by_symlink(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def write_nested_json(path: Path) -> None:
    path.write_text('{"model_id":' + "[" * 100_000)


def state(store: ModelStore) -> dict[str, bytes]:
    """The content of every file except the lock, by name."""
    return {
        str(path.relative_to(store.path)): path.read_bytes()
        for path in store.path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
