"""What the page reads of the models and of the message store, without a broker."""

from pathlib import Path

import pytest

from monitor import learning
from monitor.learning import LearningWatch
from train import adapt, racing
from train.adapt import Block, State
from utils import settings
from utils.model_store import Draft, ModelStore
from utils.settings import Settings


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return settings.load({"PIPELINE_HOME": str(tmp_path)})


def watch(home: Settings, *, is_watched: bool = True) -> LearningWatch:
    return LearningWatch(home, lambda: is_watched)


def test_home_without_models_says_what_to_do(home: Settings) -> None:
    found = watch(home).step()
    assert "run initialize.py first" in found.problems["models"]
    assert not found.serving


def test_new_models_and_rollbacks_are_noticed(home: Settings, draft: Draft) -> None:
    store, page = ModelStore(home.models_dir), watch(home)
    store.publish(draft)
    assert page.step().serving == 1
    store.publish(draft)
    found = page.step()
    assert (found.serving, found.n_models) == (2, 2)
    assert [one.line.model_id for one in found.models] == [2, 1]
    store.rollback(1, "worse at night")
    found = page.step()
    assert found.serving == 1
    assert {one.line.model_id: one.taken_back for one in found.models} == {
        2: "model 1 again: worse at night",
        1: "",
    }
    store.rollback(2, "no")
    assert {one.line.model_id: bool(one.taken_back) for one in page.step().models} == {
        2: False,
        1: True,
    }


def test_problem_with_messages_is_named_and_models_are_shown(home: Settings, draft: Draft) -> None:
    ModelStore(home.models_dir).publish(draft)
    found = watch(home).step()
    assert "the trainer has not made it yet" in found.problems["recent"]
    assert found.serving == 1


def test_nothing_long_is_read_while_nobody_looks(home: Settings, draft: Draft) -> None:
    ModelStore(home.models_dir).publish(draft)
    found = watch(home, is_watched=False).step()
    assert found.serving == 1
    assert not found.problems


def test_damaged_model_is_named(home: Settings, draft: Draft) -> None:
    store, page = ModelStore(home.models_dir), watch(home)
    store.publish(draft)
    (home.models_dir / "1" / "model.txt").write_text("cut")
    assert "model.txt" in page.step().problems["models"]


def test_listed_models_are_the_newest(
    home: Settings, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "LISTED", 2)
    store = ModelStore(home.models_dir)
    for _ in range(3):
        store.publish(draft)
    found = watch(home).step()
    assert ([one.line.model_id for one in found.models], found.n_models) == ([3, 2], 3)


def test_gain_of_retraining_covers_all_outcomes_in_parts_of_a_hundred(
    home: Settings, draft: Draft
) -> None:
    ModelStore(home.models_dir).publish(draft)
    blocks = [Block(25, 5.0 + n, 10.0, 0.0, 0.0, 20) for n in range(11)]
    state = State("p", {}, {}, done=275, blocks=blocks, first_model=1)
    adapt.save_state(home.searches_dir / racing.RACE_FILE, state)
    gains = watch(home).step().gains
    assert [(one.until, one.outcomes) for one in gains] == [(100, 100), (275, 175)]
    served = sum(one.outcomes * one.served for one in gains)
    assert served == pytest.approx(sum(block.served for block in blocks))
    assert gains[0].first == pytest.approx(0.4)
