"""Whatever is sent: bytes made up for it, and the real predictor."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import MessageSizeTooLargeError

from tests.conftest import MakePipeline
from tests.harness import Pipeline, until
from tests.tools.bad_input import (
    BROKEN,
    NUMBERS,
    TEXTS,
    Checker,
    adult_features,
    messages_of,
    mutated,
)
from utils.broker import Broker
from utils.kafka_io import Outgoing, Sender
from utils.message_store import MessageStore, StoreError
from utils.messages import APP_MESSAGES, DEAD_LETTERS, MAX_REQUEST_ID, OUTCOMES, PREDICTIONS
from utils.model_store import ModelStore
from utils.scoring import MAX_REPEATED

Row = dict[str, Any]


@pytest.fixture
def check(prepared: Path) -> Iterator[Checker]:
    """Compares all features in the end, together: one by one it would take minutes."""
    checker = Checker(adult_features(Pipeline(prepared, "127.0.0.1:1").settings), at_once=10**6)
    yield checker
    checker.compare()


#: A deadline in milliseconds: no input may take long.
MADE_UP = settings(
    max_examples=800, deadline=1_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_mutated_message_is_scored_or_rejected(check: Checker, adult: list[Row]) -> None:
    real = messages_of(adult[:100])

    @MADE_UP
    @given(st.sampled_from(real), st.integers(0, 2**32), st.integers(1, 9))
    def spoil(value: bytes, seed: int, times: int) -> None:
        random = Random(seed)
        check(value)
        for _ in range(times):
            value = mutated(value if len(value) < 1_000 else random.choice(real), random)
            check(value)

    spoil()


@settings(MADE_UP, max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_scored_or_rejected(check: Checker, value: bytes) -> None:
    check(value)
    check(b'{"request_id": "x", "data": {"age": %b}}' % value)


def test_odd_value_in_any_place_is_scored_or_rejected(check: Checker) -> None:
    places = [
        *(b'{"request_id": "x", "data": {"%b": #}}' % name for name in (b"age", b"race", b"new")),
        b'{"request_id": "x", "data": {"hours_per_week": #}}',  # a number or a name
        b'{"request_id": "x", "data": {"age": 1, "income_bracket": #}}',
        *(b'{"request_id": #, "data": {"age": 1}}', b'{"request_id": "x", "data": #}'),
        *(b'{"request_id": "x", "outcome": #}', b"#", b'{"request_id": "x", #: {}}'),
    ]
    for place in places:
        for odd in (*NUMBERS, *TEXTS, *BROKEN):
            check(place.replace(b"#", odd))
    check(None)
    assert min(check.seen["scored"], check.seen["rejected"], check.seen["outcomes"]) > 20


MIB = 2**20


def message(request_id: str, **data: Any) -> bytes:
    return json.dumps({"request_id": request_id, "data": data}).encode()


def good_messages(rows: list[Row]) -> Iterator[tuple[str, bytes]]:
    """Messages that are odd and still to be answered, by their request_id."""
    for number, row in enumerate(rows):
        yield f"r-{number}", message(f"r-{number}", **row)
    for name, value in [
        ("the last one counts", b'{"request_id": "a", "data": {"race": "a"}, #}'),
        ("a number of a million digits", b'{#, "data": {"age": 0.%b}}' % (b"1" * 1_000_000)),
        ("too small for a float", b'{#, "data": {"age": 1e-400, "capital_gain": -1e308}}'),
        ("no UTF-8 where nobody looks", b'{#, "data": {"age": 1, "\xff": "\xed\xa0\x80"}}'),
        (
            "deep where nobody looks",
            b'{#, "data": {"age": 1, "a": %b}}' % (b"[" * 500 + b"]" * 500),
        ),
        ("large where nobody looks", b'{#, "data": {"age": 1, "a": "%b"}}' % (b"a" * 20 * MIB)),
    ]:
        yield (
            name,
            value.replace(b"#", b'"data": {"age": 2}, "request_id": "%b"' % name.encode(), 1),
        )
    for name in (
        *("\0", "\u2028", "\U0001f600" * 200_000, "x" * 1_000_000, "\x01" * 150_000),
        *("\x01" * MAX_REQUEST_ID, "\U0001f600" * MAX_REQUEST_ID),
    ):
        yield name, message(name, age=39)


def bad_messages() -> Iterator[bytes | None]:
    """Messages that nobody can answer."""
    yield from (b'{"request_id": "x", "data": {"age": %b}}' % odd for odd in BROKEN)
    yield from (b'{"request_id": %b, "data": {"age": 1}}' % odd for odd in (*NUMBERS, b"null"))
    yield from (b'{"request_id": "%b", "data": {"age": 1}}' % odd for odd in (b"\xff", rb"\ud800"))
    whole = message("x", age=39)
    yield from (None, b"", b"\0", whole[:-1], whole + whole, b"\xef\xbb\xbf" + whole)
    yield from (whole.decode().encode("utf-16"), whole.replace(b'"', b"'"), b"\xff" * 1_000)
    yield message("x" * (MAX_REQUEST_ID + 1), age=39)
    yield from (b"[" * MIB, b"x" * 15 * MIB, b'"%b' % (b"x" * 20 * MIB))


BAD_OUTCOMES = (
    *(None, b"", b"[]", b'{"request_id": "x"}', b'{"request_id": "x", "outcome": null}'),
    *(b'{"request_id": "x", "outcome": "%b"}' % (b"a" * MIB), b'{"request_id": "", "outcome": 1}'),
    *(b'{"request_id": "x", "outcome": %b}' % odd for odd in BROKEN),
    *(b'{"request_id": "x", "outcome": %b}' % odd for odd in (*NUMBERS, *TEXTS)),
)


def with_limits(broker: Broker, limits: dict[str, int]) -> None:
    """Make topics that take records of so many bytes."""
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        admin.create_topics(
            [
                NewTopic(name, 1, 1, topic_configs={"max.message.bytes": str(limit)})
                for name, limit in limits.items()
            ]
        )


@pytest.mark.timeout(240)
def test_pipeline_survives_any_input(
    own_broker: Broker, make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    with_limits(own_broker, {APP_MESSAGES: 64 * MIB, OUTCOMES: 64 * MIB})
    pipeline = make_pipeline(RETRAIN_EVERY="1000")
    predictor, trainer = pipeline.start("predictor.py"), pipeline.start("trainer.py")
    good, bad = list(good_messages(adult[:24])), list(bad_messages())
    good += good[:1]  # the same record twice
    sent: list[tuple[str, str | None, bytes | None]] = [
        *((APP_MESSAGES, *each) for each in good),
        *((APP_MESSAGES, None, value) for value in bad),
        *((OUTCOMES, None, value) for value in BAD_OUTCOMES),
    ]
    Random(1).shuffle(sent)
    pipeline.send((topic, b"key", value) for topic, _, value in sent)
    messages = [(name, value) for topic, name, value in sent if topic == APP_MESSAGES]
    outcomes = [value for topic, _, value in sent if topic == OUTCOMES]

    predictions = pipeline.wait_for_raw(PREDICTIONS, len(good), timeout=90)
    names = [name for name, _ in messages if name is not None]
    assert [json.loads(record.value)["request_id"] for record in predictions] == names
    assert [record.key.decode() for record in predictions] == names

    letters = pipeline.wait_for_raw(DEAD_LETTERS, len(bad) + len(BAD_OUTCOMES), timeout=60)
    rejected = {
        **{(APP_MESSAGES, at): v for at, (name, v) in enumerate(messages) if name is None},
        **{(OUTCOMES, at): value for at, value in enumerate(outcomes)},
    }
    for letter in letters:
        headers = {name: value.decode() for name, value in letter.headers}
        value = rejected.pop((headers["topic"], int(headers["offset"])))
        assert 0 < len(headers["reason"]) < 200
        assert len(headers["reason"].splitlines()) == 1
        if value is not None and len(value) > MAX_REPEATED:
            assert (letter.key, letter.value) == (None, None)
            assert headers["bytes"] == str(len(value) + len(b"key"))
        else:
            assert (letter.key, letter.value) == (b"key", value)
    assert not rejected
    trainer.says("ready")
    until(lambda: stored(pipeline) == len({*names}), 60, lambda: f"stored: {stored(pipeline)}")
    assert predictor.end() == trainer.end() == 0
    assert "Traceback" not in predictor.text() + trainer.text()

    shown = pipeline.run("-m", "ops", "dead-letters", "list")
    assert shown.returncode == 0, shown.stderr
    assert "(tombstone)" in shown.stdout


def test_producer_gets_error_for_oversized_record(pipeline: Pipeline) -> None:
    kafka = pipeline.settings.kafka
    with Sender(kafka) as sender, pytest.raises(MessageSizeTooLargeError):
        sender.send(Outgoing(APP_MESSAGES, 0, None, b"x" * 2 * MIB)).get(timeout=30)
    # Nor can it be hidden from the broker, and so from its limit, by compression.
    bomb = {"compression_type": "gzip", "max_request_size": 100 * MIB}
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap_servers, **bomb)
    with closing(producer), pytest.raises(MessageSizeTooLargeError):
        producer.send(OUTCOMES, b"x" * 20 * MIB).get(timeout=30)


def test_predictor_names_topic_with_too_small_limit_and_retries(
    own_broker: Broker, make_pipeline: MakePipeline
) -> None:
    with_limits(own_broker, {PREDICTIONS: 1_000, DEAD_LETTERS: 1_000})
    pipeline = make_pipeline()
    predictor = pipeline.start("predictor.py")
    for name, value in [
        (PREDICTIONS, message("x" * 2_000, age=39)),
        (DEAD_LETTERS, b"x" * 2_000),
    ]:
        pipeline.send([(APP_MESSAGES, None, value)])
        predictor.says(f"{name} takes no record so large")
        with closing(KafkaAdminClient(bootstrap_servers=own_broker.bootstrap)) as admin:
            enough = {"max.message.bytes": str(MIB)}
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, enough)])
        pipeline.wait_for_raw(name, 1)
    assert predictor.end() == 0


def stored(pipeline: Pipeline) -> int:
    """How many messages and their predictions the trainer has."""
    features = ModelStore(pipeline.settings.models_dir).load_current().features
    try:
        with MessageStore.open(pipeline.settings.messages_url, features) as store:
            counts = store.counts()
    except StoreError:
        return 0
    return min(counts.messages, counts.predictions)
