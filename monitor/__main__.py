"""Shows the pipeline live in a browser.

    python -m monitor [--host 127.0.0.1] [--port 8600]

The page reads Kafka without joining a group, and the stores without writing to them. Its buttons
retrain, roll back and send rejected records again, each after a confirmation. On another address
than loopback they ask for a token: MONITOR_TOKEN, or one that is printed at the start.
"""

import argparse
import importlib.util
import secrets
import sys
from functools import partial

from utils import listening, process
from utils.errors import UserError
from utils.settings import Settings
from utils.telemetry.reporter import Reporter


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Serve the page until a signal."""
    if importlib.util.find_spec("nicegui") is None:
        raise UserError("the page needs nicegui: pip install -r requirements-monitor.txt")
    report = Reporter("monitor", "blue", settings.log_format)
    stop = process.Stop().on_signals()
    socket = listening.listen(arguments.host, arguments.port)
    from monitor import server

    local = listening.is_loopback(arguments.host)
    token = None if local else _token(settings)
    address = listening.address_of(socket, arguments.host)
    with server.running(settings, socket, report, token=token, local=local):
        report(f"{address} shows the pipeline")
        if token is not None:
            report(f"its buttons ask for a token; with it: {address}/?token={token}")
        while not stop.wait(1.0):
            pass
    report("stopped")


def _token(settings: Settings) -> str:
    if settings.monitor_token is not None:
        return settings.monitor_token.get_secret_value()
    return secrets.token_urlsafe(18)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = process.parser(__doc__ or "")
    parser.prog = "python -m monitor"
    listening.add_arguments(parser, host="127.0.0.1", port=8600)
    return parser.parse_args()


if __name__ == "__main__":
    command_line = arguments()
    sys.exit(process.run(partial(main, command_line), log_format=command_line.log_format))
