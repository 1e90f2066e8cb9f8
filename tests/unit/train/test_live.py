"""The watch of the live loss: each outcome once, across restarts, on SQLite and PostgreSQL."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.utils.message_store.samples import FEATURES, judged_batch, message
from train import live
from train.live import Watch
from utils import settings as settings_module
from utils.message_store import Batch, MessageStore
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS
from utils.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a home of their own."""
    return settings_module.load({"PIPELINE_HOME": str(tmp_path), "DRIFT_INTERVAL": "300"})


def sure_batch(first: int, rows: int, *, wrong: bool, outcomes: bool = True) -> Batch:
    """Predictions that are sure of "yes", which is right or wrong."""
    outcome = ("no" if wrong else "yes") if outcomes else None
    batch = Batch(offsets={(APP_MESSAGES, 0): first + rows, (PREDICTIONS, 0): first + rows})
    for place in range(first, first + rows):
        batch.messages.append(message(f"s{place}", 0, place, outcome))
        batch.predictions.append((f"s{place}", 1, 0.9, 0, place, 1000 + place))
    return batch


def seen(settings: Settings) -> Watch:
    return live.read(settings.searches_dir / live.FILE)


def test_each_outcome_is_seen_once_when_it_becomes_known(url: str, settings: Settings) -> None:
    with MessageStore(url, FEATURES) as store:
        store.ingest(judged_batch(400))
        for _ in range(2):
            assert live.look(settings, store, FEATURES, 2) is None
            assert seen(settings).outcomes == 360
        late = [("r0", "yes", 0, 0, 10**6), ("r10", "no", 0, 1, 10**6), ("none", "no", 0, 2, 1)]
        store.ingest(Batch(outcomes=late, offsets={(OUTCOMES, 0): 3}))
        live.look(settings, store, FEATURES, 2)
        assert seen(settings).outcomes == 362
        store.ingest(Batch([message("x", 0, 400, "yes")], offsets={(APP_MESSAGES, 0): 401}))
        live.look(settings, store, FEATURES, 2)  # its prediction is not read yet
        predicted: list[Any] = [("x", 2, 0.5, 0, 400, 10**6)]
        store.ingest(Batch(predictions=predicted, offsets={(PREDICTIONS, 0): 401}))
        assert seen(settings).outcomes == 362
        live.look(settings, store, FEATURES, 2)
        assert seen(settings).outcomes == 363


def test_alarm_is_returned_until_the_next_one(url: str, settings: Settings) -> None:
    with MessageStore(url, FEATURES) as store:
        store.ingest(sure_batch(0, 300, wrong=False))
        assert live.look(settings, store, FEATURES, 7) is None
        store.ingest(sure_batch(300, 40, wrong=True))
        alarm = live.look(settings, store, FEATURES, 7)
        assert alarm is not None and alarm.batch_id == f"drift-7-{alarm.at}"
        assert 300 < alarm.at <= 340 and alarm.outcomes == alarm.at - 300
        assert alarm.expected == pytest.approx(0.105, abs=0.001)
        assert alarm.log_loss == pytest.approx(2.303, abs=0.001)
        assert str(alarm).startswith("log loss 2.30 over the last")
        assert live.look(settings, store, FEATURES, 8) == alarm


def test_alarms_are_an_interval_apart() -> None:
    watch, levels = Watch(), (0.1, 1.0, 3.9)  # two rises, 150 outcomes apart
    for level in levels:
        watch.see([level] * 150, 300, 1)
    assert watch.alarm is not None and watch.alarm.at < 300
    apart = Watch()
    for level in levels:
        apart.see([level] * 150, 100, 1)
    assert apart.alarm is not None and apart.alarm.at > 300


def draws(count: int, mean: float, seed: int = 1) -> list[float]:
    found: list[float] = np.random.default_rng(seed).exponential(mean, count).tolist()
    return found


def test_live_loss_is_that_of_the_last_outcomes() -> None:
    watch = Watch()
    assert watch.figures() is None
    losses = draws(3_000, 0.3)
    for start in range(0, 3_000, 70):  # whatever the size of the batches
        watch.see(losses[start : start + 70], 300, 1)
    found = watch.figures()
    assert found is not None and found.expected is not None
    last, before = np.array(losses[-live.RECENT :]), np.array(losses[: -live.RECENT])
    assert found.outcomes == live.RECENT
    assert found.log_loss == pytest.approx(last.mean())
    assert found.standard_error == pytest.approx(last.std(ddof=1) / live.RECENT**0.5)
    assert found.expected == pytest.approx(before.mean())
    width = 4 * before.std(ddof=1) * (1 / live.RECENT + 1 / len(before)) ** 0.5
    assert found.low == pytest.approx(before.mean() - width)
    assert found.high == pytest.approx(before.mean() + width)


def test_live_loss_of_few_outcomes_has_no_interval() -> None:
    watch = Watch()
    watch.see([0.5], 300, 1)
    one = watch.figures()
    assert one is not None and (one.log_loss, one.standard_error, one.high) == (0.5, 0.0, None)
    watch.see(draws(live.RECENT + 98, 0.3), 300, 1)  # 99 have left the last ones
    few = watch.figures()
    assert few is not None and (few.outcomes, few.expected, few.low) == (live.RECENT, None, None)
    watch.see([0.3], 300, 1)
    enough = watch.figures()
    assert enough is not None and enough.expected is not None


def test_chance_leaves_the_interval_seldom_and_a_rise_soon() -> None:
    outside = 0
    for seed in range(20):
        watch = Watch()
        for loss in draws(3_000, 0.3, seed):
            watch.see([loss], 300, 1)
        found = watch.figures()
        assert found is not None and found.low is not None and found.high is not None
        outside += not found.low < found.log_loss < found.high
    assert outside == 0
    rise = Watch()
    rise.see(draws(2_000, 0.3), 300, 1)
    left = False
    for loss in draws(400, 0.6, 2):
        rise.see([loss], 300, 1)
        found = rise.figures()
        left = left or (
            found is not None and found.high is not None and found.log_loss > found.high
        )
    assert left or rise.alarm is not None


def test_after_an_alarm_the_live_loss_is_that_of_the_new_level() -> None:
    watch = Watch()
    watch.see(draws(2_000, 0.3), 300, 1)
    for loss in draws(2_000, 1.2, 3):
        watch.see([loss], 300, 1)
        if watch.alarm is not None:
            break
    found = watch.figures()
    assert found is not None and watch.alarm is not None
    assert found.outcomes == watch.alarm.outcomes < live.RECENT
    assert found.expected is None and found.log_loss > 0.6


def test_state_of_an_earlier_version_is_read(settings: Settings) -> None:
    watch = Watch(outcomes=7)
    path = settings.searches_dir / live.FILE
    live.write(path, watch)
    old = json.loads(path.read_bytes())
    del old["recent"], old["before"]
    path.write_text(json.dumps(old), "utf-8")
    assert live.read(path).outcomes == 7
    assert live.figures(settings) is None


def test_damaged_state_and_recreated_topics_begin_again(
    url: str, settings: Settings, tmp_path: Path
) -> None:
    ids = {APP_MESSAGES: "first"}
    with MessageStore(url, FEATURES) as store:
        store.ingest(replace(judged_batch(400), topic_ids=ids))
        live.look(settings, store, FEATURES, 2)
        path = settings.searches_dir / live.FILE
        for damage in (b"", b"{", b'{"outcomes": "many"}', b"\xff"):
            path.write_bytes(damage)
            live.look(settings, store, FEATURES, 2)
            assert seen(settings).outcomes == 360
        for change in ({"target": ("other",)}, {"topic_ids": {APP_MESSAGES: "older"}}):
            changed: Any = seen(settings)
            changed.outcomes = 10**6
            for name, value in change.items():
                setattr(changed, name, value)
            live.write(path, changed)
            live.look(settings, store, FEATURES, 2)
            assert seen(settings).outcomes == 360


def test_lost_store_that_is_read_again_is_not_seen_again(url: str, settings: Settings) -> None:
    batch = judged_batch(400)
    with MessageStore(url, FEATURES) as store:
        store.ingest(batch)
        live.look(settings, store, FEATURES, 2)
    with MessageStore(f"sqlite:///{settings.home}/again.db", FEATURES) as store:
        first = Batch(batch.messages[:100], [], batch.predictions[:100])
        store.ingest(replace(first, offsets={(APP_MESSAGES, 0): 100, (PREDICTIONS, 0): 100}))
        live.look(settings, store, FEATURES, 2)
        store.ingest(batch)
        live.look(settings, store, FEATURES, 2)
    assert seen(settings).outcomes == 360
