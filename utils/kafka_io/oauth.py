"""Fetches tokens for SASL/OAUTHBEARER.

They come from an identity provider, by OAuth's client credentials (RFC 6749, section 4.4), or
are signed with AWS credentials for MSK.
"""

import ssl
import time
import urllib.request
from base64 import b64encode
from functools import cache, partial
from http.client import HTTPException
from typing import Annotated
from urllib.error import HTTPError
from urllib.parse import quote_plus, urlencode

import msgspec

from utils.errors import one_line
from utils.kafka_io.tokens import Token, TokenError, TokenProvider
from utils.settings import Kafka

#: For the provider's connection and for each part of its answer.
TIMEOUT_S = 4.0
#: An identity provider's answer is not larger.
MAX_ANSWER_BYTES = 1 << 20


class _Answer(msgspec.Struct):
    """What an identity provider answers."""

    access_token: Annotated[str, msgspec.Meta(pattern=r"^[!-~]+$")]
    #: Recommended, not required; no known provider's token lives shorter than the default.
    expires_in: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class _Refusal(msgspec.Struct):
    """Why an identity provider gives no token."""

    error: str
    error_description: str = ""


@cache
def token_provider(kafka: Kafka) -> TokenProvider:
    """The provider of tokens by these settings, one for all clients of a process."""
    if region := kafka.sasl_oauth_aws_region:
        return TokenProvider(partial(_sign_for_aws, region))
    return TokenProvider(partial(_request_token, kafka), dict(kafka.sasl_oauth_extensions))


def _request_token(kafka: Kafka) -> Token:
    """Request a token from the identity provider.

    Raises:
        TokenError: It gives none; the text names its URL, and never the secret.
    """
    url, client = kafka.sasl_oauth_token_url, kafka.sasl_oauth_client_id
    assert url and client and kafka.sasl_oauth_client_secret is not None
    secret = kafka.sasl_oauth_client_secret.get_secret_value()
    login = b64encode(f"{quote_plus(client)}:{quote_plus(secret)}".encode()).decode()
    fields = {"grant_type": "client_credentials"}
    if kafka.sasl_oauth_scope:
        fields["scope"] = kafka.sasl_oauth_scope
    request = urllib.request.Request(url, urlencode(fields).encode())
    request.add_header("Accept", "application/json")
    request.add_unredirected_header("Authorization", f"Basic {login}")  # for this host alone
    try:
        trust = ssl.create_default_context(cafile=kafka.sasl_oauth_cafile)
        with urllib.request.urlopen(  # nosec B310
            request, timeout=TIMEOUT_S, context=trust
        ) as response:
            text = response.read(MAX_ANSWER_BYTES)
    except HTTPError as error:
        reason = _describe_refusal(error).replace(secret, "***")
        raise TokenError(f"no token from {url} for client {client!r}: {reason}") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a name that DNS cannot hold
        reason = one_line(getattr(error, "reason", None) or error)
        raise TokenError(f"no token from {url}: {reason}") from None
    try:
        answer = msgspec.json.decode(text, type=_Answer, strict=False)
    except msgspec.MsgspecError:
        raise TokenError(f"no token from {url}: its answer is not that of a token URL") from None
    return Token(answer.access_token, answer.expires_in)


def _describe_refusal(error: HTTPError) -> str:
    """The status, and what the answer gives as the reason (RFC 6749, section 5.2)."""
    status = f"HTTP status {error.code}"
    try:
        refusal = msgspec.json.decode(error.read(MAX_ANSWER_BYTES), type=_Refusal)
    except (OSError, HTTPException, msgspec.MsgspecError):
        return status
    reasons = filter(None, (refusal.error, refusal.error_description[:200]))
    return " ".join(f"{status}, {': '.join(reasons)}".split())


def _sign_for_aws(region: str) -> Token:
    """Sign a token for MSK with the AWS credentials of this process.

    Raises:
        TokenError: The signer is not installed, or finds no credentials.
    """
    try:
        from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
    except ImportError:
        raise TokenError(
            "KAFKA_SASL_OAUTH_AWS_REGION needs AWS's signer: pip install -r requirements-msk.txt"
        ) from None
    try:
        text, expires_at_ms = MSKAuthTokenProvider.generate_auth_token(region)
    except Exception as error:  # those of botocore and of the signer have no common base
        raise TokenError(f"no token for MSK in {region}: {one_line(error)}") from None
    return Token(text, expires_at_ms / 1000 - time.time())
