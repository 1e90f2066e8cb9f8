"""The broker's command: `python -m utils.broker`."""

import argparse
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from utils import interpreter, version
from utils.broker.jars import LOCK, VERSION, BrokerError, write_lock
from utils.broker.ports import LOOPBACK, is_answering
from utils.broker.server import Broker, prepare
from utils.errors import UserError

if TYPE_CHECKING:
    from utils.settings import Kafka

EPILOG = f"""\
Runs until SIGINT or SIGTERM and exits with status 0 (a second signal ends it at once).
Exits with status 0 immediately if a Kafka broker already answers at the address. Any other
status comes with a one-line error message. On Linux, Kafka is killed with this process,
however that ends.

environment variables:
  KAFKA_BOOTSTRAP_SERVERS  the address to listen at; the first one is used and must
                           resolve to {LOOPBACK} (default: localhost:9092)
  PIPELINE_HOME            Kafka's files are in its subfolder data/kafka (default: the
                           root of the clone)
  M2_REPO                  where Kafka's jars are kept (default: ~/.m2/repository)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the broker in the foreground; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.broker",
        description=f"Run a real Apache Kafka {VERSION} on this machine, in the foreground.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version.add_argument(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--prepare",
        action="store_true",
        help="fetch Kafka and create its startup cache, then exit; later starts need no network",
    )
    instead.add_argument(
        "--write-lock",
        action="store_true",
        help=f"pin the jars of another version of Kafka in {LOCK.name}, then exit",
    )
    options = parser.parse_args(arguments)
    try:
        interpreter.prepare()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    from utils import settings  # here: importing it takes longer than all the rest

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _stop_once)
    try:
        if options.prepare:
            prepare()
            print(f"Apache Kafka {VERSION} is ready to be started")
            return 0
        if options.write_lock:
            print(f"{write_lock()} jars pinned in {LOCK}")
            return 0
        config = settings.load()
        return _serve(config.kafka, config.data_dir / "kafka")
    except KeyboardInterrupt:
        return 0
    except (BrokerError, settings.SettingsError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        where = "" if error.filename is None else f"cannot use {error.filename}: "
        print(f"{where}{error.strerror or error}", file=sys.stderr)
    return 1


def _serve(kafka: "Kafka", home: Path) -> int:
    address = kafka.bootstrap_servers.split(",")[0].strip()
    port = _own_port(address)
    if is_answering(address):
        print(f"a Kafka broker answers at {address} already: nothing to start")
        return 0
    if kafka.security_protocol != "PLAINTEXT":
        raise BrokerError(
            f"KAFKA_SECURITY_PROTOCOL is {kafka.security_protocol}, "
            "but the broker on this machine supports plain text only"
        )
    with Broker(home, port) as broker:
        print(f"Apache Kafka {VERSION} is ready at {address} (log: {broker.log_file})", flush=True)
        status = broker.wait()
        raise BrokerError(f"Kafka ended unexpectedly, status {status} (log: {broker.log_file})")


def _own_port(address: str) -> int:
    """The port of a host:port; the host must be this machine's loopback address."""
    host, _, port = address.rpartition(":")
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None, socket.AF_INET)}
    except OSError:
        found = set()
    if found != {LOOPBACK}:
        raise BrokerError(
            f"KAFKA_BOOTSTRAP_SERVERS is {address}: the broker on this machine listens at "
            f"{LOOPBACK} alone, so use localhost or {LOOPBACK}"
        )
    return int(port)


def _stop_once(signal_number: int, frame: FrameType | None) -> None:
    """Start a clean stop; the next signal ends this process, and Kafka with it, at once."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
