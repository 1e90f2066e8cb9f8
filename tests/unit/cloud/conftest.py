"""AWS on this machine, and a home with three models."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from cloud import endpoints
from cloud.__main__ import main
from tests.unit.cloud.fake_aws import SECTION, FakeAws, with_sagemaker
from utils.model_store import Draft, ModelStore
from utils.settings import ROOT

Run = Callable[..., list[str]]


@pytest.fixture(scope="session")
def server() -> Iterator[FakeAws]:
    running = FakeAws()
    yield running
    running.close()


@pytest.fixture(scope="session")
def session() -> boto3.session.Session:
    """A session that has read boto3's descriptions of AWS, which takes longer than a test."""
    return boto3.session.Session()


@pytest.fixture
def aws(
    server: FakeAws, session: boto3.session.Session, monkeypatch: pytest.MonkeyPatch
) -> FakeAws:
    """An empty account, which boto3 finds by its own variables."""
    server.reset()
    monkeypatch.setattr(boto3.session, "Session", lambda: session)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return server


@pytest.fixture(scope="session")
def three_models(draft: Draft, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles: 1 and 2 were accepted, 3 was refused."""
    store = ModelStore(tmp_path_factory.mktemp("bundles") / "models")
    for accepted in (True, True, False):
        store.publish(draft, accepted)
    return store.path


@pytest.fixture
def home(three_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose pipeline.toml names the account."""
    shutil.copytree(three_models, tmp_path / "home" / "models")
    configure(tmp_path, monkeypatch)
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def configure(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Use a pipeline.toml with these settings of [sagemaker], else those of `SECTION`."""
    config = folder / "pipeline.toml"
    committed = (ROOT / "pipeline.toml").read_text("utf-8")
    config.write_text(with_sagemaker(committed, **{**SECTION, **settings}), "utf-8")
    monkeypatch.setenv("PIPELINE_CONFIG", str(config))


@pytest.fixture
def run(
    aws: FakeAws, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Runs a command; returns its lines, and checks its exit status."""
    monkeypatch.setattr(endpoints, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(endpoints, "LONGEST_PAUSE", 0.01)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run_command(*arguments: str, status: int = 0) -> list[str]:
        found = main([*arguments])
        output = capsys.readouterr()
        assert found == status, output
        return (output.err if status else output.out).splitlines()

    yield run_command
    for number, handler in handlers.items():
        signal.signal(number, handler)
