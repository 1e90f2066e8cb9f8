"""The W3C's trace context: what is valid, and what is ignored."""

import pytest

from utils.trace_context import MAX_TRACESTATE, log_fields, read, trace_headers

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()


@pytest.mark.parametrize("value", [PARENT, PARENT[:-2] + b"ff", b"cc" + PARENT[2:] + b"-more"])
def test_valid_traceparent_gives_the_fields_of_a_log_line(value: bytes) -> None:
    headers = [("traceparent", b"?"), ("other", None), ("traceparent", value)]
    assert log_fields(headers) == {"trace_id": TRACE, "span_id": SPAN}
    assert trace_headers(headers) == [("traceparent", value)]


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        PARENT[:-1],
        PARENT + b"-more",  # not in version 00
        PARENT + b"\n",
        PARENT.upper(),
        b"ff" + PARENT[2:],
        PARENT.replace(TRACE.encode(), b"0" * 32),
        PARENT.replace(SPAN.encode(), b"0" * 16),
        b"cc" + PARENT[2:] + b"-" + b"x" * 1_000,
        b"\xff" * 55,
    ],
)
def test_invalid_traceparent_is_ignored(value: bytes | None) -> None:
    headers = [("traceparent", value), ("tracestate", b"a=1")]
    assert read(headers) is None
    assert log_fields(headers) == {}
    assert trace_headers(headers) == []


def test_tracestate_is_kept_beside_a_valid_traceparent_alone() -> None:
    parent = ("traceparent", PARENT)
    assert trace_headers([("tracestate", b"a=1"), parent]) == [parent, ("tracestate", b"a=1")]
    assert trace_headers([parent, ("tracestate", b"x" * (MAX_TRACESTATE + 1))]) == [parent]
    assert trace_headers([("tracestate", b"a=1")]) == []
    assert trace_headers([parent, ("tracestate", None)]) == [parent]
