"""Where a server listens: its command line and its socket."""

import argparse
import ipaddress
import socket

from utils.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; with port 0 at a free one.

    Raises:
        UserError: The port is taken, or there is no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(1024)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen at {host}:{port}: {reason}") from None
    return found


def address_of(listening: socket.socket, host: str) -> str:
    """The URL of a server, for people."""
    name = "localhost" if is_loopback(host) else f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def add_arguments(parser: argparse.ArgumentParser, *, host: str, port: int) -> None:
    """Add `--host` and `--port` with their defaults to a command line."""
    parser.add_argument("--host", default=host, help="the address to listen at (%(default)s)")
    parser.add_argument(
        "--port",
        type=port_number,
        default=port,
        help="the port to listen at; 0 for a free one (%(default)s)",
    )


def port_number(text: str) -> int:
    """An argparse type: the number of a port; 0 is a free one."""
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, not {text}")
    return number
