"""Bodies of requests become the messages that an application would send."""

import json
from typing import Any

import pytest

from serving.bodies import CSV, JSON, JSON_LINES, Body, read_body, read_type
from serving.errors import BadBody
from tests.unit.utils.model_store.samples import make_draft
from utils.feature_tools import FeatureTools


@pytest.fixture(scope="module")
def features() -> FeatureTools:
    return make_draft().features


def read(features: FeatureTools, content: str | bytes, kind: str, request_id: str = "") -> Body:
    raw = content if isinstance(content, bytes) else content.encode()
    return read_body(raw, read_type(kind), features, request_id)


def sent(body: Body) -> list[Any]:
    """The data of each row's message; the fault where there is none."""
    return [
        row.fault if row.message is None else json.loads(row.message)["data"] for row in body.rows
    ]


def test_one_row_or_message_is_single(features: FeatureTools) -> None:
    name = next(iter(features.types))
    row = read(features, json.dumps({name: 1}), JSON)
    assert row.is_single and sent(row) == [{name: 1}]
    message = read(features, json.dumps({"request_id": 7, "data": {name: 1}}), JSON)
    assert message.is_single and message.rows[0].request_id == "7"
    assert json.loads(message.rows[0].message or b"") == {"request_id": "7", "data": {name: 1}}


def test_a_row_may_carry_its_request_id(features: FeatureTools) -> None:
    name = next(iter(features.types))
    (row,) = read(features, json.dumps({name: 1, "request_id": "x"}), JSON).rows
    assert row.request_id == "x"


@pytest.mark.parametrize("wrapped", ['{"instances": %s}', "%s"])
def test_several_rows(features: FeatureTools, wrapped: str) -> None:
    name = next(iter(features.types))
    rows = json.dumps([{name: 1}, {"request_id": "x", "data": {name: 2}}, 5, [1]])
    body = read(features, wrapped % rows, JSON)
    assert not body.is_single
    assert sent(body) == [
        {name: 1},
        {name: 2},
        "5 is no JSON object",
        "several rows where one belongs",
    ]
    assert body.rows[1].request_id == "x"
    assert len({row.request_id for row in body.rows}) == 4


@pytest.mark.parametrize("row", ['{"n": NaN}', '{"data": {"n": NaN}}', '\ufeff{"n": -Infinity}'])
def test_what_only_python_writes_is_passed_on(features: FeatureTools, row: str) -> None:
    (alone,) = read(features, row, JSON).rows
    (first, second) = read(features, f'[{{"n": 1}}, {row.lstrip(chr(0xFEFF))}]', JSON).rows
    assert alone.message is not None and second.message is not None
    assert (b"NaN" in alone.message) or (b"-Infinity" in alone.message)
    assert first.message is not None and b'"data":{"n": 1}' in first.message


def test_each_line_is_read_alone(features: FeatureTools) -> None:
    body = read(features, '{"n": 1}\r\n\n{"n":\n{"n": 2}\n', JSON_LINES)
    assert [row.message is not None for row in body.rows] == [True, False, True]
    assert "cannot be read" in body.rows[1].fault


def test_csv_with_and_without_names(features: FeatureTools) -> None:
    names = list(features.types)
    line = ",".join(["1"] * len(names))
    assert sent(read(features, line, CSV)) == [dict.fromkeys(names, "1")]
    with_names = read(features, f"request_id,extra,{','.join(names)}\na,b,{line}\n", CSV)
    assert with_names.has_header and with_names.rows[0].request_id == "a"
    assert sent(with_names) == [{"extra": "b"} | dict.fromkeys(names, "1")]
    # A first line that looks like names is data if the client says so.
    data = read(features, ",".join(names), "text/csv; header=absent")
    assert sent(data) == [dict(zip(names, names, strict=True))]


def test_csv_lines_of_another_length(features: FeatureTools) -> None:
    names = list(features.types)
    body = read(features, f"{','.join(names)}\n1\n", CSV)
    assert f"1 values for {len(names)} columns" in body.rows[0].fault


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b" ", JSON, "is empty"),
        (b"\xef\xbb\xbf", CSV, "no line"),
        (b"{", JSON, "cannot be read"),
        (b"3", JSON, "no JSON object"),
        (b'{"a":' * 5_000, JSON, "cannot be read"),
        (b'a,"b', CSV, "cannot be read"),
        (b"\xff", CSV, "cannot be read"),
        (b"a", "text/csv; charset=fnord", "cannot be read"),
        (b"a", "text/csv; charset=undefined", "cannot be read"),
        (b"+2AA-", "text/csv; charset=utf-7", "cannot be read"),  # half of a surrogate pair
        (b"fnord\n1", "text/csv; header=present", "none of the columns"),
    ],
)
def test_bodies_of_no_use(features: FeatureTools, content: bytes, kind: str, reason: str) -> None:
    with pytest.raises(BadBody, match=reason):
        read(features, content, kind)


def test_a_name_that_stands_twice(features: FeatureTools) -> None:
    name = next(iter(features.types))
    with pytest.raises(BadBody, match="twice"):
        read(features, f"{name},{name}\n1,2", "text/csv; header=present")


def test_the_id_of_a_header_names_the_rows_in_order(features: FeatureTools) -> None:
    assert read(features, '{"n": 1}', JSON, "k").rows[0].request_id == "k"
    rows = read(features, '{"n": 1}\n{"n": 2}', JSON_LINES, "k").rows
    assert [row.request_id for row in rows] == ["k-0", "k-1"]


@pytest.mark.parametrize("given", ['""', "true", "[1]", '"\\ud800"', "NaN", "9" * 5_000])
def test_a_request_id_that_is_none(features: FeatureTools, given: str) -> None:
    (row,) = read(features, f'{{"request_id": {given}, "data": {{"n": 1}}}}', JSON).rows
    assert row.message is None and row.fault
