"""The routes of the Open Inference Protocol."""

from collections.abc import Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving import offload, open_inference
from serving.errors import RequestError
from serving.rows import Answer, Scorer, SentRow
from tests.unit.serving.conftest import Client, ClientOf
from utils.messages import Prediction
from utils.model_store import Bundle

MODEL = "/v2/models/kinds"


def inputs(*ages: object) -> dict[str, Any]:
    one = {"name": "age", "datatype": "FP64", "shape": [len(ages)], "data": list(ages)}
    return {"inputs": [one]}


def test_what_the_server_says_of_itself(client_of: ClientOf, bundle: Bundle) -> None:
    client = client_of(bundle)
    server = client.get("/v2").json()
    assert server["name"] == "kafka-learning-pipeline" and server["version"]
    assert server["extensions"] == ["binary_tensor_data"]
    for path, answer in {
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"live": True, "ready": True},
        f"{MODEL}/ready": {"name": "kinds", "ready": True},
        f"{MODEL}/versions/1/ready": {"name": "kinds", "ready": True},
    }.items():
        found = client.get(path)
        assert (found.status_code, found.json()) == (200, answer)
    assert client.get(MODEL).json() == client.get(f"{MODEL}/versions/1").json()


def test_the_same_answers_as_by_invocations(client_of: ClientOf, bundle: Bundle) -> None:
    client = client_of(bundle)
    rows = [{"age": age} for age in (3, 40.5, None)]
    expected = client.post("/invocations", json={"instances": rows}).json()["predictions"]
    found = client.post(f"{MODEL}/versions/1/infer", json={**inputs(3, 40.5, None), "id": "r"})
    body = found.json()
    outputs = {one["name"]: one["data"] for one in body["outputs"]}
    assert (found.status_code, body["id"], body["model_version"]) == (200, "r", "1")
    for name in ("probability", "prediction", "label"):
        assert outputs[name] == [one[name] for one in expected]
    assert outputs["request_id"] == ["r-0", "r-1", "r-2"] and outputs["error"] == [""] * 3


def test_no_rows_have_no_answers(client_of: ClientOf, bundle: Bundle) -> None:
    found = client_of(bundle).post(f"{MODEL}/versions/1/infer", json=inputs())
    assert found.status_code == 200
    assert all(one["shape"] == [0] and one["data"] == [] for one in found.json()["outputs"])


def test_a_large_body_is_read_as_a_small_one_is(client_of: ClientOf, bundle: Bundle) -> None:
    ages = [float(age) + 0.123456789 for age in range(12_000)]
    found = client_of(bundle).post(f"{MODEL}/infer", json=inputs(*ages))
    assert len(found.content) > offload.THREADED_MIN_BYTES
    assert found.json()["outputs"][0]["shape"] == [12_000]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/v2/models/other/infer", "there is no model 'other'; this server has 'kinds'"),
        (f"{MODEL}/versions/2/infer", "'kinds' has version 1 now, not 2"),
        (f"{MODEL}/versions/01/infer", "'kinds' has version 1 now, not 01"),
    ],
)
def test_another_model_or_version(
    client_of: ClientOf, bundle: Bundle, path: str, reason: str
) -> None:
    client = client_of(bundle)
    found = client.post(path, json=inputs(1))
    assert (found.status_code, found.json()) == (404, {"error": reason})
    described = client.get(path.removesuffix("/infer"))
    assert (described.status_code, described.json()) == (404, {"error": reason})


def test_errors_say_why(client_of: ClientOf, bundle: Bundle) -> None:
    client = client_of(bundle, max_rows=2)
    for status, body, reason in (
        (400, inputs("old"), "age: 'old' is no FP64"),
        (400, {"inputs": []}, "no inputs"),
        (413, inputs(1, 2, 3), "a request may have 2 rows ([serving] max_rows), not 3"),
    ):
        found = client.post(f"{MODEL}/infer", json=body)
        assert (found.status_code, found.json()) == (status, {"error": reason})
    nothing = client.get(f"{MODEL}/infer")
    assert (nothing.status_code, nothing.json()) == (405, {"error": "Method Not Allowed"})


class _Troubled:
    """A scorer that cannot score."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def trouble(self) -> str:
        return "the broker does not answer"


async def _by_a_later_model(rows: Sequence[SentRow], request: Request) -> list[Answer]:
    return [Prediction(row.request_id, 1, "yes", 0.5, 2) for row in rows]


@pytest.fixture
def troubled(bundle: Bundle) -> Client:
    """A client of a server whose predictor has a later model, and whose broker is away."""
    scorer: Any = _Troubled(bundle)
    as_scorer: Scorer = scorer
    routes = open_inference.routes(as_scorer, "kinds", 10, _by_a_later_model)
    handlers = {RequestError: _refused}
    return Client(Starlette(routes=routes, exception_handlers=handlers))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse({"error": str(error)}, error.status)


def test_not_ready(troubled: Client) -> None:
    for path in ("/v2/health/ready", f"{MODEL}/ready"):
        found = troubled.get(path)
        assert (found.status_code, found.json()) == (503, {"error": "the broker does not answer"})
    assert troubled.get("/v2/health/live").status_code == 200


def test_a_version_that_was_asked_for_is_the_one_that_answers(troubled: Client) -> None:
    any_version = troubled.post(f"{MODEL}/infer", json=inputs(1))
    assert (any_version.status_code, any_version.json()["model_version"]) == (200, "2")
    pinned = troubled.post(f"{MODEL}/versions/1/infer", json=inputs(1))
    assert (pinned.status_code, pinned.json()) == (
        404,
        {"error": "'kinds' has version 2 now, not 1"},
    )
