"""The race of the memories on made streams, and the blend that a model of it is."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from train import adapt, fit
from train.adapt import CHANGE_AT, Race, State, Stream
from train.memory import Memory
from utils.boosting import lgb
from utils.feature_tools import FeatureTools
from utils.model_store.manifest import MemberRecord, MemoryRecord, Parameters

BASE = 400
#: As good for these rows as the candidates' own, so that the blend is no better by its size.
PARAMETERS: Parameters = {
    "learning_rate": 0.1,
    "num_leaves": 4,
    "min_data_in_leaf": 20,
    "lambda_l2": 1.0,
    "num_boost_round": 50,
}


@dataclass(frozen=True)
class World:
    """Rows of two numbers; the first one's size says the class, but for noise.

    Attributes:
        features: The preprocessor.
        whole: All outcomes, each known before the next message is sent.
    """

    features: FeatureTools
    whole: Stream

    @classmethod
    def make(
        cls, outcomes: int, seed: int, *, swap_after: int | None = None, classes: int = 2
    ) -> "World":
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame(rng.random((BASE + outcomes, 2)), columns=["x", "y"])
        noisy = frame["x"].to_numpy() + rng.normal(0.0, 0.15, len(frame))
        codes = np.clip(noisy * classes, 0, classes - 1).astype(np.int64)
        if swap_after is not None:
            codes[BASE + swap_after :] = classes - 1 - codes[BASE + swap_after :]
        features = FeatureTools().fit(
            frame[:BASE],
            target="kind",
            numerical=["x", "y"],
            categorical=[],
            crosses=[],
            classes=[f"kind {code}" for code in range(classes)],
        )
        shape = (outcomes,) if classes == 2 else (outcomes, classes)
        whole = Stream(
            BASE,
            features.transform(frame),
            codes,
            np.arange(outcomes),
            np.zeros(outcomes, dtype=np.int64),
            np.full(shape, 1 / classes),
        )
        return cls(features, whole)

    def race(self, state: State | None = None) -> Race:
        return Race(state or State("p", PARAMETERS, PARAMETERS), self.features, seed=1)

    def until(self, known: int) -> Stream:
        """The stream when so many outcomes were known."""
        whole = self.whole
        return replace(
            whole,
            X=whole.X[: BASE + known],
            codes=whole.codes[: BASE + known],
            sent_after=whole.sent_after[:known],
            model_ids=whole.model_ids[:known],
            served=whole.served[:known],
        )


def test_a_swap_is_followed_within_250_outcomes() -> None:
    world = World.make(2000, seed=1, swap_after=800)
    race = world.race()
    wanted = {}
    for known in range(50, 2001, 50):
        race.update(world.until(known))
        wanted[known] = race.wanted()
    assert {policy for known, policy in wanted.items() if known <= 800} == {"everything"}
    assert {policy for known, policy in wanted.items() if known >= 1050} == {"recent"}
    recent, everything = race.memory_record("recent"), race.memory_record("everything")
    assert sum(sum(member.weights) for member in recent.members) == pytest.approx(1)
    assert recent.effective is not None and recent.effective < 2000
    assert not everything.members
    # A model of the policy serves: the evidence counts for the other one from now on.
    race.switch("recent", 7)
    assert (race.state.policy, race.evidence) == ("recent", 1.0)
    assert race.wanted() == "recent"


@pytest.mark.parametrize("classes", [2, 3])
def test_a_swap_is_followed_within_250_outcomes_when_labels_are_late(classes: int) -> None:
    """Fits are not scored on messages sent after them alone: that would take 500 more."""
    delay, swap = 500, 1000
    world = World.make(1500, seed=1, swap_after=swap, classes=classes)
    late = replace(world.whole, sent_after=np.maximum(np.arange(1500) - delay, 0))
    world = replace(world, whole=late)
    race = world.race()
    wanted = {}
    for known in range(125, 1501, 125):
        race.update(world.until(known))
        wanted[known] = race.wanted()
    assert {policy for known, policy in wanted.items() if known <= swap} == {"everything"}
    assert wanted[swap + 250] == wanted[1500] == "recent"
    assert swap < race.state.turned_at <= swap + 125
    recent = race.latest(125)
    assert recent is not None
    guessing = np.log(classes)
    assert recent.recent.mean() < 0.8 * guessing < guessing < recent.everything.mean()
    # What everything would have served knew nothing of the swap.
    block = race.state.blocks[-1]
    assert block.everything / block.rows > 1.2 * recent.everything.mean()


def test_a_shorter_log_is_learnt_as_a_new_one() -> None:
    """Its outcomes are scored by fits of its own, and are not all from before the turn."""
    race = World.make(1500, seed=1, swap_after=1000).race()
    race.update(World.make(1500, seed=1, swap_after=1000).whole)
    assert race.state.turned_at > 1000
    race.shrink(300)
    assert (race.state.done, race.state.turned_at) == (300, 300)
    after = World.make(700, seed=2)
    race.update(after.whole)
    assert race.state.done == 700
    scored = race.latest(125)
    assert scored is not None
    # Fits of the log before, with the labels swapped, would lose more than guessing does.
    assert scored.recent.mean() < np.log(2)
    assert [one.at for one in race._fits] == sorted(one.at for one in race._fits)


@pytest.mark.parametrize("seed", range(5))
def test_a_stationary_stream_never_leaves_everything(seed: int) -> None:
    world = World.make(3000, seed)
    race = world.race()
    for known in range(250, 3001, 250):
        race.update(world.until(known))
        assert race.wanted() == "everything", known
        assert race.evidence < CHANGE_AT
    assert not race.state.turned_at


def test_saved_state_goes_on_with_the_same_figures(tmp_path: Path) -> None:
    """At an outcome at which all candidates are fitted again: the state holds no models."""
    world = World.make(1125, seed=2, swap_after=700)
    going_on, until_saved = world.race(), world.race()
    for race in (going_on, until_saved):
        race.update(world.until(1000))
    path = tmp_path / "searches" / "memories.json"
    adapt.save_state(path, until_saved.state)
    state = adapt.load_state(path)
    assert state is not None and state == going_on.state
    loaded = world.race(state)
    assert loaded.evidence == going_on.evidence
    assert loaded.weights().tolist() == going_on.weights().tolist()
    assert loaded.memory_record("recent") == going_on.memory_record("recent")
    for race in (going_on, loaded):
        race.update(world.whole)
    assert loaded.state == going_on.state
    assert loaded.state.done == 1125


@pytest.mark.parametrize("content", [b"", b"{}", b"not json"])
def test_an_unreadable_state_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "memories.json"
    assert adapt.load_state(path) is None
    path.write_bytes(content)
    assert adapt.load_state(path) is None


def test_a_state_of_other_candidates_is_none(tmp_path: Path) -> None:
    path = tmp_path / "memories.json"
    adapt.save_state(path, State("p", PARAMETERS, PARAMETERS, sums=[0.0]))
    assert adapt.load_state(path) is None


@pytest.mark.parametrize(
    ("sent_after", "fitted_at"),
    [(0, 0), (124, 0), (125, 125), (249, 125), (250, 250), (499, 375), (500, 500)],
)
def test_late_outcome_is_scored_by_a_fit_from_before_its_message(
    sent_after: int, fitted_at: int
) -> None:
    """Every second outcome is late; the others are scored by the latest fit."""
    world = World.make(625, seed=3)
    stream = replace(world.whole, sent_after=world.whole.sent_after.copy())
    stream.sent_after[500::2] = sent_after
    race = world.race()
    race.update(stream)
    scored = race.latest(1)
    assert scored is not None and len(scored.codes) == 125
    params = {name: value for name, value in PARAMETERS.items() if name != "num_boost_round"}
    for rows, at in ((slice(0, None, 2), fitted_at), (slice(1, None, 2), 500)):
        booster = fit.fit_unsettled(
            stream.X[: BASE + at], stream.codes[: BASE + at], world.features, params, 50, threads=1
        )
        expected = booster.predict(stream.X[BASE + 500 :][rows])
        assert scored.probabilities["everything"][rows] == pytest.approx(expected, abs=1e-12)


def test_late_outcomes_of_a_change_are_losses_of_the_recent_policy() -> None:
    """No candidate may know of the change before a message that was sent before it.

    The labels of a quarter of the rows are swapped: what was learnt is still better than guessing.
    """
    world = World.make(1000, seed=4)
    whole, changed = world.whole, np.arange(BASE + 1000) >= BASE + 500
    changed &= whole.X[:, world.features.columns.index("y")] > 0.75
    whole = replace(whole, codes=np.where(changed, 1 - whole.codes, whole.codes))
    late = replace(whole, sent_after=np.minimum(whole.sent_after, 500))
    prompt, tardy = world.race(), world.race()
    prompt.update(whole)
    tardy.update(late)
    assert not tardy.state.turned_at
    assert tardy.state.blocks[-1].recent > 1.2 * prompt.state.blocks[-1].recent


def test_labels_that_come_after_the_next_change_make_it_less_sure() -> None:
    """Every 500 outcomes the labels are swapped, and they come 500 outcomes late."""
    world = World.make(3000, seed=8)
    whole = world.whole
    turns = np.arange(3000) // 500 % 2 == 1
    codes = np.concatenate(
        [whole.codes[:BASE], np.where(turns, 1 - whole.codes[BASE:], whole.codes[BASE:])]
    )
    late = replace(whole, codes=codes, sent_after=np.maximum(np.arange(3000) - 500, 0))
    race, steady = world.race(), world.race()
    race.update(late)
    steady.update(whole)
    assert race.sharpness < 0.85 < 0.9 < steady.sharpness < 1.2
    assert race.memory_record("recent").sharpness == race.sharpness
    scored = race.latest(500)
    assert scored is not None
    chances = scored.probabilities["recent"]
    assert np.abs(chances - 0.5).mean() < 0.3


def test_three_classes() -> None:
    world = World.make(1250, seed=5, swap_after=500, classes=3)
    race = world.race()
    race.update(world.until(500))
    assert race.wanted() == "everything"
    race.update(world.whole)
    assert race.wanted() == "recent"
    scored = race.latest(500)
    assert scored is not None and len(scored.codes) == 500
    for probabilities in scored.probabilities.values():
        assert probabilities.shape == (500, 3)
        assert probabilities.sum(axis=1) == pytest.approx(1)
    losses = -np.log(scored.probabilities["recent"][np.arange(500), scored.codes])
    assert scored.recent == pytest.approx(losses)
    assert scored.served == pytest.approx(np.log(3))


MEMBERS = [
    MemberRecord(
        half_life=125, params={**adapt.PARAMS, "num_leaves": 4}, rounds=(25, 50), weights=[0.2, 0.3]
    ),
    MemberRecord(
        half_life=None, params={**adapt.PARAMS, "num_leaves": 16}, rounds=(25,), weights=[0.5]
    ),
]

MEMORY = MemoryRecord(policy="recent", members=MEMBERS, sharpness=0.8)


def fit_blend(world: World, threads: int = 1) -> lgb.Booster:
    stream = world.whole
    return adapt.fit_blend(
        MEMORY,
        BASE,
        stream.codes,
        lambda places: stream.X[places],
        world.features,
        threads=threads,
        seed=1,
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_blend_has_the_same_bytes_again_and_with_other_threads(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "MIN_ROWS_FOR_THREADS", 0)
    world = World.make(800, seed=6, classes=classes)
    texts = {fit.model_text(fit_blend(world, threads)) for threads in (1, 1, 2, 3)}
    assert len(texts) == 1


@pytest.mark.parametrize("classes", [2, 3])
def test_raw_scores_and_contributions_of_a_blend_are_those_of_its_parts(classes: int) -> None:
    world = World.make(800, seed=7, classes=classes)
    stream = world.whole
    blended = fit_blend(world)
    raw = contributions = 0.0
    for member in MEMBERS:
        places, weights = Memory(member.half_life).weigh(BASE, stream.codes, len(stream.codes))
        part = fit.fit_unsettled(
            stream.X[places],
            stream.codes[places],
            world.features,
            member.params,
            member.rounds[-1],
            threads=1,
            weights=weights,
        )
        for rounds, weight in zip(member.rounds, member.weights, strict=True):
            weight *= MEMORY.sharpness
            raw += weight * part.predict(stream.X, raw_score=True, num_iteration=rounds)
            contributions += weight * part.predict(
                stream.X, pred_contrib=True, num_iteration=rounds
            )
    found = blended.predict(stream.X, raw_score=True)
    assert found == pytest.approx(raw, rel=0, abs=1e-9)
    shares = blended.predict(stream.X, pred_contrib=True)
    assert shares == pytest.approx(contributions, rel=0, abs=1e-9)
    by_class = shares.reshape(len(stream.X), -1, len(world.features.feature_names) + 1)
    assert by_class.sum(axis=2).squeeze() == pytest.approx(found, rel=0, abs=1e-9)
