"""`make demo`: it ends by itself, and it can be interrupted."""

import os
import signal
from pathlib import Path

import pytest

from tests.harness import Pipeline, until, write_adult
from utils.broker import free_port


def processes_of(home: Path) -> list[str]:
    """The command lines of running processes that have this PIPELINE_HOME."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # the process has ended, or belongs to another user
        if f"PIPELINE_HOME={home}".encode() in environment and command:
            found.append(command)
    return found


@pytest.fixture
def fresh_pipeline(tmp_path: Path, adult_files: Path) -> Pipeline:
    """A home with the whole data set and nothing else; downloads are tested elsewhere."""
    (tmp_path / "data").mkdir()
    for name in ("adult.data", "adult.test"):
        (tmp_path / "data" / name).symlink_to(adult_files / name)
    return Pipeline(tmp_path, f"127.0.0.1:{free_port()}")


@pytest.fixture
def small_pipeline(tmp_path: Path, adult_files: Path) -> Pipeline:
    """A home with the first rows of the data set."""
    config = write_adult(tmp_path / "home", adult_files, train=2_000, test=2_000)
    port = free_port()
    return Pipeline(tmp_path / "home", f"127.0.0.1:{port}", PIPELINE_CONFIG=str(config))


@pytest.mark.timeout(180)
def test_demo_ends_by_itself_and_loses_nothing(fresh_pipeline: Pipeline) -> None:
    demo = fresh_pipeline.run(
        *("-m", "ops", "demo", "--messages", "60", "--interval", "0.05"),
        *("--outcome-delay", "0.5", "--evals", "1"),
        timeout=110,
    )
    assert demo.returncode == 0, demo.stdout[-3000:] + demo.stderr
    for text in (
        "RETRAIN REQUESTED: 25 outcomes of outcomes-0, offsets 25 to 49",
        "RETRAINING COMPLETED",
        "sent 60, answered 60",
        "retrainings requested: 2, answered: 2",
        "nothing lost, nothing twice",
    ):
        assert text in demo.stdout, demo.stdout
    assert not processes_of(fresh_pipeline.home)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("when", ["initialize |", "CONSUMER"])
def test_ctrl_c_leaves_no_process_behind(small_pipeline: Pipeline, when: str) -> None:
    demo = small_pipeline.start("-m", "ops", "demo", "--evals", "1")
    demo.says(when, timeout=60)
    os.kill(demo.process.pid, signal.SIGINT)
    assert demo.process.wait(60) == 130, demo.text()
    assert "Traceback" not in demo.text()
    until(
        lambda: not processes_of(small_pipeline.home),
        5,
        lambda: str(processes_of(small_pipeline.home)),
    )
