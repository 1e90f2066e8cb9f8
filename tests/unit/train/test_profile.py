"""What initialize.py shows of a data set, and what it warns of."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from train import profile
from utils.data_set import DataError, read_data
from utils.settings import Data

ROWS = 400


def describe(folder: Path, columns: dict[str, object], **changes: object) -> profile.Profile:
    random = np.random.default_rng(5)
    y = random.choice(["no", "yes"], ROWS, p=[0.7, 0.3])
    frame = pd.DataFrame({"noise": random.normal(size=ROWS), **columns})
    if "y" not in frame:
        frame["y"] = y
    frame.to_csv(folder / "some.csv", index=False)
    data = Data.model_validate({"train": "some.csv", "target": "y", **changes})
    return profile.describe(read_data(folder / "some.csv", data), data, folds=3)


def labels() -> np.ndarray:
    return np.random.default_rng(7).choice(["no", "yes"], ROWS)


def test_nothing_is_wrong_with_ordinary_columns(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    found = describe(
        tmp_path,
        {
            "count": random.integers(0, 40, ROWS),
            "price": random.normal(size=ROWS),
            "soil": random.choice(["clay", "sand"], ROWS),
            "day": [f"2023-0{1 + n % 9}-11" for n in range(ROWS)],
        },
    )
    assert found.warnings == []
    assert [(c.name, c.type) for c in found.columns] == [
        *(("noise", "number"), ("count", "number"), ("price", "number")),
        *(("soil", "category"), ("day", "date")),
    ]
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    for table in profile.tables(found):
        console.print(table)
    shown = console.export_text()
    for text in ("400 rows", "2023-01-11 to 2023-09-11", "ISO dates", "no ", "yes"):
        assert text in shown


@pytest.mark.parametrize(
    ("column", "warning"),
    [
        ([f"user {n}@example.com" for n in range(ROWS)], "id or free text"),
        ([f"user{n}@example.com" for n in range(ROWS)], "e-mail addresses"),
        (list(range(1000, 1000 + ROWS)), "like an id"),
        ([f"note {n} of many" for n in range(ROWS)], "like an id or free text"),
        (["same"] * ROWS, "always has the same value, 'same'"),
        ([1] * ROWS, "always has the same value, 1"),
        ([None] * ROWS, "is empty"),
        ([f"{1 + n % 28}.11.2023" for n in range(ROWS)], "not ISO ones (2026-11-27)"),
        ([f"{n % 90},{n % 7}" for n in range(ROWS)], '[data] decimal = ","'),
        ([*range(5, 404), 1e300], "are the extremes real?"),
        (["a", "b"] * 199 + ["3", "x"], None),
    ],
)
def test_warnings_of_a_column(tmp_path: Path, column: list[object], warning: str | None) -> None:
    found = describe(tmp_path, {"odd one": column})
    if warning is None:
        assert found.warnings == []
    else:
        assert any(warning in line and "odd one" in line for line in found.warnings), found.warnings


def test_column_of_too_many_categories_says_what_is_learnt(tmp_path: Path) -> None:
    towns = ["a"] * 150 + ["b"] * 150 + [f"town {n // 2} of many" for n in range(100)]
    found = describe(tmp_path, {"town": towns}, max_categories=2)
    (line,) = found.warnings
    assert line == (
        "town has 52 different values: the 2 most frequent ones are learnt, all others (25.0% of "
        "the rows) count as one ([data] max_categories)"
    )
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(profile.tables(found)[0])
    assert "52, 2 learnt" in console.export_text()
    assert describe(tmp_path, {"town": towns}, max_categories=52).warnings == []
    assert describe(tmp_path, {"town": towns}, max_categories=0).warnings == []


def test_a_column_that_gives_the_target_away(tmp_path: Path) -> None:
    y = labels()
    random = np.random.default_rng(2)
    number = np.where(y == "yes", 1.0, -1.0) + random.normal(size=ROWS) / 10
    text = np.where(y == "yes", "paid", "open")
    for leak in (number, text):
        found = describe(tmp_path, {"leak": leak, "y": y})
        assert ["leak gives the target away" in line for line in found.warnings] == [True]
    three = np.array([f"class {n % 3}" for n in range(ROWS)])
    found = describe(tmp_path, {"leak": [f"x{n % 3}" for n in range(ROWS)], "y": three})
    assert any("gives the target away" in line for line in found.warnings)


def test_warnings_of_the_target_and_the_header(tmp_path: Path) -> None:
    y = [*["no"] * 200, *["yes"] * 190, *["maybe"] * 2, *[None] * 8]
    found = describe(tmp_path, {"y": y})
    assert (found.rows, found.dropped, found.classes["maybe"]) == (392, 8, 2)
    assert any("8 rows have no y" in line for line in found.warnings)
    assert any("'maybe' (2)" in line for line in found.warnings)
    with pytest.raises(DataError, match="only the class 'no'"):
        describe(tmp_path, {"y": ["no"] * ROWS})
    with pytest.raises(DataError, match="quantity"):
        describe(tmp_path, {"y": range(ROWS)})


def test_forced_type_counts_what_it_cannot_read(tmp_path: Path) -> None:
    found = describe(tmp_path, {"n": [*range(390), *["many"] * 10]}, types={"n": "number"})
    assert any("10 values of n are no numbers and count as missing" in w for w in found.warnings)


def test_majority_predicts_by_the_shares() -> None:
    train, valid = np.array([0, 0, 0, 1]), np.array([0, 1])
    found = profile.majority(train, valid, 2)
    assert found.accuracy == 0.5
    assert found.log_loss == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)
    assert profile.majority(np.array([0, 1, 2, 2]), np.array([2, 2, -1]), 3).accuracy == 1.0
