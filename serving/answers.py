"""Writes answers as JSON, JSON lines or CSV."""

import csv
import io
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from serving.bodies import JSON, JSON_LINES, TYPES, read_type
from serving.errors import NotAcceptable, RequestError
from serving.rows import Answer, Refusal
from utils.messages import Prediction

#: The columns of an answer as CSV, but for the probabilities.
FIRST, LAST = ("request_id", "prediction", "label"), ("model_id", "error")


@lru_cache(maxsize=64)
def choose_type(accept: str, sent: str) -> tuple[str, bool]:
    """The type of the answer, and whether CSV has a first line of names.

    Args:
        accept: The Accept header.
        sent: The type of the request's body, which is the one of choice where several will do.

    >>> choose_type("*/*", "text/csv"), choose_type("text/csv;q=0.5, application/json", "")
    (('text/csv', True), ('application/json', True))
    >>> choose_type("text/csv; header=absent", "")
    ('text/csv', False)

    Raises:
        NotAcceptable: It names none of them.
    """
    wanted = [_read_accepted(part) for part in accept.split(",") if part.strip()] or [
        ("*/*", 1, "")
    ]
    best, found = 0.0, ("", True)
    for kind in sorted(TYPES, key=lambda kind: kind != sent):
        for name, quality, header in wanted:
            if _matches(name, kind) and quality > best:
                best, found = quality, (kind, header != "absent")
    if not best:
        raise NotAcceptable(f"there are {', '.join(TYPES)}, but not {accept}")
    return found


def _read_accepted(part: str) -> tuple[str, float, str]:
    name, parameters = read_type(part)
    try:
        quality = float(parameters.get("q", 1))
    except ValueError:
        quality = 0.0
    return name, quality, parameters.get("header", "")


def _matches(pattern: str, kind: str) -> bool:
    return pattern in ("*/*", "*", kind, f"{kind.partition('/')[0]}/*")


class Shape(NamedTuple):
    """How answers are written.

    Attributes:
        kind: One of `TYPES`.
        classes: The model's classes.
        single: Whether one row was sent as JSON, which JSON answers with one object.
        header: Whether CSV begins with a line of names.
    """

    kind: str
    classes: Sequence[str]
    single: bool = False
    header: bool = True


def encode(answers: Sequence[Answer], shape: Shape) -> bytes:
    """Write answers in the order of the rows."""
    if shape.kind == JSON:
        return msgspec.json.encode(answers[0] if shape.single else {"predictions": answers})
    if shape.kind == JSON_LINES:
        return b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers)
    return _csv(answers, shape.classes, header=shape.header)


def _csv(answers: Sequence[Answer], classes: Sequence[str], *, header: bool) -> bytes:
    names = ["probability"]
    if len(classes) > 2:
        names = [f"probability_{name}" for name in classes]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow((*FIRST, *names, *LAST))
    for answer in answers:
        if isinstance(answer, Refusal):
            nothing = [""] * (len(FIRST) - 1 + len(names))
            writer.writerow((answer.request_id, *nothing, answer.model_id, answer.error))
        else:
            writer.writerow(_csv_values(answer))
    return text.getvalue().encode("utf-8", "replace")


def _csv_values(answer: Prediction) -> list[object]:
    found = answer.probability
    # Python's shortest digits give back the same bits, as those of JSON do.
    probabilities = [repr(one) for one in (found if isinstance(found, list) else [found])]
    head = (answer.request_id, answer.prediction, answer.label)
    return [*head, *probabilities, answer.model_id, ""]


def encode_ping(model_id: int) -> bytes:
    """The body of the answer to a ping."""
    return msgspec.json.encode({"model_id": model_id})


def encode_error(error: RequestError) -> bytes:
    """The body of an answer without rows."""
    return msgspec.json.encode({"error": str(error), **error.more})


def status_of(answers: Sequence[Answer]) -> HTTPStatus:
    """The status of an answer: an error only if there are rows, and not one could be scored."""
    if answers and all(isinstance(answer, Refusal) for answer in answers):
        return HTTPStatus.BAD_REQUEST
    return HTTPStatus.OK
