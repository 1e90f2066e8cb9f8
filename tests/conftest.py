"""What every test may ask for: a real broker, and homes that are ready for use."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Pipeline, file_system
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
def prepared(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that initialize.py has prepared: the Adult data and a first model."""
    pipeline = Pipeline(tmp_path_factory.mktemp("prepared"), broker.bootstrap)
    done = pipeline.run("initialize.py", "--evals", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return pipeline.home


@pytest.fixture(scope="session")
def adult(prepared: Path) -> list[dict[str, Any]]:
    """All rows of adult.test as messages carry them, the outcome inside."""
    pipeline = Pipeline(prepared, "127.0.0.1:1")
    data = pipeline.settings.data
    frame = preprocess_data.read_frame(prepared / "data" / data.test, data)
    numerical, _ = preprocess_data.column_types(frame, data)
    return list(preprocess_data.records(frame, numerical))


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
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own: the topics' names are fixed, so its log is the test's alone."""
    home = tmp_path / "broker"
    home.mkdir()
    with Broker(home, jvm=SHORT_LIVED) as running:
        yield running


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
