"""Limits the bodies of requests in size; `serving.connection` limits them in time."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import TooLarge, Unavailable, UnsupportedType
from utils.settings import Serving

#: The most bytes of the bodies of all requests that are not answered yet.
MAX_BYTES_AT_ONCE = 256 * 1024 * 1024


class LimitedBodies:
    """Refuses bodies that are too large or compressed, to whoever reads them.

    Args:
        app: The application; reading a body raises a `RequestError` there.
        limits: The settings.
    """

    def __init__(self, app: ASGIApp, limits: Serving) -> None:
        self._app = app
        self._limits = limits
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; its bytes count until it is answered."""
        held, checked = 0, False

        async def receive_limited() -> Message:
            nonlocal held, checked
            if not checked:
                self._check_headers(Headers(scope=scope))
                checked = True
            message = await receive()
            size = len(message.get("body", b""))
            held += size
            self._held += size
            self._check_size(held)
            return message

        try:
            await self._app(scope, receive_limited, send)
        finally:
            self._held -= held

    def _check_headers(self, headers: Headers) -> None:
        encoding = headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise UnsupportedType(f"the body must not be compressed, but it is {encoding}")
        self._check_size(int(headers.get("content-length", 0)))

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_body:
            raise TooLarge(f"a body may have {self._limits.max_body} bytes ([serving] max_body)")
        if self._held > MAX_BYTES_AT_ONCE:
            raise Unavailable("too many large bodies at a time")
