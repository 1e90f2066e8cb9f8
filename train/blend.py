"""Several models as one: LightGBM's trees with their raw scores weighed and added.

The probabilities are those of the weighed geometric mean of the models' probabilities, scaled
to sum to 1 (a logarithmic opinion pool: Genest and Zidek, "Combining Probability
Distributions", Statistical Science 1, 1986).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.missing import ModelText
from utils.boosting import lgb
from utils.feature_tools import IntegerCodes, Matrix


@dataclass(frozen=True)
class Part:
    """A model, and the weight of each of its boosting rounds, (rounds,)."""

    booster: lgb.Booster
    weights: Matrix


def merge(parts: Sequence[Part]) -> lgb.Booster:
    """Merge models of the same columns and classes into one.

    Args:
        parts: The models; rounds of weight 0 are left out.
    """
    texts = [ModelText.parse(part.booster.model_to_string(num_iteration=-1)) for part in parts]
    merged = texts[0]
    trees = []
    for text, part in zip(texts, parts, strict=True):
        for number, tree in enumerate(text.trees):
            weight = float(part.weights[number // text.trees_per_round])
            if weight > 0:
                tree.scale(weight)
                trees.append(tree)
    merged.trees = trees
    return lgb.Booster(model_str=str(merged))


def losses(raw: Matrix, codes: IntegerCodes) -> Matrix:
    """Each row's log loss in nats, (rows,), of raw scores: (rows,) or (rows, classes)."""
    if raw.ndim == 1:
        signs = np.where(codes == 1, -1.0, 1.0)
        found: Matrix = np.logaddexp(0.0, signs * raw)
        return found
    top = raw.max(axis=1)
    logs = np.log(np.exp(raw - top[:, None]).sum(axis=1)) + top
    found = logs - raw[np.arange(len(codes)), codes]
    return found
