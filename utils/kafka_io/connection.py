"""Makes Kafka's client reach whatever address answers, and keep the reason of a refusal.

kafka-python 3.0.12 by itself waits for an address that does not answer until its time is up,
although the next one would; it waits forever for a TLS handshake; it drops what a broker
sends right before it closes the connection, which is the reason of a failed login; and it
retries whatever the reason, until it reports nothing but a timeout.
"""

import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Protocol

from kafka import errors as kafka_errors
from kafka.cluster import ClusterMetadata
from kafka.errors import KafkaError
from kafka.future import Future
from kafka.net import KafkaConnectionManager, KafkaNetClient, NetworkSelector
from kafka.net.connection import KafkaConnection
from kafka.net.inet import KafkaNetSocket
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from utils.client_certificate import CertificateError, check_certificate
from utils.kafka_io import naming
from utils.kafka_io.tokens import TokenError
from utils.settings import Kafka

#: For the TCP and the TLS handshake together.
HANDSHAKE_TIMEOUT_MS = 5_000
#: The most for one of several bootstrap servers, from the first packet to the end of the login:
#: what accepts connections need not be a broker that works.
BOOTSTRAP_ATTEMPT_MS = 2_500
#: An address that has not answered by then gets competition by the next one (RFC 8305 says 250).
NEXT_ADDRESS_MS = 250
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
    host: str
    port: int


class Client(KafkaNetClient):  # type: ignore[misc]
    """The network client, for the `kafka_client` option of all other clients.

    Args:
        pipeline: The pipeline's name, which no other client needs to know; or empty.
        net: As for any such client.
        manager: As for any such client.
        configs: As for any such client.
    """

    def __init__(
        self,
        pipeline: str,
        net: NetworkSelector | None = None,
        manager: KafkaConnectionManager | None = None,
        **configs: object,
    ) -> None:
        net = NetworkSelector(**configs) if net is None else net
        super().__init__(net, manager or _Connections(pipeline, net, **configs), **configs)
        self.pipeline = pipeline

    def on_lost_connection(self, callback: Callable[[], None]) -> None:
        """Call `callback`, in the client's thread, when an open connection to a broker ends."""
        self._manager.when_lost = callback


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    def __init__(self, pipeline: str, net: NetworkSelector, **configs: object) -> None:
        super().__init__(net, **configs)
        self._pipeline = pipeline
        self._refusals: dict[object, Exception] = {}  # by node id
        self._servers: list[NodeInfo] = self.cluster.bootstrap_brokers()
        self._tried: Counter[object] = Counter()  # bootstrap servers, by node id
        # The client chooses at random from these for each attempt.
        self.cluster.bootstrap_brokers = lambda: self._least_tried()[:1]
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

        def note_bootstrap(_: object) -> None:
            self._tried.clear()
            for server in self._servers:
                self._refusals.pop(server.node_id, None)

        naming.translate(conn, self._pipeline)
        self._refusals.pop(node.node_id, None)
        conn.init_future.add_errback(note)
        if self.cluster.is_bootstrap(node.node_id):  # those are closed right after the start
            conn.init_future.add_callback(note_bootstrap)
        else:
            conn.init_future.add_callback(
                lambda _: conn.close_future.add_both(lambda _: self.when_lost())
            )
        await super()._connect(node, conn, *args, **kwargs)

    def maybe_raise_auth_failure(self, node_id: object) -> None:
        """Raise a node's refusal once; after that the node is tried again.

        A refusal by a bootstrap server is raised only when all of them have been tried.
        """
        if self.cluster.is_bootstrap(node_id):
            servers = {server.node_id for server in self._servers}
            refused = servers & set(self._refusals)
            if not refused or servers - set(self._tried):
                return
            node_id = refused.pop()
            self._tried.clear()
        if node_id in self._refusals:
            raise self._refusals.pop(node_id)

    def _least_tried(self) -> list[NodeInfo]:
        """The bootstrap servers in the order in which to try them."""
        return sorted(self._servers, key=lambda server: self._tried[server.node_id])

    def get_connection(
        self, node_id: object, timeout_ms: float | None = None, **options: object
    ) -> KafkaConnection:
        """The connection to a node, which is opened if there is none."""
        if self.cluster.is_bootstrap(node_id) and len(self._servers) > 1:
            timeout_ms = min(timeout_ms or BOOTSTRAP_ATTEMPT_MS, BOOTSTRAP_ATTEMPT_MS)
        return super().get_connection(node_id, timeout_ms=timeout_ms, **options)

    async def _build_transport(self, node: NodeInfo, timeout_at: float) -> KafkaTCPTransport:
        building = self.call_soon(partial(self._connect_and_shake_hands, node, timeout_at))
        left_ms = (timeout_at - time.monotonic()) * 1000
        try:
            transport = await self.wait_for(building, min(left_ms, HANDSHAKE_TIMEOUT_MS))
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

    async def _connect_and_shake_hands(
        self, node: NodeInfo, timeout_at: float
    ) -> KafkaTCPTransport:
        # Any bootstrap server will do.
        nodes = self._least_tried() if self.cluster.is_bootstrap(node.node_id) else [node]
        connected, found = await self._connect_to_first(nodes, timeout_at)
        self._tried[found.node_id] += 1  # again: if it fails now, others come before it
        if self.ssl_enabled:
            tls = {name: value for name, value in self.config.items() if name.startswith("ssl_")}
            transport = KafkaSSLTransport(self._net, connected, host=found.host, **tls)
        else:
            transport = KafkaTCPTransport(self._net, connected, host=found.host)
        try:
            await transport.handshake()
        except Exception as error:
            raise kafka_errors.KafkaConnectionError(f"Handshake failed: {error}") from None
        return transport

    async def _connect_to_first(
        self, nodes: Iterable[NodeInfo], timeout_at: float
    ) -> tuple[socket.socket, NodeInfo]:
        """Connect to the first address of the nodes that answers.

        Each is tried as soon as the one before it has failed, or has not answered for a while.
        """
        network, first = KafkaNetSocket(), Future()
        attempts: list[Future] = []

        async def connect(node: NodeInfo, address: tuple[object, ...]) -> None:
            connected = await network.connect(
                self._net, address, self.config["socket_options"], timeout_at=timeout_at
            )
            if first.is_done:
                connected.close()
            else:
                first.success((connected, node))

        def give_up(error: Exception) -> None:
            if not first.is_done and all(attempt.is_done for attempt in attempts):
                first.failure(kafka_errors.KafkaConnectionError(f"cannot connect: {error}"))

        for node in nodes:
            self._tried[node.node_id] += 1
            for address in network.dns_lookup(node.host, node.port):
                attempts.append(self.call_soon(connect, node, address))
                with suppress(KafkaError, OSError):  # a timeout, or the attempt has failed
                    await self.wait_for(attempts[-1], NEXT_ADDRESS_MS)
                if first.is_done:
                    return first.value  # type: ignore[no-any-return]
        if not attempts:
            raise kafka_errors.KafkaConnectionError("the host name has no address")
        for attempt in attempts:
            attempt.add_errback(give_up)
        return await first  # type: ignore[no-any-return]


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
    # With TLS 1.3 a broker refuses a client's certificate only after the handshake.
    tls = "[SSL" in str(error) and "EOF" not in str(error)
    return tls or isinstance(error, (ssl.SSLError, TokenError, *_LOGIN_ERRORS))


def refusal(kafka: Kafka, error: Exception) -> str:
    """Describe a refusal in one line."""
    where, text = f"the broker at {kafka.bootstrap_servers}", str(error)
    if isinstance(error, TokenError):
        return text
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        return f"{where} refused {_login(kafka)}: {text.rpartition('Error: ')[2]}"
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return f"{where} does not support {kafka.sasl_mechanism} (KAFKA_SASL_MECHANISM)"
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return f"{where} does not use SASL (KAFKA_SECURITY_PROTOCOL is {kafka.security_protocol})"
    reason = re.sub(r".*(\[(SSL|X509).*?\] (\w+ alert )?|verify failed: )| \(_ssl\.c.*", "", text)
    if "_ALERT_" in text or isinstance(error, ssl.SSLError):
        return f"no TLS connection to {where}: {reason} ({_own_certificate(kafka)})"
    authority = f"KAFKA_SSL_CAFILE is {kafka.ssl_cafile or 'not set'}"
    return f"{where} is not trusted: {reason} ({authority})"


def _login(kafka: Kafka) -> str:
    """Who logs in."""
    if kafka.sasl_mechanism != "OAUTHBEARER":
        return f"user {kafka.sasl_username!r}"
    return f"the token from {kafka.sasl_oauth_token_url or 'AWS'}"


def _own_certificate(kafka: Kafka) -> str:
    """The client's certificate, and what is wrong with it: brokers do not say."""
    if kafka.ssl_certfile is None:
        return "KAFKA_SSL_CERTFILE is not set"
    try:
        check_certificate(kafka.ssl_certfile, kafka.ssl_keyfile, kafka.key_password)
    except CertificateError as error:
        return f"KAFKA_SSL_{error.at_fault.upper()}: {error}"
    return f"KAFKA_SSL_CERTFILE is {kafka.ssl_certfile}"
