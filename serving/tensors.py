"""Tensors of the Open Inference Protocol, in JSON and as binary data.

Binary data follows the JSON in the body: little-endian elements in row-major order; each text of a
`BYTES` tensor after its length, four bytes.
"""

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from serving.errors import BadBody
from utils.values import shown

BYTES = "BYTES"
#: The other datatypes, as numpy names them.
NUMBERS = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "|i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
#: The parameter with the size of binary data.
BINARY_SIZE = "binary_data_size"
#: Parameters of an input whose data is elsewhere.
SHARED_MEMORY = "shared_memory_region"

_LENGTH = struct.Struct("<I")

#: By the protocol texts, numbers and truth values; what some clients send besides means nothing.
Parameters = dict[str, object]


class SentTensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input, as it stands in the JSON of a request."""

    name: str
    datatype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    data: list[object] | UnsetType = UNSET
    parameters: Parameters | None = None

    @property
    def binary_size(self) -> int | None:
        """The size of its binary data; None if it has none.

        Raises:
            BadBody: It is no integer.
        """
        size = (self.parameters or {}).get(BINARY_SIZE)
        if size is None or type(size) is int:
            return size
        raise BadBody(f"{_named(self)} has the {BINARY_SIZE} {shown(size)}, which is no integer")


class Elements(NamedTuple):
    """The elements of a tensor, in row-major order.

    Attributes:
        values: Texts, numbers and truth values; None where missing.
        faults: Why an element has none, by its place.
    """

    values: list[object]
    faults: dict[int, str]


class BinaryData:
    """The binary data of a request, which its inputs take in their order."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._taken = 0

    def take(self, size: int) -> bytes:
        """Take the next bytes.

        Raises:
            BadBody: There are not so many.
        """
        left = len(self._content) - self._taken
        if not 0 <= size <= left:
            raise BadBody(f"{size} bytes of binary data, of which {left} are left in the body")
        self._taken += size
        return self._content[self._taken - size : self._taken]

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            BadBody: Something is.
        """
        if left := len(self._content) - self._taken:
            raise BadBody(f"the last {left} bytes of the body belong to no input")


def read_elements(tensor: SentTensor, binary: BinaryData) -> Elements:
    """Read an input's elements; those that are not of its datatype are faults.

    JSON's numbers stay as they are written: 0.1 in an FP32 tensor is 0.1. As binary data the same
    element is 0.10000000149011612, because that is what its four bytes say.

    Raises:
        BadBody: The tensor is unusable as a whole.
    """
    count = math.prod(tensor.shape)
    _check_source(tensor)
    if tensor.data is not UNSET:
        return _read_json(tensor, _flat(tensor.data, tensor.shape), count)
    content = binary.take(tensor.binary_size or 0)
    if tensor.datatype == BYTES:
        return _read_texts(tensor, content, count)
    return _read_numbers(tensor, content, count)


def _check_source(tensor: SentTensor) -> None:
    if tensor.datatype != BYTES and tensor.datatype not in NUMBERS:
        known = ", ".join((*NUMBERS, BYTES))
        raise BadBody(
            f"{_named(tensor)} has the datatype {shown(tensor.datatype)}, none of {known}"
        )
    if SHARED_MEMORY in (tensor.parameters or {}):
        raise BadBody(f"{_named(tensor)} is in shared memory, which this server does not read")
    if (tensor.binary_size is None) == (tensor.data is UNSET):
        both = "neither data nor" if tensor.data is UNSET else "both data and"
        raise BadBody(f"{_named(tensor)} has {both} {BINARY_SIZE}")


def _flat(data: list[object], shape: Sequence[int]) -> list[object]:
    """The elements of data, which may be nested as its shape is."""
    for _ in shape[1:]:
        if not data or not all(isinstance(part, list) for part in data):
            break
        data = list(chain.from_iterable(data))  # type: ignore[arg-type]
    return data


def _read_json(tensor: SentTensor, data: list[object], count: int) -> Elements:
    if len(data) != count:
        raise _wrong_count(tensor, len(data))
    if _all_fit(data, tensor.datatype):
        return Elements(data, {})
    values: list[object] = []
    faults: dict[int, str] = {}
    for place, value in enumerate(data):
        try:
            values.append(_read_element(value, tensor.datatype))
        except ValueError:
            values.append(None)
            faults[place] = f"{shown(value)} is no {tensor.datatype}"
    return Elements(values, faults)


def _all_fit(data: list[object], datatype: str) -> bool:
    """Whether all values are surely of a datatype; looking at each takes ten times as long."""
    types = set(map(type, data)) - {type(None)}
    if datatype == BYTES:
        return types <= {str}
    if datatype == "BOOL":
        return types <= {bool}
    if datatype.startswith("FP"):
        return types <= {float, int}
    limits = np.iinfo(NUMBERS[datatype])
    found: list[int] = [value for value in data if isinstance(value, int)]
    return types <= {int} and (not found or limits.min <= min(found) <= max(found) <= limits.max)


def _read_element(value: object, datatype: str) -> object:
    """A JSON value as an element.

    Raises:
        ValueError: It is none of the datatype.
    """
    if value is None:
        return None
    if datatype == BYTES:
        if isinstance(value, str):
            return value
    elif datatype == "BOOL":
        if isinstance(value, bool | int) and value in (0, 1):
            return bool(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if datatype.startswith("FP"):
            return value
        limits = np.iinfo(NUMBERS[datatype])
        if value == value and limits.min <= value <= limits.max and int(value) == value:
            return int(value)
    raise ValueError


def _read_numbers(tensor: SentTensor, content: bytes, count: int) -> Elements:
    kind = np.dtype(NUMBERS[tensor.datatype])
    if len(content) != count * kind.itemsize:
        raise _wrong_count(tensor, len(content), f"bytes, not {count * kind.itemsize}")
    found = np.frombuffer(content, kind)
    if tensor.datatype != "BOOL":
        return Elements(found.tolist(), {})
    raw = found.view(np.uint8)
    faults = {int(place): f"{raw[place]} is no BOOL" for place in np.flatnonzero(raw > 1)}
    return Elements(found.tolist(), faults)


def _read_texts(tensor: SentTensor, content: bytes, count: int) -> Elements:
    values: list[object] = []
    faults: dict[int, str] = {}
    at = 0
    while at < len(content):
        begin = at + _LENGTH.size
        length = _LENGTH.unpack_from(content, at)[0] if begin <= len(content) else 0
        at = begin + length
        if at > len(content):
            raise BadBody(f"{_named(tensor)}: its binary data ends inside a text")
        try:
            values.append(content[begin:at].decode())
        except UnicodeDecodeError:
            faults[len(values)] = f"{shown(content[begin:at])} is no UTF-8"
            values.append(None)
    if len(values) != count:
        raise _wrong_count(tensor, len(values))
    return Elements(values, faults)


def _wrong_count(tensor: SentTensor, found: int, what: str = "elements") -> BadBody:
    return BadBody(f"{_named(tensor)} has the shape {tensor.shape}, but {found} {what}")


def _named(tensor: SentTensor) -> str:
    return f"input {shown(tensor.name)}"


class Tensor(NamedTuple):
    """An output: its elements in row-major order."""

    name: str
    datatype: str
    shape: list[int]
    values: list[float] | list[int] | list[str]

    def to_binary(self) -> bytes:
        """The elements as binary data."""
        if self.datatype != BYTES:
            return np.array(self.values, NUMBERS[self.datatype]).tobytes()
        texts = [str(value).encode("utf-8", "replace") for value in self.values]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
