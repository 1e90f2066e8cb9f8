"""Reads the bodies of requests: rows in JSON, JSON lines or CSV, each as a Kafka message.

A row becomes the message that an application would have sent, so that one set of rules, that of
`utils.message_decoder`, decides what its values mean.
"""

import codecs
import csv
import io
import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from serving.errors import BadBody, TooLarge
from serving.rows import SentRow
from utils.errors import one_line
from utils.feature_tools import FeatureTools
from utils.message_decoder import EXAMPLES
from utils.messages import DECODE_ERRORS, MAX_REQUEST_ID, decode_error_text
from utils.values import BadValue, read_request_id, shown

JSON, JSON_LINES, CSV = "application/json", "application/jsonlines", "text/csv"
#: Other names of the same types.
ALIASES = {
    "application/jsonl": JSON_LINES,
    "application/x-jsonlines": JSON_LINES,
    "application/x-ndjson": JSON_LINES,
    "application/ndjson": JSON_LINES,
}
#: The types of bodies, of requests and of answers.
TYPES = (JSON, JSON_LINES, CSV)
REQUEST_ID = "request_id"


class Body(NamedTuple):
    """The rows of a request.

    Attributes:
        rows: The rows in order.
        is_single: Whether it is one row as JSON, which is answered by one object.
        has_header: Of CSV, whether the first line was taken for column names.
    """

    rows: list[SentRow]
    is_single: bool = False
    has_header: bool | None = None


class ContentType(NamedTuple):
    """A media type with its parameters, in lower case."""

    name: str
    parameters: Mapping[str, str]


@lru_cache(maxsize=64)
def read_type(header: str) -> ContentType:
    """Read a Content-Type header; empty is JSON.

    >>> read_type("Text/CSV; charset=utf-8; header=present")
    ContentType(name='text/csv', parameters={'charset': 'utf-8', 'header': 'present'})
    """
    name, *rest = (part.strip().lower() for part in (header or JSON).split(";"))
    pairs = (part.partition("=") for part in rest)
    parameters = {key.strip(): value.strip().strip('"') for key, _, value in pairs}
    return ContentType(ALIASES.get(name, name), parameters)


def read_body(
    content: bytes, kind: ContentType, features: FeatureTools, request_id: str = ""
) -> Body:
    """Read the rows of a body.

    Args:
        content: The body.
        kind: Its type, one of `TYPES`.
        features: Of the serving model; knows the columns.
        request_id: That of a header, for a single row that has none; those of several rows get it
            with a number each.

    Raises:
        BadBody: Nothing of it can be used.
    """
    if not content.strip():
        raise BadBody("the body is empty")
    reader = _Reader(features, request_id)
    if kind.name == CSV:
        return reader.read_csv(content, kind.parameters)
    if kind.name == JSON_LINES:
        return reader.read_lines(content)
    return reader.read_json(content)


class _Shape(msgspec.Struct, gc=False):
    """What an object of a body may be: several rows, a message, or a row."""

    instances: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    request_id: Raw | UnsetType = UNSET


_decode_shape = msgspec.json.Decoder(_Shape).decode
_decode_rows = msgspec.json.Decoder(list[Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


class _Parts(NamedTuple):
    """A JSON value of a body, taken apart.

    Attributes:
        row: All of it, as one row.
        rows: Its rows, if it is a list or has `instances`.
        data: Its `data`, if that is an object: it is a message then.
        request_id: Its `request_id`, JSON, if it has one that is not null.
    """

    row: bytes
    rows: list[bytes] | None = None
    data: bytes | None = None
    request_id: bytes | None = None


def _take_apart(content: bytes) -> _Parts:
    """Take a JSON list or object apart, without a look at the values of its rows.

    Raises:
        BadBody: It is neither.
    """
    content = content.strip()
    try:
        if content.startswith(b"["):
            return _Parts(content, list(map(bytes, _decode_rows(content))))
        shape = _decode_shape(content)
        instances, data, request_id = map(_raw, (shape.instances, shape.data, shape.request_id))
        if instances.startswith(b"["):
            return _Parts(content, list(map(bytes, _decode_rows(instances))))
    except DECODE_ERRORS as error:
        return _take_apart_slowly(content, error)
    return _parts(content, data, request_id)


def _take_apart_slowly(content: bytes, error: Exception) -> _Parts:
    """The same by Python's json, which also takes NaN and Infinity."""
    try:
        found = json.loads(content.removeprefix(codecs.BOM_UTF8).decode())
        if isinstance(found, list):
            return _Parts(b"", [json.dumps(row).encode() for row in found])
        if not isinstance(found, dict):
            raise BadBody(f"{shown(found)} is no JSON object")
        if isinstance(instances := found.get("instances"), list):
            return _Parts(b"", [json.dumps(row).encode() for row in instances])
        parts = (found, found.get("data"), found.get(REQUEST_ID))
        return _parts(*(json.dumps(part).encode() for part in parts))
    except (ValueError, RecursionError):
        raise BadBody(f"the JSON cannot be read: {decode_error_text(error)}") from None


def _parts(row: bytes, data: bytes, request_id: bytes) -> _Parts:
    return _Parts(
        row,
        data=data if data.startswith(b"{") else None,
        request_id=None if request_id in (b"", b"null") else request_id,
    )


def _raw(value: Raw | UnsetType) -> bytes:
    return b"" if value is UNSET else bytes(value)


def check_rows(count: int, most: int) -> None:
    """Check the number of rows of a request.

    Raises:
        TooLarge: There are more.
    """
    if count > most:
        text = f"a request may have {most} rows ([serving] max_rows), not {count}"
        raise TooLarge(text)


def split(content: bytes, kind: ContentType) -> list[bytes]:
    """The JSON values of a body that is one of them, a list of them, or JSON lines.

    Raises:
        BadBody: Nothing of it can be used.
    """
    if not content.strip():
        raise BadBody("the body is empty")
    if kind.name == JSON_LINES:
        return [line for line in content.split(b"\n") if line.strip()]
    parts = _take_apart(content)
    return [parts.row] if parts.rows is None else parts.rows


class _Reader:
    """Reads the rows of one body."""

    def __init__(self, features: FeatureTools, request_id: str) -> None:
        self._features = features
        self._request_id = request_id
        self._named = 0
        self._id_is_a_column = REQUEST_ID in features.columns

    def read_json(self, content: bytes) -> Body:
        """Read one row, `{"instances": [...]}` or a list of rows."""
        parts = _take_apart(content)
        if parts.rows is not None:
            return Body([self.read_row(row) for row in parts.rows])
        return Body([self._from_parts(parts, self._request_id)], is_single=True)

    def read_lines(self, content: bytes) -> Body:
        """Read a row in each line that is not blank."""
        return Body([self.read_row(line) for line in content.split(b"\n") if line.strip()])

    def read_row(self, content: bytes) -> SentRow:
        """Read a row or a message, as JSON."""
        try:
            parts = _take_apart(content)
        except BadBody as fault:
            return SentRow(new_id(), None, str(fault))
        if parts.rows is not None:
            return SentRow(new_id(), None, "several rows where one belongs")
        return self._from_parts(parts)

    def _from_parts(self, parts: _Parts, request_id: str = "") -> SentRow:
        given = parts.request_id
        if given is None or (parts.data is None and self._id_is_a_column):
            request_id = request_id or self._next_id()
        else:
            try:
                request_id = _read_id(given)
            except BadValue as fault:
                return SentRow(new_id(), None, str(fault))
        return SentRow(request_id, _message(request_id, parts.data or parts.row))

    def read_csv(self, content: bytes, parameters: Mapping[str, str]) -> Body:
        """Read lines of values, with or without a first line of column names."""
        lines = list(self._lines(content, parameters.get("charset", "utf-8")))
        if not lines:
            raise BadBody("the CSV has no line")
        header = parameters.get("header", "")
        has_header = header == "present" or (header != "absent" and self._is_header(lines[0]))
        names = list(self._features.types)
        if has_header:
            names = [name.strip() for name in lines.pop(0)]
            _check_header(names, names_known=self._features.types)
        return Body([self._from_values(names, line) for line in lines], has_header=has_header)

    def _lines(self, content: bytes, charset: str) -> Iterator[list[str]]:
        # Where numbers have a decimal comma, semicolons are between them.
        separator = "," if self._features.rules.decimal == "." else ";"
        try:
            text = content.decode("utf-8-sig" if charset in ("utf-8", "utf8") else charset)
            text.encode()  # some encodings make halves of surrogate pairs
            for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
                if line:
                    yield line
        except (UnicodeError, LookupError, csv.Error) as error:
            raise BadBody(f"the CSV cannot be read: {one_line(error)}") from None

    def _is_header(self, line: Sequence[str]) -> bool:
        """Whether most of the fields are names of columns."""
        known = sum(name.strip() in self._features.types for name in line)
        return known * 2 > len(line)

    def _from_values(self, names: Sequence[str], values: Sequence[str]) -> SentRow:
        if len(values) != len(names):
            columns = ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
            fault = f"{len(values)} values for {len(names)} columns ({columns})"
            return SentRow(new_id(), None, fault)
        data = dict(zip(names, values, strict=True))
        given = "" if self._id_is_a_column else data.pop(REQUEST_ID, "").strip()
        request_id = given or self._next_id()
        return SentRow(request_id, _message(request_id, msgspec.json.encode(data)))

    def _next_id(self) -> str:
        """The id of the next row without one: the same ones if the request is repeated."""
        if not self._request_id:
            return new_id()
        number, self._named = self._named, self._named + 1
        return f"{self._request_id}-{number}"


def _check_header(names: Sequence[str], *, names_known: Container[str]) -> None:
    """Check a line of column names.

    Raises:
        BadBody: No name is a column's, or one stands twice.
    """
    if not any(name in names_known for name in names):
        raise BadBody(f"the first line names none of the columns, but {shown(', '.join(names))}")
    twice = next((name for name in names if names.count(name) > 1 and name in names_known), None)
    if twice is not None:
        raise BadBody(f"the first line names {twice!r} twice")


def _message(request_id: str, data: bytes) -> bytes:
    return b'{"request_id":%b,"data":%b}' % (msgspec.json.encode(request_id), data)


def _read_id(raw: bytes) -> str:
    """A request_id, by the rules for messages.

    Raises:
        BadValue: It is none.
    """
    try:
        value: object = _decode_text(raw)
    except DECODE_ERRORS:
        try:
            value = json.loads(raw)
        except ValueError:  # an integer of more digits than Python reads
            raise BadValue(f"request_id {shown(raw.decode())} cannot be read") from None
    return read_request_id(value, MAX_REQUEST_ID)


def new_id() -> str:
    """A request_id for a row that has none."""
    return os.urandom(16).hex()
