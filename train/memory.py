"""How much of the past a model learns from."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from utils.feature_tools import IntegerCodes, Matrix

#: Rows older than this many half-lives are left out; they would have less than 1 % of a weight.
KEPT_HALF_LIVES = 7
#: The rows of the base data that stand for the time before the first outcome, in half-lives.
BASE_HALF_LIVES = 5
#: The latest rows of each class are kept, however old: no class is ever impossible.
KEPT_OF_EACH_CLASS = 3


@dataclass(frozen=True)
class Memory:
    """The weight of a row by its age: by how many outcomes became known after its own.

    The base data is older than all outcomes, in no order. It counts as much as outcomes before
    the first one would, evenly spread over its rows.

    Attributes:
        half_life: The age at which a row counts half; None to count all rows alike.
    """

    half_life: int | None = None

    def __str__(self) -> str:
        return f"half-life {self.half_life:,}" if self.half_life else "everything"

    def weigh(
        self, base: int, codes: IntegerCodes, upto: int
    ) -> tuple[npt.NDArray[np.int64], Matrix]:
        """Choose and weigh the rows to learn from.

        >>> Memory(2).weigh(1, np.array([0, 0, 1, 0, 1, 1]), 6)[1].round(2).tolist()
        [0.51, 0.25, 0.35, 0.5, 0.71, 1.0]

        Args:
            base: The number of rows of the base data, which come first.
            codes: (rows,), the classes of all rows.
            upto: How many rows, with the base data, are known.

        Returns:
            The indices of the rows, ascending, and their weights, at most 1.
        """
        if self.half_life is None:
            return np.arange(upto), np.ones(upto)
        known = upto - base
        first = max(0, known - KEPT_HALF_LIVES * self.half_life)
        places = np.arange(base + first, upto)
        weights = 0.5 ** ((upto - 1 - places) / self.half_life)
        total = self.half_life / math.log(2) * 0.5 ** (known / self.half_life)
        if base and not first:
            count = min(base, BASE_HALF_LIVES * self.half_life)
            chosen = ((np.arange(count) + 0.5) * base / count).astype(np.int64)
            places = np.concatenate([chosen, places])
            weights = np.concatenate([np.full(count, min(1.0, total / count)), weights])
        return self._with_each_class(codes[:upto], places, weights)

    @staticmethod
    def _with_each_class(
        codes: IntegerCodes, places: npt.NDArray[np.int64], weights: Matrix
    ) -> tuple[npt.NDArray[np.int64], Matrix]:
        counts = np.bincount(codes[places], minlength=int(codes.max(initial=0)) + 1)
        for code in np.flatnonzero(counts < KEPT_OF_EACH_CLASS):
            latest = np.flatnonzero(codes == code)[-KEPT_OF_EACH_CLASS:]
            added = np.setdiff1d(latest, places)
            places = np.concatenate([places, added])
            weights = np.concatenate([weights, np.full(len(added), weights.max(initial=0.0))])
        order = np.argsort(places, kind="stable")
        return places[order], weights[order]
