"""Bundles, and the application without a process."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from serving import app
from serving.local import LocalScorer
from serving.serving_bundle import ServingBundle
from tests.unit.utils.model_store.samples import make_draft
from utils.model_store import Bundle, ModelStore
from utils.settings import Serving
from utils.telemetry.counts import ServingCounts
from utils.telemetry.reporter import Reporter


def _published(folder: Path, classes: int) -> Bundle:
    store = ModelStore(folder)
    store.publish(make_draft(classes))
    return store.load_current()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of the columns size, age, colour and shape, and two classes."""
    return _published(tmp_path_factory.mktemp("models"), 2)


@pytest.fixture(scope="session")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with three classes."""
    return _published(tmp_path_factory.mktemp("models"), 3)


class Client:
    """Sends requests to an application in this process."""

    def __init__(self, application: ASGIApp) -> None:
        self._transport = httpx.ASGITransport(application)

    def get(self, path: str) -> httpx.Response:
        return self._send("GET", path)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self._send("POST", path, **body)

    def _send(self, method: str, path: str, **body: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=self._transport, base_url="http://127.0.0.1:8080"
            ) as client:
                return await client.request(method, path, **body)

        return asyncio.run(send())


ClientOf = Callable[..., Client]


@pytest.fixture
def client_of() -> Iterator[ClientOf]:
    """Makes clients of an application that serves a bundle."""
    scorers: list[LocalScorer] = []

    def client_of(bundle: Bundle, **limits: object) -> Client:
        counts, report = ServingCounts(), Reporter("serving", "green", "text")
        scorer = LocalScorer(ServingBundle(bundle, counts, report), counts)
        scorers.append(scorer)
        settings = Serving.model_validate(limits)
        return Client(app.build(scorer, settings, counts, report, "kinds"))

    yield client_of
    for scorer in scorers:
        scorer.__exit__()
