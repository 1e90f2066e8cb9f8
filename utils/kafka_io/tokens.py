"""Keeps the token of SASL/OAUTHBEARER that the clients of a process log in with.

kafka-python asks for a token at each login and before a broker's session ends (KIP-368).
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kafka.errors import KafkaError
from kafka.net.sasl.oauth import AbstractTokenProvider

#: A token is renewed after this share of its lifetime; the rest is for a provider that is down
#: or slow. The client logs in again after 85 to 95 % of a session, which ends with its token.
RENEW_AFTER = 0.5
#: Between two tries to renew.
RETRY_S = 1.0


class TokenError(KafkaError):  # type: ignore[misc]
    """There is no token; the text is one line meant for the user."""

    def __str__(self) -> str:  # without the type's name, which KafkaError puts in front
        return str(self.args[0])


@dataclass(frozen=True)
class Token:
    """A token, and how long it can be used."""

    text: str = field(repr=False)
    seconds: float


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """Keeps a token that is valid.

    Only the first token is waited for. Later ones are fetched by a thread: clients call
    `token` in the thread of their connections, and those would time out together if it took long.

    Args:
        fetch: Returns a new token, or raises `TokenError`.
        extensions: Sent to the broker with the token (RFC 7628, section 3.1).
    """

    def __init__(
        self, fetch: Callable[[], Token], extensions: Mapping[str, str] | None = None
    ) -> None:
        super().__init__()
        self._fetch = fetch
        self._extensions = dict(extensions or {})
        self._first = threading.Lock()
        self._held: tuple[Token, float] | None = None  # and when it was asked for
        self._failure = "the token has expired, and there is no new one yet"

    def token(self) -> str:
        """Return a valid token.

        Raises:
            TokenError: There is none.
        """
        with self._first:
            if self._held is None:
                self._held = self._request()
                threading.Thread(target=self._keep_valid, name="tokens", daemon=True).start()
        token, asked_at = self._held
        if time.monotonic() > asked_at + token.seconds:
            raise TokenError(self._failure)
        return token.text

    def extensions(self) -> dict[str, str]:
        """The names and values that are sent with the token."""
        return self._extensions

    def _request(self) -> tuple[Token, float]:
        asked_at = time.monotonic()
        return self._fetch(), asked_at

    def _keep_valid(self) -> None:
        while self._held is not None:
            token, asked_at = self._held
            renew_at = asked_at + token.seconds * RENEW_AFTER
            time.sleep(max(RETRY_S, renew_at - time.monotonic()))
            try:
                self._held = self._request()
            except TokenError as error:
                logging.getLogger(__name__).warning("%s", error)
                self._failure = str(error)
