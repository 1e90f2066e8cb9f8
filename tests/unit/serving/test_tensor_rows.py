"""Rows of tensors become the messages that an application would send."""

import json
import struct
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serving.errors import BadBody, TooLarge
from serving.tensor_answers import OUTPUTS
from serving.tensor_rows import Asked, read_request
from utils.feature_tools import FeatureTools
from utils.model_store import Bundle


@pytest.fixture
def features(bundle: Bundle) -> FeatureTools:
    return bundle.features


def tensor(name: str, data: list[Any], datatype: str = "FP64", **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data, **more}


def read(features: FeatureTools, *inputs: dict[str, Any], **more: Any) -> Asked:
    return read_request(json.dumps({"inputs": inputs, **more}).encode(), "", features, 100)


def data_of(asked: Asked) -> list[Any]:
    """The data of each row's message; the fault where there is none."""
    return [
        row.fault if row.message is None else json.loads(row.message)["data"] for row in asked.rows
    ]


def test_each_row_is_a_message(features: FeatureTools) -> None:
    asked = read(
        features,
        tensor("age", [[39], [None]], "INT64", shape=[2, 1]),
        tensor("colour", ["red", "1"], "BYTES"),
        tensor("kind", [True, False], "BOOL"),
    )
    assert data_of(asked) == [
        {"age": 39, "colour": "red", "kind": True},
        {"age": None, "colour": "1", "kind": False},
    ]
    assert asked.outputs == dict.fromkeys(OUTPUTS, False)


def test_null_nan_and_infinity_are_missing(features: FeatureTools, bundle: Bundle) -> None:
    asked = read(features, tensor("age", [None, float("nan"), float("inf")]))
    rows = [bundle.decoder(row.message).data for row in asked.rows]
    assert [features.row_values(row)[1] for row in rows] == [None] * 3


def test_a_fault_is_that_of_its_row(features: FeatureTools) -> None:
    asked = read(
        features,
        tensor("age", [1, "old", "old"]),
        tensor("colour", ["red", "red", 7], "BYTES"),
    )
    assert data_of(asked) == [
        {"age": 1, "colour": "red"},
        "age: 'old' is no FP64",
        "age: 'old' is no FP64; colour: 7 is no BYTES",
    ]


def test_half_of_a_pair_is_left_to_the_decoder(features: FeatureTools) -> None:
    body = (
        rb'{"inputs": [{"name": "colour", "datatype": "BYTES", "shape": [1], "data": ["\ud800"]}]}'
    )
    (row,) = read_request(body, "", features, 1).rows
    assert row.message is not None and rb"\ud800" in row.message


@pytest.mark.parametrize(
    "body",
    [
        rb'{"inputs": [{"name": "\ud800", "datatype": "BOOL", "shape": [1], "data": ["a"]}]}',
        rb'{"inputs": [], "id": "\ud800"}',
        rb'{"inputs": [], "parameters": {"\ud800": 1}}',
    ],
)
def test_half_of_a_pair_is_no_name(features: FeatureTools, body: bytes) -> None:
    with pytest.raises(BadBody, match=r"valid Unicode|surrogates not allowed|no inputs"):
        read_request(body, "", features, 1)


def ids(asked: Asked) -> list[str]:
    return [row.request_id for row in asked.rows]


def test_request_ids(features: FeatureTools) -> None:
    one, two = tensor("age", [1]), tensor("age", [1, 2])
    assert ids(read(features, one, id="a")) == ["a"]
    assert ids(read(features, two, id="a")) == ["a-0", "a-1"]
    given = tensor("request_id", ["x", None], "BYTES")
    assert ids(read(features, two, given, id="a")) == ["x", "a-1"]
    assert ids(read(features, one, tensor("request_id", [7], "INT64"))) == ["7"]
    new = ids(read(features, two)) + ids(read(features, two, id=None))
    assert len(set(new)) == 4 and all(new)
    assert data_of(read(features, two, given)) == [{"age": 1}, {"age": 2}]


def test_a_repeated_request_is_the_same_rows(features: FeatureTools) -> None:
    sent = [tensor("age", [1, None], "INT64"), tensor("colour", ["red", ""], "BYTES")]
    assert read(features, *sent, id="a").rows == read(features, *sent, id="a").rows


def test_a_request_id_that_is_none(features: FeatureTools) -> None:
    asked = read(features, tensor("age", [1, 1]), tensor("request_id", ["", 7], "BYTES"))
    assert [row.fault for row in asked.rows] == ["request_id is empty", "request_id: 7 is no BYTES"]
    assert all(ids(asked))


def numbers_alone() -> FeatureTools:
    frame = pd.DataFrame({"a": [0.0, 1.0], "b": [2.0, 3.0]})
    return FeatureTools().fit(
        frame, target="y", numerical=["a", "b"], categorical=[], crosses=[], classes=["n", "y"]
    )


def test_one_matrix_if_all_columns_are_numbers(features: FeatureTools) -> None:
    matrix = tensor("input-0", [[1, 2], [3, "x"], [5, 6]], "FP32", shape=[3, 2])
    assert data_of(read(numbers_alone(), matrix)) == [
        {"a": 1, "b": 2},
        "b: 'x' is no FP32",
        {"a": 5, "b": 6},
    ]
    with pytest.raises(BadBody, match="all 4 columns will do only if all are numbers"):
        read(features, tensor("input-0", [1, 2, 3, 4], shape=[1, 4]))
    with pytest.raises(BadBody, match="all 2 columns"):
        read(numbers_alone(), tensor("input-0", [1, 2, 3], shape=[1, 3]))


def test_binary_data_follows_the_json(features: FeatureTools) -> None:
    ages = np.array([1, 2], "<i2").tobytes()
    colours = b"".join(struct.pack("<I", len(text)) + text for text in (b"red", b""))
    inputs = [
        {"name": "age", "datatype": "INT16", "parameters": {"binary_data_size": 4}},
        tensor("size", [0.5, 1.5]),
        {"name": "colour", "datatype": "BYTES", "parameters": {"binary_data_size": len(colours)}},
    ]
    head = json.dumps({"inputs": [{"shape": [2], **one} for one in inputs]}).encode()
    asked = read_request(head + ages + colours, str(len(head)), features, 100)
    assert data_of(asked) == [
        {"age": 1, "size": 0.5, "colour": "red"},
        {"age": 2, "size": 1.5, "colour": ""},
    ]
    for size in ("-1", "x", str(len(head) + 100)):
        with pytest.raises(BadBody, match="JSON of"):
            read_request(head, size, features, 100)
    with pytest.raises(BadBody, match="the last 1 bytes"):
        read_request(head + ages + colours + b"x", str(len(head)), features, 100)


def test_outputs_that_are_asked_for(features: FeatureTools) -> None:
    one = tensor("age", [1])
    wanted = [{"name": "label", "parameters": {"binary_data": False}}, {"name": "probability"}]
    asked = read(features, one, outputs=wanted, parameters={"binary_data_output": True})
    assert asked.outputs == {"label": False, "probability": True}
    nothing = read(features, one, outputs=None, parameters=None)
    assert nothing.outputs == dict.fromkeys(OUTPUTS, False)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({}, "missing required field `inputs`"),
        ({"inputs": []}, "no inputs"),
        ({"inputs": [tensor("age", [1], shape=[])]}, r"where \[rows\] or"),
        ({"inputs": [tensor("age", [1], shape=[1, 1, 1])]}, r"where \[rows\] or"),
        ({"inputs": [tensor("age", [1], shape=[-1])]}, ">= 0"),
        ({"inputs": [tensor("age", [1]), tensor("age", [1])]}, "stands twice"),
        ({"inputs": [tensor("age", [1]), tensor("size", [1, 2])]}, "1 of 'age', 2 of 'size'"),
        ({"inputs": [tensor("age", [1])], "outputs": [{"name": "x"}]}, "there is no output 'x'"),
        (
            {
                "inputs": [tensor("age", [1])],
                "outputs": [{"name": "label", "parameters": {"classification": 2}}],
            },
            "classification is not supported",
        ),
    ],
)
def test_requests_of_no_use(features: FeatureTools, request_: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadBody, match=reason):
        read_request(json.dumps(request_).encode(), "", features, 100)


def test_what_is_no_json(features: FeatureTools) -> None:
    nested = b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": ' + b"[" * 9_999
    for content in (b"", b"{", b"\xff", nested):
        with pytest.raises(BadBody, match="cannot be read"):
            read_request(content, "", features, 100)


@pytest.mark.parametrize("size", ["3", "-1", "x", "1" * 5_000])
def test_a_size_of_the_json_that_cannot_be(features: FeatureTools, size: str) -> None:
    with pytest.raises(BadBody, match="in a body of 2 bytes"):
        read_request(b"{}", size, features, 100)


def test_too_many_rows_are_refused_before_they_are_read(features: FeatureTools) -> None:
    with pytest.raises(TooLarge, match=r"100 rows \(\[serving\] max_rows\), not 1000000000"):
        read(features, tensor("age", [1], shape=[1_000_000_000]))
