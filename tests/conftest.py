"""What every test may ask for: a real broker, and homes that are ready for use."""

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Pipeline, file_system, forget_everything
from utils import preprocess_data
from utils.broker import SHORT_LIVED, Broker

MakePipeline = Callable[..., Pipeline]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of the session's own, on a free port; a test that harms it starts it again."""
    with Broker(tmp_path_factory.mktemp("broker"), jvm=SHORT_LIVED) as running:
        yield running


@pytest.fixture
def bootstrap(broker: Broker) -> str:
    """Where the session's broker listens, host:port."""
    return broker.bootstrap


@pytest.fixture(scope="session")
def prepared(broker: Broker, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A home that initialize.py has prepared: the Adult data and a first model.

    Made by the first of the workers that run tests side by side; only to be copied from.
    """
    base = tmp_path_factory.getbasetemp()
    home = (base if worker_id == "master" else base.parent) / "prepared"
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "models" / "current.json").exists():
            home.mkdir(exist_ok=True)
            done = Pipeline(home, broker.bootstrap).run("initialize.py", "--evals", "2")
            assert done.returncode == 0, done.stdout + done.stderr
    return home


@pytest.fixture(scope="session")
def adult(prepared: Path) -> list[dict[str, Any]]:
    """All rows of adult.test as messages carry them, the outcome inside."""
    pipeline = Pipeline(prepared, "127.0.0.1:1")
    return preprocess_data.sample_rows(prepared / "data", pipeline.settings.data)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with file_system(folder, "256k") as there:
        if not there:
            pytest.skip("a file system of one's own needs root")
        yield folder


@pytest.fixture
def own_broker(broker: Broker) -> Broker:
    """The session's broker, empty: the topics' names are fixed, so its log is the test's alone."""
    return emptied(broker)


def emptied(broker: Broker) -> Broker:
    """The session's broker without topics and groups, running whatever was done to it."""
    if not broker.running:
        broker.start()
    forget_everything(broker.bootstrap)
    return broker


@pytest.fixture
def make_pipeline(own_broker: Broker, prepared: Path, tmp_path: Path) -> Iterator[MakePipeline]:
    """Makes pipelines whose home is ready, with the environment asked for."""
    made: list[Pipeline] = []

    def make(**environment: str) -> Pipeline:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        pipeline = Pipeline(home, own_broker.bootstrap, **environment)
        pipeline.copy_of(prepared)
        made.append(pipeline)
        return pipeline

    yield make
    for pipeline in made:
        pipeline.close()


@pytest.fixture
def pipeline(make_pipeline: MakePipeline) -> Pipeline:
    """A pipeline with the default settings."""
    return make_pipeline()
