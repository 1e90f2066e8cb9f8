"""FeatureTools: its properties, its errors, and equal floats from frames and messages."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.utils.samples import decode_data
from utils.data_set import read_data
from utils.feature_tools import FeatureTools
from utils.messages import BadRecord
from utils.preprocess_data import fit_features
from utils.settings import load as load_settings

TARGET = "f0"  # also the name of a field: columns may have any name

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
    """Fitted features, and rows of which they have seen the first half."""
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
        max_categories=draw(st.integers(0, 3)),
    )
    return features, rows


def frame_of(rows: Rows, columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series([row[name] for row in rows]) for name in columns})


@settings(max_examples=150, deadline=None)
@given(tables())
def test_row_alone_gives_the_same_floats_and_counts(table: tuple[FeatureTools, Rows]) -> None:
    features, rows = table
    decoded = [decode_data(features, row) for row in rows]
    tally, tally_alone = (np.zeros((4, len(features.columns)), np.int64) for _ in range(2))
    together = features.transform_rows(decoded, tally)
    alone = [features.transform_rows([row], tally_alone) for row in decoded]
    assert b"".join(row.tobytes() for row in alone) == together.tobytes()
    assert tally_alone.tolist() == tally.tolist()


@settings(max_examples=150, deadline=None)
@given(tables())
def test_frame_and_messages_give_the_same_floats(table: tuple[FeatureTools, Rows]) -> None:
    features, rows = table
    by_frame = features.transform(frame_of(rows, list(features.columns)))
    decoded = [decode_data(features, row) for row in rows]
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
def test_state_survives_json(table: tuple[FeatureTools, Rows]) -> None:
    features, rows = table
    again = FeatureTools.from_json(features.to_json())
    assert again.to_json() == features.to_json()
    assert again.feature_names == features.feature_names
    frame = frame_of(rows, list(features.columns))
    assert again.transform(frame).tobytes() == features.transform(frame).tobytes()
    values = [again.row_values(decode_data(again, row)) for row in rows]
    stored = pd.DataFrame(values, columns=list(again.columns))
    assert again.transform(stored).tobytes() == features.transform(frame).tobytes()


def few_categories(max_categories: int) -> FeatureTools:
    """Jobs a, b, c, d in 3, 2, 2 and 1 rows, crossed with two towns; one job is missing."""
    jobs = ["d", "c", "b", "a", "a", "c", "b", "a", None]
    frame = pd.DataFrame({"job": jobs, "town": ["x", "y", "x", "x", "x", "y", "y", "x", "x"]})
    return FeatureTools().fit(
        frame,
        target=TARGET,
        numerical=[],
        categorical=["job", "town"],
        crosses=[("job", "town")],
        classes=["no", "yes"],
        max_categories=max_categories,
    )


def test_rare_categories_and_pairs_are_learnt_as_one() -> None:
    features = few_categories(max_categories=2)
    state = json.loads(features.to_json())
    job, town = state["columns"]
    # Of the equally frequent b and c the first one by name is learnt.
    assert (job["categories"], job["other_share"]) == (["a", "b"], pytest.approx(3 / 9))
    assert (town["categories"], "other_share" in town) == (["x", "y"], False)
    # a x, other y; those of one row each are the others.
    (cross,) = state["crosses"]
    assert (cross["pairs"], cross["other_share"]) == ([[1, 1], [3, 2]], pytest.approx(3 / 9))
    rows: Rows = [
        {"job": "a", "town": "x"},
        {"job": " c", "town": "y"},  # rare in training
        {"job": "new", "town": "x"},  # not in training
        {"job": "b", "town": "y"},
        {"job": None, "town": "x"},
        {"job": "a", "town": "new"},  # training has not seen what rare towns are like
    ]
    tally = np.zeros((4, 2), dtype=np.int64)
    matrix = features.transform_rows([decode_data(features, row) for row in rows], tally)
    expected = [[1, 1, 1], [3, 2, 2], [3, 1, 3], [2, 2, 3], [0, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(matrix, expected)
    assert tally.tolist() == [[1, 0], [0, 1], [0, 0], [2, 0]]


def test_limit_that_is_not_reached_changes_nothing() -> None:
    limited, unlimited = few_categories(max_categories=5), few_categories(max_categories=0)
    assert limited.to_json() == unlimited.to_json()
    assert b"other_share" not in limited.to_json()
    changed = [unlimited.is_changed_by(limit) for limit in (0, 3, 4, 5)]
    assert changed == [False, True, True, False]  # there are four jobs and five pairs
    changed = [few_categories(max_categories=2).is_changed_by(limit) for limit in (0, 2, 3)]
    assert changed == [True, False, True]


def test_features_of_adult_are_those_of_earlier_versions(adult_files: Path) -> None:
    """The hash of features.json was taken before categories were limited."""
    data = load_settings({}).data
    found = read_data(adult_files / data.train, data)
    text = fit_features(found.frame, data, found.types).to_json()
    assert (
        hashlib.sha256(text).hexdigest()
        == "d704e32a013627b6884180019eaae22ca3870300d5a384776c7dbbe51b4d9873"
    )


def test_row_type_keeps_the_column_order_of_the_data() -> None:
    """Decoding looks for a field after the last one found; else n columns cost n * n."""
    frame = pd.DataFrame({"b": ["x", "y"], "a": [1, 2], "unused": [0, 0], "c": ["u", "v"]})
    features = FeatureTools().fit(
        frame, target="y", numerical=["a"], categorical=["c", "b"], crosses=[], classes=["n", "p"]
    )
    fields = [field.encode_name for field in msgspec.structs.fields(features.row_type)]
    assert fields == ["b", "a", "c", "y"]
    assert features.columns == ("a", "b", "c")
    row = decode_data(features, {"a": 1, "b": "x", "c": "v"})
    assert features.row_values(row) == (1.0, "x", "v")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["age", "job", "code", TARGET, "more"]), json_values))
def test_every_decoded_row_can_be_encoded(data: dict[str, Any]) -> None:
    features = small_features()
    try:
        row = decode_data(features, data)
    except BadRecord:
        return
    matrix = features.transform_rows([row])
    assert matrix.shape == (1, 4)
    assert not np.isnan(matrix[0, 1:]).any()
    values = features.row_values(row)
    assert isinstance(values[0], float | None)
    assert all(isinstance(value, str | None) for value in values[1:])
    assert features.has_no_known_column(row) == (not {"age", "job", "code"} & set(data))


def small_features() -> FeatureTools:
    """A numerical, a categorical and a mixed column."""
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
    )


def test_transform_scales_numbers_and_codes_categories() -> None:
    features = small_features()
    data: Rows = [
        {"age": 30, "job": "cook", "code": 1},
        {"age": 60, "job": "smith", "code": "2.5", "unheard of": {"a": [1]}},
        {"age": None, "job": "unseen", "code": True},
        {"job": "cook", "code": 2.5},
        {"age": 0},
    ]
    matrix = features.transform_rows([decode_data(features, row) for row in data])
    expected = [[0.5, 1, 1, 1], [2, 2, 2, 2], [np.nan, 0, 3, 0], [np.nan, 1, 2, 0], [-1, 0, 0, 0]]
    np.testing.assert_array_equal(matrix, expected)
    assert features.feature_names == ("age", "job", "code", "job x code")
    assert features.categorical_features == ("job", "code", "job x code")


@pytest.mark.parametrize(
    "data",
    [
        {"age": "old"},
        {"age": True},
        {"age": {"years": 3}},
        {"age": [3]},
        {"job": {}},
        {"code": []},
        {"code": {"a": 1}},
        "text",
        None,
    ],
)
def test_wrong_types_do_not_decode(data: Any) -> None:
    with pytest.raises(BadRecord):
        decode_data(small_features(), data)


def test_message_may_omit_columns_and_outcome() -> None:
    features = small_features()
    for data in ({}, {"more": 1, TARGET: "yes"}):
        with pytest.raises(BadRecord, match="none of the known columns"):
            decode_data(features, data)
    assert not features.has_no_known_column(decode_data(features, {"age": None}))
    assert not features.has_no_known_column(decode_data(features, {"job": None}))
    assert features.row_values(decode_data(features, {"job": "cook"})) == (None, "cook", None)
    assert features.row_values(decode_data(features, {"age": 3, "code": 1.0})) == (3.0, None, "1")
    assert decode_data(features, {"age": 1, TARGET: "yes"}).outcome == "yes"
    assert decode_data(features, {"age": 1}).outcome is None


@pytest.mark.parametrize("extreme", [1e300, -3.4e38, 1e17])
def test_one_extreme_number_leaves_the_others_apart(extreme: float) -> None:
    values = [*np.linspace(40, 60, 200), extreme]
    features = FeatureTools().fit(
        pd.DataFrame({"a": values}),
        target="y", numerical=["a"], categorical=[], crosses=[], classes=["no", "yes"],
    )  # fmt: skip
    scaled = features.transform(pd.DataFrame({"a": values}))[:, 0]
    assert len(np.unique(scaled[:200])) == 200
    assert scaled[199] - scaled[0] > 0.9


def test_a_few_times_of_day_do_not_make_a_column_of_times() -> None:
    days = [float(n * 86_400) for n in range(300)]
    for times, expected in ((1, 2), (30, 3)):
        frame = pd.DataFrame({"d": [*days, *[3600.5] * times]})
        features = FeatureTools().fit(
            frame, target="y", numerical=[], dates=["d"], categorical=[], crosses=[],
            classes=["no", "yes"],
        )  # fmt: skip
        assert len(features.feature_names) == expected


def test_encode_target_gives_minus_one_for_unknown_labels() -> None:
    features = small_features()
    assert features.encode_target(["yes", "no", None, "?", "yes"]).tolist() == [1, 0, -1, -1, 1]
    assert features.encode_target([]).shape == (0,)


def test_no_rows_give_no_rows() -> None:
    assert small_features().transform_rows([]).shape == (0, 4)
    assert small_features().transform(pd.DataFrame()).shape == (0, 4)


@pytest.mark.parametrize("values", [[3, 3, 3], [None, None], [-1e308, 1e308], [0.0, 5e-324]])
def test_unscalable_columns_give_no_nan(values: list[float | None]) -> None:
    frame = pd.DataFrame({"a": pd.Series(values, dtype=float)})
    features = FeatureTools().fit(
        frame, target="y", numerical=["a"], categorical=[], crosses=[], classes=["no", "yes"]
    )
    again = features.transform(frame)
    assert np.isnan(again).tolist() == [[value is None] for value in values]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"target": {"name": "f0", "classes": ["one"]}},
        {"target": {"name": "age", "classes": ["no", "yes"]}},
        {"columns": []},
        {"columns": [{"type": "number", "name": "age", "low": "a", "high": 1.0}]},
        {"columns": [{"type": "text", "name": "age"}]},
        {"columns": [{"type": "category", "name": "job", "categories": ["b", "b"]}]},
        {"columns": [{"type": "category", "name": "job", "categories": []}] * 2},
        {"crosses": [{"columns": ["age", "job"], "pairs": []}]},
        {"crosses": [{"columns": ["job", "code"], "pairs": [[1, 9]]}]},
        {"crosses": [{"columns": ["job", "code"], "pairs": [[2, 1], [1, 1]]}]},
        {"crosses": [{"columns": ["job", "code"], "pairs": [], "other_share": "much"}]},
        {"more": 1},
    ],
)
def test_inconsistent_state_is_refused_in_one_line(change: dict[str, Any]) -> None:
    state = json.loads(small_features().to_json()) | change
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        FeatureTools.from_json(msgspec.json.encode(state))


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_malformed_state_is_refused_in_one_line(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        FeatureTools.from_json(text)


def test_fit_refuses_unusable_columns() -> None:
    frame = pd.DataFrame({'a"b': ["x"], "c": ["y"], "n": [1]})
    arguments: dict[str, Any] = {"target": "y", "numerical": [], "classes": ["no", "yes"]}
    with pytest.raises(ValueError, match="quotes"):
        FeatureTools().fit(frame, categorical=['a"b'], crosses=[], **arguments)
    with pytest.raises(ValueError, match="cannot cross 'n'"):
        FeatureTools().fit(frame, categorical=["c"], crosses=[("c", "n")], **arguments)
    with pytest.raises(ValueError, match="no column 'gone'"):
        FeatureTools().fit(frame, categorical=["gone"], crosses=[], **arguments)


def test_state_of_version_1_is_read() -> None:
    state = {
        "version": 1,
        "target": "y",
        "order": ["b", "a"],
        "classes": ["no", "yes"],
        "numerical": {"a": [0.0, 10.0]},
        "categorical": {"b": ["x", "y"]},
        "mixed": [],
        "crosses": [{"columns": ["b", "b"], "pairs": [[1, 1], [2, 2]]}],
    }
    features = FeatureTools.from_json(json.dumps(state).encode())
    row = decode_data(features, {"a": 5, "b": "y"})
    assert features.transform_rows([row]).tolist() == [[0.5, 2.0, 2.0]]
    again = FeatureTools.from_json(features.to_json())
    assert again.to_json() == features.to_json()
