"""Decides by a row's content whether it is for testing, validation or training.

A row that comes again, under whatever request_id, is on the same side each time. So no row is
judged by a model that was trained on it.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Hashes = npt.NDArray[np.uint64]

#: One in so many rows of a data set without a test file is for testing.
TEST_SHARE = 5
#: One in so many of the other rows is for validation.
VALIDATION_SHARE = 10

_MISSING = np.uint64(0xFFF8_0000_0000_0000)  # the bits of a NaN
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def content_hashes(frame: "pd.DataFrame") -> Hashes:
    """A hash of each row's values, (rows,); the order of the columns does not matter.

    Args:
        frame: Raw feature columns: numbers, and text or categories of text.
    """
    import pandas as pd

    found = np.zeros(len(frame), dtype=np.uint64)
    for name in sorted(map(str, frame.columns)):
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column.dtype):
            # Adding 0 turns -0.0 into 0.0.
            numbers = column.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0
            hashes = np.where(np.isnan(numbers), _MISSING, numbers.view(np.uint64))
        else:
            places, texts = pd.factorize(column)
            of_text = pd.util.hash_array(np.array([*texts, ""], dtype=object), categorize=False)
            of_text[-1] = _MISSING  # place -1
            hashes = of_text[places]
        found = _mix(found * _PRIME + hashes)
    return found


def is_test_row(frame: "pd.DataFrame") -> npt.NDArray[np.bool_]:
    """Which rows of a data set without a test file are for testing, (rows,)."""
    chosen: npt.NDArray[np.bool_] = content_hashes(frame) % np.uint64(TEST_SHARE) == 0
    return chosen


def is_validation_row(frame: "pd.DataFrame") -> npt.NDArray[np.bool_]:
    """Which rows are for validation, and so never trained on, (rows,)."""
    hashes = content_hashes(frame) // np.uint64(TEST_SHARE)  # independent of `is_test_row`
    chosen: npt.NDArray[np.bool_] = hashes % np.uint64(VALIDATION_SHARE) == 0
    return chosen


def _mix(hashes: Hashes) -> Hashes:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
