"""The OpenAPI document."""

import dataclasses
import json
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from openapi_spec_validator import validate

from serving.openapi import Place, document, encode
from tests.unit.serving.conftest import Client, ClientOf
from utils.feature_tools import FeatureTools
from utils.message_decoder import MessageDecoder
from utils.model_store import Bundle
from utils.model_store.manifest import GoldenRow
from utils.settings import Serving
from utils.values import Label, Rules

PLACE = Place("http://127.0.0.1:8080", "kinds")


def built(bundle: Bundle, **limits: object) -> Any:
    """The document, which is a valid one."""
    found: Any = json.loads(encode(document(bundle, PLACE, Serving.model_validate(limits))))
    validate(found)
    return found


def bodies(found: Any) -> list[tuple[str, str, Any]]:
    """Path, type and value of each example of a body."""
    return [
        (path.replace("{version}", "1"), kind, example["value"])
        for path, item in found["paths"].items()
        for kind, one in item.get("post", {}).get("requestBody", {}).get("content", {}).items()
        for example in one.get("examples", {}).values()
    ]


def send(client: Client, path: str, kind: str, value: Any) -> httpx.Response:
    content = value if isinstance(value, str) else json.dumps(value)
    return client.post(path, content=content.encode(), headers={"content-type": kind})


@pytest.mark.parametrize("name", ["bundle", "three_classes"])
def test_every_example_gets_predictions(
    client_of: ClientOf, request: pytest.FixtureRequest, name: str
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    client = client_of(bundle)
    found = client.get("/openapi.json").json()
    validate(found)
    sent = bodies(found)
    assert len(sent) == 7
    for path, kind, value in sent:
        answer = send(client, path, kind, value)
        assert answer.status_code == 200, (kind, answer.text)
        assert answer.headers["content-type"].startswith(kind)
        # The first golden row without a gap, whose probability the manifest knows.
        expected = np.ravel(bundle.manifest.golden[0].probability)[0]
        assert repr(float(expected)) in answer.text


def test_every_route_is_described(client_of: ClientOf, bundle: Bundle) -> None:
    client = client_of(bundle)
    for path, item in built(bundle)["paths"].items():
        for method in set(item) - {"parameters"}:
            answer = client.get(path.replace("{version}", "1"))
            assert answer.status_code == (405 if method == "post" else 200), path


def test_a_row_has_the_columns_of_the_model(bundle: Bundle) -> None:
    row = built(bundle)["components"]["schemas"]["Row"]["properties"]
    assert list(row) == ["size", "age", "colour", "shape", "kind"]
    assert row["age"]["type"] == ["number", "string", "null"]
    assert "in training 1 to 89" in row["age"]["description"]
    assert row["colour"]["examples"] == ["blue", "green", "red"]
    assert row["kind"]["examples"] == ["class 0", "class 1"]


def test_probability_is_one_number_or_one_for_each_class(
    bundle: Bundle, three_classes: Bundle
) -> None:
    def probability(found: Any) -> Any:
        return found["components"]["schemas"]["Prediction"]["properties"]["probability"]

    assert probability(built(bundle))["type"] == "number"
    several = probability(built(three_classes))
    assert (several["type"], several["minItems"], several["maxItems"]) == ("array", 3, 3)


def test_what_only_the_way_through_kafka_has(bundle: Bundle) -> None:
    here, logged = built(bundle), built(bundle, log=True)
    assert "/outcomes" not in here["paths"] and "504" not in here["components"]["responses"]
    assert "/outcomes" in logged["paths"]
    responses = logged["paths"]["/invocations"]["post"]["responses"]
    assert responses["504"] == {"$ref": "#/components/responses/504"}


def test_the_limits_are_those_of_the_settings(bundle: Bundle) -> None:
    found = built(bundle, max_rows=17, timeout=2.5)
    assert "17 rows" in found["info"]["description"]
    assert "2.5 seconds" in found["components"]["responses"]["408"]["description"]


def test_command_lines_quote_names_and_values(bundle: Bundle) -> None:
    place = Place("http://127.0.0.1:8080", "it's /odd")
    found: Any = document(bundle, place, Serving())
    (sample,) = found["paths"]["/v2/models/it%27s%20%2Fodd/infer"]["post"]["x-codeSamples"]
    assert "http://127.0.0.1:8080/v2/models/it%27s%20%2Fodd/infer" in sample["source"]


def other_columns(bundle: Bundle, rows: list[dict[str, Label | None]], rules: Rules) -> Bundle:
    """A bundle with a date, truth values, and categories that are numbers or quoted."""
    frame = pd.DataFrame(
        {
            "when": [0.0, 86_400.0],
            "member": [0.0, 1.0],
            "price": [1.5, 2.5],
            "code": ["007", "it's"],
        }
    )
    features = FeatureTools().fit(
        frame,
        target="y",
        numerical=["member", "price"],
        dates=["when"],
        categorical=["code"],
        crosses=[],
        classes=["n", "y"],
        rules=rules,
    )
    golden = [GoldenRow(row, 0.5) for row in rows]
    manifest = type(bundle.manifest)(
        **{
            **{f: getattr(bundle.manifest, f) for f in bundle.manifest.__struct_fields__},
            "golden": golden,
        }
    )
    return dataclasses.replace(bundle, features=features, manifest=manifest)


@pytest.mark.parametrize("decimal", [".", ","])
def test_other_types_of_columns(bundle: Bundle, decimal: str) -> None:
    rows: list[dict[str, Label | None]] = [
        {"when": None, "code": "007"},
        {"when": "1970-01-02", "member": True, "price": 1.5, "code": "it's"},
    ]
    changed = other_columns(bundle, rows, Rules(decimal=decimal))
    found = built(changed)
    row = found["components"]["schemas"]["Row"]["properties"]
    assert row["when"]["examples"] == ["1970-01-01", "1970-01-02"]
    assert "boolean" in row["member"]["type"]
    sent = {kind: value for path, kind, value in bodies(found) if path == "/invocations"}
    separator, price = (",", "1.5") if decimal == "." else (";", "1,5")
    full = separator.join(("1970-01-02", "true", price, "it's"))
    assert sent["text/csv"].splitlines()[:2] == [
        "when,member,price,code".replace(",", separator),
        full,
    ]
    (tensors,) = (value for path, _, value in bodies(found) if path == "/v2/models/kinds/infer")
    data = {one["name"]: one["data"] for one in tensors["inputs"]}
    decode = MessageDecoder(changed.features)
    for number, row in enumerate((rows[1], rows[0])):  # the one without gaps comes first
        message = {"request_id": "x", "data": {name: one[number] for name, one in data.items()}}
        as_sent = {"request_id": "x", "data": row}
        read = [
            changed.features.row_values(decode(json.dumps(one).encode()).data)
            for one in (message, as_sent)
        ]
        assert read[0] == read[1]
