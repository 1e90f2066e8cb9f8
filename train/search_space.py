"""Where LightGBM's parameters are looked for, the same for every optimiser."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from utils.feature_tools import FeatureTools


@dataclass(frozen=True)
class Range:
    """A parameter's values: normal around `centre` (of its log, if `log`), cut off at the ends.

    With `log`, `low` is above 0.
    """

    centre: float
    spread: float
    low: float
    high: float
    log: bool = True

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int)

    def cut(self, value: float) -> float:
        """A drawn value made one that LightGBM takes: inside the ends, whole if they are."""
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else float(f"{value:.4g}")

    def interval(self, *inside: float) -> tuple[float, float]:
        """For an optimiser that draws evenly: two spreads to each side, widened for some."""
        least, most = self.centre - 2 * self.spread, self.centre + 2 * self.spread
        if self.log:
            factor = math.exp(2 * self.spread)
            least, most = self.centre / factor, self.centre * factor
        return min((self.cut(least), *inside)), max((self.cut(most), *inside))


#: Centres are where cross-validation on Adult's training rows alone was best: of two wide
#: searches of 120 candidates each, the better one's region, confirmed on other folds. No
#: bagging: it was worse there, and slower.
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
    """The parameters worth varying on these features."""
    return {**SPACE, **(CATEGORY_SPACE if features.categorical_features else {})}


def cut(drawn: Mapping[str, float], space: Mapping[str, Range]) -> dict[str, float]:
    """Drawn values made a candidate; what the space does not know is left out."""
    return {name: spec.cut(drawn[name]) for name, spec in space.items()}
