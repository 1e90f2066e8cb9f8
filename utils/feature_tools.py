"""The preprocessor: turns raw columns into features by scaling, encoding and crossing.

It accepts a DataFrame (`transform`) or decoded messages (`transform_rows`). Both share the
same arithmetic, so the same values give bitwise the same features.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from utils.messages import (
    DECODE_ERRORS,
    TOMBSTONE,
    BadRecord,
    Label,
    RequestId,
    decode_error_text,
    label_text,
)

if TYPE_CHECKING:  # a predictor uses no DataFrame, and importing pandas takes 0.3 s of its start
    import pandas as pd

Matrix = npt.NDArray[np.float64]
IntegerCodes = npt.NDArray[np.int64]

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)

#: The value of a numerical column that a message lacks; for a null it is None. Both score
#: the same, but a message that lacks all columns is a bad record.
_ABSENT = float("nan")


def canonical_text(text: str) -> str:
    """Format a number or truth value as `label_text` does; other text stays unchanged.

    >>> [canonical_text(text) for text in ("1.0", "1e3", "007", "True", ">50K")]
    ['1', '1000', '7', 'true', '>50K']
    """
    if text in ("True", "TRUE", "true", "False", "FALSE", "false"):
        return text.lower()
    if not _NUMBER.fullmatch(text):
        return text
    if text.lstrip("-").isdigit():
        return str(int(text)) if len(text) < 4000 else text  # int() refuses 4,300 digits
    number = float(text)
    return label_text(number) if np.isfinite(number) else text


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of features.json."""

    version: int
    target: str
    order: list[str]  # the columns in the order of the data set, which messages use too
    classes: list[str]
    numerical: dict[str, tuple[float, float]]  # lowest and highest value in training
    categorical: dict[str, list[str]]  # the categories with the codes 1, 2, ...
    mixed: list[str]  # categorical columns whose values may be numbers in messages
    crosses: list["_Cross"]


class _Cross(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    columns: tuple[str, str]
    pairs: list[tuple[int, int]]  # the pairs of codes with the codes 1, 2, ..., ascending


class _Codes(dict[Label | msgspec.UnsetType | None, float]):
    """Maps a category to its code; 0 if it is missing or was not seen in training."""

    def __init__(self, categories: Sequence[str]) -> None:
        super().__init__(zip(categories, map(float, range(1, len(categories) + 1)), strict=True))
        self[None] = self[UNSET] = 0.0  # present, because __missing__ is slow

    def __missing__(self, value: Label) -> float:
        return 0.0 if isinstance(value, str) else self.get(label_text(value), 0.0)


class _ClassCodes(dict[object, int]):
    """Maps a class to its code; -1 for an unknown class, None, or a DataFrame's NaN."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(zip(classes, range(len(classes)), strict=True))

    def __missing__(self, label: object) -> int:
        return self.get(canonical_text(label), -1) if isinstance(label, str) else -1


class _Pairs:
    """Maps two columns of codes to the codes of their cross."""

    def __init__(self, pairs: Sequence[tuple[int, int]], width: int) -> None:
        """Take `pairs` in ascending order; `width` is the second column's highest code plus 1."""
        self._width = width
        # The last key matches nothing; it keeps the found positions inside the array.
        keys = [first * width + second for first, second in pairs]
        self._keys = np.array([*keys, np.inf], dtype=np.float64)

    def __call__(self, first: Matrix, second: Matrix) -> Matrix:
        keys = first * self._width + second
        places = np.searchsorted(self._keys, keys)
        codes: Matrix = np.where(self._keys[places] == keys, places + 1.0, 0.0)
        return codes


#: A decoded message's `data`; Any, because its type (`FeatureTools.row_type`) has a field for
#: each column and is made at run time.
Row = Any


class FeatureTools:
    """Scales numbers, encodes categories and crosses columns, as learnt by `fit`.

    A row of the matrix holds the numbers (min-max scaled to the range in training, NaN if
    missing), then the codes of the categorical columns, then the codes of the crosses (0
    if missing or not seen in training).

    Attributes:
        columns: The raw feature columns, `numerical` before `categorical`.
        numerical: The raw columns of numbers.
        categorical: The raw columns of categories.
        feature_names: The columns of the matrix: `columns`, then the crosses.
        categorical_features: The `feature_names` that hold codes.
        classes: The target's classes; a class's index is its code.
        target: The target column.
        row_type: The struct that a message's `data` decodes into: a field per raw
            column, and the target's value as `outcome` (None if it is missing). Other
            keys are ignored; a value of the wrong type is a decoding error.
    """

    columns: tuple[str, ...]
    numerical: tuple[str, ...]
    categorical: tuple[str, ...]
    feature_names: tuple[str, ...]
    categorical_features: tuple[str, ...]
    classes: tuple[str, ...]
    crosses: tuple[tuple[str, str], ...]
    target: str
    row_type: type[msgspec.Struct]

    def fit(
        self,
        frame: "pd.DataFrame",
        *,
        target: str,
        numerical: Sequence[str],
        categorical: Sequence[str],
        crosses: Sequence[tuple[str, str]],
        classes: Sequence[str],
        mixed: Collection[str] = (),
    ) -> "FeatureTools":
        """Learn the ranges, categories and pairs.

        Args:
            frame: Raw columns, (rows, any): numbers and text, NaN or None where missing.
            target: The target column; it need not be in the frame.
            numerical: Columns of numbers.
            categorical: Columns of text.
            crosses: Pairs of categorical columns to cross.
            classes: The target's classes in the order of their codes.
            mixed: Categorical columns whose values may also be numbers, true or false in
                messages (columns of numeric category codes).

        Returns:
            Itself.

        Raises:
            ValueError: A column is missing or unsuitable; the text is one line.
        """
        for column in (*numerical, *categorical):
            if column not in frame.columns:
                raise ValueError(f"there is no column {column!r}")
        used = {*numerical, *categorical}
        categories = {name: _categories(frame[name]) for name in categorical}
        codes = {name: _codes_of(frame[name], _Codes(categories[name])) for name in categories}
        return self._restore(
            _State(
                version=1,
                target=target,
                order=[str(name) for name in frame.columns if name in used],
                classes=list(classes),
                numerical={name: _range(_numbers(frame, name)) for name in numerical},
                categorical=categories,
                mixed=[name for name in categorical if name in mixed],
                crosses=[_cross(pair, codes) for pair in crosses],
            )
        )

    def transform(self, frame: "pd.DataFrame") -> Matrix:
        """Turn raw columns into features.

        Args:
            frame: As for `fit`; an absent column counts as missing values.

        Returns:
            float64, (rows, features), C order.
        """
        matrix = self._empty(len(frame))
        for place, name in enumerate(self.numerical):
            matrix[:, place] = _numbers(frame, name)
        for place, name in enumerate(self.categorical, len(self.numerical)):
            matrix[:, place] = _codes_of(frame[name], self._codes[name]) if name in frame else 0.0
        return self._finish(matrix)

    def transform_rows(self, rows: Sequence[Row]) -> Matrix:
        """Turn decoded messages into features, bitwise the same as those of `transform`.

        Args:
            rows: Values of `row_type`.

        Returns:
            float64, (rows, features), C order.
        """
        matrix = self._empty(len(rows))
        for place, get in enumerate(self._getters):
            values: Iterable[Any] = map(get, rows)  # any JSON value
            if place >= len(self.numerical):
                values = map(self._codes[self.columns[place]].__getitem__, values)
            matrix[:, place] = np.fromiter(values, np.float64, len(rows))  # None becomes NaN
        return self._finish(matrix)

    def row_values(self, row: Row) -> tuple[float | str | None, ...]:
        """A row's raw values in the order of `columns`, None where missing."""
        values = [get(row) for get in self._getters]
        split = len(self.numerical)
        # NaN is the only value that differs from itself.
        numbers = [value if value == value else None for value in values[:split]]
        names = [
            value if value is None or type(value) is str else _category_text(value)
            for value in values[split:]
        ]
        return (*numbers, *names)

    def has_no_known_column(self, row: Row) -> bool:
        """Whether the message lacks all feature columns; a null counts as present."""
        for get, absent in self._absent:  # noqa: SIM110  all() takes twice as long
            if get(row) is not absent:
                return False
        return True

    def encode_target(self, labels: Iterable[str | None]) -> IntegerCodes:
        """Encode class names, (rows,); None and unknown classes get -1."""
        return np.fromiter(map(_ClassCodes(self.classes).__getitem__, labels), np.int64)

    def to_json(self) -> bytes:
        """Serialize the whole state; equal states give equal bytes."""
        return msgspec.json.format(msgspec.json.encode(self._state), indent=1) + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> "FeatureTools":
        """Restore a preprocessor from the output of `to_json`.

        Raises:
            ValueError: The text is not a valid state; the message is one line.
        """
        try:
            return cls()._restore(msgspec.json.decode(text, type=_State))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"not the state of FeatureTools: {error}") from None

    def _restore(self, state: _State) -> "FeatureTools":
        _check(state)
        self._state = state
        self.target = state.target
        self.classes = tuple(state.classes)
        self.numerical = tuple(state.numerical)
        self.categorical = tuple(state.categorical)
        self.columns = self.numerical + self.categorical
        self.crosses = tuple(cross.columns for cross in state.crosses)
        crossed = _cross_names(self.columns, self.crosses)
        self.feature_names = (*self.columns, *crossed)
        self.categorical_features = self.feature_names[len(self.numerical) :]
        self._low = np.array([low for low, _ in state.numerical.values()], dtype=np.float64)
        high = np.array([high for _, high in state.numerical.values()], dtype=np.float64)
        with np.errstate(over="ignore"):
            span = high - self._low
        # A constant column, or one whose span overflows, is shifted but not scaled.
        self._span = np.where((span > 0) & np.isfinite(span), span, 1.0)
        self._codes = {name: _Codes(values) for name, values in state.categorical.items()}
        self._crosses = [self._crosser(cross) for cross in state.crosses]
        self._getters: list[Callable[[Row], Any]]  # any JSON value
        self._getters = [attrgetter(f"f{place}") for place in range(len(self.columns))]
        absent = [_ABSENT] * len(self.numerical) + [UNSET] * len(self.categorical)
        self._absent = list(zip(self._getters, absent, strict=True))
        self.row_type = _row_type(state)
        return self

    def _crosser(self, cross: _Cross) -> tuple[int, int, _Pairs]:
        first, second = (self.columns.index(name) for name in cross.columns)
        width = len(self._state.categorical[cross.columns[1]]) + 1
        return first, second, _Pairs(cross.pairs, width)

    def _empty(self, rows: int) -> Matrix:
        return np.empty((rows, len(self.feature_names)), dtype=np.float64)

    def _finish(self, matrix: Matrix) -> Matrix:
        """Scale the numbers and cross the codes in place, for both `transform` methods."""
        numbers = matrix[:, : len(self.numerical)]
        with np.errstate(over="ignore"):
            np.subtract(numbers, self._low, out=numbers)
            np.divide(numbers, self._span, out=numbers)
        for place, (first, second, pairs) in enumerate(self._crosses, len(self.columns)):
            matrix[:, place] = pairs(matrix[:, first], matrix[:, second])
        return matrix


class MessageDecoder:
    """Decodes the values of `app_messages`, and rejects messages that cannot be used.

    Scoring, storing and explaining a message all use it, so they reject the same messages.
    """

    def __init__(self, features: FeatureTools) -> None:
        self._decode: Callable[[bytes], Any]  # the struct type is created at run time
        self._decode = msgspec.json.Decoder(message_type(features)).decode
        self._has_no_known_column = features.has_no_known_column

    def __call__(self, value: bytes | None) -> Any:  # a type created at run time
        """Decode one message.

        Returns:
            A struct with `request_id`, and `data` of the features' `row_type`.

        Raises:
            BadRecord: The value is a tombstone, not JSON, of another type, or has none of the
                feature columns.
        """
        if value is None:
            raise BadRecord(TOMBSTONE)
        try:
            message = self._decode(value)
        except DECODE_ERRORS as error:
            raise BadRecord(decode_error_text(error)) from None
        if self._has_no_known_column(message.data):
            raise BadRecord("none of the known columns in $.data")
        return message


def message_type(features: FeatureTools) -> type[msgspec.Struct]:
    """The struct of a record of `app_messages`: `request_id`, and `data` as a `row_type`."""
    fields = [("request_id", RequestId), ("data", features.row_type)]
    return msgspec.defstruct("Message", fields, frozen=True, gc=False)


def _row_type(state: _State) -> type[msgspec.Struct]:
    fields: list[tuple[str, object, object]] = []
    names = {"outcome": state.target}
    # A column may have any name, a struct field may not.
    fields_of = {column: f"f{n}" for n, column in enumerate((*state.numerical, *state.categorical))}
    # In the messages' order: msgspec searches for a key from the position of the previous one.
    for column in state.order:
        field = fields_of[column]
        names[field] = column
        if column in state.numerical:
            fields.append((field, float | None, _ABSENT))
        else:
            fields.append((field, (Label if column in state.mixed else str) | None, UNSET))
    fields.append(("outcome", Label | None, None))
    # gc=False: a row's values refer to no other objects, so it cannot be part of a cycle.
    return msgspec.defstruct("Row", fields, rename=names, frozen=True, gc=False)


def _check(state: _State) -> None:
    columns = (*state.numerical, *state.categorical)
    if state.version != 1:
        raise ValueError(f"features of version {state.version}; this program supports version 1")
    if not columns:
        raise ValueError("there are no feature columns")
    if len({*columns, state.target}) <= len(columns):
        raise ValueError("a column is listed twice, or is also the target")
    if sorted(state.order) != sorted(columns):
        raise ValueError("the order of the columns does not list each of them once")
    for name in (*columns, state.target):
        if not name.isprintable() or '"' in name or "\\" in name:
            raise ValueError(
                f"a column name cannot hold quotes, \\ or control characters: {name!r}"
            )
    if len(state.classes) < 2 or len(set(state.classes)) < len(state.classes):
        raise ValueError(f"needs two or more different classes, not {state.classes}")
    for name, categories in state.categorical.items():
        if len(set(categories)) < len(categories):
            raise ValueError(f"column {name!r} has a category twice")
    if unknown := set(state.mixed) - set(state.categorical):
        raise ValueError(f"not a categorical column: {min(unknown)!r}")
    for cross in state.crosses:
        _check_cross(cross, state)


def _check_cross(cross: _Cross, state: _State) -> None:
    for name in cross.columns:
        if name not in state.categorical:
            raise ValueError(f"cannot cross {name!r}: it is not a categorical column")
    sizes = [len(state.categorical[name]) for name in cross.columns]
    if cross.pairs != sorted(set(cross.pairs)):
        raise ValueError(f"the pairs of {cross.columns} are not in order")
    if any(
        not 1 <= code <= size
        for pair in cross.pairs
        for code, size in zip(pair, sizes, strict=True)
    ):
        raise ValueError(f"the pairs of {cross.columns} contain codes that do not exist")


def _cross_names(columns: Sequence[str], crosses: Sequence[tuple[str, str]]) -> list[str]:
    names: list[str] = []
    for first, second in crosses:
        name = f"{first} x {second}"
        while name in columns or name in names:
            name += "'"
        names.append(name)
    return names


def _category_text(value: Label | msgspec.UnsetType) -> str | None:
    return None if isinstance(value, msgspec.UnsetType) else label_text(value)


def _numbers(frame: "pd.DataFrame", name: str) -> Matrix:
    if name not in frame:
        return np.full(len(frame), np.nan)
    values: Matrix = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def _range(values: Matrix) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)


def _categories(column: "pd.Series") -> list[str]:
    return sorted({label_text(value) for value in column.dropna().unique().tolist()})


def _codes_of(column: "pd.Series", codes: _Codes) -> Matrix:
    places, values = column.factorize()  # place -1 where missing: the last of the table
    table = [codes[value] for value in values.tolist()]
    encoded: Matrix = np.array([*table, 0.0], dtype=np.float64)[places]
    return encoded


def _cross(names: tuple[str, str], codes: Mapping[str, Matrix]) -> _Cross:
    for name in names:
        if name not in codes:
            raise ValueError(f"cannot cross {name!r}: it is not a categorical column")
    first, second = (codes[name].astype(np.int64) for name in names)
    known = (first > 0) & (second > 0)
    # Each pair as one number: unique() of pairs would take half the time of the whole fit.
    width = int(second.max(initial=0)) + 1
    pairs = np.unique(first[known] * width + second[known]).tolist()
    return _Cross(columns=(names[0], names[1]), pairs=[divmod(pair, width) for pair in pairs])
