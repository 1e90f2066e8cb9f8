"""Fixtures that the unit tests of several packages share."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.databases import Database, new_schema, running_postgres
from tests.unit.utils.model_store.samples import make_draft
from utils.model_store import Draft


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server that runs as long as the tests."""
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        numbers = iter(range(10_000))
        return Database(lambda: f"sqlite:///{tmp_path}/{next(numbers)}/messages.db")
    server = request.getfixturevalue("postgres")
    return Database(lambda: new_schema(server))


@pytest.fixture
def url(database: Database) -> str:
    """The URL of an empty database."""
    return database.new_url()


@pytest.fixture(scope="session")
def draft() -> Draft:
    """A model that can be published."""
    return make_draft()


@pytest.fixture(scope="session")
def processes() -> Any:
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightgbm", "pandas", "msgspec", "rich.table", "pydantic"])
    return context
