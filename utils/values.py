"""What a raw value means: one set of rules for files, messages and outcomes.

A raw value is the text of a file's cell or a JSON value of a message. `read_number`,
`read_category` and `read_date` say what it means in a column of that type, `Codes` and
`ClassCodes` which category or class it is. What a data set adds to the rules (its own marks
for missing, its categories, ...) is learnt once and kept in features.json.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

import msgspec
from msgspec import UNSET, UnsetType

#: A class or a category in a message: its name as text, or as a number or truth value.
Label = str | int | float | bool

#: Texts that mean "missing" unless pipeline.toml names others: those of pandas' `read_csv`, so
#: that a value that pandas does not send is not a category either.
DEFAULT_MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
#: Texts that always mean "missing" where a number or a date belongs, in any case.
NO_NUMBER = frozenset(
    {text.casefold() for text in DEFAULT_MISSING}
    | {"?", "-", "--", ".", "nat", "none", "missing", "inf", "+inf", "-inf"}
    | {"infinity", "+infinity", "-infinity"}
)

#: The code of a category that is missing, and of one that training did not see.
MISSING, UNKNOWN = 0.0, -1.0
#: Added to the code of a category that is written in another way than in the data set.
LENIENT = 0.5
#: The codes of an outcome that is missing, and of one that is none of the classes.
NO_OUTCOME, NO_CLASS = -2, -1

DAY = 86_400.0  # seconds
#: The years 1 to 9999 in seconds since 1970; other dates are none.
FIRST_SECOND, LAST_SECOND = -62_135_596_800.0, 253_402_300_799.999

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: A number that a category may be: without a leading zero, which makes it another category.
_PLAIN_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)", re.ASCII)
#: With decimal commas, a number whose point separates thousands, or may do so.
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+", re.ASCII)
_DATE = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?", re.ASCII
)
_TRUTH = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
_OTHER_TRUTH = {"true": "1", "false": "0", "1": "true", "0": "false"}
_SHOWN = 60


class BadValue(ValueError):
    """A value that means nothing in its column; the text says what was sent, and why not."""


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules that hold in every column of a data set.

    Attributes:
        missing: The texts that mean "missing".
        decimal: The decimal separator of numbers in text, "." or ",".
    """

    missing: tuple[str, ...] = DEFAULT_MISSING
    decimal: str = "."


class _Column(
    msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True, kw_only=True
):
    name: str
    missing_share: float = 0.0  # of the training rows


class NumberColumn(_Column, frozen=True, tag="number", kw_only=True):
    """A column of numbers: its range in training, and whether it has only 0 and 1."""

    low: float
    high: float
    truth: bool = False


class DateColumn(_Column, frozen=True, tag="date", kw_only=True):
    """A column of dates: its range in seconds since 1970, and whether it has times of day."""

    first: float
    last: float
    has_time: bool = False


class CategoryColumn(_Column, frozen=True, tag="category", kw_only=True):
    """A column of categories.

    Attributes:
        categories: Those with the codes 1, 2, ...
        other_share: The share of the training rows with another category. All other categories
            have the next code, also those that training did not see. Unset if training learnt
            every category.
    """

    categories: list[str]
    other_share: float | UnsetType = UNSET

    @property
    def highest_code(self) -> int:
        """The highest code of a category, the other ones included."""
        return len(self.categories) + (self.other_share is not UNSET)

    @property
    def other_code(self) -> float:
        """The code of a category that is none of `categories`."""
        return UNKNOWN if self.other_share is UNSET else float(self.highest_code)


Column = NumberColumn | DateColumn | CategoryColumn


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The target: its column, its classes in the order of their codes, and what may follow them."""

    name: str
    classes: list[str]
    suffix: str = ""


def read_number(value: object, rules: Rules, *, truth: bool = False) -> float:
    """Read a number.

    >>> [read_number(value, Rules()) for value in (39, "39", " 39.0 ", "", None, "?")]
    [39.0, 39.0, 39.0, nan, nan, nan]
    >>> read_number("True", Rules(), truth=True)
    1.0

    Args:
        value: A text or a JSON value.
        rules: The data set's rules.
        truth: Whether the column has only 0 and 1, so that truth values belong there.

    Returns:
        The number; NaN if it is missing, not a number or infinite.

    Raises:
        BadValue: It is something else.
    """
    if isinstance(value, bool):
        if truth:
            return float(value)
    elif isinstance(value, int | float):
        number = _finite(value)
        return math.nan if number in numeric_marks(rules) else number
    elif isinstance(value, str):
        plain = python_number(value)
        if plain is not None and (rules.decimal == "." or not _THOUSANDS.fullmatch(value.strip())):
            return math.nan if plain in numeric_marks(rules) else plain
        text = value.strip()
        if text in rules.missing or text.casefold() in NO_NUMBER:
            return math.nan
        if rules.decimal != "." and "." not in text:
            text = text.replace(rules.decimal, ".")
        elif rules.decimal != ".":
            text = ""
        if _NUMBER.fullmatch(text):
            number = _finite(float(text))
            return math.nan if number in numeric_marks(rules) else number
        if truth and (word := _TRUTH.get(text, text)) in ("true", "false"):
            return float(word == "true")
    elif value is None:
        return math.nan
    raise BadValue(f"{shown(value)} is {'nested' if _is_nested(value) else 'no number'}")


@lru_cache(maxsize=16)
def numeric_marks(rules: Rules) -> frozenset[float]:
    """The numbers that mean "missing", such as -999."""
    return frozenset(float(text) for text in rules.missing if _NUMBER.fullmatch(text))


def read_category(value: object, rules: Rules) -> str | None:
    """Read a category, as text in the form in which categories are learnt and compared.

    >>> [read_category(value, Rules()) for value in (" Private", 1.0, "1.0", True, "01067", "")]
    ['Private', '1', '1', 'true', '01067', None]

    Raises:
        BadValue: It is a nested value, or not valid Unicode.
    """
    if isinstance(value, str):
        text = clean_text(value)
        if not text or text in rules.missing:
            return None
        text = canonical_text(text)
        return None if text in rules.missing else text
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, int | float):  # and bool
        text = label_text(value)
        return None if text in rules.missing else text
    raise BadValue(f"{shown(value)} is nested")


def read_date(value: object, rules: Rules, column: DateColumn | None = None) -> float:
    """Read a date or timestamp in the ISO format, or seconds or milliseconds since 1970.

    >>> read_date("1970-01-02", Rules()), read_date("1970-01-01T01:00:00+01:00", Rules())
    (86400.0, 0.0)

    Args:
        value: A text or a JSON value; a time without an offset is UTC.
        rules: The data set's rules.
        column: The column in training. A number is taken in that unit (s, ms, us or ns)
            in which it is closest to the column's range; without a column, by its size.

    Returns:
        Seconds since 1970, UTC; NaN if it is missing.

    Raises:
        BadValue: It is something else.
    """
    if value is None:
        return math.nan
    if isinstance(value, str):
        text = value.strip()
        seconds = _seconds(text)
        if seconds is not None:
            return seconds
        if text.casefold() in NO_NUMBER or text in rules.missing:
            return math.nan
        number = python_number(text)
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        number = _finite(value) if is_number else None  # type: ignore[arg-type]
    if number is not None:
        seconds = _since_1970(number, column)
        if math.isnan(number) or FIRST_SECOND <= seconds <= LAST_SECOND:
            return seconds
    raise BadValue(f"{shown(value)} is {'nested' if _is_nested(value) else 'no ISO date'}")


def _since_1970(number: float, column: DateColumn | None) -> float:
    units = (number / 1e3, number, number / 1e6, number / 1e9)
    if column is not None:
        return min(units, key=lambda s: max(column.first - s, s - column.last, 0.0))
    size = abs(number)
    return units[1 if size < 1e11 else 0 if size < 1e14 else 2 if size < 1e17 else 3]


@lru_cache(maxsize=50_000)
def _seconds(text: str) -> float | None:
    if not _DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:  # such as the 30th of February
        return None
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return seconds if FIRST_SECOND <= seconds <= LAST_SECOND else None


def date_text(seconds: float, *, with_time: bool) -> str:
    """A date in the ISO format; with a time, in UTC.

    >>> date_text(86400.0, with_time=False), date_text(3600.5, with_time=True)
    ('1970-01-02', '1970-01-01T01:00:00.500000Z')
    """
    moment = datetime.fromtimestamp(seconds, UTC)
    if not with_time:
        return moment.date().isoformat()
    return moment.isoformat().removesuffix("+00:00") + "Z"


def read_request_id(value: object, longest: int) -> str:
    """Read a request_id: text, or a number, which becomes text.

    >>> read_request_id(123, 9), read_request_id("a", 9)
    ('123', 'a')

    Raises:
        BadValue: It is something else, empty or longer than `longest` characters.
    """
    if isinstance(value, str):
        if not value:
            raise BadValue("request_id is empty")
        if len(value) > longest:
            raise BadValue(f"request_id has more than {longest:,} characters")
        return valid_text(value)
    if value is None:
        raise BadValue("request_id is missing")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise BadValue(f"request_id {shown(value)} is neither text nor a number")
    assert isinstance(value, int | float)
    return label_text(value)


def clean_text(text: str) -> str:
    """Remove surrounding blanks, and bring the text to Unicode's normal form C.

    Raises:
        BadValue: It is not valid Unicode.
    """
    return (
        text.strip() if text.isascii() else unicodedata.normalize("NFC", valid_text(text).strip())
    )


def canonical_text(text: str) -> str:
    """Format a plain number or truth value as `label_text` does; other text stays unchanged.

    A number with a leading zero or an exponent is a code, not a number.

    >>> [canonical_text(text) for text in ("1.0", "1e3", "007", "True", ">50K")]
    ['1', '1e3', '007', 'true', '>50K']
    """
    if text in _TRUTH:
        return _TRUTH[text]
    if not _PLAIN_NUMBER.fullmatch(text):
        return text
    if text.lstrip("+-").isdigit():
        return str(int(text)) if len(text) < 4000 else text  # int() refuses 4,300 digits
    number = float(text)
    return label_text(number) if math.isfinite(number) else text


def label_text(label: Label) -> str:
    """Convert a class label to the class name as the data set writes it.

    >>> label_text(">50K"), label_text(1), label_text(1.0), label_text(True)
    ('>50K', '1', '1', 'true')
    """
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


class Codes(dict[Label | UnsetType | None, float]):
    """Maps a category, in whatever way it is written, to its code.

    >>> codes = Codes(["Private", "State-gov"], Rules())
    >>> codes["Private"], codes[" Private"], codes[None], codes["Martian"]
    (1.0, 1.5, 0.0, -1.0)

    The code is `MISSING` or `other` if there is none, and `LENIENT` is added to that of a
    category that is written in another way.
    """

    def __init__(self, categories: Sequence[str], rules: Rules, other: float = UNKNOWN) -> None:
        super().__init__(zip(categories, map(float, range(1, len(categories) + 1)), strict=True))
        self[None] = self[UNSET] = MISSING  # present, because __missing__ is slow
        self._rules = rules
        self._other = other
        self._is_truth = other == UNKNOWN and _is_truth(categories)

    def __missing__(self, value: Label) -> float:
        if isinstance(value, str):
            # Most of what gets here has only blanks around it.
            code = self.get(value.strip())
            if code is not None:
                return code + LENIENT
        text = read_category(value, self._rules)
        if text is None:
            return MISSING
        code = self.get(text)
        if code is not None:
            return code if not isinstance(value, str) else code + LENIENT
        if self._is_truth and text in _OTHER_TRUTH:
            code = self.get(_OTHER_TRUTH[text])
        return self._other if code is None else code + LENIENT


class ClassCodes(dict[object, int]):
    """Maps an outcome, in whatever way it is written, to the code of its class.

    >>> codes = ClassCodes(Target(name="income", classes=["<=50K", ">50K"], suffix="."), Rules())
    >>> codes[" >50K."], codes["?"], codes[None]
    (1, -1, -2)

    The code is `NO_OUTCOME` or `NO_CLASS` if there is none.
    """

    def __init__(self, target: Target, rules: Rules) -> None:
        super().__init__(zip(target.classes, range(len(target.classes)), strict=True))
        self[None] = NO_OUTCOME
        self._rules = rules
        self._suffix = target.suffix
        self._is_truth = _is_truth(target.classes)

    def __missing__(self, value: Label) -> int:
        text = read_class(value, self._suffix, self)
        if text in self:
            return self[text]
        if text is None or text in self._rules.missing:
            return NO_OUTCOME
        return self.get(_OTHER_TRUTH.get(text), NO_CLASS) if self._is_truth else NO_CLASS


def read_class(value: object, suffix: str, known: "dict[object, int] | None" = None) -> str | None:
    """Read an outcome as the name of its class, None if it is missing.

    Args:
        value: A text or a JSON value.
        suffix: What may follow a class's name, as "." in adult.test.
        known: The classes, if they are known; one of them is never shortened.

    Raises:
        BadValue: It is nested, or not valid Unicode.
    """
    text = read_category(value, _NO_MARKS)
    if text is None or (known is not None and text in known):
        return text
    if suffix and text.endswith(suffix):
        text = read_category(text.removesuffix(suffix), _NO_MARKS)
    return text


_NO_MARKS = Rules(missing=())


def shown(value: object) -> str:
    """A value for an error message, abbreviated, on one line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _is_truth(names: Sequence[str]) -> bool:
    """Whether a column has only truth values, or only 0 and 1."""
    return bool(names) and (set(names) <= {"true", "false"} or set(names) <= {"0", "1"})


def _is_nested(value: object) -> bool:
    return isinstance(value, list | dict)


def python_number(text: str) -> float | None:
    """A finite number as most programs write it, for speed; None for all that needs a rule."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and text.isascii() and "_" not in text else None


def _finite(number: float) -> float:
    try:
        number = float(number)
    except OverflowError:  # an integer with more than 308 digits
        return math.nan
    return number if math.isfinite(number) else math.nan


def valid_text(text: str) -> str:
    """The text itself.

    Raises:
        BadValue: It is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as "\ud800" in JSON
        raise BadValue(f"{shown(text)} is not valid Unicode") from None
    return text
