"""Reading the files of a data set, including malformed ones."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.utils.samples import decode_data
from utils.messages import BadRecord
from utils.preprocess_data import DataError, column_types, fit_features, read_frame, records
from utils.settings import Data

ODD = """\
|a comment
 Age , job,zip,member,weight,nothing,class name
39, cook , 01234,True, 1e400,, 1.
50,?,1.0,False,2|5,,0.
? ,smith,7,,3,,1.
1,,7,True,4,,
"""


def odd_data(**changes: Any) -> Data:
    return Data(
        train="odd.csv",
        target="class name",
        categorical=("zip",),
        missing=("?",),
        comment="|",
        target_suffix=".",
        **changes,
    )


def test_odd_file_is_read_as_its_messages_are(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD.replace("2|5", "2.5"))
    data = odd_data(drop=("nothing",), cross=(("job", "zip"),))
    frame = read_frame(path, data)
    assert list(frame.columns) == ["Age", "job", "zip", "member", "weight", "class name"]
    missing_as_none = frame.astype(object).where(frame.notna(), None)
    assert missing_as_none.to_numpy().tolist() == [
        [39, "cook", "1234", "true", None, "1"],
        [50, None, "1", "false", 2.5, "0"],
        [None, "smith", "7", None, 3, "1"],
        [1, None, "7", "true", 4, None],
    ]
    assert column_types(frame, data) == (["Age", "weight"], ["job", "zip", "member"])
    features = fit_features(frame, data)
    assert features.classes == ("0", "1")
    sent = list(records(frame, features.numerical))
    assert sent[0]["weight"] is None
    decoded = [decode_data(features, row) for row in sent]
    assert features.transform_rows(decoded).tobytes() == features.transform(frame).tobytes()
    # Messages may carry numbers and booleans in columns that are categorical in the file.
    row = decode_data(features, {"zip": 7, "member": True, "class name": 1})
    assert features.row_values(row) == (None, None, None, "7", "true")
    with pytest.raises(BadRecord):
        decode_data(features, {"job": 7})


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_file_and_json_give_the_same_floats(tmp_path_factory: Any, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("floats") / "floats.csv"
    path.write_text("n,y\n" + "".join(f"{value!r},1\n" for value in values))
    assert read_frame(path, Data(train="", target="y"))["n"].tolist() == values


def test_comment_sign_inside_a_line_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    assert read_frame(path, odd_data())["weight"].tolist()[1] == "2|5"


@pytest.mark.parametrize("positive", ["", "0", "1.0"])
def test_positive_class_has_code_1(tmp_path: Path, positive: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    data = odd_data(positive=positive, drop=("nothing",))
    classes = fit_features(read_frame(path, data), data).classes
    assert classes == (("1", "0") if positive == "0" else ("0", "1"))


def test_several_classes_are_sorted_as_numbers_or_text() -> None:
    frame = pd.DataFrame({"n": [1, 2, 3], "class name": ["10", "9", "8"]})
    assert fit_features(frame, odd_data()).classes == ("8", "9", "10")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"drop": ("gone",)}, "no column 'gone'"),
        ({"cross": (("gone", "job"),)}, "no column 'gone'"),
        ({"columns": ("a", "b")}, "not valid CSV"),
        ({"columns": tuple("abcdefg")}, "no column"),
        ({"cross": (("Age", "job"),)}, "cannot cross 'Age'"),
        ({"positive": "yes"}, "the positive class 'yes' is none of"),
    ],
)
def test_file_that_does_not_match_its_settings_is_one_line(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD.replace("2|5", "2.5"))
    data = odd_data(**changes)
    with pytest.raises(DataError, match=why) as error:
        fit_features(read_frame(path, data), data)
    assert "\n" not in str(error.value)


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_frame(tmp_path / "none.csv", odd_data())
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not valid CSV"):
        read_frame(tmp_path / "binary", odd_data())
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match="not valid CSV"):
        read_frame(tmp_path / "empty", odd_data())
