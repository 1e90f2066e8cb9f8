"""JSON schemas of rows and answers, as a model knows its columns and classes."""

from collections.abc import Mapping, Sequence

from utils.feature_tools import FeatureTools
from utils.model_store import Bundle
from utils.settings import Serving
from utils.values import CategoryColumn, Column, DateColumn, Label, NumberColumn, date_text

Schema = dict[str, object]
#: How many categories of a column the document shows.
EXAMPLES = 6


def ref(name: str) -> Schema:
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def of_bundle(bundle: Bundle, limits: Serving) -> dict[str, Schema]:
    """The schemas by name."""
    found = {**_of_rows(bundle.features), **_of_answers(bundle)}
    if limits.log:
        found |= _of_outcomes(bundle.features.classes)
    return {**found, **_of_tensors()}


def example_rows(bundle: Bundle) -> list[Mapping[str, Label | None]]:
    """Rows of the data set that the bundle scores as recorded, those without gaps first."""
    rows = [row.data for row in bundle.manifest.golden]
    names = bundle.features.types
    return sorted(rows, key=lambda row: sum(row.get(name) is None for name in names))


def _object(properties: Mapping[str, Schema], *required: str, text: str = "") -> Schema:
    made: Schema = {"type": "object", "properties": dict(properties)}
    if required:
        made["required"] = list(required)
    return {**made, "description": text} if text else made


def _of_rows(features: FeatureTools) -> dict[str, Schema]:
    columns = {name: _of_column(features.column(name)) for name in features.types}
    columns[features.target] = {
        "type": ["string", "number", "boolean", "null"],
        "examples": list(features.classes[:EXAMPLES]),
        "description": (
            "The outcome, if it is known already. It does not change the prediction; where rows "
            "go through Kafka, it is learnt."
        ),
    }
    text = (
        "A row: a value for each column. A column that is null or not sent is missing. Columns "
        "that the model does not know are ignored."
    )
    request_id: Schema = {
        "type": ["string", "number"],
        "description": "The client's name for the row; without one the answer has a new one.",
    }
    return {
        "Row": {**_object(columns, text=text), "additionalProperties": True, "minProperties": 1},
        "Message": _object(
            {"request_id": request_id, "data": ref("Row")},
            "data",
            text="A row with its request_id, as in the topic `app_messages`.",
        ),
        "Rows": _object(
            {"instances": {"type": "array", "items": {"anyOf": [ref("Message"), ref("Row")]}}},
            "instances",
            text="Several rows.",
        ),
    }


def _of_column(column: Column) -> Schema:
    if isinstance(column, NumberColumn):
        types = ["number", "string", "null"]
        if column.truth:
            return {"type": [*types, "boolean"], "description": "0 or 1", "examples": [0, 1]}
        text = f"a number; in training {column.low:,.12g} to {column.high:,.12g}"
        ends = [int(end) if end.is_integer() else end for end in (column.low, column.high)]
        return {"type": types, "description": text, "examples": ends}
    if isinstance(column, DateColumn):
        first, last = (
            date_text(seconds, with_time=column.has_time) for seconds in (column.first, column.last)
        )
        text = f"an ISO date, or seconds since 1970; in training {first} to {last}"
        types = ["string", "number", "null"]
        return {"type": types, "description": text, "examples": [first, last]}
    return _of_categories(column)


def _of_categories(column: CategoryColumn) -> Schema:
    """Not an enumeration: a category that training did not see is scored, too."""
    names = column.categories[:EXAMPLES]
    text = f"one of {len(column.categories):,} categories, or another one"
    types = ["string", "number", "boolean", "null"]
    return {"type": types, "description": text, "examples": list(names)}


def _of_answers(bundle: Bundle) -> dict[str, Schema]:
    classes = list(bundle.features.classes)
    share: Schema = {"type": "number", "minimum": 0, "maximum": 1}
    probability: Schema = {**share, "description": f"that of the class {classes[1]!r}"}
    if len(classes) > 2:
        probability = {
            "type": "array",
            "items": share,
            "minItems": len(classes),
            "maxItems": len(classes),
            "description": f"those of the classes {', '.join(map(repr, classes))}",
        }
    request_id: Schema = {"type": "string", "description": "that of the row, or a new one"}
    model_id: Schema = {"type": "integer", "minimum": 1, "description": "the model that answered"}
    code: Schema = {"type": "integer", "minimum": 0, "maximum": len(classes) - 1}
    return {
        "Prediction": _object(
            {
                "request_id": request_id,
                "prediction": {**code, "description": "the class by number"},
                "label": {"enum": classes, "description": "the class by name"},
                "probability": probability,
                "model_id": model_id,
            },
            *("request_id", "prediction", "label", "probability", "model_id"),
            text="The answer to a row, as in the topic `predictions`.",
        ),
        "Refusal": _object(
            {
                "request_id": request_id,
                "error": {"type": "string", "description": "why; it names every column at fault"},
                "model_id": model_id,
            },
            *("request_id", "error", "model_id"),
            text="The answer to a row that cannot be scored.",
        ),
        "Answers": _object(
            {
                "predictions": {
                    "type": "array",
                    "items": {"oneOf": [ref("Prediction"), ref("Refusal")]},
                }
            },
            "predictions",
            text="The answers to several rows, in their order.",
        ),
        "Error": _object(
            {"error": {"type": "string", "description": "why, in one line"}},
            "error",
            text="The answer to a request without a usable row.",
        ),
    }


def _of_outcomes(classes: Sequence[str]) -> dict[str, Schema]:
    request_id: Schema = {"type": "string", "description": "that of the row"}
    why: Schema = {"type": "string", "description": "why, in one line"}
    rejected: Schema = _object({"request_id": {"type": "string"}, "error": why}, "error")
    texts: Schema = {"type": "array", "items": {"type": "string"}}
    return {
        "NoAnswer": _object(
            {"error": why, "request_ids": {**texts, "description": "of all rows, in their order"}},
            *("error", "request_ids"),
            text="The answer to rows that are on their way to a predictor.",
        ),
        "Outcome": _object(
            {
                "request_id": request_id,
                "outcome": {
                    "type": ["string", "number", "boolean"],
                    "examples": list(classes[:EXAMPLES]),
                    "description": "the class by name",
                },
            },
            *("request_id", "outcome"),
            text="What became of a row, as in the topic `outcomes`.",
        ),
        "Accepted": _object(
            {
                "accepted": {"type": "integer", "description": "how many outcomes Kafka has"},
                "rejected": {"type": "array", "items": rejected, "description": "the others"},
            },
            *("accepted", "rejected"),
        ),
    }


def _of_tensors() -> dict[str, Schema]:
    text: Schema = {"type": "string"}
    shape: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    parameters: Schema = {"type": "object", "additionalProperties": True}
    data: Schema = {"type": "array", "items": {}}
    tensor: dict[str, Schema] = {
        "name": {**text, "description": "an input is a column, or `request_id`"},
        "datatype": {
            **text,
            "description": "BOOL, INT8 to INT64, UINT8 to UINT64, FP16, FP32, FP64 or BYTES (text)",
        },
        "shape": {**shape, "description": "[rows] or [rows, 1]"},
        "parameters": {
            **parameters,
            "description": "`binary_data_size`: bytes of the tensor after the JSON, without `data`",
        },
        "data": {**data, "description": "the elements; null is missing"},
    }
    output = _object({"name": text, "parameters": parameters}, "name")
    request_id: Schema = {
        **text,
        "description": "becomes the rows' request_id: itself for one row, else with -0, -1, ...",
    }
    return {
        "Tensor": _object(tensor, "name", "datatype", "shape"),
        "InferenceRequest": _object(
            {
                "id": request_id,
                "inputs": {"type": "array", "items": ref("Tensor"), "minItems": 1},
                "outputs": {
                    "type": "array",
                    "items": output,
                    "description": "the outputs to answer, all by default; with `binary_data`",
                },
                "parameters": {**parameters, "description": "`binary_data_output`"},
            },
            "inputs",
        ),
        "InferenceResponse": _object(
            {
                "model_name": text,
                "model_version": text,
                "id": text,
                "outputs": {"type": "array", "items": ref("Tensor")},
            },
            *("model_name", "outputs"),
        ),
        "ModelMetadata": _object(
            {
                "name": text,
                "versions": {"type": "array", "items": text},
                "platform": text,
                "inputs": {"type": "array", "items": ref("Tensor")},
                "outputs": {"type": "array", "items": ref("Tensor")},
            },
            *("name", "platform", "inputs", "outputs"),
        ),
    }
