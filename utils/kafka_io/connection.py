"""Makes Kafka's client time out when it connects, and keep the reason of a refusal.

kafka-python 3.0.12 by itself waits forever for a TLS handshake; it drops what a broker
sends right before it closes the connection, which is the reason of a failed login; and it
retries whatever the reason, until it reports nothing but a timeout.
"""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from kafka import errors as kafka_errors
from kafka.cluster import ClusterMetadata
from kafka.errors import KafkaError
from kafka.net import KafkaConnectionManager, KafkaNetClient, NetworkSelector
from kafka.net.connection import KafkaConnection
from kafka.net.transport import KafkaTCPTransport

from utils.settings import Kafka

#: For the TCP and the TLS handshake together.
HANDSHAKE_TIMEOUT_MS = 5_000
#: The backoff between a new client's metadata requests: it sends a second one, for its
#: topics, right after the first, which finds the brokers.
FIRST_METADATA_BACKOFF_MS = 10
#: How long the short backoff applies. Later it would be a busy loop while topics are missing.
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
    """The network client, for the `kafka_client` option of all other clients."""

    def __init__(
        self,
        net: NetworkSelector | None = None,
        manager: KafkaConnectionManager | None = None,
        **configs: object,
    ) -> None:
        net = NetworkSelector(**configs) if net is None else net
        super().__init__(net, manager or _Connections(net, **configs), **configs)

    def on_lost_connection(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in the client's thread, when an open connection to a broker ends."""
        self._manager.when_lost = callback


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    def __init__(self, net: NetworkSelector, **configs: object) -> None:
        super().__init__(net, **configs)
        self._refusals: dict[object, Exception] = {}  # by node id
        self.when_lost: Callable[[], None] = lambda: None
        # No option sets it: it is 100 ms whatever the client's retry_backoff_ms.
        usual = self.cluster.config["retry_backoff_ms"]
        self.cluster.config["retry_backoff_ms"] = FIRST_METADATA_BACKOFF_MS
        quick_until = time.monotonic() + FIRST_SECONDS

        def on_metadata_update(cluster: ClusterMetadata) -> None:
            if time.monotonic() > quick_until:
                cluster.config["retry_backoff_ms"] = usual

        self.cluster.add_listener(on_metadata_update)

    async def _connect(
        self, node: NodeInfo, conn: KafkaConnection, *args: object, **kwargs: object
    ) -> None:
        def note(error: Exception) -> None:
            if is_refusal(error):
                self._refusals[node.node_id] = error

        self._refusals.pop(node.node_id, None)
        conn.init_future.add_errback(note)
        if not self.cluster.is_bootstrap(node.node_id):  # those are closed right after the start
            conn.init_future.add_callback(
                lambda _: conn.close_future.add_both(lambda _: self.when_lost())
            )
        await super()._connect(node, conn, *args, **kwargs)

    def maybe_raise_auth_failure(self, node_id: object) -> None:
        """Raise a node's refusal once; after that the node is tried again.

        A refusal by a bootstrap node is raised only when all bootstrap nodes have refused.
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
            raise kafka_errors.KafkaConnectionError("the handshake timed out") from None
        receive = transport._sock_recv

        def receive_all() -> tuple[bytes, KafkaError | None]:
            received, error = receive()
            return received, None if received else error  # the next call returns the error

        transport._sock_recv = receive_all
        _write_at_once(transport)
        return transport


def _write_at_once(transport: KafkaTCPTransport) -> None:
    """Write a request without first waiting until the socket is ready, as it nearly always is.

    This saves two turns of the loop for every request, a tenth of the client's work.
    """
    write_when_ready = transport._write_to_sock

    async def write() -> None:
        _, error = transport._sock_send()  # what the socket does not take stays in the buffer
        if error:
            transport.abort(error=error)
            return
        transport.last_write = time.monotonic()
        await write_when_ready()

    transport._write_to_sock = write


def is_refusal(error: Exception) -> bool:
    """Whether the broker refuses this client, so that a retry cannot succeed."""
    text = str(error)
    not_trusted = "Handshake failed: [SSL" in text and "EOF" not in text
    return not_trusted or isinstance(error, _LOGIN_ERRORS)


def refusal(kafka: Kafka, error: Exception) -> str:
    """Describe a refusal in one line."""
    where, text = f"the broker at {kafka.bootstrap_servers}", str(error)
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        return f"{where} refused user {kafka.sasl_username!r}: {text.rpartition('Error: ')[2]}"
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return f"{where} does not support {kafka.sasl_mechanism} (KAFKA_SASL_MECHANISM)"
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return f"{where} does not use SASL (KAFKA_SECURITY_PROTOCOL is {kafka.security_protocol})"
    reason = re.sub(r".*(\[SSL.*?\] |verify failed: )| \(_ssl\.c.*", "", text)
    authority = f"KAFKA_SSL_CAFILE is {kafka.ssl_cafile or 'not set'}"
    return f"{where} is not trusted: {reason} ({authority})"
