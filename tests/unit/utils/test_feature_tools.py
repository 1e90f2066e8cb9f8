"""FeatureTools by properties, and what reading a data set makes of odd files."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.feature_tools import FeatureTools, canonical_text, message_type
from utils.messages import BadRecord, Decoder, label_text
from utils.preprocess_data import DataError, column_types, fit_features, read_frame, records
from utils.settings import Data

TARGET = "f0"  # a field's own name: columns may be called anything

names = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters='"\\'), min_size=1, max_size=8
) | st.sampled_from(["class", "a.b", "two words", "f1", "outcome", "request_id", "été"])
numbers = (
    st.none()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**70), 2**70)
    | st.integers(2**53 - 3, 2**53 + 3)
    | st.sampled_from([0, 1, -0.0])
)
texts = st.none() | st.sampled_from("abc") | st.text(st.characters(exclude_categories=["Cs"]))
Rows = list[dict[str, Any]]


@st.composite
def tables(draw: st.DrawFn) -> tuple[FeatureTools, Rows]:
    """Fitted features and rows that they may or may not have seen."""
    columns = draw(st.lists(names.filter(lambda name: name != TARGET), min_size=1, unique=True))
    split = draw(st.integers(0, len(columns)))
    numerical, categorical = columns[:split], columns[split:]
    value = {name: numbers if name in numerical else texts for name in columns}
    rows = draw(st.lists(st.fixed_dictionaries(value), max_size=12))
    crosses = []
    if categorical:
        pair = st.tuples(st.sampled_from(categorical), st.sampled_from(categorical))
        crosses = draw(st.lists(pair, max_size=2))
    features = FeatureTools().fit(
        frame_of(rows[: len(rows) // 2], columns),
        target=TARGET,
        numerical=numerical,
        categorical=categorical,
        crosses=crosses,
        classes=["no", "yes"],
    )
    return features, rows


def frame_of(rows: Rows, columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series([row[name] for row in rows]) for name in columns})


def decode(features: FeatureTools, data: Any) -> Any:
    record = json.dumps({"request_id": "a", "data": data}).encode()
    return Decoder(message_type(features))(record).data


@settings(max_examples=150, deadline=None)
@given(tables())
def test_a_frame_and_messages_give_the_same_floats(table: tuple[FeatureTools, Rows]) -> None:
    features, rows = table
    by_frame = features.transform(frame_of(rows, list(features.columns)))
    decoded = [decode(features, row) for row in rows]
    by_row = features.transform_rows(decoded)
    assert by_frame.shape == by_row.shape == (len(rows), len(features.feature_names))
    assert by_frame.tobytes() == by_row.tobytes()
    assert by_row.flags.c_contiguous
    assert by_row.dtype == np.float64
    for place, name in enumerate(features.columns):
        missing = [row[name] is None for row in rows]
        if name in features.numerical:
            assert np.isnan(by_row[:, place]).tolist() == missing
        else:
            assert (by_row[missing, place] == 0).all()


@settings(max_examples=60, deadline=None)
@given(tables())
def test_the_state_survives_json(table: tuple[FeatureTools, Rows]) -> None:
    features, rows = table
    again = FeatureTools.from_json(features.to_json())
    assert again.to_json() == features.to_json()
    assert again.feature_names == features.feature_names
    frame = frame_of(rows, list(features.columns))
    assert again.transform(frame).tobytes() == features.transform(frame).tobytes()
    values = [again.row_values(decode(again, row)) for row in rows]
    stored = pd.DataFrame(values, columns=list(again.columns))
    assert again.transform(stored).tobytes() == features.transform(frame).tobytes()


def test_fields_are_looked_for_in_the_order_of_the_data() -> None:
    """Decoding begins at the field after the last one found; else n columns cost n * n."""
    frame = pd.DataFrame({"b": ["x", "y"], "a": [1, 2], "unused": [0, 0], "c": ["u", "v"]})
    features = FeatureTools().fit(
        frame, target="y", numerical=["a"], categorical=["c", "b"], crosses=[], classes=["n", "p"]
    )
    fields = [field.encode_name for field in msgspec.structs.fields(features.row_type)]
    assert fields == ["b", "a", "c", "y"]
    assert features.columns == ("a", "c", "b")
    row = decode(features, {"a": 1, "b": "x", "c": "v"})
    assert features.row_values(row) == (1.0, "v", "x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["age", "job", "code", TARGET, "more"]), json_values))
def test_whatever_decodes_can_be_encoded(data: dict[str, Any]) -> None:
    features = small()
    try:
        row = decode(features, data)
    except BadRecord:
        return
    matrix = features.transform_rows([row])
    assert matrix.shape == (1, 4)
    assert not np.isnan(matrix[0, 1:]).any()
    values = features.row_values(row)
    assert isinstance(values[0], float | None)
    assert all(isinstance(value, str | None) for value in values[1:])
    assert features.has_no_known_column(row) == (not {"age", "job", "code"} & set(data))


def small() -> FeatureTools:
    """A number, a text, and a number that is a name."""
    frame = pd.DataFrame(
        {"age": [20, 40, None], "job": ["cook", "smith", None], "code": ["1", "2.5", "true"]}
    )
    return FeatureTools().fit(
        frame,
        target=TARGET,
        numerical=["age"],
        categorical=["job", "code"],
        crosses=[("job", "code")],
        classes=["no", "yes"],
        mixed=["code"],
    )


def test_codes_and_scale() -> None:
    features = small()
    data: Rows = [
        {"age": 30, "job": "cook", "code": 1},
        {"age": 60, "job": "smith", "code": "2.5", "unheard of": {"a": [1]}},
        {"age": None, "job": "unseen", "code": True},
        {"job": "cook", "code": 2.5},
        {"age": 0},
    ]
    matrix = features.transform_rows([decode(features, row) for row in data])
    expected = [[0.5, 1, 1, 1], [2, 2, 2, 2], [np.nan, 0, 3, 0], [np.nan, 1, 2, 0], [-1, 0, 0, 0]]
    np.testing.assert_array_equal(matrix, expected)
    assert features.feature_names == ("age", "job", "code", "job x code")
    assert features.categorical_features == ("job", "code", "job x code")


@pytest.mark.parametrize(
    "data",
    [
        {"age": "old"},
        {"age": "30"},
        {"age": True},
        {"age": {"years": 3}},
        {"age": [3]},
        {"job": 3},
        {"job": False},
        {"job": {}},
        {"code": []},
        {"code": {"a": 1}},
        {"f0": ["yes"]},
        "text",
        None,
    ],
)
def test_wrong_types_do_not_decode(data: Any) -> None:
    with pytest.raises(BadRecord):
        decode(small(), data)


def test_what_a_message_may_leave_out() -> None:
    features = small()
    assert features.has_no_known_column(decode(features, {}))
    assert features.has_no_known_column(decode(features, {"more": 1, TARGET: "yes"}))
    assert not features.has_no_known_column(decode(features, {"age": None}))
    assert not features.has_no_known_column(decode(features, {"job": None}))
    assert features.row_values(decode(features, {"job": "cook"})) == (None, "cook", None)
    assert features.row_values(decode(features, {"age": 3, "code": 1.0})) == (3.0, None, "1")
    assert decode(features, {TARGET: "yes"}).outcome == "yes"
    assert decode(features, {}).outcome is None


def test_target_codes() -> None:
    features = small()
    assert features.encode_target(["yes", "no", None, "?", "yes"]).tolist() == [1, 0, -1, -1, 1]
    assert features.encode_target([]).shape == (0,)


def test_no_rows_give_no_rows() -> None:
    assert small().transform_rows([]).shape == (0, 4)
    assert small().transform(pd.DataFrame()).shape == (0, 4)


@pytest.mark.parametrize("values", [[3, 3, 3], [None, None], [-1e308, 1e308], [0.0, 5e-324]])
def test_columns_that_cannot_be_scaled_are_safe(values: list[float | None]) -> None:
    frame = pd.DataFrame({"a": pd.Series(values, dtype=float)})
    features = FeatureTools().fit(
        frame, target="y", numerical=["a"], categorical=[], crosses=[], classes=["no", "yes"]
    )
    again = features.transform(frame)
    assert np.isnan(again).tolist() == [[value is None] for value in values]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"classes": ["one"]},
        {"numerical": {"age": ["a", "b"]}},
        {"numerical": {"job": [0, 1]}},
        {"numerical": {}, "categorical": {}, "mixed": [], "crosses": []},
        {"categorical": {"job": ["b", "b"]}},
        {"crosses": [{"columns": ["age", "job"], "pairs": []}]},
        {"crosses": [{"columns": ["job", "code"], "pairs": [[1, 9]]}]},
        {"crosses": [{"columns": ["job", "code"], "pairs": [[2, 1], [1, 1]]}]},
        {"mixed": ["age"]},
        {"order": ["age", "job"]},
        {"target": "age"},
        {"more": 1},
    ],
)
def test_a_wrong_state_is_refused_in_one_line(change: dict[str, Any]) -> None:
    state = json.loads(small().to_json()) | change
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        FeatureTools.from_json(msgspec.json.encode(state))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_state_is_refused_in_one_line(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        FeatureTools.from_json(text)


def test_bad_columns_are_refused() -> None:
    frame = pd.DataFrame({'a"b': ["x"], "c": ["y"], "n": [1]})
    arguments: dict[str, Any] = {"target": "y", "numerical": [], "classes": ["no", "yes"]}
    with pytest.raises(ValueError, match="quotes"):
        FeatureTools().fit(frame, categorical=['a"b'], crosses=[], **arguments)
    with pytest.raises(ValueError, match="cannot cross 'n'"):
        FeatureTools().fit(frame, categorical=["c"], crosses=[("c", "n")], **arguments)
    with pytest.raises(ValueError, match="no column 'gone'"):
        FeatureTools().fit(frame, categorical=["gone"], crosses=[], **arguments)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans())
def test_a_label_is_the_same_as_text_and_as_a_value(value: float) -> None:
    assert canonical_text(str(value)) == label_text(value)


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


def test_reading_an_odd_file(tmp_path: Path) -> None:
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
    decoded = [decode(features, row) for row in sent]
    assert features.transform_rows(decoded).tobytes() == features.transform(frame).tobytes()
    # Numbers and truth values may come as such where the file has them for names.
    row = decode(features, {"zip": 7, "member": True, "class name": 1})
    assert features.row_values(row) == (None, None, None, "7", "true")
    with pytest.raises(BadRecord):
        decode(features, {"job": 7})


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_file_and_json_give_the_same_floats(tmp_path_factory: Any, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("floats") / "floats.csv"
    path.write_text("n,y\n" + "".join(f"{value!r},1\n" for value in values))
    assert read_frame(path, Data(train="", target="y"))["n"].tolist() == values


def test_a_comment_sign_inside_a_line_stays(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    assert read_frame(path, odd_data())["weight"].tolist()[1] == "2|5"


@pytest.mark.parametrize("positive", ["", "0", "1.0"])
def test_the_positive_class_has_code_1(tmp_path: Path, positive: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD)
    data = odd_data(positive=positive, drop=("nothing",))
    classes = fit_features(read_frame(path, data), data).classes
    assert classes == (("1", "0") if positive == "0" else ("0", "1"))


def test_several_classes_are_in_order() -> None:
    frame = pd.DataFrame({"n": [1, 2, 3], "class name": ["10", "9", "8"]})
    assert fit_features(frame, odd_data()).classes == ("8", "9", "10")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"drop": ("gone",)}, "no column 'gone'"),
        ({"cross": (("gone", "job"),)}, "no column 'gone'"),
        ({"columns": ("a", "b")}, "not such CSV"),
        ({"columns": tuple("abcdefg")}, "no column"),
        ({"cross": (("Age", "job"),)}, "cannot cross 'Age'"),
        ({"positive": "yes"}, "the positive class 'yes' is none of"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(ODD.replace("2|5", "2.5"))
    data = odd_data(**changes)
    with pytest.raises(DataError, match=why) as error:
        fit_features(read_frame(path, data), data)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_frame(tmp_path / "none.csv", odd_data())
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not such CSV"):
        read_frame(tmp_path / "binary", odd_data())
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match="not such CSV"):
        read_frame(tmp_path / "empty", odd_data())
