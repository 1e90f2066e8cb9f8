"""Runs the pipeline's model in the cloud: SageMaker's container contract and its endpoints.

    python -m cloud train                      train a first model from SAGEMAKER_BASE_DIR
    python -m cloud serve                      serve the model that is there over HTTP
    python -m cloud deploy [MODEL_ID]          deploy a model to an endpoint
    python -m cloud traffic champion=0.9 challenger=0.1
    python -m cloud traffic --rollback         serve again what served before
    python -m cloud delete [NAME]              delete an endpoint

Each command has a --help of its own.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from cloud import delete, deploy, serve, traffic, train
from utils import process
from utils.settings import Settings


class Command(Protocol):
    """A command is a module; its docstring is its `--help`, and the first line of that its summary.

    What is slow to import is imported in its `main`.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""

    def main(self, arguments: argparse.Namespace, settings: Settings) -> int | None:
        """Run the command; returns the exit status (None is 0)."""


COMMANDS: Mapping[str, Command] = {
    "train": train,
    "serve": serve,
    "deploy": deploy,
    "traffic": traffic,
    "delete": delete,
}


def _parser() -> argparse.ArgumentParser:
    parser = process.parser(__doc__ or "")
    parser.prog = "python -m cloud"
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        about = command.__doc__ or ""
        added = commands.add_parser(
            name,
            help=about.partition("\n")[0],
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.set_defaults(command=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    return process.run(
        partial(arguments.command.main, arguments),
        log_format=arguments.log_format,
        any_name=True,
        on_error=train.on_error if arguments.command is train else lambda text: None,
    )


if __name__ == "__main__":
    sys.exit(main())
