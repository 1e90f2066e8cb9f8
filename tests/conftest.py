"""What every test may ask for: a real broker, and homes that are ready for use."""

import fcntl
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Pipeline, adult_in, file_system, forget_everything
from utils import download, preprocess_data, settings
from utils.broker import SHORT_LIVED, Broker
from utils.settings import ROOT

MakePipeline = Callable[..., Pipeline]


def pytest_configure() -> None:
    """What all processes here inherit: they live for seconds, and there are hundreds."""
    os.environ["JDK_JAVA_OPTIONS"] = " ".join(SHORT_LIVED)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's import would start a spinning one
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each would compile the pipeline again
    gc.disable()  # what tests import stays, and to look for garbage in it takes a third of its time


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what may take long, so that no worker is alone with one of those in the end.

    The first worker has these and then what is quick, of which idle ones take their share.
    """

    def order(item: pytest.Item) -> tuple[float, bool]:
        marker = item.get_closest_marker("timeout")
        return -marker.args[0] if marker else 0.0, "broker" in getattr(item, "fixturenames", ())

    items.sort(key=order)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of the session's own, on a free port; a test that harms it starts it again."""
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def bootstrap(broker: Broker) -> str:
    """Where the session's broker listens, host:port."""
    return broker.bootstrap


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of the whole session, whichever worker runs a test."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def adult_files(shared: Path) -> Path:
    """Where all of adult.data and adult.test is: the clone's data/, which keeps it."""
    with one_at_a_time(shared / "adult.lock"):
        for data_file in settings.load({}).data.files:
            download.fetch(data_file, ROOT / "data", print)
    return ROOT / "data"


@pytest.fixture(scope="session")
def prepared(broker: Broker, adult_files: Path, shared: Path) -> Path:
    """A home that initialize.py has prepared: a tenth of Adult's training rows, a first model.

    Made by the first of the workers that run tests side by side; only to be copied from.
    """
    home = shared / "prepared"
    with one_at_a_time(shared / "prepared.lock"):
        if not (home / "models" / "current.json").exists():
            config = adult_in(home, adult_files, train=3_000)
            pipeline = Pipeline(home, broker.bootstrap, PIPELINE_CONFIG=str(config))
            done = pipeline.run("initialize.py", "--evals", "2")
            assert done.returncode == 0, done.stdout + done.stderr
    return home


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Keep the other worker out, by a lock on a file."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
