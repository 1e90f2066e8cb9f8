"""Decodes the records that applications send: messages and outcomes.

Each is read twice at most: by msgspec, which is fast and strict, and if that fails by Python's
json and the rules of `utils.values`. Both give the same values where both succeed.
"""

import codecs
import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from utils.feature_tools import ABSENT, FeatureTools, Row
from utils.messages import (
    DECODE_ERRORS,
    MAX_REQUEST_ID,
    TOMBSTONE,
    BadRecord,
    Outcome,
    RequestId,
    decode_error_text,
)
from utils.values import (
    NO_CLASS,
    NO_OUTCOME,
    BadValue,
    Codes,
    Label,
    label_text,
    python_number,
    read_request_id,
    shown,
    valid_text,
)

#: The most characters of a reason; a record may have thousands of columns at fault.
MAX_REASON = 8_000
#: Numbers up to here are floats for sure; NaN is not below it.
LARGE = 1e300
#: How many classes or columns a reason lists as examples.
EXAMPLES = 6


class MessageDecoder:
    """Decodes the values of `app_messages`, and rejects messages that cannot be used.

    Scoring, storing and explaining a message all use it, so they reject the same messages.
    """

    def __init__(self, features: FeatureTools) -> None:
        self._features = features
        self._type = message_type(features)
        self._decode: Callable[[bytes], Any]  # the struct types are created at run time
        self._decode = msgspec.json.Decoder(self._type).decode
        self._decode_any: Callable[[bytes], Any] = msgspec.json.Decoder(_any_type(features)).decode
        self._has_no_known_column = features.has_no_known_column
        self._dates = [(name, attrgetter(features.field_names[name])) for name in features.dates]
        places = {name: place for place, name in enumerate(features.columns)}
        self._columns = [
            _Column(places[name], name, kind, features.codes_of(name))
            for name, kind in features.types.items()
        ]
        self._names = [*features.types, features.target]
        self._is_decimal_point = features.rules.decimal == "."

    def __call__(self, value: bytes | None, lenient: list[int] | None = None) -> Any:
        """Decode one message.

        Args:
            value: The record's value.
            lenient: By column, values that are read leniently are added to it.

        Returns:
            A struct with `request_id`, and `data` of the features' `row_type`.

        Raises:
            BadRecord: The value is a tombstone, not JSON, has no request_id, none of the feature
                columns, or values that mean nothing in their columns; the text names them all.
        """
        if value is None:
            raise BadRecord(TOMBSTONE)
        try:
            message = self._decode(value)
        except DECODE_ERRORS as error:
            message = self._read_leniently(value, error, lenient)
        else:
            if self._dates and not self._has_valid_dates(message.data):
                message = self._read_leniently(value, ValueError("no ISO date"), lenient)
        if self._has_no_known_column(message.data):
            raise BadRecord(f"none of the known columns in data, which has {_keys_of(value)}")
        return message

    def _has_valid_dates(self, row: Row) -> bool:
        try:
            for name, get in self._dates:
                if (value := get(row)) is not UNSET:
                    self._features.read_column(name, value)
        except BadValue:
            return False
        return True

    def _read_leniently(self, value: bytes, error: Exception, lenient: list[int] | None) -> Any:
        request_id, values = self._split(value, error)
        faults: list[str] = []
        try:
            request_id = read_request_id(request_id, MAX_REQUEST_ID)
        except BadValue as fault:
            faults.append(str(fault))
        counted = [0] * len(self._columns)
        row = self._read_row(values, faults, counted)
        if faults:
            raise BadRecord(_abbreviated("; ".join(faults)))
        if lenient is not None:
            for place, count in enumerate(counted):
                lenient[place] += count
        return self._type(request_id, row)

    def _split(self, value: bytes, error: Exception) -> tuple[object, Sequence[object]]:
        """The request_id, and the values of the columns and the target as they were sent."""
        if isinstance(error, msgspec.ValidationError):  # it is JSON so far
            with suppress(*DECODE_ERRORS):
                message = self._decode_any(value)
                return message.request_id, msgspec.structs.astuple(message.data)
        sent = load_json(value, error)
        data = sent.get("data")
        if not isinstance(data, dict):
            what = f"{shown(data)} is no object" if "data" in sent else "is missing"
            raise BadRecord(f"data {what}")
        return sent.get("request_id"), [data.get(name, UNSET) for name in self._names]

    def _read_row(self, sent: Sequence[object], faults: list[str], lenient: list[int]) -> Row:
        """Read the values of the columns in the order of the data set, and the outcome."""
        read: list[object] = []
        for value, (place, name, kind, codes) in zip(sent, self._columns, strict=False):
            if value is None:
                read.append(None)
            elif value is UNSET:
                read.append(ABSENT if kind == "number" else UNSET)
            elif type(value) is str and kind == "category" and value.isascii():
                # `transform_rows` reads it by all rules; what has only blanks is done with here.
                text = value.strip()
                lenient[place] += text != value and text in codes
                read.append(text if text in codes else value)
            elif kind == "number" and type(value) in (float, int) and abs(value) < LARGE:  # type: ignore[arg-type]
                read.append(float(value))  # type: ignore[arg-type]
            else:
                try:
                    understood, is_lenient = self._read(name, kind, value)
                except BadValue as fault:
                    faults.append(f"{name}: {fault}")
                else:
                    read.append(understood)
                    lenient[place] += is_lenient
        return None if faults else self._features.row_type(*read, _label(sent[-1]))

    def _read(self, name: str, kind: str, value: object) -> tuple[object, bool]:
        if kind == "number" and type(value) is str and self._is_decimal_point:
            number = python_number(value)
            if number is not None:
                return number, True  # `transform_rows` knows what means "missing"
        read = self._features.read_column(name, value)
        if kind == "category":
            return (value if isinstance(value, str) else read), False
        if isinstance(read, float) and math.isnan(read):
            return None, False
        plain = (int, float) if kind == "number" else (str,)
        return read, type(value) not in plain


class _Column(NamedTuple):
    """A column for the lenient reading; `codes` are its categories, if it has any."""

    place: int
    name: str
    kind: str
    codes: Codes


class ReadOutcome(NamedTuple):
    """A record of `outcomes`, as understood."""

    request_id: str
    outcome: str


class OutcomeDecoder:
    """Decodes the values of `outcomes`, and rejects those of no known class."""

    def __init__(self, features: FeatureTools) -> None:
        self._features = features
        self._decode = msgspec.json.Decoder(Outcome).decode

    def __call__(self, value: bytes | None) -> ReadOutcome:
        """Decode one record.

        Raises:
            BadRecord: The value is a tombstone, not JSON, has no request_id, or its outcome is
                missing or none of the classes.
        """
        request_id, outcome = self.read(value)
        code = self._features.class_codes[outcome]
        if code == NO_CLASS:
            raise BadRecord(unknown_class(outcome, self._features))
        return ReadOutcome(request_id, self._features.classes[code])

    def read(self, value: bytes | None) -> tuple[str, Label]:
        """The request_id and the outcome as it was sent, which may be none of the classes.

        Raises:
            BadRecord: As above, but not for an unknown class.
        """
        if value is None:
            raise BadRecord(TOMBSTONE)
        try:
            found = self._decode(value)
            request_id: str = found.request_id
            outcome: Label | None = found.outcome
        except DECODE_ERRORS as error:
            sent = load_json(value, error)
            try:
                request_id = read_request_id(sent.get("request_id"), MAX_REQUEST_ID)
            except BadValue as fault:
                raise BadRecord(str(fault)) from None
            outcome = _label(sent.get("outcome"))
        if outcome is None or self._features.class_codes[outcome] == NO_OUTCOME:
            raise BadRecord("outcome is missing")
        return request_id, outcome


def unknown_class(outcome: object, features: FeatureTools) -> str:
    """The reason to reject an outcome of no known class."""
    names = ", ".join(map(repr, features.classes[:EXAMPLES]))
    more = len(features.classes) - EXAMPLES
    known = names + (f" and {more} more" if more > 0 else "")
    return _abbreviated(f"outcome {shown(outcome)} is none of the classes {known}")


def class_name(outcome: Label | None, features: FeatureTools) -> str | None:
    """An outcome as the name of its class, or as text if it is none; None if it is missing."""
    code = features.class_codes[outcome]
    if code >= 0:
        return features.classes[code]
    return None if outcome is None or code == NO_OUTCOME else label_text(outcome)


def message_type(features: FeatureTools) -> type[msgspec.Struct]:
    """The struct of a record of `app_messages`: `request_id`, and `data` as a `row_type`."""
    fields = [("request_id", RequestId), ("data", features.row_type)]
    return msgspec.defstruct("Message", fields, frozen=True, gc=False)


def _any_type(features: FeatureTools) -> type[msgspec.Struct]:
    """The same as `message_type`, but with values of any type."""
    names = {features.field_names[name]: name for name in features.types}
    names["outcome"] = features.target
    row = msgspec.defstruct("AnyRow", [(field, object, UNSET) for field in names], rename=names)
    return msgspec.defstruct("AnyMessage", [("data", row), ("request_id", object, None)])


def load_json(value: bytes, error: Exception) -> dict[str, object]:
    """Parse a JSON object as Python's json does, which also takes NaN and Infinity.

    Raises:
        BadRecord: It is no JSON object; the text is that of `error`, msgspec's.
    """
    try:
        sent = json.loads(value.removeprefix(codecs.BOM_UTF8).decode())
    except (ValueError, RecursionError):
        raise BadRecord(decode_error_text(error)) from None
    if not isinstance(sent, dict):
        raise BadRecord(f"{shown(sent)} is no JSON object")
    return sent


_REQUEST_ID = re.compile(rb'"request_id"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?)')


def request_id_of(value: bytes | None) -> str | None:
    """The request_id of a record, which may be invalid otherwise; None if it has none.

    In what is no JSON, the first thing that looks like one counts.
    """
    try:
        return _decode_identified(value or b"").request_id
    except DECODE_ERRORS as error:
        text = value or b""
        try:
            return read_request_id(load_json(text, error).get("request_id"), MAX_REQUEST_ID)
        except BadValue:
            return None
        except BadRecord:
            found = _REQUEST_ID.search(text)
    try:
        return read_request_id(json.loads(found[1]), MAX_REQUEST_ID) if found else None
    except ValueError:  # also BadValue
        return None


class _Identified(msgspec.Struct, gc=False):
    request_id: RequestId


_decode_identified = msgspec.json.Decoder(_Identified).decode


def _label(outcome: object) -> Label | None:
    """An outcome as a label; what is none becomes text, which is no class."""
    if isinstance(outcome, float) and not math.isfinite(outcome):
        return None
    if outcome is None or outcome is UNSET:
        return None
    if isinstance(outcome, int | float):
        return outcome
    try:
        return valid_text(outcome) if isinstance(outcome, str) else shown(outcome)
    except BadValue:
        return shown(outcome)


def _keys_of(value: bytes) -> str:
    """The first keys of `data`, for an error message."""
    try:
        keys = list(load_json(value, ValueError())["data"])  # type: ignore[call-overload]
    except (BadRecord, KeyError, TypeError):
        return "nothing"
    more = len(keys) - EXAMPLES
    named = ", ".join(shown(key) for key in keys[:EXAMPLES])
    return (named + (f" and {more} more" if more > 0 else "")) or "nothing"


def _abbreviated(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 3] + "..."
