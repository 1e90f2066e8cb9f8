"""What becomes of a message's headers: its prediction has them, its dead letter its trace."""

import json
from collections.abc import Sequence

import pytest

from tests.unit.utils.model_store.samples import make_draft
from utils.kafka_io import LARGEST_COMPRESSED, MAX_MESSAGE_BYTES, Content, Headers, Record
from utils.messages import APP_MESSAGES, MAX_REQUEST_ID, OUTCOMES, Rejection
from utils.model_store import Bundle, ModelStore
from utils.scoring import (
    MAX_HEADERS,
    NO_LIMITS,
    DecodedRecords,
    Limits,
    decode_messages,
    decode_outcomes,
    prediction_records,
)

ODD: Headers = [
    ("null", None),
    ("twice", b"1"),
    ("twice", b"2"),
    ("", b""),
    ("bytes", b"\xff\x00"),
    ("\ufffd", b"a name that was no UTF-8"),
    ("reason", b"of the application"),
]
TRACE: list[tuple[str, bytes]] = [
    ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", b"vendor=1"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    store = ModelStore(tmp_path_factory.mktemp("models"))
    store.publish(make_draft())
    return store.load_current()


def record(offset: int, headers: Headers, request_id: str = "a", **data: object) -> Record:
    value = json.dumps({"request_id": request_id, "data": data or {"age": 39}}).encode()
    return Record(APP_MESSAGES, 0, offset, 0, b"key", value, headers)


def predict(bundle: Bundle, decoded: DecodedRecords) -> list[Content]:
    scores = bundle.score(bundle.features.transform_rows(decoded.rows))
    return prediction_records(bundle, decoded.request_ids, scores, decoded.headers)


def test_prediction_has_the_headers_of_its_message(bundle: Bundle) -> None:
    sent: list[Headers] = [(), ODD, TRACE, ()]
    records = [record(offset, headers) for offset, headers in enumerate(sent)]
    records.insert(1, record(9, TRACE, age="old"))  # has a dead letter instead
    decoded = decode_messages(records, bundle)
    assert [headers or () for _, _, headers in predict(bundle, decoded)] == sent
    assert len(decoded.rejected) == 1
    plain = decode_messages([record(0, ())], bundle)
    assert plain.headers == {}
    assert predict(bundle, plain)[0][2] is None


def test_headers_that_are_too_large_are_left_out_and_counted(bundle: Bundle) -> None:
    def decode(*headers: Headers) -> DecodedRecords:
        return decode_messages([record(n, one) for n, one in enumerate(headers)], bundle)

    largest = [("a", b"x" * (MAX_HEADERS - 11))]
    many = [("", b"")] * (MAX_HEADERS // 10 + 1)
    decoded = decode([("a", b"x" * (MAX_HEADERS - 10))], largest, many, [("é" * MAX_HEADERS, None)])
    assert (decoded.headers, decoded.headers_left_out) == ({1: largest}, 3)
    assert [headers for _, _, headers in predict(bundle, decoded)] == [None, largest, None, None]


@pytest.mark.parametrize("character", ["\x01", "\U0001f600"])
def test_largest_prediction_fits_with_the_largest_headers(bundle: Bundle, character: str) -> None:
    message = record(0, [("a", b"x" * (MAX_HEADERS - 11))], character * MAX_REQUEST_ID)
    ((key, value, headers),) = predict(bundle, decode_messages([message], bundle))
    assert headers and key and value
    assert len(key) + len(value) + MAX_HEADERS < MAX_MESSAGE_BYTES


def test_dead_letter_has_the_trace_of_its_record_and_no_other_header(bundle: Bundle) -> None:
    headers = [*ODD, ("topic", b"x"), ("offset", b"1"), ("outcome", b"1"), *TRACE]
    letters: list[tuple[Sequence[Content], int]] = [
        (decode_messages([record(7, headers, age="old")], bundle).rejected, 7),
        (decode_messages([record(8, headers, age=39, kind="no class")], bundle).rejected, 8),
        (
            decode_outcomes([Record(OUTCOMES, 0, 9, 0, None, b"{", headers)], bundle).rejected,
            9,
        ),
    ]
    for ((_, _, found),), offset in letters:
        assert found is not None
        assert list(found)[-2:] == TRACE
        rejection = Rejection.from_headers(found)
        assert rejection is not None and rejection.offset == offset
        assert [*rejection.to_headers(), *TRACE] == list(found)
    ((_, _, found),) = decode_messages([record(7, ODD, age="old")], bundle).rejected
    assert {name for name, _ in found or ()} == {"reason", "topic", "partition", "offset", "key"}


@pytest.mark.parametrize("size", [9 * 2**20, MAX_MESSAGE_BYTES])
def test_dead_letter_of_a_huge_outcome_fits_into_a_record(bundle: Bundle, size: int) -> None:
    outcome = json.dumps("x" * size).encode()
    kind = bundle.features.target
    value = b'{"request_id": "a", "data": {"age": 39, "%b": %b}}' % (kind.encode(), outcome)
    (letter,) = decode_messages([Record(APP_MESSAGES, 0, 0, 0, b"a", value, ())], bundle).rejected
    _, repeated, headers = letter
    assert repeated is None
    rejection = Rejection.from_headers(headers or ())
    assert rejection is not None and rejection.size is not None and rejection.outcome is not None
    assert sum(len(value or b"") for _, value in headers or ()) < MAX_MESSAGE_BYTES - 1024


def test_message_whose_prediction_is_too_large_is_rejected(bundle: Bundle) -> None:
    limits = Limits(prediction=2_000, letter=2_000)
    records = [record(0, (), "x" * 400), record(1, (), "\x01" * 400), record(2, ODD, "y" * 400)]
    decoded = decode_messages(records, bundle, limits=limits)
    assert decoded.request_ids == ["x" * 400, "y" * 400]
    ((key, value, headers),) = decoded.rejected
    found = dict(headers or ())
    assert found["offset"] == b"1"
    assert (found["reason"] or b"").startswith(b"the prediction would be larger than predictions")
    assert key is value is None
    assert int(found["bytes"] or 0) > 2_400
    for one in predict(bundle, decoded):
        assert sum(map(len, (one[0] or b"", one[1] or b""))) < 2_000
    assert NO_LIMITS.longest_id(bundle) >= MAX_REQUEST_ID


def test_letter_of_a_value_that_was_cut_off_says_so(bundle: Bundle) -> None:
    cut_off = Record(APP_MESSAGES, 0, 3, 0, None, bytes(LARGEST_COMPRESSED + 1), ())
    ((_, value, headers),) = decode_messages([cut_off], bundle).rejected
    assert value is None
    assert dict(headers or ())["reason"] == (
        b"more than 33554432 bytes once it is decompressed (too large to be repeated here)"
    )
