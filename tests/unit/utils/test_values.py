"""What raw values mean: the table of the contract, and what must hold for any value."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.values import (
    NO_CLASS,
    NO_OUTCOME,
    UNKNOWN,
    BadValue,
    CategoryColumn,
    ClassCodes,
    Codes,
    DateColumn,
    Rules,
    Target,
    canonical_text,
    date_text,
    label_text,
    read_category,
    read_date,
    read_number,
    read_request_id,
)

RULES = Rules(missing=("", "?", "-999"))
COMMA = Rules(decimal=",")


@pytest.mark.parametrize(
    "value", [39, 39.0, "39", " 39 ", "39.0", "39.", "+39", "3.9e1", "039", "\t39\n", "\xa039"]
)
def test_a_number_may_be_written_in_many_ways(value: Any) -> None:
    assert read_number(value, RULES) == 39.0


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", " ", "?", " ? ", "NA", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>"),
        *(math.nan, math.inf, -math.inf, "Infinity", "-inf", "1e999", 10**400),
        *("-999", -999, -999.0, "-999.0"),
    ],
)
def test_what_is_missing_in_a_column_of_numbers(value: Any) -> None:
    assert math.isnan(read_number(value, RULES))


@pytest.mark.parametrize(
    "value",
    [
        "old",
        "1_000",
        "0x1f",
        "1,5",
        "39 years",
        "\u0663",
        "\uff13\uff19",
        "--5",
        "1e",
        True,
        "true",
        [39],
        {},
    ],
)
def test_anything_else_is_no_number(value: Any) -> None:
    with pytest.raises(BadValue) as error:
        read_number(value, RULES)
    assert len(str(error.value).splitlines()) == 1


def test_a_truth_value_is_a_number_only_among_0_and_1() -> None:
    for value, number in ((True, 1), ("True", 1), ("TRUE", 1), ("false", 0), (False, 0), ("1", 1)):
        assert read_number(value, RULES, truth=True) == number
    with pytest.raises(BadValue):
        read_number("yes", RULES, truth=True)


def test_the_unit_of_a_number_without_a_range_to_compare_with() -> None:
    for number in (1_700_049_600, 1_700_049_600_000, "1700049600000000", 1_700_049_600_000_000_000):
        assert read_date(number, RULES) == 1_700_049_600


def test_decimal_commas() -> None:
    with pytest.raises(BadValue):  # one thousand, or a bit more than one?
        read_number("1.470", COMMA)
    assert read_number("3.5", COMMA) == 3.5
    assert [read_number(text, COMMA) for text in ("3,14", " -1,5", "7", 3.14)] == [
        3.14,
        -1.5,
        7,
        3.14,
    ]


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70))
def test_a_number_and_its_text_are_the_same_float(value: float) -> None:
    assert read_number(str(value), Rules()) == read_number(value, Rules()) == float(value)
    assert read_number(f" {value!r}\n", Rules()) == float(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" Private ", "Private"),
        ("Caf\u0065\u0301", "Caf\u00e9"),
        ("\u2003Private", "Private"),
        (1, "1"),
        (1.0, "1"),
        ("1.0", "1"),
        ("+1", "1"),
        ("01067", "01067"),
        ("1e3", "1e3"),
        (1067, "1067"),
        (0.1, "0.1"),
        ("0.10", "0.1"),
        ("-0", "0"),
        (True, "true"),
        ("TRUE", "true"),
        ("NA", "NA"),
        ("?", None),
        (" ", None),
        (None, None),
        (math.nan, None),
        (-999, None),
        ("-999.0", None),
    ],
)
def test_the_canonical_form_of_a_category(value: Any, expected: str | None) -> None:
    assert read_category(value, RULES) == expected


@pytest.mark.parametrize("value", [[], {"a": 1}, "\ud800", "a\udc00"])
def test_what_is_no_category(value: Any) -> None:
    with pytest.raises(BadValue):
        read_category(value, RULES)


def test_what_pandas_takes_for_missing_is_no_category_by_default() -> None:
    assert [read_category(text, Rules()) for text in ("NA", "None", "nan", "?")] == [None] * 3 + [
        "?"
    ]


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans())
def test_label_has_the_same_text_from_file_and_message(value: float) -> None:
    text = str(value)
    assert label_text(value) == canonical_text(text) or "e" in text  # an exponent may be a code


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_reading_a_category_again_changes_nothing(text: str) -> None:
    once = read_category(text, RULES)
    assert read_category(once, RULES) == once


def test_codes_mark_what_is_unknown_missing_or_lenient() -> None:
    codes = Codes(["1", "Private", "café"], RULES)
    assert [codes[v] for v in ("Private", 1, 1.0, True)] == [2, 1, 1, UNKNOWN]
    assert [codes[v] for v in (" Private", "1.0", "cafe\u0301")] == [2.5, 1.5, 3.5]
    assert [codes[v] for v in (None, "?", "", "-999", "01", "private")] == [0, 0, 0, 0, -1, -1]
    assert len(codes) == 5  # nothing that was sent is kept


def test_codes_of_a_column_with_other_categories() -> None:
    column = CategoryColumn(name="job", categories=["false", "true"], other_share=0.1)
    codes = Codes(column.categories, RULES, column.other_code)
    assert [codes[v] for v in (True, " true", "maybe", 1, "1", None)] == [2, 2.5, 3, 3, 3, 0]


@pytest.mark.parametrize(
    ("names", "value", "code"),
    [
        (["false", "true"], 1, 2.5),
        (["false", "true"], "0", 1.5),
        (["0", "1"], True, 2.5),
        (["0", "1"], "False", 1.5),
        (["0", "1", "2"], True, UNKNOWN),
        (["false", "maybe", "true"], 1, UNKNOWN),
    ],
)
def test_truth_values_and_0_and_1_are_the_same_where_nothing_else_is(
    names: list[str], value: Any, code: float
) -> None:
    assert Codes(names, RULES)[value] == code


@pytest.mark.parametrize(
    ("classes", "value", "code"),
    [
        (["<=50K", ">50K"], "<=50K.", 0),
        (["<=50K", ">50K"], " <=50K", 0),
        (["<=50K", ">50K"], " >50K. ", 1),
        (["<=50K", ">50K"], ">50K..", NO_CLASS),
        (["<=50K", ">50K"], ">60K", NO_CLASS),
        (["<=50K", ">50K"], "?", NO_OUTCOME),
        (["<=50K", ">50K"], None, NO_OUTCOME),
        (["a", "a."], "a.", 1),
        (["0", "1"], 1, 1),
        (["0", "1"], 1.0, 1),
        (["0", "1"], "1", 1),
        (["0", "1"], "1.0", 1),
        (["0", "1"], "1.", 1),
        (["0", "1"], True, 1),
        (["0", "1"], "False", 0),
        (["false", "true"], "True", 1),
        (["false", "true"], 0, 0),
        (["None", "some"], "None", 0),
        (["01", "02"], "01", 0),
        (["01", "02"], 1, NO_CLASS),
    ],
)
def test_outcomes_follow_the_same_rules(classes: list[str], value: Any, code: int) -> None:
    assert ClassCodes(Target(name="y", classes=classes, suffix="."), RULES)[value] == code


def test_a_date_is_the_same_moment_in_every_notation() -> None:
    noon = 1_700_049_600.0  # 2023-11-15T12:00:00Z
    column = DateColumn(name="when", first=noon - 1e6, last=noon + 1e6, has_time=True)
    for value in (
        "2023-11-15T12:00:00Z",
        "2023-11-15 12:00",
        " 2023-11-15T12:00:00.000",
        "2023-11-15T12:00:00+00:00",
        "2023-11-15T13:00:00+01:00",
        "2023-11-15T07:00:00-0500",
        "2023-11-15T12:00:00.000000000",
        1_700_049_600,
        1_700_049_600_000,
        1_700_049_600_000_000_000,
    ):
        assert read_date(value, RULES, column) == noon, value
    assert read_date("2023-11-15", RULES) == noon - 43_200
    assert math.isnan(read_date("NaT", RULES)) and math.isnan(read_date("?", RULES))


@pytest.mark.parametrize(
    "value",
    [
        *("15.11.2023", "2023-13-01", "2023-02-30", "today", True, [], 1e30, -1e30, 1e308, "1e30"),
        *("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+01:00"),
    ],
)
def test_what_is_no_iso_date(value: Any) -> None:
    with pytest.raises(BadValue):
        read_date(value, RULES, DateColumn(name="d", first=0.0, last=1.0))


@given(st.integers(-(2**36), 2**36))
def test_a_date_survives_its_text(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert read_date(date_text(seconds, with_time=True), RULES) == seconds


def test_request_ids() -> None:
    assert [read_request_id(v, 9) for v in ("a", " ", 123, 123.0, 1.5)] == [
        "a",
        " ",
        "123",
        "123",
        "1.5",
    ]
    wrong: tuple[Any, ...] = (None, "", "a" * 10, True, [], {}, math.nan, "\ud800")
    for value in wrong:
        with pytest.raises(BadValue, match=r"request_id|Unicode"):
            read_request_id(value, 9)
