"""Reading the files of a data set, including malformed ones."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.utils.samples import decode_data, fit
from utils.data_set import DataError, DataSet, read_data
from utils.feature_tools import FeatureTools
from utils.preprocess_data import (
    fit_features,
    records,
)
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


def read_text(folder: Path, text: str | bytes, **changes: Any) -> DataSet:
    path = folder / "some.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_data(path, Data(**{"train": "some.csv", "target": "y", **changes}))


def fitted(found: DataSet, data: Data) -> FeatureTools:
    return fit_features(found.frame, data, found.types)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([f"user{n}@example.com" for n in range(3000)], "text"),
        ([*map(str, range(2999)), "many"], "1 of 3000 different values are no numbers"),
        ([f"{n},5" for n in range(3000)], 'with [data] decimal = "," it would be'),
        ([f"{n:02}.{n % 9},00" for n in range(3000)], "text"),
    ],
)
def test_reason_for_the_type_of_a_column_of_many_values(
    tmp_path: Path, values: list[str], reason: str
) -> None:
    text = "".join(f'"{value}",{n % 2}\n' for n, value in enumerate(values))
    found = read_text(tmp_path, f"x,y\n{text}")
    assert found.types == {"x": "category"}
    assert reason in found.reasons["x"]


def test_odd_file_is_read_as_its_messages_are(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD.replace("2|5", "2.5"))
    data = odd_data(drop=("nothing",), cross=(("job", "zip"),))
    found = read_data(path, data)
    frame = found.frame
    assert list(frame.columns) == ["Age", "job", "zip", "member", "weight", "class name"]
    missing_as_none = frame.astype(object).where(frame.notna(), None)
    assert missing_as_none.to_numpy().tolist() == [
        [39, "cook", "01234", "true", None, "1"],
        [50, None, "1", "false", 2.5, "0"],
        [None, "smith", "7", None, 3, "1"],
        [1, None, "7", "true", 4, None],
    ]
    assert found.types == {
        "Age": "number",
        "job": "category",
        "zip": "category",
        "member": "category",
        "weight": "number",
    }
    features = fitted(found, data)
    assert features.classes == ("0", "1")
    sent = list(records(frame, found.types))
    assert sent[0]["weight"] is None
    decoded = [decode_data(features, row) for row in sent]
    assert features.transform_rows(decoded).tobytes() == features.transform(frame).tobytes()
    # Messages may carry numbers and booleans in columns that are categorical in the file.
    row = decode_data(features, {"zip": 7, "member": True, "class name": 1})
    assert features.row_values(row) == (None, None, None, "7", "true")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_file_and_json_give_the_same_floats(tmp_path_factory: Any, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("floats") / "floats.csv"
    path.write_text("n,y\n" + "".join(f"{value!r},1\n" for value in values))
    assert read_data(path, Data(train="", target="y")).frame["n"].tolist() == values


def test_comment_sign_inside_a_line_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    assert read_data(path, odd_data()).frame["weight"].tolist()[1] == "2|5"


@pytest.mark.parametrize("positive", ["", "0", "1.0"])
def test_positive_class_has_code_1(tmp_path: Path, positive: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    data = odd_data(positive=positive, drop=("nothing",))
    classes = fitted(read_data(path, data), data).classes
    assert classes == (("1", "0") if positive == "0" else ("0", "1"))


def test_several_classes_are_sorted_as_numbers_or_text() -> None:
    frame = pd.DataFrame({"n": [1, 2, 3], "class name": ["10", "9", "8"]})
    assert fit(frame, odd_data()).classes == ("8", "9", "10")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"drop": ("gone",)}, "no column 'gone'"),
        ({"cross": (("gone", "job"),)}, "no column 'gone'"),
        ({"columns": ("a", "b")}, "not valid CSV"),
        ({"columns": tuple("abcdefg")}, "is a header"),
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
        fitted(read_data(path, data), data)
    assert "\n" not in str(error.value)


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_data(tmp_path / "none.csv", odd_data())
    for content, reason in (
        (b"", "not valid CSV"),
        (b"n,y\n1,a\0b\n", "NUL"),
        (b"n,y\n", "no rows"),
        (b'n,y\n"1,a\n', "not valid CSV"),
    ):
        with pytest.raises(DataError, match=reason):
            read_text(tmp_path, content)


# What is inferred


@pytest.mark.parametrize(
    ("cells", "kind", "reason"),
    [
        (["1", "2.5", "NA", ""], "number", "numbers"),
        (["1", "?", "n/a", "3"], "number", "numbers"),
        (["1", "nAn ", "2", "3"], "number", "numbers"),
        (["1", "inf", "-Infinity", "3"], "number", "numbers"),
        (["18446744073709551616", "1", "2", "3"], "number", "numbers"),
        (["01067", "80331", "1067", "7"], "category", "'01067' has a leading zero"),
        (["0.5", "0", "00.5", "7"], "number", "numbers"),
        (["a", "b", "a", "NA"], "category", "text"),
        (["True", "False", "", "True"], "category", "text"),
        (["3,5", "1,25", "-7,0", ""], "category", 'decimal = ","'),
        (["2023-01-05", "NA", "2023-01-07", "2023-12-31"], "date", "ISO dates"),
        (["2023-01-05T10:00Z", "", "2023-01-07", "2023-12-31 23:59:59.5"], "date", "ISO dates"),
        (["2023-01-05", "never", "2023-01-07", "2023-12-31"], "category", "text"),
        (["", "NA", "", ""], "category", "no values"),
        (["1,470", "23,380", "70", "1,000,000"], "category", "without thousands separators"),
        ([*(f"2023-01-{d}" for d in range(10, 31)), "0000-00-00"], "category", "'0000-00-00'"),
    ],
)
def test_type_of_a_column_and_why(tmp_path: Path, cells: list[str], kind: str, reason: str) -> None:
    lines = "".join(f'"{cell}",{n % 2}\n' for n, cell in enumerate(cells))
    found = read_text(tmp_path, "c,y\n" + lines)
    assert found.types == {"c": kind}
    assert reason in found.reasons["c"]


def test_a_few_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    cells = [*map(str, range(30)), "many"]
    found = read_text(
        tmp_path, "c,y\n" + "".join(f"{cell},{n % 2}\n" for n, cell in enumerate(cells))
    )
    assert found.types == {"c": "category"}
    assert "1 of 31 different values are no numbers, such as 'many'" in found.reasons["c"]
    forced = read_text(
        tmp_path,
        "c,y\n" + "".join(f"{cell},{n % 2}\n" for n, cell in enumerate(cells)),
        types={"c": "number"},
    )
    assert forced.types == {"c": "number"}
    assert forced.unread == {"c": 1}
    assert forced.frame["c"].isna().sum() == 1


def test_types_in_pipeline_toml_come_first(tmp_path: Path) -> None:
    text = "zip,day,n,y\n1067,2023-01-05,1.50,a\n1,2023-01-06,2,b\n"
    found = read_text(tmp_path, text, types={"zip": "category", "day": "category", "n": "category"})
    assert set(found.types.values()) == {"category"}
    assert found.frame["n"].tolist() == ["1.5", "2"]
    assert set(found.reasons.values()) == {"set in pipeline.toml"}


def test_learnt_types_hold_for_a_file_that_looks_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("a,b,new,y\n1,2,3,yes\nmany,4,5,no\n")
    found = read_data(path, Data(train="", target="y"), {"a": "number", "b": "category"})
    assert found.types == {"a": "number", "b": "category"}
    assert found.unread == {"a": 1}
    with pytest.raises(DataError, match="no column 'c', which the serving model uses"):
        read_data(path, Data(train="", target="y"), {"a": "number", "c": "category"})


def test_headers_that_occur_twice_are_named(tmp_path: Path) -> None:
    found = read_text(tmp_path, "a,a,b,y\n1,2,3,yes\n4,5,6,no\n")
    assert found.duplicates == ("a",)
    assert list(found.types) == ["a", "a.1", "b"]


def test_what_means_missing_is_missing_in_the_target_too(tmp_path: Path) -> None:
    text = "a,y\n" + "".join(f"{n},{y}\n" for n, y in enumerate(["x", "NA", "z", "", "nan"]))
    assert read_text(tmp_path, text).frame["y"].tolist() == ["x", None, "z", None, None]
    kept = read_text(tmp_path, text, missing=["nan"]).frame["y"].tolist()
    assert kept == ["x", "NA", "z", None, None]


@pytest.mark.parametrize(
    ("text", "changes", "reason"),
    [
        ("a,y\n1,x\n2,z\n", {"columns": ("a", "y")}, "is a header: remove"),
        ("size,kind\n1,x\n,x\n2,z\n", {"columns": ("a", "y")}, "is a header: remove"),
        ("y\nx\nz\n", {}, "no column to learn from"),
        ("a,y\n1,x\n2,z\n", {"drop": ("a",)}, "no column to learn from"),
        ("a,y\n1,2,x\n1,2,z\n", {}, "more fields than its header"),
        ("1 x\n2 z\n", {"columns": ("a", "b", "y")}, "fewer fields than"),
    ],
)
def test_other_misfits_are_clear_lines(
    tmp_path: Path, text: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        read_text(tmp_path, text, **changes)


def test_blanks_around_names_are_named(tmp_path: Path) -> None:
    found = read_text(tmp_path, ", a ,y\n0,1,x\n1,2,z\n")
    assert found.blank_names == (" a ",)
    assert list(found.types) == ["Unnamed: 0", "a"]


# Separators, encodings, decimal commas


@pytest.mark.parametrize(
    ("content", "changes", "hint"),
    [
        ("a;y\n1;x\n", {}, "separator to ';'"),
        ("a\ty\n1\tx\n", {}, r"separator to '\\t'"),
        ("a,y\n1,x\n", {"separator": ";"}, "separator to ','"),
        ("1;x\n2;z\n", {"columns": ("a", "y")}, "separator to ';'"),
        ("a,y\nMünchen,x\n".encode("latin-1"), {}, "encoding to 'cp1252'"),
        ("a,y\nMünchen,x\n".encode("utf-16"), {}, "encoding to 'utf-16'"),
        ("a,y\nMünchen,x\n".encode(), {"encoding": "latin-1"}, 'encoding to "utf-8"'),
        (b"a,y\n\x81,x\n", {}, "encoding to 'latin-1'"),
    ],
)
def test_a_separator_or_encoding_that_does_not_fit_names_the_one_that_would(
    tmp_path: Path, content: str | bytes, changes: dict[str, Any], hint: str
) -> None:
    with pytest.raises(DataError, match=hint) as error:
        read_text(tmp_path, content, **changes)
    assert "\n" not in str(error.value)


def test_a_german_file(tmp_path: Path) -> None:
    text = "stadt;größe;y\nMünchen;3,5;1\nKöln;-1,25;0\nKöln;;0\n".encode("cp1252")
    found = read_text(tmp_path, text, separator=";", decimal=",", encoding="cp1252")
    assert found.types == {"stadt": "category", "größe": "number"}
    assert found.frame["größe"].tolist()[:2] == [3.5, -1.25]
    data = Data(train="", target="y", separator=";", decimal=",", encoding="cp1252")
    features = fitted(found, data)
    rows = [decode_data(features, {"größe": sent}) for sent in ("3,5", 3.5, " 3.5")]
    assert len({row.f0 for row in rows}) == 1


@pytest.mark.parametrize("text", ["1,x\n2,z\n", "?,x\n2,z\n", "x,z\n,z\n", "old,1,x\n3,2,z\n"])
def test_first_values_are_no_header(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    names = ("a", "y") if text.count(",") < 3 else ("a", "b", "y")
    read_data(path, Data(train="rows.csv", target="y", columns=names))
