"""Reads a CSV file of the data set as pipeline.toml describes it, and infers its columns' types."""

import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.settings import ColumnType, Data
from utils.values import (
    DEFAULT_MISSING,
    NO_NUMBER,
    BadValue,
    Rules,
    read_category,
    read_class,
    read_date,
    read_number,
    shown,
)

#: The separators and encodings that an error message may suggest.
SEPARATORS = (",", ";", "\t", "|")
ENCODINGS = ("utf-8", "cp1252", "latin-1")

#: If most of so many values of a column are text, not every value is looked at.
SAMPLE = 1_000

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_LEADING_ZERO = re.compile(r"0\d+", re.ASCII)
#: From so many records the first one is recognised as a header.
HEADER_SAMPLE = 50
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([.,]\d{3})*", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


class DataError(UserError, ValueError):
    """A data set that does not fit pipeline.toml; its text is one line for the user."""


@dataclass(frozen=True)
class DataSet:
    """A file of the data set, as understood.

    Attributes:
        frame: (rows, columns), in the file's order, without the dropped columns. Columns of
            numbers are numbers, dates are seconds since 1970; categories and classes are text
            as `values.read_category` writes it. NaN or None where missing.
        types: The type of each feature column.
        reasons: Why it has that type.
        unread: How many values of a column mean nothing in its type; they are missing.
        duplicates: Names that several columns have; the later ones are named as pandas does.
        blank_names: Names that have blanks around them in the header; here they have none.
    """

    frame: pd.DataFrame
    types: dict[str, ColumnType]
    reasons: dict[str, str] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    duplicates: tuple[str, ...] = ()
    blank_names: tuple[str, ...] = ()


def rules_of(data: Data) -> Rules:
    """The rules of pipeline.toml for the values of every column."""
    missing = DEFAULT_MISSING if data.missing is None else ("", *data.missing)
    return Rules(missing=tuple(dict.fromkeys(missing)), decimal=data.decimal)


def read_data(path: Path, data: Data, types: Mapping[str, ColumnType] | None = None) -> DataSet:
    """Read a CSV file.

    Args:
        path: The file.
        data: Its format.
        types: The feature columns and their types, as they were learnt; None to take all
            columns and infer their types from the values. `data.types` comes first.

    Raises:
        DataError: The file cannot be read, or does not fit its description.
    """
    text = read_text(path, data)
    duplicates, blank_names = _check_header(path, text, data)
    frame = _parse(path, text, data)
    _check_columns(path, list(frame.columns), data)
    if set(frame.columns) <= {*data.drop, data.target}:
        raise DataError(f"{path} has no column to learn from besides the target and [data] drop")
    frame = _chosen_columns(path, frame.drop(columns=list(data.drop)), data, types)
    known: dict[str, ColumnType] = {**(types or {}), **dict(data.types)}
    for name in data.categorical:
        known[name] = "category"
    reader = _Reader(data, rules_of(data))
    names = list(frame.columns)
    text_columns = _text_columns(frame, text, data, known)
    frame = frame.drop(columns=text_columns)  # millions of texts should not be there twice
    texts = _parse_as_text(path, text, data, text_columns)
    columns: dict[str, pd.Series] = {}
    for name in names:
        if name not in texts:
            reader.take_numbers(name)
            columns[name] = frame[name]
            if columns[name].dtype.kind == "f":  # an infinite number is no number
                columns[name] = frame[name].replace([np.inf, -np.inf], np.nan)
        else:
            columns[name] = reader.read(name, texts.pop(name), known.get(name))
    return DataSet(
        pd.DataFrame(columns), reader.types, reader.reasons, reader.unread, duplicates, blank_names
    )


class _Reader:
    """Reads columns of text by the rules of `utils.values`; collects their types."""

    def __init__(self, data: Data, rules: Rules) -> None:
        self.types: dict[str, ColumnType] = {}
        self.reasons: dict[str, str] = {}
        self.unread: dict[str, int] = {}
        self._data = data
        self._rules = rules

    def take_numbers(self, name: str) -> None:
        """A column that pandas has read as numbers."""
        self.types[name], self.reasons[name] = "number", "numbers"

    def read(self, name: str, texts: "pd.Series", known: ColumnType | None) -> "pd.Series":
        """Read a column: the target, or one of the type that is known or that fits."""
        places, values = pd.factorize(texts)
        if name == self._data.target:
            marks = self._rules.missing
            names = [read_class(value, self._data.target_suffix) for value in values]
            return _taken([None if each in marks else each for each in names], places, name)
        kind, reason = (known, "set in pipeline.toml") if known else self._infer(list(values))
        self.types[name], self.reasons[name] = kind, reason
        if kind == "category":
            return _taken([read_category(value, self._rules) for value in values], places, name)
        convert = read_number if kind == "number" else read_date
        numbers, bad = [], np.zeros(len(values) + 1, dtype=bool)
        for place, value in enumerate(values):
            try:
                numbers.append(convert(value, self._rules))
            except BadValue:
                numbers.append(np.nan)
                bad[place] = True
        if bad.any():
            self.unread[name] = int(bad[places].sum())
        return pd.Series(np.array([*numbers, np.nan])[places], name=name)

    def _infer(self, values: list[str]) -> tuple[ColumnType, str]:
        """The type of a column from its different values, and why."""
        if len(values) > SAMPLE and self._is_text(values[:: len(values) // SAMPLE]):
            return "category", "text"
        numbers = [self._read(value, read_number) for value in values]
        if None not in numbers:
            codes = [v.strip() for v in values if _LEADING_ZERO.fullmatch(v.strip())]
            if codes:
                return "category", f"{codes[0]!r} has a leading zero: a code, not a number"
            if not np.isnan(np.array(numbers, dtype=np.float64)).all():
                return "number", "numbers"
            return "category", "no values"
        if all(map(self._is_missing_or_iso, values)):
            return "date", "ISO dates"
        return "category", self._why_text(values, values[numbers.index(None)])

    def _is_text(self, values: list[str]) -> bool:
        """Whether most values are neither numbers nor dates, nor numbers in another notation."""
        return len(values) < 2 * sum(
            self._read(value, read_number) is None
            and not self._is_missing_or_iso(value)
            and not _DECIMAL_COMMA.fullmatch(value.strip())
            and not _THOUSANDS.fullmatch(value.strip())
            for value in values
        )

    def _read(self, value: str, read: Callable[[object, Rules], float]) -> float | None:
        """What a value means as a number or date; None if it is neither that nor missing."""
        try:
            return read(value, self._rules)
        except BadValue:
            return None

    def _is_missing_or_iso(self, value: str) -> bool:
        if "-" in value[1:] and self._read(value, read_date) is not None:
            return True
        number = self._read(value, read_number)
        return number is not None and bool(np.isnan(number))

    def _why_text(self, values: list[str], example: str) -> str:
        if all(_DECIMAL_COMMA.fullmatch(v.strip()) for v in values if v.strip()):
            return f'{shown(example)} is no number; with [data] decimal = "," it would be'
        if all(_THOUSANDS.fullmatch(v.strip()) for v in values if v.strip()):
            return f"{shown(example)} is no number; without thousands separators it would be"
        not_dates = [value for value in values if not self._is_missing_or_iso(value)]
        if len(not_dates) <= len(values) / 10:
            return (
                f"{len(not_dates)} of {len(values)} different values are no ISO dates, such as "
                f"{shown(not_dates[0])}"
            )
        others = sum(self._read(value, read_number) is None for value in values)
        if others <= len(values) / 10:
            return (
                f"{others} of {len(values)} different values are no numbers, such as "
                f"{shown(example)}"
            )
        return "text"


def _taken(names: list[str | None], places: np.ndarray, name: str) -> "pd.Series":
    return pd.Series(np.array([*names, None], dtype=object)[places], name=name, dtype=object)


# The file


def read_text(path: Path, data: Data) -> str:
    """The text of a CSV file without its comments.

    Raises:
        DataError: The file cannot be read or is not in the encoding that its description names.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    encoding = "utf-8-sig" if data.encoding == "utf-8" else data.encoding
    try:
        text = content.decode(encoding)
    except UnicodeError:
        fits = next((name for name in _candidates(content) if _fits(content, name)), "another one")
        raise DataError(f"{path} is not {data.encoding}; set [data] encoding to {fits!r}") from None
    if (
        data.encoding not in ("utf-8", "ascii")
        and not content.isascii()
        and _fits(content, "utf-8")
    ):
        raise DataError(f'{path} is not {data.encoding}; set [data] encoding to "utf-8"')
    if "\0" in text:
        raise DataError(f"{path} is not valid CSV: it contains NUL characters")
    return _without_comments(text, data.comment)


def _candidates(content: bytes) -> tuple[str, ...]:
    return ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ENCODINGS


def _fits(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeError:
        return False
    return True


def _without_comments(text: str, comment: str) -> str:
    # pandas' own `comment` option would also truncate lines that contain the character later.
    if not comment:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(comment))


def _first_fields(text: str, separator: str) -> list[str]:
    lines = (line[0] for line in _LINE.finditer(text))  # not all of them are copied
    reader = csv.reader(lines, delimiter=separator)
    return next((row for row in reader if row), [])


def _check_header(path: Path, text: str, data: Data) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check that the separator fits.

    Returns:
        The names that the header has several times, and those with blanks around them.
    """
    try:
        fields = _first_fields(text, data.separator)
        if not _header_fits(fields, data):
            for separator in SEPARATORS:
                if _header_fits(_first_fields(text, separator), data):
                    raise DataError(
                        f"{path} is not separated by {data.separator!r}; set [data] separator "
                        f"to {separator!r}"
                    )
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}") from None
    if data.columns:
        if list(map(str.strip, fields)) == list(data.columns) or _names_numbers(text, data):
            raise DataError(f"the first line of {path} is a header: remove [data] columns")
        return (), ()
    names = Counter(map(str.strip, fields))
    return (
        tuple(name for name, count in names.items() if count > 1),
        tuple(name for name in fields if name != name.strip()),
    )


def _names_numbers(text: str, data: Data) -> bool:
    """Whether each column of numbers begins with a text: the first line has names, not values."""
    lines = (line[0] for line in _LINE.finditer(text))
    records = filter(None, csv.reader(lines, delimiter=data.separator))
    try:
        first, *others = list(islice(records, HEADER_SAMPLE)) or [[]]
    except csv.Error:  # parsing the file says it
        return False
    if len(first) != len(data.columns):
        return False
    columns, rules = zip(*others, strict=False), rules_of(data)
    names = [name for name, column in zip(first, columns, strict=False) if _numbers(column, rules)]
    return bool(names) and all(_numbers([name], rules) is None for name in names)


def _numbers(texts: Sequence[str], rules: Rules) -> int | None:
    """How many of the texts are numbers; None if one is neither that nor means "missing"."""
    try:
        return sum(not np.isnan(read_number(text, rules)) for text in texts)
    except BadValue:
        return None


def _header_fits(fields: list[str], data: Data) -> bool:
    if data.columns:
        return len(fields) == len(data.columns)
    return data.target in map(str.strip, fields) and len(fields) > 1


def _parse(path: Path, text: str, data: Data) -> pd.DataFrame:
    """Parse the file; columns in which every value is a number or missing become numbers."""
    marks = {w for mark in NO_NUMBER for w in (mark, mark.upper(), mark.title())}
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            frame = pd.read_csv(
                io.BytesIO(text.encode()),  # StringIO takes four bytes per character
                sep=data.separator,
                decimal=data.decimal,
                names=list(data.columns) or None,
                index_col=False,
                skipinitialspace=True,
                keep_default_na=False,
                na_values=sorted({*marks, *DEFAULT_MISSING, *(data.missing or ())}),
                dtype={data.target: str},
                low_memory=False,  # infer one type per column, not one per chunk
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        why = " ".join(str(error).split())
        if "Length of header" in why:
            why = "its lines have more fields than its header (or [data] columns) has names"
        raise DataError(f"{path} is not valid CSV: {why}") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    if not len(frame):
        raise DataError(f"{path} has no rows")
    return frame


def _check_columns(path: Path, columns: list[str], data: Data) -> None:
    pairs = (name for pair in data.cross for name in pair)
    types = (name for name, _ in data.types)
    named = {data.target, *data.drop, *data.categorical, *pairs, *types}
    if unknown := sorted(named - set(columns)):
        raise DataError(f"{path} has no column {unknown[0]!r}, which pipeline.toml names")


def _chosen_columns(
    path: Path, frame: pd.DataFrame, data: Data, types: Mapping[str, ColumnType] | None
) -> pd.DataFrame:
    if types is None:
        return frame
    if missing := sorted(set(types) - set(frame.columns)):
        raise DataError(
            f"{path} has no column {missing[0]!r}, which the serving model uses; "
            "initialize.py --force trains one without it"
        )
    return frame[[name for name in frame.columns if name in types or name == data.target]]


def _text_columns(
    frame: pd.DataFrame, text: str, data: Data, known: Mapping[str, ColumnType]
) -> list[str]:
    """The columns whose text is needed: all but those that are numbers beyond doubt."""
    separator = re.escape(data.separator)
    has_zeros = re.search(rf'(?:^|{separator})[ "]*0\d', text, re.MULTILINE) is not None

    def is_number(name: str) -> bool:
        dtype = frame[name].dtype
        if dtype.kind not in "iuf" or name == data.target or frame[name].isna().all():
            return False
        return known.get(name) == "number" or (name not in known and not has_zeros)

    return [name for name in frame.columns if not is_number(name)]


def _parse_as_text(path: Path, text: str, data: Data, names: list[str]) -> dict[str, "pd.Series"]:
    """The same file again, these columns as they are written."""
    if not names:
        return {}
    try:
        columns = pd.read_csv(
            io.BytesIO(text.encode()),
            sep=data.separator,
            names=list(data.columns) or None,
            index_col=False,
            skipinitialspace=True,
            keep_default_na=False,
            na_filter=False,
            dtype=str,
            usecols=lambda name: str(name).strip() in names,
        )
    except ValueError:  # pandas counts the fields only where it is to choose columns
        raise DataError(
            f"{path} is not valid CSV: its lines have fewer fields than [data] columns has names"
        ) from None
    return {str(name).strip(): columns[name].astype(object) for name in columns}
