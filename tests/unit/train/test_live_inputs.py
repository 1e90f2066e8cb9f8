"""The watch of the inputs: one request for what is new, none for what a training has learnt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from tests.unit.utils.message_store.samples import message
from train import live_inputs
from train.input_alarm import InputAlarm
from train.live_inputs import LEARNT, RECENT
from train.retrain import train
from train.training_rows import Problem, base_rows
from utils import settings as settings_module
from utils.message_store import Batch, MessageStore
from utils.messages import APP_MESSAGES, PREDICTIONS
from utils.model_store import Bundle, ModelStore
from utils.model_store.manifest import PublishedModel
from utils.settings import Settings

CONFIG = '[data]\ntrain = "base.csv"\ntarget = "y"\npositive = "yes"\n'
INTERVAL = 300


def rows(count: int, seed: int, *, older: float = 0.0) -> pd.DataFrame:
    """Rows of a data set; `older` is added to each age."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"age": rng.normal(40, 10, count).round(1), "job": rng.choice(list("abc"), count)}
    )
    frame["y"] = np.where(frame["age"] + rng.normal(0, 10, count) > 40, "yes", "no")
    return frame.assign(age=frame["age"] + older)


class World:
    """A home with a first model, and the trainer's message store, which grows."""

    def __init__(self, settings: Settings, url: str) -> None:
        self.settings = settings
        self.history = list(ModelStore(settings.models_dir).history())
        self.serving: Bundle = ModelStore(settings.models_dir).load_current()
        self.store = MessageStore(url, self.serving.features)
        self.sent = 0

    def send(self, frame: pd.DataFrame, *, outcomes: bool = True, surer: float = 0.0) -> None:
        """Store rows with their predictions; `surer` is added to each probability."""
        features, end = self.serving.features, self.sent + len(frame)
        scores = np.clip(self.serving.score(features.transform(frame)) + surer, 0, 1)
        batch = Batch(offsets={(APP_MESSAGES, 0): end, (PREDICTIONS, 0): end})
        sent = zip(frame["age"], frame["job"], frame["y"], scores.tolist(), strict=True)
        for place, (age, job, label, score) in enumerate(sent, self.sent):
            outcome = label if outcomes else None
            batch.messages.append(message(f"r{place}", 0, place, outcome, age, job))
            batch.predictions.append((f"r{place}", 1, score, 0, place, 1000 + place))
        self.store.ingest(batch)
        self.sent = end

    def look(self) -> InputAlarm | None:
        return live_inputs.look(self.settings, self.store, self.serving, self.history)

    def train(self, *, accepted: bool = True) -> None:
        """Add a training of everything that is stored to the history."""
        ends = {APP_MESSAGES: {"0": self.sent}, PREDICTIONS: {"0": self.sent}}
        model_id = len(self.history) + 1
        self.history.append(PublishedModel(model_id=model_id, accepted=accepted, offsets=ends))

    def state(self) -> live_inputs.Watch:
        return live_inputs.read(self.settings.searches_dir / live_inputs.FILE)


def make_settings(home: Path, base: int) -> Settings:
    """A home with base data of so many rows, and a first model."""
    (home / "data").mkdir()
    (home / "pipeline.toml").write_text(CONFIG)
    rows(base, 0).to_csv(home / "data" / "base.csv", index=False)
    environ = {"PIPELINE_HOME": str(home), "PIPELINE_CONFIG": str(home / "pipeline.toml")}
    settings = settings_module.load({**environ, "DRIFT_INTERVAL": str(INTERVAL)})
    first = base_rows(Problem.of(settings, None))
    parameters = {"num_leaves": 4, "num_boost_round": 20}
    train(settings, snapshot=None, hyper="hyperopt", evals=1, base=first, parameters=parameters)
    return settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, 2_000)


@pytest.fixture
def world(settings: Settings, url: str) -> Iterator[World]:
    found = World(settings, url)
    with found.store:
        yield found


def names(alarm: InputAlarm | None) -> list[str]:
    return [] if alarm is None else [each.name for each in alarm.moved]


def test_rows_alike_raise_no_alarm(world: World) -> None:
    world.send(rows(RECENT - 1, 1))
    assert world.look() is None and live_inputs.in_words(world.settings) is None
    for seed in range(2, 12):
        world.send(rows(50, seed))
        assert world.look() is None
    line = live_inputs.in_words(world.settings)
    assert line is not None and "no retraining requested so far" in line
    assert world.state().outcomes == RECENT - 1 + 500


def test_rows_without_an_outcome_do_not_count(world: World) -> None:
    world.send(rows(RECENT, 1))
    world.send(rows(2 * RECENT, 2, older=30), outcomes=False)
    assert world.look() is None and world.state().outcomes == RECENT


def test_alarm_names_what_moved_and_stands_until_a_training(world: World) -> None:
    world.send(rows(RECENT, 1, older=15))
    alarm = world.look()
    assert alarm is not None and alarm.batch_id == f"input-drift-1-{RECENT}"
    assert names(alarm) == ["age"]
    assert f"inputs moved: age (PSI {alarm.moved[0].psi:.2f})" in str(alarm)
    line = live_inputs.in_words(world.settings)
    assert line is not None and f"requested for that: age (PSI {alarm.moved[0].psi:.2f})" in line
    world.send(rows(2 * INTERVAL, 2, older=-15))
    assert world.look() == alarm  # as after a kill, before or after its request
    world.train()
    assert world.look() is None


@pytest.mark.parametrize("accepted", [True, False])
def test_lasting_change_asks_twice_at_most(world: World, accepted: bool) -> None:
    world.send(rows(1_000, 1))
    world.train(accepted=accepted)
    asked = []
    for seed in range(40):
        world.send(rows(50, 100 + seed, older=15))
        if (alarm := world.look()) is not None:
            asked.append(alarm)
            world.train(accepted=accepted)
    assert 1 <= len(asked) <= 2 and len({alarm.batch_id for alarm in asked}) == len(asked)
    assert asked[0].at <= 1_000 + RECENT


def test_alarms_are_an_interval_apart(world: World) -> None:
    world.send(rows(RECENT, 1, older=20))
    assert names(world.look())
    world.train()
    world.send(rows(RECENT, 2, older=60))
    assert world.look() is None  # as strong, but too soon
    world.send(rows(INTERVAL - RECENT, 3, older=60))
    alarm = world.look()
    assert alarm is not None and alarm.batch_id == f"input-drift-2-{RECENT + INTERVAL}"


def test_predictions_alone_may_move(world: World) -> None:
    world.send(rows(LEARNT, 1))
    assert world.look() is None
    world.train()
    world.send(rows(RECENT, 2), surer=0.3)
    assert names(world.look()) == ["prediction: yes"]


def test_small_base_data_wait_for_messages(tmp_path: Path, url: str) -> None:
    world = World(make_settings(tmp_path, 300), url)
    with world.store:
        world.send(rows(RECENT, 1, older=30))
        assert world.look() is None and world.state().largest is None
        world.send(rows(LEARNT - RECENT, 2))
        world.train()
        world.send(rows(RECENT, 3, older=30))
        assert "age" in names(world.look())


def test_damaged_state_begins_again(world: World) -> None:
    world.send(rows(RECENT, 1, older=15))
    first = world.look()
    for damage in (b"", b"{", b'{"alarm": 1}', b"\xff"):
        (world.settings.searches_dir / live_inputs.FILE).write_bytes(damage)
        assert world.look() == first is not None


def test_counts_that_fell_do_not_block(world: World) -> None:
    world.send(rows(RECENT, 1, older=15))
    assert world.look() is not None
    state: Any = world.state()
    late = msgspec.structs.replace(state.alarm, at=10**6, model_id=0)
    live_inputs.write(world.settings.searches_dir / live_inputs.FILE, live_inputs.Watch(alarm=late))
    alarm = world.look()
    assert alarm is not None and alarm.at == RECENT


def test_without_the_data_set_nothing_is_measured(world: World) -> None:
    world.send(rows(RECENT, 1, older=15))
    (world.settings.data_dir / "base.csv").unlink()
    assert world.look() is None
