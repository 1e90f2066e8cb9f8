"""Mutations of messages, and what must hold for the decoding of any bytes."""

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd

from utils import data_set, preprocess_data
from utils.feature_tools import FeatureTools
from utils.message_decoder import MessageDecoder, OutcomeDecoder
from utils.messages import BadRecord, Prediction
from utils.settings import Settings

#: The most bytes of a mutated message: enough for more digits than Python's int() accepts,
#: and for nesting deeper than its json reads.
LARGEST = 16_384

#: Values that a mutation inserts: numbers at the limits of floats and 64-bit integers, odd
#: text, and what is not JSON although Python or people accept it.
NUMBERS = (
    *(b"0", b"-0", b"-0.0", b"39", b"1e23", b"1e308", b"-1e308", b"1e-400", b"5e-324"),
    *(b"2.4703282292062328e-324", b"1.7976931348623157e308", b"1.7976931348623159e308"),
    *(b"9007199254740993", b"9223372036854775808", b"18446744073709551616"),
    *(b"-9223372036854775809", b"1" * 309, b"0." + b"1" * 800, b"0." + b"0" * 400 + b"1"),
)
TEXTS = (
    *(b"null", b'""', b'"?"', b'"39"', b'"a' + b"a" * 900 + b'"', '"\u2028\u00e9"'.encode()),
    *(rb'"\u0000"', rb'"\ud83d\ude00"', rb'"\u0041\/\b"'),
)
#: No JSON, or beyond floats; a column of numbers takes them for missing.
INFINITE = (b"1e400", b"-1e400", b"1" * 310, b"1" * 4300, b"NaN", b"Infinity", b"-Infinity")
BROKEN = (
    *(b"true", b"false", b"[]", b"{}", b"-" + b"1" * 4301, b"01", b"1.", b".5", b"+1"),
    *(b"0x1f", b"'39'", b"1_000", rb'"\ud800"', rb'"\udc00\ud800"', rb'"\x"', b'"\x01"'),
    *(b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b"[" * 1_200, b"[" * 900 + b"]" * 900),
    *(b'{"a":' * 300 + b"1" + b"}" * 300, b"\xef\xbb\xbf", b"\x00", b"/**/", b"\r\n", b""),
)

_STRING = rb'"(?:[^"\\]|\\.)*"'
_TOKEN = re.compile(_STRING + rb"|-?\d[\d.eE+-]*|\w+|[][{}:,]", re.DOTALL)
_PAIR = re.compile(rb"(%b\s*:\s*)(%b|[^][{}\",]+)" % (_STRING, _STRING), re.DOTALL)


def mutate(value: bytes, random: Random, largest: int = LARGEST) -> bytes:
    """The message with one place changed to something wrong or odd."""
    pair, token, another = (_found(what, value, random) for what in (_PAIR, _TOKEN, _TOKEN))
    if pair is None or token is None or another is None:
        return random.choice(BROKEN) + value[:largest]
    kind = random.randrange(7)
    if kind < 3:
        start, end = pair.span(2)
        instead = (_number(random), random.choice(TEXTS), random.choice((*BROKEN, *INFINITE)))[kind]
    elif kind == 3:  # the same key twice
        start = end = pair.start()
        instead = pair[1] + random.choice((_number(random), *TEXTS)) + b","
    else:
        start, end = token.span()
        around = random.choice((b'{"a":%b}', b"[%b]", b'"%b"', b"%b,"))
        instead = (another[0], around % token[0], random.choice(BROKEN))[kind - 4]
    return (value[:start] + instead + value[end:])[:largest]


def _found(what: re.Pattern[bytes], value: bytes, random: Random) -> re.Match[bytes] | None:
    return what.search(value, random.randrange(len(value) + 1)) or what.search(value)


def _number(random: Random) -> bytes:
    if random.random() < 0.4:
        return random.choice(NUMBERS)
    if random.random() < 0.5:
        return str(random.getrandbits(random.choice((8, 53, 54, 64, 65, 200)))).encode()
    return repr(random.uniform(-100, 100) * 10.0 ** random.randint(-320, 300)).encode()


def messages_of(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    """Messages of rows, whose outcome is last; every fourth is a late outcome instead."""
    found = []
    for number, row in enumerate(rows):
        name = f"r-{number}"
        data = {"outcome": [*row.values()][-1]} if number % 4 == 3 else {"data": row}
        found.append(json.dumps({"request_id": name, **data}).encode())
    return found


def adult_features(settings: Settings) -> FeatureTools:
    """The features of Adult, with one numerical column made categorical."""
    data = settings.data.model_copy(update={"categorical": ("hours_per_week",)})
    found = data_set.read_data(settings.data_dir / data.train, data)
    return preprocess_data.fit_features(found.frame, data, found.types)


class Broken(AssertionError):
    """A guarantee does not hold; the text names the bytes."""


class _Scored(NamedTuple):
    value: bytes
    row: Any
    expected: dict[str, Any]


class Checker:
    """Decodes and encodes bytes, and raises `Broken` if a guarantee does not hold.

    Bytes are either rejected with a reason of one line, or give a row. Its features are
    finite or missing, and equal, bit for bit, those of a DataFrame of the values that
    Python's json reads. The record of its prediction is valid JSON.

    Args:
        features: Defines the columns of a message.
        at_once: Number of rows that are compared with a DataFrame together; one at a time,
            pandas would take most of the time.

    Attributes:
        seen: Counts the values by kind; its total is the number of values.
    """

    def __init__(self, features: FeatureTools, at_once: int = 500) -> None:
        self.seen: Counter[str] = Counter()
        self._features = features
        self._at_once = at_once
        self._message = MessageDecoder(features)
        self._outcome = OutcomeDecoder(features)
        self._waiting: list[_Scored] = []

    def __call__(self, value: bytes | None) -> None:
        """Check one record's value, as a message and as an outcome."""
        message = self._decoded(self._message, value)
        outcome = self._decoded(self._outcome, value)
        if message is None or value is None:
            self.seen["rejected" if outcome is None else "outcomes"] += 1
            return
        self.seen["scored"] += 1
        self._answer(value, message)
        self._waiting.append(_Scored(value, message.data, self._read_by_python(value)))
        if len(self._waiting) >= self._at_once:
            self.compare()

    def summary(self) -> str:
        """The counts as text."""
        return ", ".join(f"{count:,} {what}" for what, count in self.seen.most_common())

    @staticmethod
    def _decoded(decode: Callable[[bytes | None], Any], value: bytes | None) -> Any:
        try:
            return decode(value)
        except BadRecord as error:
            reason = str(error)
            if len(reason.splitlines()) != 1 or len(reason.encode()) > 8_100:
                raise Broken(f"{value!r}: the reason is {reason!r}") from None
            return None

    def _answer(self, value: bytes, message: Any) -> None:
        """Check that a prediction for it has a key, and JSON that decodes to the same."""
        made = Prediction(message.request_id, 1, self._features.classes[1], 0.83, 3)
        sent = msgspec.json.encode(made)
        if json.loads(sent) != msgspec.structs.asdict(made):
            raise Broken(f"{value!r}: its prediction is encoded as {sent!r}")
        if message.request_id.encode().decode() != message.request_id or not message.request_id:
            raise Broken(f"{value!r}: its key is not its request_id")

    def _read_by_python(self, value: bytes) -> dict[str, Any]:
        """The columns as Python's json reads them."""
        # Ignored columns may contain bytes that are not UTF-8.
        text = value.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
        data = json.loads(text, parse_int=_whole)["data"]
        read = self._features.read_column
        return {name: read(name, data.get(name)) for name in self._features.columns}

    def compare(self) -> None:
        """Compare the collected rows with the features of a DataFrame."""
        scored, self._waiting = self._waiting, []
        if self._same(scored):
            return
        for one in scored:
            if not self._same([one]):
                raise Broken(f"{one.value!r}: the features differ from those of {one.expected}")
        raise Broken("the features differ together, but not row by row")

    def _same(self, scored: Sequence[_Scored]) -> bool:
        features = self._features
        by_row = features.transform_rows([one.row for one in scored])
        if np.isinf(by_row).any() or np.isnan(by_row[:, len(features.numerical) :]).any():
            return False
        stored = [features.row_values(one.row) for one in scored]  # what the trainer reads
        return all(
            features.transform(frame).tobytes() == by_row.tobytes()
            for frame in (
                pd.DataFrame([one.expected for one in scored], columns=list(features.columns)),
                pd.DataFrame(stored, columns=list(features.columns)),
            )
        )


def _whole(digits: str) -> float:
    # int() refuses more than 4,300 digits; no column accepts so many.
    return int(digits) if len(digits) <= 4_300 else float(digits)
