"""The preprocessor: turns raw columns into features by scaling, encoding and crossing.

It accepts a DataFrame (`transform`) or decoded messages (`transform_rows`). Both share the
same rules (`utils.values`) and arithmetic, so the same values give bitwise the same features.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, UnsetType

from utils.values import (
    DAY,
    LENIENT,
    MISSING,
    UNKNOWN,
    CategoryColumn,
    ClassCodes,
    Codes,
    Column,
    DateColumn,
    Label,
    NumberColumn,
    Rules,
    Target,
    numeric_marks,
    read_category,
    read_date,
    read_number,
)

if TYPE_CHECKING:  # a predictor uses no DataFrame, and importing pandas takes 0.3 s of its start
    import pandas as pd

Matrix = npt.NDArray[np.float64]
IntegerCodes = npt.NDArray[np.int64]

#: The version of features.json. Version 1 is read as well.
VERSION = 2

#: The value of a numerical column that a message lacks; for a null it is None. Both score
#: the same, but a message that lacks all columns is a bad record.
ABSENT = float("nan")

#: Numbers are scaled to the range of 98 % of them if all of them span so many times as much.
EXTREME = 1e9
#: A column of dates has times of day if this share of its dates has one.
LEAST_TIMES = 0.01
#: The features of a date: its day since the first one in training, the day of the week
#: (Monday is 0) and, if the column has times of day, the hour. All in UTC.
DATE_PARTS = ("days", "weekday", "hour")


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of features.json."""

    version: int
    target: Target
    rules: Rules
    columns: list[Column]  # in the order of the data set, which messages use too
    crosses: list["_Cross"]

    def of_type(self, column_type: type) -> list[Any]:  # of the given type
        """The columns of a type, in their order."""
        return [column for column in self.columns if isinstance(column, column_type)]


class _Cross(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    columns: tuple[str, str]
    pairs: list[tuple[int, int]]  # the pairs of codes with the codes 1, 2, ..., ascending
    other_share: float | UnsetType = UNSET  # as that of a `CategoryColumn`


class _StateOfVersion1(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    target: str
    order: list[str]
    classes: list[str]
    numerical: dict[str, tuple[float, float]]
    categorical: dict[str, list[str]]
    mixed: list[str]
    crosses: list[_Cross]

    def upgrade(self) -> _State:
        columns: list[Column] = [
            NumberColumn(name=name, low=self.numerical[name][0], high=self.numerical[name][1])
            if name in self.numerical
            else CategoryColumn(name=name, categories=self.categorical[name])
            for name in self.order
        ]
        # Its matrix has the columns in the order of `numerical` and `categorical`.
        place = {name: n for n, name in enumerate((*self.numerical, *self.categorical))}
        columns.sort(key=lambda column: place[column.name])
        target = Target(name=self.target, classes=self.classes)
        return _State(VERSION, target, Rules(), columns, self.crosses)


class _Pairs:
    """Maps two columns of codes to the codes of their cross."""

    def __init__(self, cross: _Cross, width: int) -> None:
        """Take a cross; `width` is the second column's highest code plus 1."""
        self._width = width
        # The last key matches nothing; it keeps the found positions inside the array.
        keys = [first * width + second for first, second in cross.pairs]
        self._keys = np.array([*keys, np.inf], dtype=np.float64)
        self._other = None if cross.other_share is UNSET else len(keys) + 1.0
        self._codes = {float(key): code for code, key in enumerate(keys, 1)}

    def __call__(self, first: Matrix, second: Matrix) -> Matrix:
        keys = first * self._width + second
        if self._other is None and len(keys) < BY_COLUMN_MIN_ROWS:
            return np.array([self._codes.get(key, 0) for key in keys.tolist()], np.float64)
        places = np.searchsorted(self._keys, keys)
        rest: Matrix | float = 0.0
        if self._other is not None:
            rest = np.where((first > 0) & (second > 0), self._other, 0.0)
        codes: Matrix = np.where(self._keys[places] == keys, places + 1.0, rest)
        return codes


#: Fewer rows are read row by row: NumPy's calls for each column take longer than the values.
BY_COLUMN_MIN_ROWS = 4

#: A decoded message's `data`; Any, because its type (`FeatureTools.row_type`) has a field for
#: each column and is made at run time.
Row = Any

#: How many values of each column are missing, unknown, leniently read or scored as the other
#: categories of a column: (4, columns).
ValueTally = npt.NDArray[np.int64]


class FeatureTools:
    """Scales numbers, encodes dates and categories, and crosses columns, as learnt by `fit`.

    A row of the matrix holds the numbers (min-max scaled to the range in training, NaN if
    missing), the parts of the dates (`DATE_PARTS`, scaled likewise), the codes of the
    categorical columns, and the codes of the crosses. A code is 0 if the value is missing or was
    not seen in training. If training learnt the most frequent categories (or pairs) alone, all
    others have a code of their own, also those that it did not see.

    Attributes:
        columns: The raw feature columns: `numerical`, `dates`, then `categorical`.
        numerical: The raw columns of numbers.
        dates: The raw columns of dates.
        categorical: The raw columns of categories.
        feature_names: The columns of the matrix.
        feature_sources: The raw columns that each of them comes from: one, or two of a cross.
        categorical_features: The `feature_names` that hold codes.
        classes: The target's classes; a class's index is its code.
        class_codes: Maps an outcome, in whatever way it is written, to its code.
        target: The target column.
        rules: The rules of the data set.
        row_type: The struct that a message's `data` decodes into: a field per raw
            column, and the target's value as `outcome` (None if it is missing). Other
            keys are ignored; a value of the wrong type is a decoding error.
        field_names: The field of each raw column in that struct.
    """

    columns: tuple[str, ...]
    numerical: tuple[str, ...]
    dates: tuple[str, ...]
    categorical: tuple[str, ...]
    feature_names: tuple[str, ...]
    feature_sources: tuple[tuple[str, ...], ...]
    categorical_features: tuple[str, ...]
    classes: tuple[str, ...]
    class_codes: ClassCodes
    crosses: tuple[tuple[str, str], ...]
    target: str
    rules: Rules
    row_type: type[msgspec.Struct]
    field_names: Mapping[str, str]

    def fit(
        self,
        frame: "pd.DataFrame",
        *,
        target: str,
        numerical: Sequence[str],
        categorical: Sequence[str],
        crosses: Sequence[tuple[str, str]],
        classes: Sequence[str],
        dates: Sequence[str] = (),
        rules: Rules | None = None,
        suffix: str = "",
        max_categories: int = 0,
    ) -> "FeatureTools":
        """Learn the ranges, categories and pairs.

        Args:
            frame: Raw columns, (rows, any): numbers and text, NaN or None where missing;
                dates are seconds since 1970.
            target: The target column; it need not be in the frame.
            numerical: Columns of numbers.
            categorical: Columns of text.
            crosses: Pairs of categorical columns to cross.
            classes: The target's classes in the order of their codes.
            dates: Columns of dates.
            rules: The rules of the data set, if they are not the default.
            suffix: What may follow the name of a class.
            max_categories: The most categories of a column and pairs of a cross that are learnt
                one by one: the most frequent ones, of equally frequent ones the first by name;
                0 for no limit.

        Returns:
            Itself.

        Raises:
            ValueError: A column is missing or unsuitable; the text is one line.
        """
        for column in (*numerical, *dates, *categorical):
            if column not in frame.columns:
                raise ValueError(f"there is no column {column!r}")
        rules = rules or Rules()
        learn: dict[str, Callable[[str], Column]] = {
            **dict.fromkeys(numerical, lambda name: _number_column(name, _numbers(frame, name))),
            **dict.fromkeys(dates, lambda name: _date_column(name, _numbers(frame, name))),
            **dict.fromkeys(
                categorical, lambda name: _category_column(frame[name], rules, max_categories)
            ),
        }
        columns = [learn[name](name) for name in map(str, frame.columns) if name in learn]
        crossed = {name for pair in crosses for name in pair}
        codes = {
            column.name: _codes_of(frame[column.name], _codes(column, rules))
            for column in columns
            if isinstance(column, CategoryColumn) and column.name in crossed
        }
        return self._restore(
            _State(
                version=VERSION,
                target=Target(name=target, classes=list(classes), suffix=suffix),
                rules=rules,
                columns=columns,
                crosses=[_cross(pair, codes, max_categories) for pair in crosses],
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
        for name in self.dates:
            self._fill_date(matrix, name, _numbers(frame, name))
        for place, name in enumerate(self.categorical, self._first_code):
            matrix[:, place] = _codes_of(frame[name], self._codes[name]) if name in frame else 0.0
        self._remove_marks(matrix)
        self._plain_codes(matrix)
        return self._finish(matrix)

    def transform_rows(self, rows: Sequence[Row], tally: ValueTally | None = None) -> Matrix:
        """Turn decoded messages into features, bitwise the same as those of `transform`.

        Args:
            rows: Values of `row_type`.
            tally: The values that it counts are added to it.

        Returns:
            float64, (rows, features), C order.
        """
        matrix = self._empty(len(rows))
        if len(rows) < BY_COLUMN_MIN_ROWS:
            self._read_by_row(rows, matrix)
        else:
            self._read_by_column(rows, matrix)
        self._remove_marks(matrix)
        if tally is not None:
            self._count(matrix, tally)
        self._plain_codes(matrix)
        return self._finish(matrix)

    def _read_by_row(self, rows: Sequence[Row], matrix: Matrix) -> None:
        n_plain = len(self.numerical)
        for place, row in enumerate(rows):
            matrix[place, :n_plain] = [get(row) for get in self._get_number]  # None becomes NaN
            for name, get in self._get_date:
                seconds = np.array([self._read_date[name](get(row))])
                self._fill_date(matrix[place : place + 1], name, seconds)
            codes = [codes[get(row)] for codes, get in self._get_category]
            matrix[place, self._first_code : self._n_codes] = codes

    def _read_by_column(self, rows: Sequence[Row], matrix: Matrix) -> None:
        for place, get in enumerate(self._get_number):
            values: Iterable[Any] = map(get, rows)  # any JSON value
            matrix[:, place] = np.fromiter(values, np.float64, len(rows))  # None becomes NaN
        for name, get in self._get_date:
            values = map(self._read_date[name], map(get, rows))
            self._fill_date(matrix, name, np.fromiter(values, np.float64, len(rows)))
        for place, (codes, get) in enumerate(self._get_category, self._first_code):
            values = map(codes.__getitem__, map(get, rows))
            matrix[:, place] = np.fromiter(values, np.float64, len(rows))

    def row_values(self, row: Row) -> tuple[float | str | None, ...]:
        """A row's raw values in the order of `columns`, None where missing.

        Numbers and dates (seconds since 1970) are floats, everything else is text.
        """
        values = [get(row) for get in self._getters]
        first, split = len(self.numerical), len(self.columns) - len(self.categorical)
        for place in range(first, split):
            values[place] = self._read_date[self.columns[place]](values[place])
        # NaN is the only value that differs from itself.
        numbers = [
            value if value == value and value not in self._marks else None
            for value in values[:split]
        ]
        names = [
            value if value in codes and type(value) is str else self._category(value)
            for value, codes in zip(values[split:], self._codes.values(), strict=True)
        ]
        return (*numbers, *names)

    def raw_frame(self, rows: Sequence[Row]) -> "pd.DataFrame":
        """The raw values of decoded messages as a DataFrame, as `transform` takes it."""
        import pandas as pd

        frame = pd.DataFrame(list(map(self.row_values, rows)), columns=list(self.columns))
        return frame.astype(dict.fromkeys((*self.numerical, *self.dates), np.float64))

    def _category(self, value: Label | msgspec.UnsetType | None) -> str | None:
        return None if isinstance(value, msgspec.UnsetType) else read_category(value, self.rules)

    def has_no_known_column(self, row: Row) -> bool:
        """Whether the message lacks all feature columns; a null counts as present."""
        for get, absent in self._absent:  # noqa: SIM110  all() takes twice as long
            if get(row) is not absent:
                return False
        return True

    def read_column(self, name: str, value: object) -> float | str | None:
        """What a raw value means in a column: a number, seconds since 1970, a category.

        Raises:
            BadValue: It means nothing there.
        """
        column = self._columns[name]
        if isinstance(column, NumberColumn):
            return read_number(value, self.rules, truth=column.truth)
        if isinstance(column, DateColumn):
            return read_date(value, self.rules, column)
        return read_category(value, self.rules)

    @property
    def types(self) -> dict[str, Literal["number", "date", "category"]]:
        """The type of each raw column, in the order of the data set."""
        names: dict[type, Literal["number", "date", "category"]]
        names = {NumberColumn: "number", DateColumn: "date", CategoryColumn: "category"}
        return {name: names[type(column)] for name, column in self._columns.items()}

    @property
    def reading_rules(self) -> object:
        """All by which raw values are read, but for what the columns contain; for JSON."""
        return [self.rules, self._state.target.suffix, list(self.types.items())]

    def column(self, name: str) -> Column:
        """What was learnt about a raw column."""
        return self._columns[name]

    def is_changed_by(self, max_categories: int) -> bool:
        """Whether with this limit of `fit` something else is learnt of the same rows."""
        columns, crosses = self._state.of_type(CategoryColumn), self._state.crosses
        sizes = [(len(column.categories), column.other_share) for column in columns]
        sizes += [(len(cross.pairs), cross.other_share) for cross in crosses]
        return any(
            0 < max_categories < size if share is UNSET else size != max_categories
            for size, share in sizes
        )

    def codes_of(self, name: str) -> Codes:
        """The codes of a column's categories; none for other columns."""
        return self._codes.get(name, Codes((), self.rules))

    def encode_target(self, labels: Iterable[str | None]) -> IntegerCodes:
        """Encode class names, (rows,); None and unknown classes get -1."""
        codes = np.fromiter(map(_OutcomeCodes(self.class_codes).__getitem__, labels), np.int64)
        return np.maximum(codes, -1)

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
            version = msgspec.json.decode(text, type=_Version).version
            if version == 1:
                return cls()._restore(msgspec.json.decode(text, type=_StateOfVersion1).upgrade())
            if version != VERSION:
                raise ValueError(f"features of version {version}; this program supports {VERSION}")
            return cls()._restore(msgspec.json.decode(text, type=_State))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"not the state of FeatureTools: {error}") from None

    def _restore(self, state: _State) -> "FeatureTools":
        _check(state)
        self._state = state
        self.target, self.rules = state.target.name, state.rules
        self.classes = tuple(state.target.classes)
        self.class_codes = ClassCodes(state.target, state.rules)
        self._marks = list(numeric_marks(state.rules))
        self._columns: dict[str, Column] = {column.name: column for column in state.columns}
        numbers, dates, categories = map(state.of_type, (NumberColumn, DateColumn, CategoryColumn))
        self.numerical = tuple(column.name for column in numbers)
        self.dates = tuple(column.name for column in dates)
        self.categorical = tuple(column.name for column in categories)
        self.columns = (*self.numerical, *self.dates, *self.categorical)
        self.crosses = tuple(cross.columns for cross in state.crosses)
        parts = [f"{column.name} ({part})" for column in dates for part in _parts_of(column)]
        named = [*self.numerical, *_new_names(parts, self.columns), *self.categorical]
        named += _new_names([" x ".join(pair) for pair in self.crosses], named)
        self.feature_names = tuple(named)
        sources: list[tuple[str, ...]] = [(name,) for name in self.numerical]
        sources += [(column.name,) for column in dates for _ in _parts_of(column)]
        sources += [(name,) for name in self.categorical]
        self.feature_sources = (*sources, *self.crosses)
        self._first_code = len(self.numerical) + len(parts)
        self._n_codes = self._first_code + len(self.categorical)
        self.categorical_features = self.feature_names[self._first_code :]
        bounds = [(column.low, column.high) for column in numbers]
        bounds += [bound for column in dates for bound in _part_bounds(column)]
        self._low = np.array([low for low, _ in bounds], dtype=np.float64)
        high = np.array([high for _, high in bounds], dtype=np.float64)
        with np.errstate(over="ignore"):
            span = high - self._low
        # A constant column, or one whose span overflows, is shifted but not scaled.
        self._span = np.where((span > 0) & np.isfinite(span), span, 1.0)
        self._date_places, place = {}, len(self.numerical)
        for column in dates:
            self._date_places[column.name] = place
            place += len(_parts_of(column))
        self._codes = {column.name: _codes(column, state.rules) for column in categories}
        others = [np.nan if one.other_share is UNSET else one.other_code for one in categories]
        self._others = np.array(others, dtype=np.float64)
        self._has_others = not np.isnan(self._others).all()
        self._crosses = [self._crosser(cross) for cross in state.crosses]
        self._read_date = {column.name: _date_reader(column, state.rules) for column in dates}
        self._getters: list[Callable[[Row], Any]]  # any JSON value
        self.field_names = {column: f"f{place}" for place, column in enumerate(self.columns)}
        self._getters = [attrgetter(field) for field in self.field_names.values()]
        first_date, first_category = len(self.numerical), len(self.columns) - len(self.categorical)
        self._get_number = self._getters[:first_date]
        self._get_date = list(zip(self.dates, self._getters[first_date:], strict=False))
        codes = self._codes.values()
        self._get_category = list(zip(codes, self._getters[first_category:], strict=True))
        absent = [ABSENT] * len(self.numerical) + [UNSET] * (len(dates) + len(categories))
        self._absent = list(zip(self._getters, absent, strict=True))
        self.row_type = _row_type(state, self.field_names)
        return self

    def _crosser(self, cross: _Cross) -> tuple[int, int, _Pairs]:
        first, second = (self.feature_names.index(name) for name in cross.columns)
        column = self._columns[cross.columns[1]]
        assert isinstance(column, CategoryColumn)
        return first, second, _Pairs(cross, column.highest_code + 1)

    def _empty(self, rows: int) -> Matrix:
        return np.empty((rows, len(self.feature_names)), dtype=np.float64)

    def _fill_date(self, matrix: Matrix, name: str, seconds: Matrix) -> None:
        """Write the parts of a date into its columns."""
        column = self._columns[name]
        assert isinstance(column, DateColumn)
        days, place = np.floor(seconds / DAY), self._date_places[name]
        matrix[:, place] = days - np.floor(column.first / DAY)
        matrix[:, place + 1] = np.mod(days + 3, 7)  # 1970 began on a Thursday
        if column.has_time:
            matrix[:, place + 2] = np.floor(np.mod(seconds, DAY) / 3600)

    def _count(self, matrix: Matrix, tally: ValueTally) -> None:
        # NumPy counts a single row in 20 us; that it has nothing to count is seen in 2.
        if (
            len(matrix) < BY_COLUMN_MIN_ROWS
            and not self._has_others
            and _is_plain(matrix, self._first_code, self._n_codes)
        ):
            return
        n_numerical, n_plain = len(self.numerical), len(self.numerical) + len(self.dates)
        tally[0, :n_numerical] += np.isnan(matrix[:, :n_numerical]).sum(axis=0)
        for place, name in enumerate(self.dates, n_numerical):
            tally[0, place] += np.isnan(matrix[:, self._date_places[name]]).sum()
        codes = matrix[:, self._first_code : self._n_codes]
        tally[0, n_plain:] += (codes == MISSING).sum(axis=0)
        tally[1, n_plain:] += (codes == UNKNOWN).sum(axis=0)
        tally[2, n_plain:] += (codes % 1 == LENIENT).sum(axis=0)
        if self._has_others:
            tally[3, n_plain:] += (codes == self._others).sum(axis=0)

    def _remove_marks(self, matrix: Matrix) -> None:
        """Replace the numbers that mean "missing"."""
        if self._marks:
            numbers = matrix[:, : len(self.numerical)]
            numbers[np.isin(numbers, self._marks)] = np.nan

    def _plain_codes(self, matrix: Matrix) -> None:
        """Remove the marks of unknown and leniently read categories from their codes."""
        codes = matrix[:, self._first_code : self._n_codes]
        np.floor(codes, out=codes)
        np.maximum(codes, 0.0, out=codes)

    def _finish(self, matrix: Matrix) -> Matrix:
        """Scale the numbers and cross the codes in place, for both `transform` methods."""
        numbers = matrix[:, : self._first_code]
        with np.errstate(over="ignore"):
            np.subtract(numbers, self._low, out=numbers)
            np.divide(numbers, self._span, out=numbers)
        for place, (first, second, pairs) in enumerate(self._crosses, self._n_codes):
            matrix[:, place] = pairs(matrix[:, first], matrix[:, second])
        return matrix


def _is_plain(matrix: Matrix, first_code: int, end: int) -> bool:
    """Whether no value is missing and all categories are known, as they are written."""
    return all(
        value == value if place < first_code else value >= 1 and value % 1 == 0
        for row in matrix[:, :end].tolist()
        for place, value in enumerate(row)
    )


class _Version(msgspec.Struct):
    version: int


class _OutcomeCodes(dict[object, int]):
    """Maps a class to its code, also where a DataFrame has NaN for a missing one."""

    def __init__(self, codes: ClassCodes) -> None:
        super().__init__()
        self._codes = codes

    def __missing__(self, label: object) -> int:
        return self._codes[label] if isinstance(label, str) else -1


def _row_type(state: _State, field_names: Mapping[str, str]) -> type[msgspec.Struct]:
    fields: list[tuple[str, object, object]] = []
    names = {"outcome": state.target.name}
    # A column may have any name, a struct field may not.
    # In the messages' order: msgspec searches for a key from the position of the previous one.
    for column in state.columns:
        field = field_names[column.name]
        names[field] = column.name
        if isinstance(column, NumberColumn):
            fields.append((field, float | None, ABSENT))
        elif isinstance(column, DateColumn):
            fields.append((field, str | None, UNSET))
        else:
            fields.append((field, Label | None, UNSET))
    fields.append(("outcome", Label | None, None))
    # gc=False: a row's values refer to no other objects, so it cannot be part of a cycle.
    return msgspec.defstruct("Row", fields, rename=names, frozen=True, gc=False)


def _check(state: _State) -> None:
    names = [column.name for column in state.columns]
    target = state.target
    if not names:
        raise ValueError("there are no feature columns")
    if len({*names, target.name}) <= len(names):
        raise ValueError("a column is listed twice, or is also the target")
    for name in (*names, target.name):
        if not name.isprintable() or '"' in name or "\\" in name:
            raise ValueError(
                f"a column name cannot hold quotes, \\ or control characters: {name!r}"
            )
    if len(target.classes) < 2 or len(set(target.classes)) < len(target.classes):
        raise ValueError(f"needs two or more different classes, not {target.classes}")
    highest_codes = {}
    for column in state.of_type(CategoryColumn):
        highest_codes[column.name] = column.highest_code
        if len(set(column.categories)) < len(column.categories):
            raise ValueError(f"column {column.name!r} has a category twice")
    for cross in state.crosses:
        _check_cross(cross, highest_codes)


def _check_cross(cross: _Cross, highest_codes: Mapping[str, int]) -> None:
    for name in cross.columns:
        if name not in highest_codes:
            raise ValueError(f"cannot cross {name!r}: it is not a categorical column")
    sizes = [highest_codes[name] for name in cross.columns]
    if cross.pairs != sorted(set(cross.pairs)):
        raise ValueError(f"the pairs of {cross.columns} are not in order")
    if any(
        not 1 <= code <= size
        for pair in cross.pairs
        for code, size in zip(pair, sizes, strict=True)
    ):
        raise ValueError(f"the pairs of {cross.columns} contain codes that do not exist")


def _new_names(wanted: Sequence[str], taken: Sequence[str]) -> list[str]:
    names: list[str] = []
    for name in wanted:
        while name in taken or name in names:
            name += "'"
        names.append(name)
    return names


def _parts_of(column: DateColumn) -> tuple[str, ...]:
    return DATE_PARTS if column.has_time else DATE_PARTS[:2]


def _part_bounds(column: DateColumn) -> list[tuple[float, float]]:
    days = np.floor(column.last / DAY) - np.floor(column.first / DAY)
    return [(0.0, float(days)), (0.0, 6.0), (0.0, 23.0)][: len(_parts_of(column))]


def _date_reader(column: DateColumn, rules: Rules) -> Callable[[object], float]:
    def read(value: object) -> float:
        if isinstance(value, float):
            return value  # seconds, read before
        return ABSENT if value is None or value is UNSET else read_date(value, rules, column)

    return read


def _numbers(frame: "pd.DataFrame", name: str) -> Matrix:
    if name not in frame:
        return np.full(len(frame), np.nan)
    values: Matrix = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    return values


def _number_column(name: str, values: Matrix) -> NumberColumn:
    known = values[np.isfinite(values)]
    low, high = usual_range(known)
    truth = bool(len(known)) and bool(((known == 0) | (known == 1)).all())
    return NumberColumn(
        name=name, low=low, high=high, truth=truth, missing_share=_missing_share(len(known), values)
    )


def usual_range(known: Matrix) -> tuple[float, float]:
    """The lowest and the highest value; without extremes that would leave nothing of the others.

    Among numbers of usual size a single 1e300 would scale all others to the same number.
    """
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    with np.errstate(over="ignore", invalid="ignore"):
        usual_low, usual_high = np.quantile(known, (0.01, 0.99)).tolist()
        if usual_high > usual_low and high - low > EXTREME * (usual_high - usual_low):
            return usual_low, usual_high
    return low, high


def _date_column(name: str, seconds: Matrix) -> DateColumn:
    known = seconds[np.isfinite(seconds)]
    first, last = (float(known.min()), float(known.max())) if len(known) else (0.0, DAY)
    return DateColumn(
        name=name,
        first=first,
        last=last,
        has_time=bool(len(known)) and float((known % DAY != 0).mean()) >= LEAST_TIMES,
        missing_share=_missing_share(len(known), seconds),
    )


def _category_column(column: "pd.Series", rules: Rules, max_categories: int) -> CategoryColumn:
    places, values = column.factorize()  # place -1 where missing
    rows: dict[str, int] = {}
    for value, count in zip(values.tolist(), np.bincount(places + 1)[1:].tolist(), strict=True):
        text = read_category(value, rules)
        if text is not None:
            rows[text] = rows.get(text, 0) + count
    categories: Iterable[str] = rows
    if is_limited := 0 < max_categories < len(rows):
        categories = nsmallest(max_categories, rows, key=lambda text: (-rows[text], text))
    categories = sorted(categories)
    rest = sum(rows.values()) - sum(rows[text] for text in categories)
    return CategoryColumn(
        name=str(column.name),
        categories=categories,
        other_share=rest / len(column) if is_limited else UNSET,
        missing_share=_missing_share(int(column.count()), column),
    )


def _codes(column: CategoryColumn, rules: Rules) -> Codes:
    return Codes(column.categories, rules, column.other_code)


def _missing_share(known: int, rows: "Matrix | pd.Series") -> float:
    return 1 - known / len(rows) if len(rows) else 0.0


def _codes_of(column: "pd.Series", codes: Codes) -> Matrix:
    places, values = column.factorize()  # place -1 where missing: the last of the table
    table = [codes[value] for value in values.tolist()]
    encoded: Matrix = np.array([*table, MISSING], dtype=np.float64)[places]
    return encoded


def _cross(names: tuple[str, str], codes: Mapping[str, Matrix], max_pairs: int) -> _Cross:
    for name in names:
        if name not in codes:
            raise ValueError(f"cannot cross {name!r}: it is not a categorical column")
    first, second = (np.floor(codes[name]).astype(np.int64) for name in names)
    known = (first > 0) & (second > 0)
    # Each pair as one number: unique() of pairs would take half the time of the whole fit.
    width = int(second.max(initial=0)) + 1
    pairs, counts = np.unique(first[known] * width + second[known], return_counts=True)
    rest: float | UnsetType = UNSET
    if 0 < max_pairs < len(pairs):
        ranked = np.lexsort((pairs, -counts))
        rest = float(counts[ranked[max_pairs:]].sum() / len(first))
        pairs = np.sort(pairs[ranked[:max_pairs]])
    return _Cross(
        columns=(names[0], names[1]),
        pairs=[divmod(pair, width) for pair in pairs.tolist()],
        other_share=rest,
    )
