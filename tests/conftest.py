"""Fixtures for all tests: a real broker, and homes that are ready for use."""

import fcntl
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Pipeline, delete_topics_and_groups, mount_tmpfs, write_adult
from utils import download, preprocess_data, settings
from utils.broker import SHORT_LIVED, Broker
from utils.settings import ROOT

MakePipeline = Callable[..., Pipeline]


def pytest_configure() -> None:
    """Set the environment of all test processes: hundreds, which live for seconds."""
    os.environ["JDK_JAVA_OPTIONS"] = " ".join(SHORT_LIVED)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else importing NumPy starts a spinning thread
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each compiles the pipeline again
    gc.disable()  # collecting garbage would take a third of the time of the imports, which stay


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, so that no worker ends alone with one of them.

    The first worker gets the slow tests and then quick ones, which idle workers steal.
    """

    def order(item: pytest.Item) -> tuple[float, bool]:
        marker = item.get_closest_marker("timeout")
        return -marker.args[0] if marker else 0.0, "broker" in getattr(item, "fixturenames", ())

    items.sort(key=order)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The session's broker, on a free port; a test that stops it starts it again."""
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def bootstrap(broker: Broker) -> str:
    """The address of the session's broker, host:port."""
    return broker.bootstrap


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of the session share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def adult_files(session_folder: Path) -> Path:
    """The folder with the whole adult.data and adult.test: the clone's data/, which keeps them."""
    with file_lock(session_folder / "adult.lock"):
        for data_file in settings.load({}).data.files:
            download.fetch(data_file, ROOT / "data", print)
    return ROOT / "data"


@pytest.fixture(scope="session")
def prepared_home(broker: Broker, adult_files: Path, session_folder: Path) -> Path:
    """A home after initialize.py: a tenth of Adult's training rows, and a first model.

    The first worker that needs it makes it for all. Tests copy it and do not change it.
    """
    home = session_folder / "prepared"
    with file_lock(session_folder / "prepared.lock"):
        if not (home / "models" / "current.json").exists():
            clear_broker(broker)  # the topics of an earlier test are another home's
            config = write_adult(home, adult_files, train=3_000)
            pipeline = Pipeline(home, broker.bootstrap, PIPELINE_CONFIG=str(config))
            done = pipeline.run("initialize.py", "--evals", "2")
            assert done.returncode == 0, done.stdout + done.stderr
            clear_broker(broker)  # and these are this one's
    return home


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock on a file, so that other workers wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def adult(prepared_home: Path) -> list[dict[str, Any]]:
    """All rows of adult.test as messages carry them, with the outcome inside."""
    pipeline = Pipeline(prepared_home, "127.0.0.1:1")
    return preprocess_data.sample_rows(prepared_home / "data", pipeline.settings.data)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mount_tmpfs(folder, "256k") as mounted:
        if not mounted:
            pytest.skip("mounting a file system needs root")
        yield folder


@pytest.fixture
def empty_broker(broker: Broker) -> Broker:
    """The session's broker without topics: their names are fixed, so tests cannot share them."""
    return clear_broker(broker)


def clear_broker(broker: Broker) -> Broker:
    """Start the broker if it is stopped, and delete its topics and groups."""
    if not broker.running:
        broker.start()
    delete_topics_and_groups(broker.bootstrap)
    return broker


@pytest.fixture
def make_pipeline(
    empty_broker: Broker, prepared_home: Path, tmp_path: Path
) -> Iterator[MakePipeline]:
    """Makes pipelines whose home is ready, with the given environment."""
    made: list[Pipeline] = []

    def make(**environment: str) -> Pipeline:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        pipeline = Pipeline(home, empty_broker.bootstrap, **environment)
        pipeline.copy_of(prepared_home)
        made.append(pipeline)
        return pipeline

    yield make
    for pipeline in made:
        pipeline.close()


@pytest.fixture
def pipeline(make_pipeline: MakePipeline) -> Pipeline:
    """A pipeline with the default settings."""
    return make_pipeline()
