"""Log lines for machines: one JSON object a line.

The broker's command imports this module, so it imports nothing slow.
"""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime


def encode(process: str, message: str, level: str = "info", /, **fields: object) -> str:
    r"""A log line without its newline.

    It is ASCII, so that it can be written in any locale, and strict JSON: what JSON cannot
    express is text, a number that is not finite is null.

    Args:
        process: The name of the script.
        message: What a person would read.
        level: debug, info, warning, error or critical.
        fields: What a machine would look for. None of the four keys that every line has
            (`time`, `level`, `process`, `message`) is replaced.

    >>> encode("predictor", "caf\xe9\n", rows=2, loss=math.nan)[37:]
    '"level": "info", "process": "predictor", "message": "caf\\u00e9\\n", "rows": 2, "loss": null}'
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = {"time": now, "level": level, "process": process, "message": message}
    return json.dumps(_plain({**line, **fields, **line}))


def _plain(value: object) -> object:
    """A value as JSON can hold it."""
    if isinstance(value, str):  # lone surrogates, of a file's name for instance, are no text
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return {str(_plain(str(name))): _plain(one) for name, one in value.items()}
    if isinstance(value, Iterable):
        return [_plain(one) for one in value]
    return _plain(str(value))
