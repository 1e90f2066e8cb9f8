"""HTTP connections that no client can hold up."""

import asyncio

import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

HEAD_408 = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n"
)
#: The most bytes of a request's first line and headers.
MAX_HEAD = 64 * 1024
#: Seconds beyond those for a request in which its answer can still say that it took too long.
ANSWER_GRACE = 5.0


class Connection(HttpToolsProtocol):
    """Ends itself if a request, or the reading of its answer, takes too long.

    uvicorn limits only the time between two requests: a client that sends a byte now and then,
    or never reads, would keep its connection.

    Args:
        timeout: Seconds that a request may take to arrive, and then to be answered.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        timeout: float,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._timeout = timeout
        self._clock: asyncio.TimerHandle | None = None
        self._is_in_head = False
        self._head = 0
        self._is_ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; the first request has to follow."""
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        if self._clock is None:
            self._expect_request()
        super().data_received(data)
        self._head = self._head + len(data) if self._is_in_head else 0
        if self._head > MAX_HEAD:
            self.send_400_response("The headers are too large.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_in_head = True
        self._expect_request()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start to answer a request, whose body may still be on its way."""
        self._is_in_head = False
        super().on_headers_complete()
        if self._is_ending:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """A request has arrived; its answer has to follow."""
        self._expect_end()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is on its way; the next request may begin."""
        if self.pipeline or self.transport.get_write_buffer_size():
            self._expect_end()
        else:
            self._stop_clock()
        super().on_response_complete()

    def shutdown(self) -> None:
        """End after the request in hand, also if its headers have not arrived in full."""
        self._is_ending = True
        if not self._is_in_head:
            super().shutdown()

    def _expect_request(self) -> None:
        self._stop_clock()
        self._clock = self.loop.call_later(self._timeout, self._request_is_too_slow)

    def _expect_end(self) -> None:
        self._stop_clock()
        self._clock = self.loop.call_later(self._timeout + ANSWER_GRACE, self._end_is_too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _request_is_too_slow(self) -> None:
        is_in_body = self.cycle is not None and self.cycle.more_body
        if self._is_in_head or (is_in_body and not self.cycle.response_started):
            text = f"the request did not arrive within {self._timeout:g} s"
            content = msgspec.json.encode({"error": text})
            head = HEAD_408 % len(content)
            self.transport.write(head + content)
        self.transport.close()
        # What the client never reads would keep a closing connection open.
        self._clock = self.loop.call_later(ANSWER_GRACE, self.transport.abort)

    def _end_is_too_slow(self) -> None:
        self._clock = None
        is_over = self.cycle is None or self.cycle.response_complete
        if not is_over or self.transport.get_write_buffer_size():
            self.transport.abort()
