"""The gate's error rates, by simulation; and what it decides."""

from collections.abc import Iterator

import numpy as np
import pytest

from train import gate
from train.adapt import CHANGE_AT, Scored
from train.evidence import EDetector, e_value

Losses = np.ndarray


def scored(served: Losses, everything: Losses, recent: Losses) -> Scored:
    """Outcomes with the given losses; the probabilities are those of class 1."""
    return Scored(
        everything,
        recent,
        served,
        {
            "served": np.exp(-served),
            "everything": np.exp(-everything),
            "recent": np.exp(-recent),
        },
        np.ones(len(served), dtype=np.int64),
        np.ones(len(served), dtype=bool),
    )


def losses_of(rng: np.random.Generator, outcomes: int, skill: float) -> Losses:
    """Log losses of a model: those of a logit with the given mean, heavy on the bad side."""
    return np.logaddexp(0.0, -rng.normal(skill, 2.0, outcomes))


def test_a_challenger_that_is_worse_is_refused_and_named() -> None:
    rng = np.random.default_rng(1)
    good, bad = losses_of(rng, 400, 2.0), losses_of(rng, 400, -2.0)
    refused = gate.compare(scored(good, bad, good), "everything")
    assert not refused.accepted
    assert refused.comparison is not None and refused.comparison.in_words().startswith("worse by")
    accepted = gate.compare(scored(good, bad, good), "recent")
    assert accepted.accepted
    assert accepted.comparison is not None and accepted.comparison.in_words() == "within noise"
    better = gate.compare(scored(bad, good, good), "recent")
    assert better.accepted
    assert better.comparison is not None and better.comparison.in_words().startswith("better by")


def test_without_a_prediction_the_challenger_serves() -> None:
    nothing = np.full(5, np.nan)
    for found in (None, scored(nothing, np.ones(5), np.ones(5))):
        verdict = gate.compare(found, "everything")
        assert verdict.accepted
        assert verdict.comparison is not None and verdict.comparison.rows == 0


def stationary_runs(runs: int) -> Iterator[tuple[Losses, Losses]]:
    """Losses of two models that are equally good, with outcomes in common."""
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        logits = rng.normal(1.5, 2.0, 2000)
        ours, theirs = rng.normal(0.0, 0.5, (2, 2000))
        yield np.logaddexp(0.0, -logits - ours), np.logaddexp(0.0, -logits - theirs)


def test_stationary_runs_end_no_worse_than_they_began() -> None:
    """In 1,000 runs of 2,000 outcomes, a change or a rollback without a reason is rare.

    A change of the policy or a rollback is the only way to a model that is worse by more than
    noise: refreshing the model of a policy is not. So their number bounds that of such runs.
    """
    changed = demoted = refused = 0
    for ours, theirs in stationary_runs(1000):
        differences = ours - theirs
        changed += EDetector().update(differences) >= CHANGE_AT
        looks = range(50, len(differences), 50)
        demoted += any(e_value(differences[:end]) >= gate.DEMOTE_AT for end in looks)
        refused += e_value(-differences[-gate.LATEST :]) >= gate.REFUSE_AT
    assert changed + demoted <= 50
    assert refused <= 50


@pytest.mark.parametrize("seed", range(5))
def test_a_change_of_the_world_is_noticed_within_outcomes_not_thousands(seed: int) -> None:
    rng = np.random.default_rng(seed)
    detector = EDetector()
    # The policy that follows was worse for long.
    detector.update(losses_of(rng, 20_000, 2.0) - losses_of(rng, 20_000, 1.5))
    assert detector.value < CHANGE_AT
    after = losses_of(rng, 200, -2.0) - losses_of(rng, 200, 1.0)
    needed = next(
        end for end, one in enumerate(after, 1) if detector.update(np.array([one])) >= CHANGE_AT
    )
    assert needed <= 125


def test_recent_is_left_only_if_it_was_worse_on_the_whole() -> None:
    rng = np.random.default_rng(1)
    gain, loss = rng.normal(-0.2, 0.5, 2000), rng.normal(0.3, 0.5, 500)
    of_all = EDetector.of_all()
    of_all.update(gain)
    assert of_all.update(loss) < 1 < CHANGE_AT < EDetector().update(loss)
    whole = EDetector.of_all()
    assert whole.update(loss) == pytest.approx(e_value(loss)) and whole.value > CHANGE_AT
