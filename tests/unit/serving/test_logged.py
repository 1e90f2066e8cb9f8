"""Rows on their way to Kafka, without a broker."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import logged
from serving.errors import NoAnswer
from serving.logged import LoggedScorer
from serving.rows import SentRow
from serving.serving_bundle import ServingBundle
from utils.kafka_io import Outgoing
from utils.model_store import Bundle
from utils.settings import Serving, load
from utils.telemetry.counts import ServingCounts
from utils.telemetry.reporter import Reporter


class Cluster:
    """A cluster that takes records once it is let go."""

    def __init__(self) -> None:
        self.sent: list[bytes | None] = []
        self.goes = threading.Event()
        self.fault: Exception | None = None

    def send(self, record: Outgoing) -> "Cluster":
        self.goes.wait(10)
        self.sent.append(record.key)
        return self

    def add_errback(self, call: object) -> None:
        """Nothing fails."""

    def ends(self) -> dict[object, int]:
        return {}

    def poll(self, timeout_ms: int) -> dict[object, list[object]]:
        if self.fault is not None:
            raise self.fault
        return {}

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(logged, "LogReader", lambda *arguments, **options: made)
    monkeypatch.setattr(logged, "Sender", lambda *arguments: made)
    return made


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def scorer(
    cluster: Cluster, bundle: Bundle, failures: list[Exception], tmp_path: Path
) -> Iterator[LoggedScorer]:
    counts, report = ServingCounts(), Reporter("serving", "green", "text")
    settings = load({"PIPELINE_HOME": str(tmp_path)}).model_copy(
        update={"serving": Serving(log=True, timeout=0.1)}
    )
    serving = ServingBundle(bundle, counts, report)
    with LoggedScorer(serving, settings, counts, report, failures.append) as made:
        yield made
        cluster.goes.set()


def test_rows_behind_others_are_sent_after_the_timeout(
    scorer: LoggedScorer, cluster: Cluster
) -> None:
    async def ask() -> list[object]:
        rows = [SentRow(name, b'{"data":{}}') for name in "ab"]
        found = await asyncio.gather(*(scorer.score([row]) for row in rows), return_exceptions=True)
        cluster.goes.set()
        for _ in range(100):
            if len(cluster.sent) == 2:
                break
            await asyncio.sleep(0.05)
        return list(found)

    assert [type(one) for one in asyncio.run(ask())] == [NoAnswer, NoAnswer]
    assert cluster.sent == [b"a", b"b"]


def test_an_unknown_error_of_the_reader_ends_the_server(
    scorer: LoggedScorer, cluster: Cluster, failures: list[Exception]
) -> None:
    cluster.fault = ValueError("a fault of the library")
    for _ in range(100):
        if failures:
            break
        threading.Event().wait(0.05)
    assert failures == [cluster.fault]
