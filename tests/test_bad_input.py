"""Whatever is sent: bytes made up for it, and the real predictor."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bad_input import BROKEN, NUMBERS, TEXTS, Checker, adult_features, messages_of, mutated
from tests.harness import Pipeline

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


def test_a_spoilt_message_is_scored_or_refused(check: Checker, adult: list[Row]) -> None:
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
def test_any_bytes_are_refused_or_scored(check: Checker, value: bytes) -> None:
    check(value)
    check(b'{"request_id": "x", "data": {"age": %b}}' % value)


def test_every_odd_value_in_every_place(check: Checker) -> None:
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
