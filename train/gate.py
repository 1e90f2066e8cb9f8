"""The gate: a new model serves unless there is evidence that it is worse than the serving one.

The new model is the challenger, the serving one the champion. They are compared on the latest
outcomes: the champion by what was really predicted, the challenger by fits of its policy from
before the message was sent (`train.adapt`), so neither has learnt from them. Outcomes for which
those fits are older than the model that really predicted do not count.

Error rates: a challenger that is no worse is refused with a probability of at most
1/`REFUSE_AT`, and a champion that is no worse than its parent is rolled back, however often it
is judged, with a probability of at most 1/`DEMOTE_AT` (`train.evidence`).
"""

from dataclasses import dataclass

import numpy as np

from train import evaluate
from train.adapt import Policy, Scored
from train.evidence import e_value
from utils.feature_tools import FeatureTools, Matrix
from utils.metrics import Comparison, Metrics
from utils.model_store.bundle import Bundle

#: The challenger is refused at this evidence that it is worse than what was served.
REFUSE_AT = 20.0
#: The serving model is rolled back at this evidence that its parent is better. Each of many
#: models is tested, so it is higher.
DEMOTE_AT = 1000.0
#: The latest outcomes on which the gate compares.
LATEST = 500


def are_comparable(champion: Bundle | None, features: FeatureTools) -> bool:
    """Whether both have the same classes and columns; pipeline.toml may have changed."""
    return champion is not None and (
        champion.features.classes == features.classes
        and set(champion.features.columns) == set(features.columns)
    )


@dataclass(frozen=True)
class Verdict:
    """The gate's decision.

    Attributes:
        challenger: The challenger's metrics on the latest outcomes, or a first model's on the
            validation rows.
        champion: The metrics of what was really predicted; None without a champion.
        comparison: The comparison of both; None without a comparable champion.
        is_first: Whether there is no champion to compare with.
    """

    challenger: Metrics
    champion: Metrics | None = None
    comparison: Comparison | None = None
    is_first: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the challenger may serve: never without a judgement, but for the first."""
        if self.comparison is None:
            return self.is_first
        return not self.comparison.worse


def compare(scored: Scored | None, policy: Policy) -> Verdict:
    """Compare the challenger's policy with what was really predicted.

    Args:
        scored: The latest outcomes; None if there are none.
        policy: The challenger's.
    """
    if scored is None:
        return Verdict(Metrics(), Metrics(), Comparison())
    known = np.flatnonzero(~np.isnan(scored.served) & scored.is_fair)[-LATEST:]
    champion, challenger = scored.served[known], scored.of(policy)[known]
    codes = scored.codes[known]
    return Verdict(
        evaluate.metrics(scored.probabilities[policy][known], codes),
        evaluate.metrics(scored.probabilities["served"][known], codes),
        compare_losses(champion, challenger, REFUSE_AT),
    )


def compare_losses(champion: Matrix, challenger: Matrix, at: float) -> Comparison:
    """Compare two models on the same rows.

    >>> compare_losses(np.full(60, 0.1), np.full(60, 0.9), 20.0).worse
    True
    >>> compare_losses(np.full(2, 0.1), np.full(2, 9.0), 20.0).worse  # too few to say
    False

    Args:
        champion: (rows,), losses in nats, in the order in which the outcomes became known.
        challenger: (rows,), of the same rows.
        at: The evidence at which the challenger counts as worse.
    """
    differences = challenger - champion
    is_worse = differences.sum() > 0 and e_value(differences) >= at
    return evaluate.comparison(differences, worse=bool(is_worse))
