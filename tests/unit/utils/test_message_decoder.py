"""Messages and outcomes as applications write them: the strict and the lenient reading."""

import json
import math
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.feature_tools import FeatureTools
from utils.message_decoder import MessageDecoder, OutcomeDecoder, request_id_of
from utils.messages import BadRecord
from utils.value_counts import new_tally, shares
from utils.values import Rules

DAY = 86_400.0
FIRST = 1_699_920_000.0  # 2023-11-14, a Tuesday


def make_features() -> FeatureTools:
    frame = pd.DataFrame(
        {
            "age": [20.0, 40.0, 30.0],
            "flag": [0.0, 1.0, 1.0],
            "day": [FIRST, FIRST + DAY, FIRST + 3600],
            "job": ["cook", "smith", "café"],
            "zip": ["01067", "80331", "1"],
        }
    )
    return FeatureTools().fit(
        frame,
        target="y",
        numerical=["age", "flag"],
        dates=["day"],
        categorical=["job", "zip"],
        crosses=[("job", "zip")],
        classes=["no", "yes"],
        rules=Rules(missing=("", "?")),
        suffix=".",
    )


FEATURES = make_features()
DECODE = MessageDecoder(FEATURES)
PLAIN = {"age": 39, "flag": 1, "day": "2023-11-15T01:00:00", "job": "cook", "zip": "01067"}


def encode(data: Any, request_id: Any = "a") -> bytes:
    return json.dumps({"request_id": request_id, "data": data}).encode()


def features_of(value: bytes) -> bytes:
    return FEATURES.transform_rows([DECODE(value).data]).tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"age": "39"},
        {"age": " 39.0 "},
        {"flag": True},
        {"flag": "true"},
        {"flag": "1"},
        {"day": "2023-11-15 02:00:00+01:00"},
        {"day": 1_700_010_000},
        {"day": 1_700_010_000_000},
        {"job": " cook "},
        {"zip": "01067 "},
        {name: str(value) for name, value in PLAIN.items()},
        {"unheard of": [{"a": math.nan}]},
    ],
)
def test_other_notations_give_the_same_features(changes: dict[str, Any]) -> None:
    assert features_of(encode(PLAIN | changes)) == features_of(encode(PLAIN))


@pytest.mark.parametrize("name", [*PLAIN])
@pytest.mark.parametrize("value", [None, "", " ", "?", math.nan, math.inf, -math.inf])
def test_what_is_missing_is_the_same_as_null(name: str, value: Any) -> None:
    assert features_of(encode(PLAIN | {name: value})) == features_of(encode(PLAIN | {name: None}))
    absent = {key: kept for key, kept in PLAIN.items() if key != name}
    assert features_of(encode(absent)) == features_of(encode(PLAIN | {name: None}))


def test_unicode_in_another_normal_form_is_the_same_category() -> None:
    assert features_of(encode({"job": "cafe\u0301"})) == features_of(encode({"job": "caf\u00e9"}))


def test_a_leading_zero_makes_another_category() -> None:
    tally = new_tally(FEATURES)
    rows = [DECODE(encode({"zip": value})).data for value in ("1067", 1067, 1, "01067")]
    codes = FEATURES.transform_rows(rows, tally)[:, FEATURES.feature_names.index("zip")]
    assert codes.tolist() == [0, 0, 2, 1]
    assert shares(4, tally, FEATURES.columns).unknown == {"zip": 0.5}


def test_dates_become_days_weekday_and_hour() -> None:
    names = ["day (days)", "day (weekday)", "day (hour)"]
    assert FEATURES.feature_names[2:5] == tuple(names)
    row = FEATURES.transform_rows([DECODE(encode(PLAIN)).data])[0]
    np.testing.assert_allclose(row[2:5], [1.0, 2 / 6, 1 / 23])  # Wednesday, one o'clock
    with_frame = FEATURES.transform(pd.DataFrame({"day": [FIRST + DAY + 3600]}))[0]
    assert with_frame[2:5].tobytes() == row[2:5].tobytes()


def test_rejection_names_every_column_at_fault_and_what_was_sent() -> None:
    data = PLAIN | {"age": "old", "flag": [1], "job": {"a": 1}, "day": "tomorrow"}
    with pytest.raises(BadRecord) as error:
        DECODE(encode(data, request_id=None))
    reason = str(error.value)
    for part in (
        "request_id is missing",
        "age: 'old' is no number",
        "flag: [1] is nested",
        "job: {'a': 1} is nested",
        "day: 'tomorrow' is no ISO date",
    ):
        assert part in reason
    assert len(reason.splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "tombstone"),
        (b"", "."),
        (b"{", "."),
        (b"\xff", "."),
        (b"[1]", "no JSON object"),
        (encode(PLAIN, request_id=""), "request_id is empty"),
        (encode(PLAIN, request_id=True), "request_id True"),
        (b'{"request_id": "a"}', "data is missing"),
        (encode([]), r"data \[\] is no object"),
        (encode({}), "none of the known columns in data, which has nothing"),
        (encode({"Age": 1}), "none of the known columns in data, which has 'Age'"),
        (b'{"request_id": "a", "data": {"job": "\\ud800"}}', "job: .* Unicode"),
        (b'{"request_id": "\\ud800", "data": {"age": 1}}', "Unicode"),
        (b"[" * 100_000, "."),
    ],
)
def test_rubbish_is_rejected_with_a_clear_reason(value: bytes | None, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason) as error:
        DECODE(value)
    assert len(str(error.value).splitlines()) == 1


def test_a_thousand_columns_at_fault_fit_into_a_reason() -> None:
    names = [f"column {n}" for n in range(1_000)]
    frame = pd.DataFrame({name: [1.0, 2.0] for name in names})
    features = FeatureTools().fit(
        frame, target="y", numerical=names, categorical=[], crosses=[], classes=["no", "yes"]
    )
    with pytest.raises(BadRecord) as error:
        MessageDecoder(features)(encode(dict.fromkeys(names, "x" * 500)))
    assert len(str(error.value)) <= 8_000


@pytest.mark.parametrize(("sent", "request_id"), [(123, "123"), (1.0, "1"), (1e3, "1000")])
def test_a_number_is_a_request_id(sent: Any, request_id: str) -> None:
    assert DECODE(encode(PLAIN, sent)).request_id == request_id
    assert request_id_of(encode(PLAIN, sent)) == request_id


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["39", " cook", "?", "1970-01-05", "1970-01-05T10:00", "01067", "yes."]),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*PLAIN, "y", "more"]), json_values))
def test_both_readings_give_the_same_where_both_succeed(data: dict[str, Any]) -> None:
    value = encode(data)
    try:
        strict = DECODE._decode(value).data
    except msgspec.MsgspecError:
        return
    try:
        lenient = DECODE._read_leniently(value, ValueError("strict"), None).data
    except BadRecord:
        return  # a date that is none, or text that is not valid Unicode
    assert FEATURES.row_values(strict) == FEATURES.row_values(lenient)
    assert FEATURES.class_codes[strict.outcome] == FEATURES.class_codes[lenient.outcome]
    by_both = [FEATURES.transform_rows([row]).tobytes() for row in (strict, lenient)]
    assert by_both[0] == by_both[1]


def test_every_value_is_counted_as_one_kind() -> None:
    tally = new_tally(FEATURES)
    sent = [
        {"age": 39, "flag": True, "day": "2023-11-14", "job": "pilot", "zip": "80331"},
        {"age": "39", "flag": math.nan, "day": 0, "job": " cook", "zip": 1},
        {"age": None, "flag": "0", "job": "?", "zip": "01"},
    ]
    lenient = [0] * len(FEATURES.columns)
    rows = [DECODE(encode(data), lenient).data for data in sent]
    tally[2] += lenient
    FEATURES.transform_rows(rows, tally)
    found = shares(3, tally, FEATURES.columns)
    third = pytest.approx(1 / 3, abs=1e-6)
    assert found.missing == {"age": third, "flag": third, "day": third, "job": third}
    assert found.unknown == {"job": third, "zip": third}
    assert found.lenient == {
        "age": third,
        "flag": pytest.approx(2 / 3, abs=1e-6),
        "day": third,
        "job": third,
    }


def test_values_of_a_rejected_message_are_not_counted() -> None:
    lenient = [0] * len(FEATURES.columns)
    with pytest.raises(BadRecord):
        DECODE(encode({"age": "39", "job": [1]}), lenient)
    assert not any(lenient)


# Outcomes

OUTCOME = OutcomeDecoder(FEATURES)


@pytest.mark.parametrize("sent", ["yes", " yes", "yes.", "yes. "])
def test_outcome_is_read_by_the_same_rules(sent: str) -> None:
    value = json.dumps({"request_id": 7, "outcome": sent}).encode()
    assert OUTCOME(value) == ("7", "yes")
    assert FEATURES.class_codes[DECODE(encode(PLAIN | {"y": sent})).data.outcome] == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"request_id": "a", "outcome": "maybe"}', "outcome 'maybe' is none of the classes 'no'"),
        (b'{"request_id": "a", "outcome": ["yes"]}', "none of the classes"),
        (b'{"request_id": "a", "outcome": null}', "outcome is missing"),
        (b'{"request_id": "a", "outcome": "?"}', "outcome is missing"),
        (b'{"request_id": "a", "outcome": NaN}', "outcome is missing"),
        (b'{"request_id": "a"}', "outcome is missing"),
        (b'{"outcome": "yes"}', "request_id is missing"),
        (None, "tombstone"),
        (b"yes", "."),
    ],
)
def test_an_outcome_of_no_class_is_rejected(value: bytes | None, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        OUTCOME(value)


def test_a_message_is_scored_whatever_its_outcome_is() -> None:
    for outcome in ("maybe", ["yes"], {"a": 1}, math.nan, "\ud800", 3):
        row = DECODE(encode(PLAIN | {"y": outcome})).data
        assert FEATURES.class_codes[row.outcome] < 0
        assert features_of(encode(PLAIN | {"y": outcome})) == features_of(encode(PLAIN))


@pytest.mark.parametrize(
    ("value", "request_id"),
    [
        (b'{"request_id": "a", "data": {"age": "text"}}', "a"),
        (b'{"request_id": 1}', "1"),
        (b'{"request_id": "a", "data": {"age": NaN', "a"),
        (b'{"data": {"request_id": "inner"}, "request_id": "outer", "x": NaN}', "outer"),
        (b'{"request_id": "\\u0061\\"b", ', 'a"b'),
        (b'{"request_id": null', None),
        (b'{"request_id": ""}', None),
        (b"{", None),
        (b'"request_id"', None),
        (None, None),
    ],
)
def test_request_id_is_read_from_unusable_records_too(
    value: bytes | None, request_id: str | None
) -> None:
    assert request_id_of(value) == request_id
