"""The Open Inference Protocol, version 2: `/v2`.

Inputs are tensors, one for each column; each of their rows becomes a message, as the rows of
`/invocations` do. The protocol:
https://github.com/open-inference/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and the extension for binary data, which is Triton's.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serving import offload, tensor_answers, tensor_rows
from serving.bodies import JSON
from serving.errors import NotFound, Unavailable
from serving.rows import Answer, Scorer, SentRow
from serving.tensor_answers import BINARY_HEADER
from utils.model_store import Bundle
from utils.version import name_and_version

EXTENSIONS = ["binary_tensor_data"]

Score = Callable[[Sequence[SentRow], Request], Awaitable[list[Answer]]]


def routes(scorer: Scorer, name: str, max_rows: int, score: Score) -> list[BaseRoute]:
    """The routes of the protocol.

    Args:
        scorer: Knows the model.
        name: The name of the model in addresses.
        max_rows: The most rows of a request.
        score: Scores the rows of a request.
    """
    protocol = _OpenInference(scorer, name, max_rows, score)
    paths: list[BaseRoute] = [
        Route("/v2", protocol.server),
        Route("/v2/health/live", protocol.live),
        Route("/v2/health/ready", protocol.ready),
    ]
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        paths += [
            Route(model, protocol.model),
            Route(f"{model}/ready", protocol.model_ready),
            Route(f"{model}/infer", protocol.infer, methods=["POST"]),
        ]
    return paths


class _OpenInference:
    def __init__(self, scorer: Scorer, name: str, max_rows: int, score: Score) -> None:
        self._scorer = scorer
        self._name = name
        self._max_rows = max_rows
        self._score = score
        self._server = dict(zip(("name", "version"), name_and_version().split(), strict=True))

    async def server(self, request: Request) -> Response:
        """What this server is."""
        return _json({**self._server, "extensions": EXTENSIONS})

    async def live(self, request: Request) -> Response:
        """This server answers."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether rows can be scored."""
        self._check_readiness()
        return _json({"live": True, "ready": True})

    async def model(self, request: Request) -> Response:
        """The model's inputs and outputs."""
        return _json(tensor_answers.metadata(self._name, self._find(request)))

    async def model_ready(self, request: Request) -> Response:
        """Whether rows can be scored by the model."""
        self._find(request)
        self._check_readiness()
        return _json({"name": self._name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Score rows."""
        content = await request.body()  # first: the connection is used on after an error
        bundle = self._find(request)
        sent = (content, request.headers.get(BINARY_HEADER, ""), bundle.features, self._max_rows)
        asked = await offload.call(len(content), tensor_rows.read_request, *sent)
        answers = await self._score(asked.rows, request)
        answered = {answer.model_id for answer in answers}
        if "version" in request.path_params and answered - {bundle.model_id}:
            raise self._other_version(str(bundle.model_id), answered)
        encode = tensor_answers.encode
        body = await offload.call(len(content), encode, answers, self._name, asked)
        return Response(body.content, headers=body.headers, media_type=body.kind)

    def _check_readiness(self) -> None:
        if trouble := self._scorer.trouble():
            raise Unavailable(trouble)

    def _find(self, request: Request) -> Bundle:
        """The bundle that a path names.

        Raises:
            NotFound: It names another model or version.
        """
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != self._name:
            text = f"there is no model {name!r}; this server has {self._name!r}"
            raise NotFound(text)
        bundle = self._scorer.bundle
        if version is not None and version != str(bundle.model_id):
            raise self._other_version(version, [bundle.model_id])
        return bundle

    def _other_version(self, wanted: str, serving: Iterable[int]) -> NotFound:
        found = " and ".join(map(str, sorted(serving)))
        text = f"{self._name!r} has version {found} now, not {wanted}"
        return NotFound(text)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type=JSON)
