"""Drift of the inputs: no drift by chance, and the words for what there is."""

import numpy as np
import pandas as pd
import pytest

from train.input_drift import column_shift, prediction_shift

RNG = np.random.default_rng(1)
NUMBERS = pd.Series(RNG.normal(size=20_000))
CATEGORIES = pd.Series(RNG.choice([f"c{n}" for n in range(40)], 20_000)).astype("category")


@pytest.mark.parametrize("rows", [1, 5, 50, 500, 5_000])
def test_chance_is_no_drift(rows: int) -> None:
    for seed in range(50):
        numbers = NUMBERS.sample(rows, random_state=seed)
        categories = CATEGORIES.sample(rows, random_state=seed).astype(object)
        assert column_shift("n", NUMBERS, numbers, is_number=True).word == "none"
        assert column_shift("c", CATEGORIES, categories, is_number=False).word == "none"


@pytest.mark.parametrize(
    ("recent", "word"),
    [
        (NUMBERS[:500] + 0.1, "none"),
        (NUMBERS[:500] + 0.4, "some"),
        (NUMBERS[:500] * 3, "strong"),
        (NUMBERS[:500].where(NUMBERS[:500] > 0), "strong"),  # half are missing
        (pd.Series([np.nan] * 500), "strong"),
    ],
)
def test_numbers_that_move(recent: "pd.Series", word: str) -> None:
    assert column_shift("n", NUMBERS, recent, is_number=True).word == word


@pytest.mark.parametrize("recent", [["c1", "c2"], ["new"], [None]])
def test_categories_that_move(recent: list[str | None]) -> None:
    values = pd.Series(recent * 500, dtype=object)
    assert column_shift("c", CATEGORIES, values, is_number=False).word == "strong"


def test_constant_and_empty_columns_are_compared() -> None:
    same, other = pd.Series([1.0] * 300), pd.Series([2.0] * 300)
    missing = pd.Series([np.nan] * 300)
    assert column_shift("n", same, same, is_number=True).psi == 0
    assert column_shift("n", same, other, is_number=True).word == "strong"
    assert column_shift("n", missing, same, is_number=True).word == "strong"
    assert column_shift("n", missing, missing, is_number=True).psi == 0


def test_predictions_are_named_by_their_class() -> None:
    low, high = RNG.beta(1, 3, 2_000), RNG.beta(3, 1, 500)
    (two,) = prediction_shift(low, high, ["no", "yes"])
    assert (two.name, two.word) == ("prediction: yes", "strong")
    several = prediction_shift(np.stack([low] * 3, 1), np.stack([low] * 3, 1), ["a", "b", "c"])
    assert [shift.name for shift in several] == [f"prediction: {name}" for name in "abc"]
    assert {shift.word for shift in several} == {"none"}
