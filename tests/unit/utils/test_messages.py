"""Events, rejections and request ids: what bytes become which record."""

import msgspec
import pytest

from utils.messages import (
    BadRecord,
    Event,
    ModelLoaded,
    Rejection,
    Resent,
    RetrainRequest,
    Rollback,
    TrainingCompleted,
    decode_event,
)
from utils.metrics import Comparison, Metrics

REQUEST = RetrainRequest(
    batch_id="outcomes-0-3",
    topic="outcomes",
    partition=0,
    first_offset=3,
    last_offset=9,
    count=5,
)
MANUAL = RetrainRequest(reason="manual", batch_id="manual-1")
EVENTS: list[Event] = [
    REQUEST,
    MANUAL,
    TrainingCompleted(model_id=1, accepted=True, batch_id=None),
    TrainingCompleted(
        model_id=2,
        accepted=False,
        batch_id="outcomes-0-3",
        requests=1,
        parent_id=1,
        rows=40,
        challenger=Metrics(log_loss=0.5, rows=4),
        champion=None,
        gate=Comparison(0.1, 0.05, worse=True, rows=4),
    ),
    ModelLoaded(model_id=2),
    Rollback(model_id=1, from_model_id=None, reason="a test"),
    Resent(offsets=[1, 2]),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_comes_back_as_its_type(event: Event) -> None:
    assert decode_event(msgspec.json.encode(event)) == event


def test_events_have_the_documented_keys() -> None:
    first = msgspec.to_builtins(EVENTS[2])
    assert first == {
        "training_completed": True,
        "model_id": 1,
        "accepted": True,
        "batch_id": None,
    }


def test_requests_have_the_documented_bytes() -> None:
    assert msgspec.json.encode(REQUEST) == (
        b'{"retrain":true,"reason":"count","batch_id":"outcomes-0-3","topic":"outcomes",'
        b'"partition":0,"first_offset":3,"last_offset":9,"count":5}'
    )
    assert msgspec.json.encode(MANUAL) == (
        b'{"retrain":true,"reason":"manual","batch_id":"manual-1"}'
    )
    assert REQUEST.end == (("outcomes", 0), 10) and MANUAL.end is None


def test_request_of_an_earlier_version_counts() -> None:
    earlier = msgspec.to_builtins(REQUEST)
    del earlier["reason"]
    assert decode_event(msgspec.json.encode(earlier)) == REQUEST


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"[]",
        b"{}",
        b'{"retrain": false, "batch_id": "a"}',
        b'{"model_loaded": true, "model_id": "two"}',
        b'{"retrain": true}',
        b"\xff",
    ],
)
def test_anything_else_is_no_event(value: bytes | None) -> None:
    with pytest.raises(BadRecord) as error:
        decode_event(value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("size", [None, 17])
@pytest.mark.parametrize("outcome", [None, b'"maybe"'])
@pytest.mark.parametrize("key", [None, b"", b"\xff"])
def test_rejection_survives_its_headers(
    size: int | None, outcome: bytes | None, key: bytes | None
) -> None:
    rejection = Rejection("no JSON: ü", "app_messages", 3, 12, size, outcome, key)
    assert Rejection.from_headers(rejection.to_headers()) == rejection


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("reason", b"x"), ("topic", b"t"), ("partition", b"0")],
        [("reason", b"x"), ("topic", b"t"), ("partition", b"0"), ("offset", b"last")],
        [("reason", None), ("topic", None), ("partition", None), ("offset", None)],
    ],
)
def test_foreign_headers_are_no_rejection(headers: list[tuple[str, bytes | None]]) -> None:
    assert Rejection.from_headers(headers) is None
