"""The target, what other programs send, and the rows that are kept for testing."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.unit.utils.samples import decode_data
from utils import splits
from utils.data_set import DataError, DataSet, read_data
from utils.feature_tools import FeatureTools
from utils.preprocess_data import (
    classes_of,
    fit_features,
    held_out_file,
    records,
    sample_rows,
    split_off_test_rows,
)
from utils.settings import Data


def fitted(found: DataSet, data: Data) -> FeatureTools:
    return fit_features(found.frame, data, found.types)


# The target


def test_a_quantity_is_no_target() -> None:
    data = Data(train="", target="y")
    with pytest.raises(DataError, match="51 different numbers: that is a quantity"):
        classes_of(pd.Series([str(n) for n in range(51)]), data)
    assert len(classes_of(pd.Series([f"class {n}" for n in range(51)]), data)) == 51
    with pytest.raises(DataError, match="only the class 'a'"):
        classes_of(pd.Series(["a", "a", None]), data)


# What other programs send


WILD = """\
age,city,code,member,when,score,y
39,München, 01067 ,True,2023-11-15T12:00:00+01:00,1e3, yes
NA,"Köln, Süd",1067,False,2023-11-15,-0.5,no
17,NA,7,,2024-02-29 23:59:59.25,.25,yes
,Café,01067,True,NA,1234567.125,no
"""


def test_what_stands_in_the_file_scores_the_same_whoever_sends_it(tmp_path: Path) -> None:
    """As pandas, csv.DictReader, pandas without inference and a list of JSON texts write it."""
    path = tmp_path / "some.csv"
    path.write_text(WILD)
    data = Data(train="some.csv", target="y")
    found = read_data(path, data)
    features = fitted(found, data)
    expected = features.transform(found.frame).tobytes()
    with path.open(newline="") as file:
        as_text = list(csv.DictReader(file))
    by_pandas = pd.read_csv(path, dtype={"code": str})
    senders = {
        "csv.DictReader": as_text,
        "pandas": json.loads(by_pandas.to_json(orient="records")),
        "pandas as records": by_pandas.to_dict("records"),
        "sample_app": list(records(found.frame, found.types)),
    }
    for sender, rows in senders.items():
        decoded = [decode_data(features, row) for row in rows]
        assert features.transform_rows(decoded).tobytes() == expected, sender
        codes = [features.class_codes[row.outcome] for row in decoded]
        assert codes == [1, 0, 1, 0], sender


# Rows that are kept for testing


def test_split_off_rows_are_the_test_rows_and_are_read_back_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "n": random.normal(size=200),
            "unused": range(200),
            "c": random.choice(["a", "b c", 'd"e', "ü"], 200),
            "d": random.choice(["2023-01-05", "2024-01-05T10:00:00Z", ""], 200),
            "y": random.choice(["yes", "no"], 200),
        }
    )
    frame.to_csv(tmp_path / "some.csv", index=False)
    data = Data(train="some.csv", target="y", drop=("unused",))
    found = read_data(tmp_path / "some.csv", data)
    chosen = splits.is_test_row(found.frame.drop(columns="y"))
    assert 20 < chosen.sum() < 60
    assert split_off_test_rows(tmp_path, data) == chosen.sum()
    assert held_out_file(data) == "some.held-out.csv"
    sent = sample_rows(tmp_path, data)
    features = fitted(found, data)
    decoded = [decode_data(features, row) for row in sent]
    by_file = features.transform(found.frame[chosen])
    assert features.transform_rows(decoded).tobytes() == by_file.tobytes()
    assert [row["y"] for row in sent] == found.frame["y"][chosen].tolist()


def test_without_a_test_file_there_is_nothing_to_send_before_it_is_split_off(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match=r"initialize\.py splits it off"):
        sample_rows(tmp_path, Data(train="some.csv", target="y"))
