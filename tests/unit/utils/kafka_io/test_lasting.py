"""Errors that waiting does not cure."""

import pytest
from kafka import errors

from utils.kafka_io import KafkaUnavailable, Refused, raise_if_lasting
from utils.kafka_io.tokens import TokenError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.TopicAuthorizationFailedError({"predictions"}), "may not use a topic: grant"),
        (errors.GroupAuthorizationFailedError("predictor"), "may not use the group"),
        (
            errors.KafkaError(f"in an error state: {errors.OffsetMetadataTooLargeError()}"),
            "offset.metadata.max.bytes",
        ),
        (errors.InconsistentGroupProtocolError(), "other programs are members"),
        (errors.SaslAuthenticationFailedError("Authentication failed"), "refuses this login now"),
        (Refused("denies access"), "denies access"),
    ],
)
def test_lasting_error_says_what_to_change(error: Exception, text: str) -> None:
    with pytest.raises(Refused, match=text):
        raise_if_lasting(error)


@pytest.mark.parametrize(
    "error",
    [
        errors.KafkaConnectionError("lost the connection to a broker"),
        errors.NotEnoughReplicasError(),
        errors.CommitFailedError(),
        errors.KafkaTimeoutError("the transaction coordinator does not answer"),
        errors.UnknownTopicOrPartitionError(),
        errors.SaslAuthenticationFailedError('{"status":"invalid_token"}'),
        TokenError("https://login.example.com: Service Unavailable"),
        errors.KafkaConnectionError("Handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED]"),
        KafkaUnavailable("no Kafka broker answers"),
    ],
)
def test_error_that_may_end_is_left_alone(error: Exception) -> None:
    raise_if_lasting(error)


def test_cause_counts() -> None:
    try:
        raise errors.KafkaError("the producer failed") from errors.UnsupportedVersionError()
    except errors.KafkaError as error:
        with pytest.raises(Refused, match="too old"):
            raise_if_lasting(error)
