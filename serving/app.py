"""The application: its routes, and what becomes of a request's body."""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import answers, bodies, docs, offload, open_inference
from serving.bodies import JSON
from serving.body_limits import LimitedBodies
from serving.errors import RequestError, TooLarge, Unavailable, UnsupportedType
from serving.outcomes import Outcomes, OutcomeSender
from serving.rows import Answer, Scorer, SentRow
from utils import trace_context
from utils.errors import one_line
from utils.settings import Serving
from utils.telemetry.counts import ServingCounts
from utils.telemetry.reporter import Reporter
from utils.web_server import SameOrigin

#: Headers with the request_id of a row that has none itself: the one of
#: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/, and SageMaker's.
ID_HEADERS = ("idempotency-key", "x-amzn-sagemaker-inference-id")
#: Whether the first line of CSV was taken for column names.
CSV_HEADER = "x-csv-header"


class Invocations:
    """The routes `/ping` and `/invocations`, as SageMaker calls them.

    Args:
        scorer: Scores the rows.
        limits: The settings.
    """

    def __init__(self, scorer: Scorer, limits: Serving) -> None:
        self._scorer = scorer
        self._limits = limits

    def routes(self) -> list[BaseRoute]:
        """Both routes."""
        return [
            Route("/ping", self.ping),
            Route("/invocations", self.invoke, methods=["POST"]),
        ]

    async def ping(self, request: Request) -> Response:
        """Say whether rows can be scored."""
        if trouble := self._scorer.trouble():
            raise Unavailable(trouble)
        return _respond(answers.encode_ping(self._scorer.bundle.model_id))

    async def invoke(self, request: Request) -> Response:
        """Score the rows of a body."""
        kind = bodies.read_type(request.headers.get("content-type", ""))
        if kind.name not in bodies.TYPES:
            text = f"{kind.name} is none of {', '.join(bodies.TYPES)}"
            raise UnsupportedType(text)
        wanted, header = answers.choose_type(request.headers.get("accept", ""), kind.name)
        content = await request.body()
        features = self._scorer.bundle.features
        size, request_id = len(content), _id_of(request)
        body = await offload.call(size, bodies.read_body, content, kind, features, request_id)
        found = await score(self._scorer, body.rows, request, self._limits)
        shape = answers.Shape(wanted, features.classes, single=body.is_single, header=header)
        encoded = await offload.call(size, answers.encode, found, shape)
        headers = {} if body.has_header is None else {CSV_HEADER: _presence(body.has_header)}
        return _respond(encoded, answers.status_of(found), wanted, headers)


async def score(
    scorer: Scorer, rows: Sequence[SentRow], request: Request, limits: Serving
) -> list[Answer]:
    """Score the rows of a request, which may take as long as the settings say.

    Raises:
        RequestError: There are too many rows, or they cannot be scored now.
    """
    bodies.check_rows(len(rows), limits.max_rows)
    return await scorer.score(rows, _trace_of(request))


def _id_of(request: Request) -> str:
    for name in ID_HEADERS:
        if found := request.headers.get(name, "").strip().strip('"'):
            return found
    return ""


def _trace_of(request: Request) -> list[tuple[str, bytes]]:
    """The trace context of a request, as headers of records on Kafka."""
    sent: list[tuple[str, bytes | None]] = [
        (name, value.encode("latin-1"))
        for name in (trace_context.TRACEPARENT, trace_context.TRACESTATE)
        if (value := request.headers.get(name)) is not None
    ]
    return trace_context.trace_headers(sent) if sent else []


def _presence(there: bool) -> str:
    return "present" if there else "absent"


def _respond(
    content: bytes,
    status: HTTPStatus = HTTPStatus.OK,
    kind: str = JSON,
    headers: dict[str, str] | None = None,
) -> Response:
    return Response(content, status, headers, kind)


class Counted:
    """Counts requests by status, and the time that they take.

    Args:
        app: The application.
        counts: They are counted there.
    """

    def __init__(self, app: ASGIApp, counts: ServingCounts) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        began = time.perf_counter()

        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counts.requests[message["status"]] += 1
                self._counts.latencies.add([(time.perf_counter() - began) * 1000])
            await send(message)

        await self._app(scope, receive, count_and_send)


Handler = Callable[[Request, Exception], Awaitable[Response]]


def _handlers(report: Reporter) -> dict[object, Handler]:
    """What is answered to requests that fail, by the exception's type."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        # The rest of a body that is too large is not waited for.
        headers = {"connection": "close"} if isinstance(error, TooLarge) else None
        return _respond(answers.encode_error(error), error.status, headers=headers)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        content = answers.encode_error(RequestError(error.detail))
        return _respond(content, HTTPStatus(error.status_code), headers=dict(error.headers or {}))

    async def gone(request: Request, error: Exception) -> Response:
        # Nobody reads it: the client has left, or was cut off because it was too slow.
        return Response(status_code=HTTPStatus.REQUEST_TIMEOUT)

    async def fault(request: Request, error: Exception) -> Response:
        text = f"{type(error).__name__}: {one_line(error)}"
        report(f"a fault of the server, please report it: {text}", level="error")
        content = answers.encode_error(RequestError("a fault of the server"))
        return _respond(content, HTTPStatus.INTERNAL_SERVER_ERROR)

    return {RequestError: refused, HTTPException: unknown, ClientDisconnect: gone, Exception: fault}


def build(
    scorer: Scorer,
    limits: Serving,
    counts: ServingCounts,
    report: Reporter,
    name: str = "model",
) -> ASGIApp:
    """The application.

    Args:
        scorer: Scores the rows.
        limits: The settings.
        counts: What is answered is counted there.
        report: Prints the lines for the user.
        name: The model's name in addresses of the Open Inference Protocol.
    """
    score_rows = partial(score, scorer, limits=limits)
    routes = [
        *Invocations(scorer, limits).routes(),
        *open_inference.routes(scorer, name, limits.max_rows, score_rows),
        *docs.routes(scorer, name, limits),
    ]
    if isinstance(scorer, OutcomeSender):
        routes += Outcomes(scorer, limits.max_rows).routes()
    app = Starlette(routes=routes, exception_handlers=_handlers(report))
    return Counted(SameOrigin(LimitedBodies(app, limits)), counts)  # outermost: it counts faults
