"""The search space of LightGBM's parameters, the same for every optimiser."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

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


#: LightGBM's own values. No optimiser may do worse than they would, so all of them try these.
DEFAULTS: Mapping[str, float] = {
    "num_leaves": 31,
    "feature_fraction": 1.0,
    "min_data_in_leaf": 20,
    "lambda_l1": 0.0,
    "lambda_l2": 0.0,
    "cat_smooth": 10.0,
    "cat_l2": 10.0,
    "max_cat_threshold": 32,
    "min_data_per_group": 100,
}

#: A tree that sees one column cannot combine it with another: on two columns (`banana`) such
#: trees had an accuracy of .74, those that see both .88.
FEWEST_COLUMNS = 2
#: On Adult's 15 columns, trees that see five of them were best.
USUAL_COLUMNS = 5


def space_of(features: FeatureTools) -> dict[str, Range]:
    """The parameters to search for these features."""
    space = {**SPACE, **(CATEGORY_SPACE if features.categorical_features else {})}
    return {**space, "feature_fraction": _feature_fraction(len(features.feature_names))}


def _feature_fraction(columns: int) -> Range:
    """A third of the columns, or `USUAL_COLUMNS` if that is more; at least `FEWEST_COLUMNS`."""
    usual = SPACE["feature_fraction"]
    return replace(
        usual,
        centre=min(max(usual.centre, USUAL_COLUMNS / columns), 1.0),
        spread=max(usual.spread, 1 / columns),
        # Rounded up to the digits of a candidate.
        low=min(max(usual.low, math.ceil(FEWEST_COLUMNS / columns * 1e4) / 1e4), 1.0),
    )


def defaults(space: Mapping[str, Range]) -> dict[str, float]:
    """LightGBM's own values; in a range without 0, its lowest value stands for 0."""
    return cut(DEFAULTS, space)


def cut(drawn: Mapping[str, float], space: Mapping[str, Range]) -> dict[str, float]:
    """Turn drawn values into a candidate; parameters outside the space are left out."""
    return {name: spec.cut(drawn[name]) for name, spec in space.items()}
