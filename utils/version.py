"""The project's version, as every command's `--version` prints it.

pyproject.toml is the only place that states it, and it is read only for `--version`. The
broker's command imports this module, so it imports nothing slow.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def name_and_version() -> str:
    """The project's name and version, such as "kafka-learning-pipeline 0.1.0"."""
    import tomllib

    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    return f"{project['name']} {project['version']}"


class _PrintVersion(argparse.Action):
    """Like argparse's own `version` action, which needs the text in advance."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        print(name_and_version())
        parser.exit()


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option `--version`."""
    parser.add_argument(
        "--version",
        action=_PrintVersion,
        nargs=0,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="show the project's name and version and exit",
    )
