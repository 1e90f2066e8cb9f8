"""Tokens are fetched once for all clients, and renewed while the old one is valid."""

import threading
import time
from collections.abc import Callable

import pytest

from tests.harness import until
from utils.kafka_io import tokens
from utils.kafka_io.tokens import Token, TokenError, TokenProvider


class Issuer:
    """Issues tokens named "1", "2" and so on.

    Attributes:
        issued: How many.
        failing: Whether it fails instead.
        delay: How long it takes, in seconds.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.issued = 0
        self.failing = False
        self.delay = 0.0
        self.ended = False

    def __call__(self) -> Token:
        if self.ended:
            return Token("", 3600)  # the provider's thread has nothing to do any more
        time.sleep(self.delay)
        if self.failing:
            raise TokenError("no answer")
        self.issued += 1
        return Token(str(self.issued), self.seconds)


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Issuer:
    monkeypatch.setattr(tokens, "RETRY_S", 0.05)
    issuer = Issuer(1.0)
    request.addfinalizer(lambda: setattr(issuer, "ended", True))
    return issuer


def test_clients_that_start_together_share_one_request(issuer: Issuer) -> None:
    issuer.delay = 0.2
    provider, found = TokenProvider(issuer), []
    threads = [threading.Thread(target=lambda: found.append(provider.token())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["1"] * 5 and issuer.issued == 1


def test_token_is_renewed_ahead_and_never_waited_for(issuer: Issuer) -> None:
    provider = TokenProvider(issuer)
    assert provider.token() == "1"
    issuer.delay = 0.3  # of the .5 s that are left
    longest, until_then = 0.0, time.monotonic() + 2.5
    while time.monotonic() < until_then:
        longest = max(longest, _seconds(provider.token))
        time.sleep(0.01)
    assert provider.token() >= "3"
    assert longest < 0.2


def _seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def test_outage_of_the_provider_matters_only_when_the_token_expires(issuer: Issuer) -> None:
    provider = TokenProvider(issuer)
    provider.token()
    issuer.failing, began = True, time.monotonic()
    with pytest.raises(TokenError, match=r"^no answer$"):
        until(lambda: provider.token() == "2", 5)
    assert time.monotonic() - began > 0.9
    issuer.failing = False
    time.sleep(0.3)
    assert provider.token() >= "2"


def test_failed_first_request_is_repeated_by_the_next_client(issuer: Issuer) -> None:
    provider = TokenProvider(issuer)
    issuer.failing = True
    with pytest.raises(TokenError):
        provider.token()
    issuer.failing = False
    assert provider.token() == "1"


def test_token_is_in_no_repr(issuer: Issuer) -> None:
    provider = TokenProvider(issuer)
    assert "secret" not in repr(Token("secret", 1)) + repr(provider)
