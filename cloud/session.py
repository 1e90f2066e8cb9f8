"""What deploy, traffic and delete share: options, the connection to AWS, the endpoint's name."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from cloud import permissions
from cloud.aws import Aws
from cloud.endpoints import Waiting
from utils import home, process
from utils.errors import UserError
from utils.settings import Settings, check_endpoint
from utils.telemetry.reporter import Reporter


@dataclass(frozen=True)
class Session:
    """A command at work.

    Attributes:
        aws: Makes the calls.
        settings: The pipeline's settings.
        endpoint: The endpoint's name.
        waiting: Waits for the endpoint.
        report: Prints what is so.
        done: Prints what was changed; a dry run changes nothing.
    """

    aws: Aws
    settings: Settings
    endpoint: str
    waiting: Waiting
    report: Reporter
    done: Callable[..., None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that the commands share, and the permissions to `--help`."""
    parser.epilog = permissions.in_words()
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show every call, and make none that changes anything",
    )
    parser.add_argument(
        "--timeout",
        type=process.seconds,
        metavar="SECONDS",
        help="how long to wait for the endpoint ([sagemaker] timeout)",
    )


def endpoint_name(text: str) -> str:
    """An argparse type: the name of an endpoint."""
    try:
        return check_endpoint(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def begin(arguments: argparse.Namespace, settings: Settings, endpoint: str | None) -> Session:
    """Connect to AWS.

    Args:
        arguments: The command line, with the shared options.
        settings: The pipeline's settings.
        endpoint: The endpoint's name on the command line, if it is there.

    Raises:
        UserError: No endpoint is named, the home is another pipeline's, or boto3 is missing.
    """
    home.check_name(settings)
    name = endpoint or settings.sagemaker.endpoint
    if not name:
        raise UserError(
            "no endpoint is named: give its name, or set [sagemaker] endpoint in pipeline.toml"
        )
    report = Reporter("cloud", "cyan", settings.log_format, prefix=False)
    stop = process.Stop().on_signals()
    aws = Aws(report, stop, dry_run=arguments.dry_run)
    timeout = settings.sagemaker.timeout if arguments.timeout is None else arguments.timeout
    waiting = Waiting(aws, report, stop, timeout)
    if arguments.dry_run:
        report("dry run: every call, of which only those are made that change nothing")
    done = _say_nothing if arguments.dry_run else report
    return Session(aws, settings, name, waiting, report, done)


def _say_nothing(text: str, **fields: object) -> None:
    """What is done in a dry run."""
