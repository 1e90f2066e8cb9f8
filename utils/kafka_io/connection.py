"""How Kafka's client connects: it gives up in time, and hears why it is refused.

kafka-python 3.0.12 left alone waits for ever for the end of a TLS handshake; drops what
a broker says right before it hangs up, which is why a login failed; and tries again
whatever the reason, until it says only that its time is up.
"""

import re
import time
from functools import partial
from typing import Protocol

from kafka import errors as kafka_errors
from kafka.cluster import ClusterMetadata
from kafka.errors import KafkaError
from kafka.net import KafkaConnectionManager, KafkaNetClient, NetworkSelector
from kafka.net.connection import KafkaConnection
from kafka.net.transport import KafkaTCPTransport

from utils.settings import Kafka

#: For TCP's and TLS's handshakes together.
HANDSHAKE_TIMEOUT_MS = 5_000
#: Between two questions for metadata, at first: a client's second one asks for its topics,
#: right after the one with which it found the brokers.
FIRST_METADATA_BACKOFF_MS = 10
#: So long that holds. Later it would be a busy loop while topics are missing.
FIRST_SECONDS = 1.0

_LOGIN_ERRORS = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
)


class NodeInfo(Protocol):
    """What is used of a broker as the client knows it."""

    node_id: object


class Client(KafkaNetClient):  # type: ignore[misc]
    """For the `kafka_client` option of consumers, producers and admin clients."""

    def __init__(
        self,
        net: NetworkSelector | None = None,
        manager: KafkaConnectionManager | None = None,
        **configs: object,
    ) -> None:
        net = NetworkSelector(**configs) if net is None else net
        super().__init__(net, manager or _Connections(net, **configs), **configs)


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    def __init__(self, net: NetworkSelector, **configs: object) -> None:
        super().__init__(net, **configs)
        self._refusals: dict[object, Exception] = {}  # by node id
        # No option reaches it: it is 100 ms whatever the client's retry_backoff_ms.
        usual = self.cluster.config["retry_backoff_ms"]
        self.cluster.config["retry_backoff_ms"] = FIRST_METADATA_BACKOFF_MS
        quick_until = time.monotonic() + FIRST_SECONDS

        def after_each_answer(cluster: ClusterMetadata) -> None:
            if time.monotonic() > quick_until:
                cluster.config["retry_backoff_ms"] = usual

        self.cluster.add_listener(after_each_answer)

    async def _connect(
        self, node: NodeInfo, conn: KafkaConnection, *args: object, **kwargs: object
    ) -> None:
        def note(error: Exception) -> None:
            if is_refusal(error):
                self._refusals[node.node_id] = error

        self._refusals.pop(node.node_id, None)
        conn.init_future.add_errback(note)
        await super()._connect(node, conn, *args, **kwargs)

    def maybe_raise_auth_failure(self, node_id: object) -> None:
        """Raise what was noted of a node, once: the next call tries it again.

        The nodes to begin with are as good as one: all have to have refused.
        """
        first = {broker.node_id for broker in self.cluster.bootstrap_brokers()}
        if node_id in self._refusals and not (node_id in first and first - set(self._refusals)):
            raise self._refusals.pop(node_id)

    async def _build_transport(self, *args: object, **kwargs: object) -> KafkaTCPTransport:
        building = self.call_soon(partial(super()._build_transport, *args, **kwargs))
        try:
            transport = await self.wait_for(building, HANDSHAKE_TIMEOUT_MS)
        except kafka_errors.KafkaTimeoutError:
            building.add_callback(lambda late: late.close())
            raise kafka_errors.KafkaConnectionError("the handshake takes too long") from None
        receive = transport._sock_recv

        def receive_all() -> tuple[bytes, KafkaError | None]:
            received, error = receive()
            return received, None if received else error  # it comes again

        transport._sock_recv = receive_all
        return transport


def is_refusal(error: Exception) -> bool:
    """Whether to try again is no use until somebody changes something."""
    text = str(error)
    not_trusted = "Handshake failed: [SSL" in text and "EOF" not in text
    return not_trusted or isinstance(error, _LOGIN_ERRORS)


def refusal(kafka: Kafka, error: Exception) -> str:
    """A refusal in one line."""
    where, text = f"the broker at {kafka.bootstrap_servers}", str(error)
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        return f"{where} refused user {kafka.sasl_username!r}: {text.rpartition('Error: ')[2]}"
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return f"{where} knows no {kafka.sasl_mechanism} (KAFKA_SASL_MECHANISM)"
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return f"{where} has no login (KAFKA_SECURITY_PROTOCOL is {kafka.security_protocol})"
    reason = re.sub(r".*(\[SSL.*?\] |verify failed: )| \(_ssl\.c.*", "", text)
    authority = f"KAFKA_SSL_CAFILE is {kafka.ssl_cafile or 'not set'}"
    return f"{where} is not trusted: {reason} ({authority})"
