"""Shows the pipeline live in a browser.

    python -m monitor [--host 127.0.0.1] [--port 8600]

The page reads Kafka without joining a group, and the stores without writing to them. Its buttons
retrain, roll back and send rejected records again, each after a confirmation. On another address
than loopback they ask for a token: MONITOR_TOKEN, or one that is printed at the start.
"""

import argparse
import importlib.util
import ipaddress
import secrets
import socket
import sys
from functools import partial

from utils import process
from utils.errors import UserError
from utils.settings import Settings
from utils.telemetry.reporter import Reporter


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Serve the page until a signal."""
    if importlib.util.find_spec("nicegui") is None:
        raise UserError("the page needs nicegui: pip install -r requirements-monitor.txt")
    report = Reporter("monitor", "blue", settings.log_format)
    stop = process.Stop().on_signals()
    listening = _listen(arguments.host, arguments.port)
    from monitor import server

    local = _is_loopback(arguments.host)
    token = None if local else _token(settings)
    port = listening.getsockname()[1]
    with server.running(settings, listening, report, token=token, local=local):
        address = f"http://{_in_url('localhost' if local else arguments.host)}:{port}"
        report(f"{address} shows the pipeline")
        if token is not None:
            report(f"its buttons ask for a token; with it: {address}/?token={token}")
        while not stop.wait(1.0):
            pass
    report("stopped")


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

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
        found.listen(128)
    except OSError as error:
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror or error}") from None
    return found


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> [_is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(settings: Settings) -> str:
    if settings.monitor_token is not None:
        return settings.monitor_token.get_secret_value()
    return secrets.token_urlsafe(18)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, not {text}")
    return number


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = process.parser(__doc__ or "")
    parser.prog = "python -m monitor"
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (%(default)s)"
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8600,
        help="the port to listen at; 0 for a free one (%(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    command_line = arguments()
    sys.exit(process.run(partial(main, command_line), log_format=command_line.log_format))
