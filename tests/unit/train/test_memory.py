"""Which rows a memory keeps, and how much each counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.memory import KEPT_OF_EACH_CLASS, Memory


@given(
    base=st.integers(0, 300),
    outcomes=st.integers(1, 3000),
    half_life=st.sampled_from([10, 125, 500]),
)
def test_a_memory_counts_recent_rows_more_and_forgets_the_rest(
    base: int, outcomes: int, half_life: int
) -> None:
    codes = np.arange(base + outcomes) % 2
    places, weights = Memory(half_life).weigh(base, codes, base + outcomes)
    assert (np.diff(places) > 0).all() and places[-1] == base + outcomes - 1
    assert ((weights > 0) & (weights <= 1)).all() and weights[-1] == 1
    ages = base + outcomes - 1 - places
    assert ages[places >= base].max() < max(7 * half_life, 2 * KEPT_OF_EACH_CLASS)
    # All of the past counts as much as a stream that never began.
    assert weights.sum() <= half_life / np.log(2) + 1 + 2 * KEPT_OF_EACH_CLASS


def test_everything_counts_all_rows_alike() -> None:
    places, weights = Memory().weigh(3, np.zeros(8, dtype=np.int64), 7)
    assert places.tolist() == list(range(7)) and (weights == 1).all()


@pytest.mark.parametrize("half_life", [5, 50])
def test_a_class_that_has_not_come_for_long_stays_possible(half_life: int) -> None:
    codes = np.zeros(2000, dtype=np.int64)
    codes[[3, 5, 8, 9]] = 1
    places, weights = Memory(half_life).weigh(20, codes, 2000)
    assert places[codes[places] == 1].tolist() == [5, 8, 9]
    assert (weights[codes[places] == 1] == 1).all()


def test_the_base_data_is_spread_evenly_and_fades() -> None:
    codes = np.arange(10_000) % 2
    early = Memory(100).weigh(9_900, codes, 9_910)
    late = Memory(100).weigh(9_000, codes, 9_690)
    kept = early[0][early[0] < 9_900]
    assert len(kept) == 500 and kept[0] < 20 and kept[-1] > 9_880
    assert early[1][: len(kept)].sum() > 100 > 20 > late[1][late[0] < 9_000].sum()
