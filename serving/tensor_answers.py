"""Writes answers of the Open Inference Protocol: an output for each part of the predictions."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from serving.bodies import JSON
from serving.errors import BadBody
from serving.rows import Answer, Refusal
from serving.tensors import BINARY_SIZE, BYTES, Tensor
from utils.model_store import Bundle

#: The outputs, and their datatypes.
OUTPUTS = {
    "probability": "FP64",
    "prediction": "INT64",
    "label": BYTES,
    "request_id": BYTES,
    "model_id": "INT64",
    "error": BYTES,
}
BINARY_HEADER = "inference-header-content-length"
BINARY_TYPE = "application/octet-stream"
PLATFORM = "lightgbm_text"
#: How many reasons an error names.
EXAMPLES = 3


class AskedOutputs(Protocol):
    """What an answer has to know of its request."""

    @property
    def id(self) -> str:
        """The id to repeat; empty if there is none."""

    @property
    def outputs(self) -> Mapping[str, bool]:
        """The outputs to answer, and whether as binary data."""


class Body(NamedTuple):
    """The body of an answer, with its type and headers."""

    content: bytes
    kind: str
    headers: dict[str, str]


def metadata(name: str, bundle: Bundle) -> dict[str, object]:
    """What a model takes and answers, as the protocol describes it."""
    features = bundle.features
    classes = len(features.classes)
    inputs = [
        _described(column, "FP64" if kind == "number" else BYTES)
        for column, kind in features.types.items()
    ]
    outputs = [_described(output, datatype) for output, datatype in OUTPUTS.items()]
    if classes > 2:
        outputs[0]["shape"] = [-1, classes]
    return {
        "name": name,
        "versions": [str(bundle.model_id)],
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": outputs,
    }


def _described(name: str, datatype: str) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": [-1]}


def encode(answers: Sequence[Answer], name: str, asked: AskedOutputs) -> Body:
    """Write answers.

    Args:
        answers: The answers in the order of the rows.
        name: The model's name.
        asked: What the request says of them.

    Raises:
        BadBody: No row could be scored: the protocol knows no answer without a prediction.
    """
    _check_answers(answers)
    versions = {answer.model_id for answer in answers}
    head: dict[str, object] = {"model_name": name}
    if len(versions) == 1:  # else the output `model_id` says it of each row
        head["model_version"] = str(*versions)
    if asked.id:
        head["id"] = asked.id
    tensors = [_TENSORS[output](answers) for output in asked.outputs]
    described: list[dict[str, object]] = []
    binary: list[bytes] = []
    for tensor in tensors:
        one = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if asked.outputs[tensor.name]:
            binary.append(tensor.to_binary())
            described.append({**one, "parameters": {BINARY_SIZE: len(binary[-1])}})
        else:
            described.append({**one, "data": tensor.values})  # NaN becomes null
    content = msgspec.json.encode({**head, "outputs": described})
    if not binary:
        return Body(content, JSON, {})
    return Body(b"".join((content, *binary)), BINARY_TYPE, {BINARY_HEADER: str(len(content))})


def _check_answers(answers: Sequence[Answer]) -> None:
    reasons = [answer.error for answer in answers if isinstance(answer, Refusal)]
    if len(reasons) < len(answers) or not answers:
        return
    if len(reasons) == 1:
        raise BadBody(reasons[0])
    examples = "; ".join(f"row {row}: {why}" for row, why in enumerate(reasons[:EXAMPLES]))
    raise BadBody(f"none of the {len(reasons)} rows can be scored: {examples}")


def _probabilities(answers: Sequence[Answer]) -> Tensor:
    found = [None if isinstance(answer, Refusal) else answer.probability for answer in answers]
    width = next((len(one) for one in found if isinstance(one, list)), 0)
    nothing = [float("nan")] * max(width, 1)
    values: list[float] = []
    for one in found:
        values += one if isinstance(one, list) else nothing if one is None else [one]
    shape = [len(found), width] if width else [len(found)]
    return _tensor("probability", values, shape)


def _predictions(answers: Sequence[Answer]) -> Tensor:
    codes = [-1 if isinstance(answer, Refusal) else answer.prediction for answer in answers]
    return _tensor("prediction", codes)


def _labels(answers: Sequence[Answer]) -> Tensor:
    labels = ["" if isinstance(answer, Refusal) else answer.label for answer in answers]
    return _tensor("label", labels)


def _errors(answers: Sequence[Answer]) -> Tensor:
    return _tensor(
        "error", [answer.error if isinstance(answer, Refusal) else "" for answer in answers]
    )


def _tensor(
    name: str, values: list[float] | list[int] | list[str], shape: list[int] | None = None
) -> Tensor:
    return Tensor(name, OUTPUTS[name], shape or [len(values)], values)


#: Makes each output of the answers.
_TENSORS = {
    "probability": _probabilities,
    "prediction": _predictions,
    "label": _labels,
    "request_id": lambda answers: _tensor("request_id", [one.request_id for one in answers]),
    "model_id": lambda answers: _tensor("model_id", [one.model_id for one in answers]),
    "error": _errors,
}
