"""The route `/outcomes`: what became of rows that were scored, for who has no Kafka client."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol, runtime_checkable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serving import bodies, offload
from serving.bodies import JSON, JSON_LINES, ContentType
from serving.errors import UnsupportedType
from utils.message_decoder import request_id_of
from utils.messages import BadRecord
from utils.model_store import Bundle


@runtime_checkable
class OutcomeSender(Protocol):
    """Sends outcomes to Kafka."""

    @property
    def bundle(self) -> Bundle:
        """Knows the classes."""

    async def send_outcomes(self, records: Sequence[tuple[str, bytes]]) -> None:
        """Send records of `outcomes`, each with its request_id.

        Raises:
            Unavailable: It is not known whether Kafka has all of them.
        """


class RejectedOutcome(msgspec.Struct, omit_defaults=True, gc=False):
    """An outcome that was not sent."""

    error: str
    request_id: str | None = None


class Accepted(msgspec.Struct):
    """The answer: how many outcomes Kafka has now, and the others."""

    accepted: int
    rejected: list[RejectedOutcome]


class Outcomes:
    """The route.

    Args:
        sender: Sends the outcomes.
        max_rows: The most outcomes of a request.
    """

    def __init__(self, sender: OutcomeSender, max_rows: int) -> None:
        self._sender = sender
        self._max_rows = max_rows

    def routes(self) -> list[BaseRoute]:
        """The route."""
        return [Route("/outcomes", self.take, methods=["POST"])]

    async def take(self, request: Request) -> Response:
        """Send the outcomes of a body: an object, a list, or JSON lines."""
        kind = bodies.read_type(request.headers.get("content-type", ""))
        if kind.name not in (JSON, JSON_LINES):
            text = f"outcomes come as {JSON} or {JSON_LINES}, not as {kind.name}"
            raise UnsupportedType(text)
        content = await request.body()
        good, rejected = await offload.call(len(content), self._read, content, kind)
        if good:
            await self._sender.send_outcomes(good)
        status = HTTPStatus.ACCEPTED if good or not rejected else HTTPStatus.BAD_REQUEST
        answer = msgspec.json.encode(Accepted(len(good), rejected))
        return Response(answer, status, media_type=JSON)

    def _read(
        self, content: bytes, kind: ContentType
    ) -> tuple[list[tuple[str, bytes]], list[RejectedOutcome]]:
        """The outcomes that can be used, each with its request_id, and the others."""
        decode, values = self._sender.bundle.outcome_decoder, bodies.split(content, kind)
        bodies.check_rows(len(values), self._max_rows)
        good, rejected = list[tuple[str, bytes]](), list[RejectedOutcome]()
        for value in values:
            try:
                good.append((decode(value).request_id, value))
            except BadRecord as reason:
                rejected.append(RejectedOutcome(str(reason), request_id_of(value)))
        return good, rejected
