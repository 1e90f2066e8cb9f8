"""Finds free ports, and checks whether a Kafka broker answers at an address."""

import random
import socket
import ssl
import struct

LOOPBACK = "127.0.0.1"


def is_answering(
    bootstrap: str, timeout: float = 2.0, *, tls: ssl.SSLContext | None = None
) -> bool:
    """Whether a Kafka broker answers at one of the addresses now.

    Asks for ApiVersions, which brokers answer before any login.

    Args:
        bootstrap: One or more host:port, separated by commas.
        timeout: Seconds to wait for each address.
        tls: The TLS context, for a listener with TLS.
    """
    for server in bootstrap.split(","):
        host, _, port = server.strip().rpartition(":")
        reply = _ask(host.strip("[]"), int(port), API_VERSIONS, timeout, tls)
        if reply is not None and reply[4:6] == b"\0\0":
            return True
    return False


#: Kafka requests without their size: API key, version, correlation id, client id; body.
API_VERSIONS = struct.pack(">hhih", 18, 0, 1, -1)
METADATA_OF_NO_TOPIC = struct.pack(">hhih", 3, 7, 1, -1) + struct.pack(">i?", 0, False)


def accepts_clients(port: int) -> bool:
    """Whether the broker is in its own metadata; its port opens shortly before that."""
    reply = _ask(LOOPBACK, port, METADATA_OF_NO_TOPIC, 2.0)
    return reply is not None and struct.unpack_from(">i", reply, 8)[0] > 0


def _ask(
    host: str, port: int, request: bytes, timeout: float, tls: ssl.SSLContext | None = None
) -> bytes | None:
    """Send one request; returns the reply from the correlation id on, or None."""
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            tls.wrap_socket(plain, server_hostname=host) if tls else plain as connection,
            connection.makefile("rb") as stream,
        ):
            connection.sendall(struct.pack(">i", len(request)) + request)
            size = struct.unpack(">i", stream.read(4))[0]
            reply = stream.read(size) if 12 <= size < 2**20 else b""
            return reply if len(reply) == size else None
    except (OSError, struct.error):
        return None


def free_port() -> int:
    """Find a port of 127.0.0.1 where nothing listens.

    It is outside the range of ephemeral ports: a client that keeps reconnecting to a
    stopped broker could be assigned the broker's port, and the broker could not restart.
    """
    while not is_free(port := random.randrange(20_000, 32_000)):
        pass
    return port


def is_free(port: int) -> bool:
    """Whether nothing listens at a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
