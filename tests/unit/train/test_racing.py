"""The race's encoded rows follow the stored ones, whatever order these turn out to have."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from train import adapt, racing
from train.retrain import train
from train.training_rows import Problem, Rows, base_rows, gather_rows
from utils import settings as settings_module
from utils.message_store import Snapshot
from utils.model_store import ModelStore
from utils.settings import Settings

OUTCOMES = 300


def made_rows(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.choice(list("xyz"), rows)})
    frame["y"] = np.where(frame.a + (frame.b == "x") + rng.logistic(size=rows) > 0, "yes", "no")
    return frame


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "data").mkdir()
    made_rows(400, 1).to_csv(tmp_path / "data" / "base.csv", index=False)
    (tmp_path / "pipeline.toml").write_text('[data]\ntrain = "base.csv"\ntarget = "y"\n')
    config = {"PIPELINE_HOME": str(tmp_path), "PIPELINE_CONFIG": str(tmp_path / "pipeline.toml")}
    settings = settings_module.load(config)
    base = base_rows(Problem.of(settings, None))
    train(settings, snapshot=None, hyper="hyperopt", evals=2, base=base)
    return settings


def rows_in_order(problem: Problem, order: list[int]) -> Rows:
    made = made_rows(OUTCOMES + 50, 2).iloc[order].reset_index(drop=True)
    times = np.arange(len(order), dtype=np.int64)
    frame = made[["a", "b"]].astype({"b": "category"})
    ids = np.array([f"row-{place}" for place in order], dtype=object)
    return gather_rows(problem, Snapshot(ids, frame, made.y.to_numpy(object), times, times, {}, {}))


@pytest.mark.parametrize(
    "order",
    [
        [*range(OUTCOMES), OUTCOMES],  # one more
        [*range(100), OUTCOMES, *range(100, OUTCOMES)],  # one that came late
        [*range(50), *range(51, OUTCOMES), 50],  # a corrected outcome
        [*range(200)],  # the log is read again
        [*range(OUTCOMES, OUTCOMES + 50)],  # another log
    ],
)
def test_encoded_rows_are_those_of_the_store(settings: Settings, order: list[int]) -> None:
    champion = ModelStore(settings.models_dir).load_current()
    problem = Problem.of(settings, champion)
    path = settings.searches_dir / racing.RACE_FILE
    for rows in (rows_in_order(problem, [*range(OUTCOMES)]), rows_in_order(problem, order)):
        race = racing.race_of(settings, problem, rows, champion, lambda offsets: {})
        assert race.state.done == len(rows.ids) - rows.base
        adapt.save_state(path, race.state)  # or else the race begins again
        kept = racing._kept(path, adapt.problem_id(rows.base_sha256, champion.features))
        assert kept.features is not None
        frame, labels = rows.frame.iloc[rows.base :], rows.labels[rows.base :]
        assert (kept.X[-len(frame) :] == kept.features.transform(frame)).all()
        assert (kept.codes[-len(frame) :] == kept.features.encode_target(labels)).all()
        assert len(kept.X) == len(kept.codes) == rows.training_base + len(frame)
