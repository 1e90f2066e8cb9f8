"""The split of rows by their content."""

import numpy as np
import pandas as pd
import pytest

from utils.splits import content_hashes, is_test_row, is_validation_row


def make_frame(rows: int = 20_000) -> pd.DataFrame:
    random = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "n": random.normal(size=rows),
            "whole": random.integers(0, 50, rows),
            "text": np.array(["a", "b", "日本", None], dtype=object)[random.integers(0, 4, rows)],
        }
    )


def test_shares_are_stable_and_independent() -> None:
    frame = make_frame()
    testing, validation = is_test_row(frame), is_validation_row(frame)
    assert 0.19 < testing.mean() < 0.21
    assert 0.09 < validation.mean() < 0.11
    assert 0.09 < validation[testing].mean() < 0.11
    # Validation rows of a published bundle must stay validation rows in every later version.
    assert np.flatnonzero(validation)[:5].tolist() == STABLE
    assert is_validation_row(frame.head(0)).shape == (0,)


STABLE = [22, 25, 28, 33, 58]


def test_the_same_content_is_on_the_same_side_in_every_form() -> None:
    frame = make_frame(500)
    expected = content_hashes(frame)
    other = frame.assign(text=frame["text"].astype("category"), whole=frame["whole"].astype(float))[
        ["text", "whole", "n"]
    ]
    assert (content_hashes(other) == expected).all()
    twice = pd.concat([frame, frame.sample(frac=1, random_state=1)])
    assert (content_hashes(twice)[:500] == expected).all()
    assert sorted(content_hashes(twice)[500:]) == sorted(expected)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ({"a": [0.0]}, {"a": [-0.0]}, True),
        ({"a": [None], "b": ["x"]}, {"a": [np.nan], "b": ["x"]}, True),
        ({"a": [1.0], "b": [2.0]}, {"a": [2.0], "b": [1.0]}, False),
        ({"a": ["x"], "b": [None]}, {"a": [None], "b": ["x"]}, False),
        ({"a": [1.0]}, {"a": [1.0000000000000002]}, False),
    ],
)
def test_every_value_counts(
    left: dict[str, list[object]], right: dict[str, list[object]], same: bool
) -> None:
    hashes = [content_hashes(pd.DataFrame(each)) for each in (left, right)]
    assert (hashes[0] == hashes[1]).all() == same
