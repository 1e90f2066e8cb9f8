"""Answers in the types that clients accept."""

import csv
import io

import pytest

from serving.answers import Shape, choose_type, encode, status_of
from serving.bodies import CSV, JSON, JSON_LINES
from serving.errors import NotAcceptable
from serving.rows import Refusal
from utils.messages import Prediction

GOOD = Prediction("a", 1, "x,y", 0.1 + 0.2, 3)
BAD = Refusal("b", 'no "number"', 3)


@pytest.mark.parametrize(
    ("accept", "sent", "chosen"),
    [
        ("", CSV, (CSV, True)),
        ("*/*", JSON_LINES, (JSON_LINES, True)),
        ("application/*", CSV, (JSON, True)),
        ("text/*;q=0.2, application/jsonlines;q=0.7", JSON, (JSON_LINES, True)),
        ("application/x-ndjson", JSON, (JSON_LINES, True)),
        ("text/csv;header=absent, */*;q=0.1", JSON, (CSV, False)),
        ("image/png, application/json;q=0.1", CSV, (JSON, True)),
    ],
)
def test_the_type_that_is_accepted(accept: str, sent: str, chosen: tuple[str, bool]) -> None:
    assert choose_type(accept, sent) == chosen


@pytest.mark.parametrize("accept", ["image/png", "application/json;q=0"])
def test_no_type_that_is_accepted(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        choose_type(accept, JSON)


def test_csv_keeps_every_bit_and_quotes() -> None:
    text = encode([GOOD, BAD], Shape(CSV, ["n", "x,y"])).decode()
    names, good, bad = csv.reader(io.StringIO(text))
    assert names == ["request_id", "prediction", "label", "probability", "model_id", "error"]
    assert good == ["a", "1", "x,y", "0.30000000000000004", "3", ""]
    assert bad == ["b", "", "", "", "3", 'no "number"']


def test_csv_of_several_classes_has_a_column_for_each() -> None:
    answer = Prediction("a", 2, "c", [0.25, 0.25, 0.5], 1)
    text = encode([answer, BAD], Shape(CSV, ["a", "b", "c"])).decode()
    names, good, bad = csv.reader(io.StringIO(text))
    assert names[3:6] == ["probability_a", "probability_b", "probability_c"]
    assert good[3:6] == ["0.25", "0.25", "0.5"] and bad[3:6] == ["", "", ""]


def test_json_answers_one_row_by_one_object() -> None:
    assert encode([BAD], Shape(JSON, [], single=True)) == (
        b'{"request_id":"b","error":"no \\"number\\"","model_id":3}'
    )
    assert encode([BAD], Shape(JSON, [])).startswith(b'{"predictions":[{')


def test_the_status_is_an_error_if_no_row_was_scored() -> None:
    found: list[list[Prediction | Refusal]] = [[GOOD, BAD], [BAD], []]
    assert list(map(status_of, found)) == [200, 400, 200]
