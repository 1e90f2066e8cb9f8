"""Answers as outputs of the Open Inference Protocol."""

import json
import math
from typing import Any

import numpy as np
import pytest

from serving.errors import BadBody
from serving.rows import Answer, Refusal
from serving.tensor_answers import OUTPUTS, encode, metadata
from serving.tensor_rows import Asked
from utils.messages import Prediction
from utils.model_store import Bundle

GOOD = Prediction("a", 1, "yes", 0.1 + 0.2, 3)
BAD = Refusal("b", "age: 'old' is no number", 3)
ALL = dict.fromkeys(OUTPUTS, False)


def outputs(*answers: Answer) -> dict[str, Any]:
    body = encode(answers, "kinds", Asked("", [], ALL))
    return {one["name"]: one for one in json.loads(body.content)["outputs"]}


def test_a_row_without_a_prediction_has_its_reason() -> None:
    found = outputs(GOOD, BAD)
    assert {name: one["data"] for name, one in found.items()} == {
        "probability": [0.30000000000000004, None],
        "prediction": [1, -1],
        "label": ["yes", ""],
        "request_id": ["a", "b"],
        "model_id": [3, 3],
        "error": ["", "age: 'old' is no number"],
    }
    assert {name: one["datatype"] for name, one in found.items()} == OUTPUTS
    assert all(one["shape"] == [2] for one in found.values())


def test_several_classes_have_a_column_each() -> None:
    found = outputs(BAD, Prediction("a", 2, "c", [0.25, 0.25, 0.5], 3))["probability"]
    assert found["shape"] == [2, 3]
    assert found["data"] == [None, None, None, 0.25, 0.25, 0.5]


def test_no_row_could_be_scored() -> None:
    with pytest.raises(BadBody, match=r"^age: 'old' is no number$"):
        outputs(BAD)
    with pytest.raises(BadBody, match=r"none of the 5 rows can be scored: row 0: age.*; row 2: .*"):
        outputs(*[BAD] * 5)


def test_the_version_is_that_of_all_answers() -> None:
    asked = Asked("r1", [], {"model_id": False})
    body = json.loads(encode([GOOD], "kinds", asked).content)
    assert (body["model_name"], body["model_version"], body["id"]) == ("kinds", "3", "r1")
    later = Prediction("b", 1, "yes", 0.5, 4)
    mixed = json.loads(encode([GOOD, later], "kinds", asked).content)
    assert "model_version" not in mixed and mixed["outputs"][0]["data"] == [3, 4]


def test_binary_outputs_follow_the_json_in_their_order() -> None:
    asked = Asked("", [], {"label": True, "prediction": False, "probability": True})
    body = encode([GOOD, BAD], "kinds", asked)
    assert body.kind == "application/octet-stream"
    size = int(body.headers["inference-header-content-length"])
    label, prediction, probability = json.loads(body.content[:size])["outputs"]
    assert prediction["data"] == [1, -1] and "data" not in label
    split = size + label["parameters"]["binary_data_size"]
    assert body.content[size:split] == b"\x03\0\0\0yes\0\0\0\0"
    first, second = np.frombuffer(body.content[split:], "<f8")
    assert first == 0.1 + 0.2 and math.isnan(second)
    assert probability["parameters"]["binary_data_size"] == 16


def test_metadata(bundle: Bundle, three_classes: Bundle) -> None:
    found: Any = metadata("kinds", bundle)
    assert found["versions"] == ["1"]
    assert [(one["name"], one["datatype"], one["shape"]) for one in found["inputs"]] == [
        ("size", "FP64", [-1]),
        ("age", "FP64", [-1]),
        ("colour", "BYTES", [-1]),
        ("shape", "BYTES", [-1]),
    ]
    assert {one["name"]: one["datatype"] for one in found["outputs"]} == OUTPUTS
    several: Any = metadata("kinds", three_classes)
    assert [one["shape"] for one in several["outputs"]] == [[-1, 3], *[[-1]] * 5]
