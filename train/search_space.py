"""The search space of LightGBM's parameters, the same for every optimiser."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from utils.feature_tools import FeatureTools


@dataclass(frozen=True)
class Range:
    """A parameter's distribution: normal around `centre`, cut off at `low` and `high`.

    With `log`, the logarithm is normal, with the standard deviation `spread`, and `low` is
    above 0.
    """

    centre: float
    spread: float
    low: float
    high: float
    log: bool = True

    @property
    def whole(self) -> bool:
        """Whether the values are integers."""
        return isinstance(self.low, int)

    def cut(self, value: float) -> float:
        """Turn a drawn value into one that LightGBM accepts: in the range, an integer if needed."""
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.4g}")

    def interval(self, *inside: float) -> tuple[float, float]:
        """Two spreads to each side, widened to contain `inside`; for uniform draws."""
        least, most = self.centre - 2 * self.spread, self.centre + 2 * self.spread
        if self.log:
            factor = math.exp(2 * self.spread)
            least, most = self.centre / factor, self.centre * factor
        return min((self.cut(least), *inside)), max((self.cut(most), *inside))


#: The centres had the best cross-validated loss on Adult's training rows: they are from the
#: better of two wide searches of 120 candidates each, confirmed on other folds. There is no
#: bagging, which was worse and slower.
SPACE: Mapping[str, Range] = {
    "num_leaves": Range(21, 0.4, 4, 63),
    "feature_fraction": Range(0.33, 0.1, 0.1, 1.0, log=False),
    "min_data_in_leaf": Range(5, 0.7, 1, 100),
    "lambda_l1": Range(0.015, 1.0, 1e-4, 5.0),
    "lambda_l2": Range(0.01, 1.5, 1e-4, 30.0),
}
CATEGORY_SPACE: Mapping[str, Range] = {
    "cat_smooth": Range(9, 0.7, 1.0, 500.0),
    "cat_l2": Range(8, 0.6, 0.1, 200.0),
    "max_cat_threshold": Range(2, 0.6, 2, 64),
    "min_data_per_group": Range(80, 0.7, 2, 300),
}


def space_of(features: FeatureTools) -> dict[str, Range]:
    """The parameters to search for these features."""
    return {**SPACE, **(CATEGORY_SPACE if features.categorical_features else {})}


def cut(drawn: Mapping[str, float], space: Mapping[str, Range]) -> dict[str, float]:
    """Turn drawn values into a candidate; parameters outside the space are left out."""
    return {name: spec.cut(drawn[name]) for name, spec in space.items()}
