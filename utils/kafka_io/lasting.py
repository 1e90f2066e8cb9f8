"""Tells errors that waiting cures from those that last until somebody changes something."""

import re
from collections.abc import Iterator

from utils.errors import one_line

_GRANT = "grant what CLUSTERS.md lists under Rights"
#: What a broker answers to a token that it does not take (RFC 7628, section 3.2.2).
NOT_TAKEN = "invalid_token"
#: What to change, by the name of the error.
_REMEDIES = {
    "TopicAuthorizationFailedError": f"this user may not use a topic: {_GRANT}",
    "GroupAuthorizationFailedError": f"this user may not use the group: {_GRANT}",
    "TransactionalIdAuthorizationFailedError": (
        f"this user may not write with the transactional id: {_GRANT}"
    ),
    "ClusterAuthorizationFailedError": f"this user may not do that on the cluster: {_GRANT}",
    "InconsistentGroupProtocolError": (
        "other programs are members of this group, and share partitions in another way: end them, "
        "or give the pipeline a name (PIPELINE_NAME)"
    ),
    "InvalidTransactionTimeoutError": (
        "the broker does not allow transactions of 4 s: raise transaction.max.timeout.ms"
    ),
    "OffsetMetadataTooLargeError": (
        "the broker takes no offsets with so much metadata: raise offset.metadata.max.bytes to 4096"
    ),
    "SaslAuthenticationFailedError": "the broker refuses this login now",
    "UnsupportedVersionError": "the broker is too old, or is no Apache Kafka",
}


def remedy(error: Exception) -> str:
    """What to change so that an error ends, in one line; empty if waiting may cure it."""
    for one in _causes(error):
        if NOT_TAKEN in str(one):  # the next one may be taken
            return ""
        # The client often wraps an error in another one, which only repeats its text.
        for name in (type(one).__name__, *re.findall(r"\b\w+Error\b", str(one))):
            if name in _REMEDIES:
                return f"{_REMEDIES[name]} ({one_line(error)})"
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
