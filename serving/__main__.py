"""Serves the model over HTTP: `/ping` and `/invocations`, and the Open Inference Protocol.

    python -m serving [--host 127.0.0.1] [--port 8080]

Scores rows by the same rules as a predictor, with the same bits, and follows the serving model as
it does. With `[serving] log` in pipeline.toml rows go through Kafka instead, as an application's
do: a predictor answers them, and outcomes, retraining and explanations cover them. `/docs` shows
what to send.
"""

import argparse
import sys
from functools import partial

from serving import startup
from utils import listening, process
from utils.settings import Settings


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Serve the model until a signal."""
    startup.serve_models(settings, arguments.host, arguments.port)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = process.parser(__doc__ or "")
    parser.prog = "python -m serving"
    listening.add_arguments(parser, host="127.0.0.1", port=8080)
    return parser.parse_args()


if __name__ == "__main__":
    command_line = arguments()
    sys.exit(process.run(partial(main, command_line), log_format=command_line.log_format))
