"""Reads requests of the Open Inference Protocol: each row of the tensors becomes a message."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from serving.bodies import REQUEST_ID, check_rows, new_id
from serving.errors import BadBody
from serving.rows import SentRow
from serving.tensor_answers import OUTPUTS
from serving.tensors import BinaryData, Elements, Parameters, SentTensor, read_elements
from utils.feature_tools import FeatureTools
from utils.message_decoder import load_json
from utils.messages import DECODE_ERRORS, MAX_REQUEST_ID, BadRecord
from utils.values import BadValue, read_request_id, shown, valid_text

#: Whether an output, or all of them, are answered as binary data.
BINARY, ALL_BINARY = "binary_data", "binary_data_output"
#: Parameters of an output that ask for something else than the output.
UNSUPPORTED = ("classification", "shared_memory_region")


class _SentOutput(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    parameters: Parameters | None = None


class _SentRequest(msgspec.Struct, frozen=True, kw_only=True):
    inputs: list[SentTensor]
    id: str | None = None
    outputs: list[_SentOutput] | None = None
    parameters: Parameters | None = None


class Asked(NamedTuple):
    """A request.

    Attributes:
        id: Its own id; empty if it has none.
        rows: Its rows.
        outputs: The outputs to answer, and whether as binary data.
    """

    id: str
    rows: list[SentRow]
    outputs: Mapping[str, bool]


class _Column(NamedTuple):
    """What a request has of a column: a value for each row, None where missing, or why not."""

    name: str
    values: Sequence[object]
    faults: Mapping[int, str]


_decode = msgspec.json.Decoder(_SentRequest).decode


def read_request(content: bytes, json_size: str, features: FeatureTools, max_rows: int) -> Asked:
    """Read the body of a request.

    Args:
        content: The body.
        json_size: The header with the size of its JSON; empty if there is no binary data.
        features: Of the serving model; knows the columns.
        max_rows: The most rows.

    Raises:
        BadBody: Nothing of it can be used.
        TooLarge: It has too many rows.
    """
    size = len(content)
    if json_size:
        if not re.fullmatch(r"\d{1,18}", json_size, re.ASCII) or int(json_size) > size:
            raise BadBody(f"JSON of {shown(json_size)} bytes in a body of {size} bytes")
        size = int(json_size)
    sent = _read_json(content[:size])
    outputs = _read_outputs(sent)
    rows = _read_rows(sent, BinaryData(content[size:]), features, max_rows)
    return Asked(sent.id or "", rows, outputs)


def _read_json(content: bytes) -> _SentRequest:
    try:
        try:
            return _decode(content)
        except msgspec.ValidationError:
            raise
        except DECODE_ERRORS as error:  # NaN and Infinity, as Python's json writes them
            sent = msgspec.convert(load_json(content, error), _SentRequest)
            for text in (sent.id or "", *(tensor.name for tensor in sent.inputs)):
                valid_text(text)
            return sent
    except (msgspec.ValidationError, UnicodeEncodeError, BadValue) as error:
        raise BadBody(f"no inference request: {error}") from None
    except BadRecord as error:
        raise BadBody(f"the JSON cannot be read: {error}") from None


def _read_outputs(sent: _SentRequest) -> dict[str, bool]:
    """The outputs that a request asks for, all by default, and whether as binary data."""
    wanted = {one.name: one.parameters or {} for one in sent.outputs or ()}
    for name, parameters in wanted.items():
        if name not in OUTPUTS:
            raise BadBody(f"there is no output {shown(name)}; there are {', '.join(OUTPUTS)}")
        for parameter in UNSUPPORTED:
            if parameter in parameters:
                raise BadBody(f"output {name!r}: {parameter} is not supported")
    binary = bool((sent.parameters or {}).get(ALL_BINARY, False))
    if not wanted:
        return dict.fromkeys(OUTPUTS, binary)
    return {name: bool(one.get(BINARY, binary)) for name, one in wanted.items()}


def _read_rows(
    sent: _SentRequest, binary: BinaryData, features: FeatureTools, max_rows: int
) -> list[SentRow]:
    count = _count_rows(sent.inputs)
    check_rows(count, max_rows)
    columns = [
        column
        for tensor in sent.inputs
        for column in _columns_of(tensor, read_elements(tensor, binary), features)
    ]
    binary.end()
    faults = _faults_of(columns)
    given: Sequence[object] = [None] * count
    if REQUEST_ID not in features.types:
        given = next((one.values for one in columns if one.name == REQUEST_ID), given)
        columns = [one for one in columns if one.name != REQUEST_ID]
    rows = _rows_of(columns, count)
    return [
        _to_message(request_id, data, faults.get(row, []))
        for row, (request_id, data) in enumerate(
            zip(_request_ids(given, sent.id or ""), rows, strict=True)
        )
    ]


def _count_rows(inputs: Sequence[SentTensor]) -> int:
    """The number of rows.

    Raises:
        BadBody: The inputs do not agree, or there are none.
    """
    seen: set[str] = set()
    for tensor in inputs:
        if len(tensor.shape) not in (1, 2):
            raise BadBody(
                f"input {shown(tensor.name)} has the shape {tensor.shape}, where [rows] or "
                "[rows, 1] belongs"
            )
        if tensor.name in seen:
            raise BadBody(f"input {shown(tensor.name)} stands twice")
        seen.add(tensor.name)
    counts = {tensor.shape[0]: tensor.name for tensor in inputs}
    if len(counts) > 1:
        found = ", ".join(f"{count} of {name!r}" for count, name in sorted(counts.items()))
        raise BadBody(f"inputs of different numbers of rows: {found}")
    if not counts:
        raise BadBody("no inputs")
    return next(iter(counts))


def _columns_of(
    tensor: SentTensor, elements: Elements, features: FeatureTools
) -> Iterator[_Column]:
    """The columns of an input: one, or all if it is a matrix of numbers.

    Raises:
        BadBody: It is a matrix of something else.
    """
    width = tensor.shape[1] if len(tensor.shape) == 2 else 1
    if width == 1:
        yield _Column(tensor.name, *elements)
        return
    names = list(features.types)
    if names != list(features.numerical) or width != len(names) or tensor.name in names:
        raise BadBody(
            f"input {shown(tensor.name)} has the shape {tensor.shape}, where [rows] or [rows, 1] "
            f"belongs: one tensor of all {len(names)} columns will do only if all are numbers"
        )
    for place, name in enumerate(names):
        faults = {at // width: why for at, why in elements.faults.items() if at % width == place}
        yield _Column(name, elements.values[place::width], faults)


def _faults_of(columns: Sequence[_Column]) -> dict[int, list[str]]:
    """Why rows cannot be used, by row."""
    faults: dict[int, list[str]] = {}
    for column in columns:
        for row, why in column.faults.items():
            faults.setdefault(row, []).append(f"{column.name}: {why}")
    return faults


def _rows_of(columns: Sequence[_Column], count: int) -> Iterator[dict[str, object]]:
    """The values of each row by column."""
    if not columns:
        return ({} for _ in range(count))
    names = [column.name for column in columns]
    rows = zip(*(column.values for column in columns), strict=True)
    return (dict(zip(names, values, strict=True)) for values in rows)


def _request_ids(given: Sequence[object], request: str) -> Iterator[str | BadValue]:
    """The request_id of each row: its own, one made of the request's id, or a new one.

    A request that is repeated with its id has the same ones again.
    """
    for number, value in enumerate(given):
        if value is None and request:
            value = request if len(given) == 1 else f"{request}-{number}"
        try:
            yield new_id() if value is None else read_request_id(value, MAX_REQUEST_ID)
        except BadValue as fault:
            yield fault


def _to_message(
    request_id: str | BadValue, data: Mapping[str, object], faults: Sequence[str]
) -> SentRow:
    if isinstance(request_id, BadValue):
        faults, request_id = [str(request_id), *faults], new_id()
    if faults:
        return SentRow(request_id, None, "; ".join(faults))
    return SentRow(request_id, _encode({REQUEST_ID: request_id, "data": data}))


def _encode(message: object) -> bytes:
    with suppress(UnicodeEncodeError):
        return msgspec.json.encode(message)
    return json.dumps(message).encode()  # half of a surrogate pair, which the decoder refuses
