"""Prepares the interpreter for a script: assertions, the standard streams, text.

The broker's command imports this module, so it imports nothing slow.
"""

import os
import sys
from io import TextIOWrapper

from utils.errors import UserError


def prepare() -> None:
    """Check the interpreter's options and mend its standard streams; a script calls it first.

    Standard output then accepts any text: what its encoding lacks is escaped, as on standard
    error. A closed stream becomes the null device, so that no file or socket gets its number.

    Raises:
        UserError: Python runs without assertions.
    """
    if not __debug__:
        raise UserError("Kafka's client needs assertions: run without -O and PYTHONOPTIMIZE")
    _open_closed_streams()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _open_closed_streams() -> None:
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # as the streams of child processes, too
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def decode_text(text: str) -> str:
    r"""An argument or environment variable as text.

    Python decodes them by the locale, and keeps bytes that do not fit as lone surrogates. They
    are read as UTF-8, whatever the locale.

    Raises:
        ValueError: It is not UTF-8.

    >>> decode_text(b"caf\xc3\xa9".decode("ascii", "surrogateescape")) == "caf\xe9"
    True
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8")
