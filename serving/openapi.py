"""The OpenAPI document of the server: every route, with the columns of the model that serves."""

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from serving import schemas
from serving.bodies import CSV, JSON, JSON_LINES
from serving.schemas import Schema, example_rows, ref
from serving.tensor_answers import BINARY_TYPE, metadata
from utils.model_store import Bundle
from utils.settings import Serving
from utils.values import Label
from utils.version import name_and_version

SCORING, PROTOCOL, ABOUT = "Scoring", "Open Inference Protocol", "About"


class Place(NamedTuple):
    """Where the server is.

    Attributes:
        url: Its address, without a slash at the end.
        name: The model's name in addresses.
    """

    url: str
    name: str


def document(bundle: Bundle, place: Place, limits: Serving) -> Schema:
    """The document, by version 3.1 of https://spec.openapis.org/oas/v3.1.1.html.

    Args:
        bundle: The model that serves.
        place: Where.
        limits: The settings.
    """
    name, version = name_and_version().split()
    target, columns = bundle.features.target, bundle.features.types
    text = (
        f"Model {bundle.model_id} predicts `{target}` from {len(columns)} columns. A row means the "
        "same as it does on Kafka, and has the same probability, bit for bit. "
        f"A request may have {limits.max_rows:,} rows and {limits.max_body:,} bytes, and take "
        f"{limits.timeout:g} seconds."
    )
    paths = {**_scoring(bundle, limits), **_protocol(bundle, place.name, limits), **_about()}
    return {
        "openapi": "3.1.1",
        "info": {"title": name, "version": version, "description": text},
        "servers": [{"url": place.url}],
        "tags": [{"name": tag} for tag in (SCORING, PROTOCOL, ABOUT)],
        "paths": {path: _with_samples(item, place.url + path) for path, item in paths.items()},
        "components": {"schemas": schemas.of_bundle(bundle, limits), "responses": _errors(limits)},
    }


def encode(found: Schema) -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(found)


# Operations


def _operation(tag: str, summary: str, text: str, responses: Schema, **more: object) -> Schema:
    return {"tags": [tag], "summary": summary, "description": text, **more, "responses": responses}


def _json(schema: Schema, text: str) -> Schema:
    return {"description": text, "content": {JSON: {"schema": schema}}}


def _faults(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/responses/{name}"} for name in names}


def _errors(limits: Serving) -> Schema:
    texts = {
        "400": "No row of the body can be scored; why.",
        "403": "A page of another site has sent it.",
        "404": "There is no such model or version.",
        "406": "`Accept` names none of the types.",
        "408": f"The request did not arrive within {limits.timeout:g} seconds.",
        "413": f"More than {limits.max_rows:,} rows or {limits.max_body:,} bytes.",
        "415": "The body is of another type, or compressed.",
        "503": "No row can be scored now; why.",
    }
    found: Schema = {status: _json(ref("Error"), text) for status, text in texts.items()}
    if limits.log:
        text = "No predictor has answered in time. The same request_ids get the answers later."
        found["504"] = _json(ref("NoAnswer"), text)
    return found


def _scoring_faults(limits: Serving) -> list[str]:
    """What can go wrong with any request that is scored."""
    return ["403", "408", "413", "415", "503", *(["504"] if limits.log else [])]


def _scoring(bundle: Bundle, limits: Serving) -> dict[str, Schema]:
    ok: Schema = {
        "description": "The answers, in the order of the rows.",
        "headers": {
            "x-csv-header": {
                "description": (
                    "For CSV: whether the first line was taken for names (`present`, `absent`)."
                ),
                "schema": {"enum": ["present", "absent"]},
            }
        },
        "content": {
            JSON: {"schema": {"anyOf": [ref("Prediction"), ref("Answers")]}},
            JSON_LINES: {"schema": {"type": "string", "description": "an answer in each line"}},
            CSV: {
                "schema": {
                    "type": "string",
                    "description": (
                        "a line of names (without it by `Accept: text/csv; header=absent`), then "
                        f"a line for each answer: {', '.join(_csv_names(bundle))}"
                    ),
                }
            },
        },
    }
    refused = _json(
        {"anyOf": [ref("Refusal"), ref("Answers"), ref("Error")]},
        "No row of the body can be scored; why.",
    )
    text = (
        "Scores one row or several. A row that cannot be scored is answered with its reason, the "
        "others with their predictions. `Accept` chooses the type of the answer, by default that "
        "of the request."
    )
    if limits.log:
        text += (
            " Rows go through Kafka. A request_id is sent there once: when it is repeated with the "
            "same row, it has the same answer."
        )
    faults = _faults("406", *_scoring_faults(limits))
    pong = _object_of("model_id", {"type": "integer"})
    paths: dict[str, Schema] = {
        "/invocations": {
            "post": _operation(
                SCORING,
                "Score rows",
                text,
                {"200": ok, "400": refused, **faults},
                operationId="invoke",
                parameters=_id_headers(),
                requestBody={"required": True, "content": _bodies(bundle)},
            )
        },
        "/ping": {
            "get": _operation(
                SCORING,
                "Can rows be scored?",
                "Status 200 only while a verified model is loaded and rows can be scored.",
                {"200": _json(pong, "Yes; the model that serves."), **_faults("503")},
                operationId="ping",
            )
        },
    }
    return {**paths, "/outcomes": {"post": _outcomes(bundle)}} if limits.log else paths


def _outcomes(bundle: Bundle) -> Schema:
    one = {"request_id": f"example-{bundle.model_id}", "outcome": bundle.features.classes[0]}
    any_of: list[object] = [ref("Outcome"), {"type": "array", "items": ref("Outcome")}]
    lines: Schema = {"type": "string", "description": "an outcome in each line"}
    content: Schema = {
        JSON: {"schema": {"anyOf": any_of}, "examples": {"one": _example("One outcome", one)}},
        JSON_LINES: {"schema": lines},
    }
    text = "Those that cannot be used are answered with their reasons; the others are learnt."
    responses = {
        "202": _json(ref("Accepted"), "Kafka has the outcomes, but for those that are rejected."),
        "400": _json({"anyOf": [ref("Accepted"), ref("Error")]}, "No outcome can be used; why."),
        **_faults("403", "408", "413", "415", "503"),
    }
    return _operation(
        SCORING,
        "Say what became of rows",
        text,
        responses,
        operationId="outcomes",
        requestBody={"required": True, "content": content},
    )


def _csv_names(bundle: Bundle) -> list[str]:
    names = list(bundle.features.classes)
    shares = ["probability"] if len(names) == 2 else [f"probability_{name}" for name in names]
    return ["request_id", "prediction", "label", *shares, "model_id", "error"]


def _object_of(name: str, schema: Schema) -> Schema:
    return {"type": "object", "properties": {name: schema}, "required": [name]}


def _id_headers() -> list[Schema]:
    text = "The request_id of a row without one; of several rows they get it with -0, -1, ..."
    return [
        {"name": name, "in": "header", "schema": {"type": "string"}, "description": text}
        for name in ("Idempotency-Key", "X-Amzn-SageMaker-Inference-Id")
    ]


def _bodies(bundle: Bundle) -> Schema:
    """What `/invocations` takes, with examples made of the bundle's own rows."""
    rows = example_rows(bundle)[:2]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    json_examples = {
        "row": _example("One row", rows[0]),
        "instances": _example("Several rows", {"instances": rows}),
        "message": _example(
            "One row with its request_id",
            {"request_id": f"example-{bundle.model_id}", "data": rows[0]},
        ),
    }
    any_of = [ref("Rows"), ref("Message"), ref("Row")]
    return {
        JSON: {"schema": {"anyOf": any_of}, "examples": json_examples},
        JSON_LINES: {
            "schema": {"type": "string", "description": "a row or a message in each line"},
            "examples": {"lines": _example("Several rows, one a line", lines)},
        },
        CSV: {
            "schema": {
                "type": "string",
                "description": (
                    "a line of column names (also `request_id`), then a line for each row; "
                    "without the first line the model's columns in their order"
                ),
            },
            "examples": {"csv": _example("Several rows", _csv_text(bundle, rows))},
        },
    }


def _example(summary: str, value: object) -> Schema:
    return {"summary": summary, "value": value}


def _csv_text(bundle: Bundle, rows: Sequence[Mapping[str, Label | None]]) -> str:
    """Rows as CSV."""
    names = list(bundle.features.types)
    separator = "," if bundle.features.rules.decimal == "." else ";"
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_csv_field(row.get(name), separator) for name in names] for row in rows)
    return text.getvalue()


def _csv_field(value: Label | None, separator: str) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and separator == ";":
        return repr(value).replace(".", ",")
    return value if isinstance(value, str) else json.dumps(value)


def _protocol(bundle: Bundle, name: str, limits: Serving) -> dict[str, Schema]:
    model = f"/v2/models/{quote(name, safe='')}"
    version = f"{model}/versions/{{version}}"
    described: Schema = {
        "in": "path",
        "name": "version",
        "required": True,
        "schema": {"type": "string"},
        "description": "The model_id of the model that serves; there is no other version.",
        "example": str(bundle.model_id),
    }
    paths: dict[str, Schema] = {
        f"{model}/infer": {"post": _infer(bundle, limits, "infer")},
        model: {"get": _metadata("modelMetadata")},
        f"{model}/ready": {"get": _model_ready("modelReady")},
        f"{version}/infer": {
            "parameters": [described],
            "post": _infer(bundle, limits, "inferByVersion"),
        },
        version: {"parameters": [described], "get": _metadata("versionMetadata")},
        f"{version}/ready": {"parameters": [described], "get": _model_ready("versionReady")},
    }
    return {**paths, **_health()}


def _infer(bundle: Bundle, limits: Serving, operation: str) -> Schema:
    text = (
        "An input for each column, of the shape [rows] or [rows, 1]; one of the shape "
        "[rows, columns] if all columns are numbers. An input `request_id` names the rows. A row "
        "that cannot be scored has its reason in the output `error`, with the prediction -1 and no "
        "probability. Binary data after the JSON, as Triton's clients send it, is understood."
    )
    answer: Schema = {
        "description": "The outputs.",
        "content": {
            JSON: {"schema": ref("InferenceResponse")},
            BINARY_TYPE: {"schema": {"description": "the same, with binary data after the JSON"}},
        },
    }
    content: Schema = {
        JSON: {
            "schema": ref("InferenceRequest"),
            "examples": {"tensors": _example("Several rows", _tensors(bundle))},
        },
        BINARY_TYPE: {
            "schema": {
                "description": (
                    "the same with binary data after the JSON, whose size is in the header "
                    "`Inference-Header-Content-Length`"
                )
            }
        },
    }
    return _operation(
        PROTOCOL,
        "Score the rows of tensors",
        text,
        {"200": answer, **_faults("400", "404", *_scoring_faults(limits))},
        operationId=operation,
        requestBody={"required": True, "content": content},
    )


def _tensors(bundle: Bundle) -> Schema:
    rows = example_rows(bundle)[:2]
    described = metadata("", bundle)["inputs"]
    assert isinstance(described, list)
    inputs = [
        {
            "name": one["name"],
            "datatype": one["datatype"],
            "shape": [len(rows)],
            "data": [_element(row.get(one["name"]), one["datatype"]) for row in rows],
        }
        for one in described
    ]
    return {"inputs": inputs}


def _element(value: Label | None, datatype: str) -> Label | None:
    if value is None or (datatype == "FP64" and not isinstance(value, str | bool)):
        return value
    return value if isinstance(value, str) else json.dumps(value)


def _metadata(operation: str) -> Schema:
    return _operation(
        PROTOCOL,
        "The model's inputs and outputs",
        "Of each its name, datatype and shape.",
        {"200": _json(ref("ModelMetadata"), "The model."), **_faults("404", "503")},
        operationId=operation,
    )


def _model_ready(operation: str) -> Schema:
    return _operation(
        PROTOCOL,
        "Can the model score rows?",
        "Status 200 only while it can.",
        {"200": _json(_object_of("ready", {"const": True}), "Yes."), **_faults("404", "503")},
        operationId=operation,
    )


def _health() -> dict[str, Schema]:
    live = _json(_object_of("live", {"const": True}), "Yes.")
    ready = _json(_object_of("ready", {"const": True}), "Yes.")
    server = _json(_object_of("extensions", {"type": "array", "items": {}}), "The server.")
    return {
        "/v2/health/live": {
            "get": _operation(
                PROTOCOL,
                "Does the server answer?",
                "Status 200 if it does.",
                {"200": live},
                operationId="serverLive",
            )
        },
        "/v2/health/ready": {
            "get": _operation(
                PROTOCOL,
                "Can rows be scored?",
                "Status 200 only while they can.",
                {"200": ready, **_faults("503")},
                operationId="serverReady",
            )
        },
        "/v2": {
            "get": _operation(
                PROTOCOL,
                "The server and its extensions",
                "Its name, its version and the extensions of the protocol that it knows.",
                {"200": server},
                operationId="serverMetadata",
            )
        },
    }


def _about() -> dict[str, Schema]:
    found = _json({"type": "object"}, "The document.")
    page: Schema = {
        "description": "The page.",
        "content": {"text/html": {"schema": {"type": "string"}}},
    }
    return {
        "/openapi.json": {
            "get": _operation(
                ABOUT,
                "This document",
                "In the OpenAPI format, with the columns of the model that serves.",
                {"200": found, **_faults("503")},
                operationId="openapi",
            )
        },
        "/docs": {
            "get": _operation(
                ABOUT,
                "This document as a page",
                "It loads nothing from elsewhere.",
                {"200": page, **_faults("503")},
                operationId="docs",
            )
        },
    }


# Command lines


def _with_samples(item: Schema, url: str) -> Schema:
    """Add a command line for each example, where tools look for them (`x-codeSamples`)."""
    for parameter in _list(item.get("parameters")):
        url = url.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
    found: Schema = {}
    for method, operation in item.items():
        if isinstance(operation, dict):
            samples = [
                {"lang": "Shell", "label": label, "source": line}
                for label, line in _commands(method, url, operation)
            ]
            operation = {**operation, "x-codeSamples": samples}
        found[method] = operation
    return found


def _commands(method: str, url: str, operation: Schema) -> list[tuple[str, str]]:
    sent = examples(operation)
    if not sent and method == "get":
        return [("curl", f"curl -sS {shlex.quote(url)}")]
    return [(one.label, curl_line(url, one)) for one in sent]


class Example(NamedTuple):
    """A body to send.

    Attributes:
        label: What it is.
        kind: Its type.
        text: The body.
    """

    label: str
    kind: str
    text: str


def examples(operation: Schema) -> list[Example]:
    """The examples of an operation's body."""
    body = operation.get("requestBody")
    content = body["content"] if isinstance(body, dict) else {}
    return [
        _to_example(kind, one)
        for kind, described in content.items()
        for one in described.get("examples", {}).values()
    ]


def _to_example(kind: str, one: Mapping[str, object]) -> Example:
    value = one["value"]
    label = f"{one['summary']} ({kind})"
    text = str(value) if kind != JSON else json.dumps(value, ensure_ascii=False)
    return Example(label, kind, text)


def curl_line(url: str, example: Example) -> str:
    """A command for a shell that sends an example."""
    header = shlex.quote(f"content-type: {example.kind}")
    return f"curl -sS {shlex.quote(url)} -H {header} --data-binary {shlex.quote(example.text)}"


def _list(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else []
