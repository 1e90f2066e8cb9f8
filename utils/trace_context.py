"""The trace that a message belongs to: the headers `traceparent` and `tracestate`.

The format: https://www.w3.org/TR/trace-context/
"""

import re
from typing import NamedTuple

from utils.kafka_io import Headers

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
#: The most bytes of a `tracestate`: 32 entries, each of at most 256 + 1 + 256, and their commas.
MAX_TRACESTATE = 32 * 514

_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.{0,200})?"
)


class TraceContext(NamedTuple):
    """The trace and the span that a message was sent in, in hexadecimal."""

    trace_id: str
    span_id: str


def read(headers: Headers) -> TraceContext | None:
    """The trace context of a record; None without a valid `traceparent`.

    Of several, the last one counts, as OpenTelemetry's clients read them.

    >>> sent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    >>> read([("traceparent", sent)])
    TraceContext(trace_id='0af7651916cd43dd8448eb211c80319c', span_id='b7ad6b7169203331')
    >>> read([("traceparent", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01")]) is None
    True
    """
    found = _TRACEPARENT.fullmatch(_last(headers, TRACEPARENT))
    if found is None or (found[1] == b"00" and found[4]):
        return None
    return TraceContext(found[2].decode(), found[3].decode())


def log_fields(headers: Headers) -> dict[str, str]:
    """The trace context as fields of a log line, in OpenTelemetry's names."""
    context = read(headers)
    return {} if context is None else context._asdict()


def trace_headers(headers: Headers) -> list[tuple[str, bytes]]:
    """The valid ones of a record's two trace headers, each at most once."""
    if read(headers) is None:
        return []
    kept = [(TRACEPARENT, _last(headers, TRACEPARENT))]
    if len(state := _last(headers, TRACESTATE)) <= MAX_TRACESTATE:
        kept.append((TRACESTATE, state))
    return [(name, value) for name, value in kept if value]


def _last(headers: Headers, name: str) -> bytes:
    return next((value for key, value in reversed(headers) if key == name), None) or b""
