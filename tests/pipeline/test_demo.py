"""`make demo`: it ends by itself, and it can be interrupted."""

import os
import re
import signal
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import Pipeline, until, write_adult
from tests.terminal import HIDE_CURSOR, SHOW_CURSOR, Terminal
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
    # Readable at a glance: no line for each message, no table, nothing that a terminal would need.
    assert "request id" not in demo.stdout and "\x1b" not in demo.stdout
    assert "first prediction from model 1" in demo.stdout and "category" not in demo.stdout
    assert len(demo.stdout.splitlines()) < 50
    assert not processes_of(fresh_pipeline.home)


@pytest.mark.timeout(150)
def test_second_ctrl_c_ends_at_once_and_leaves_no_process_behind(small_pipeline: Pipeline) -> None:
    demo = small_pipeline.start("-m", "ops", "demo", "--evals", "1")
    demo.says("initialize |", timeout=60)
    os.kill(demo.process.pid, signal.SIGINT)
    os.kill(demo.process.pid, signal.SIGTERM)  # the same signal might be merged with the first
    assert demo.process.wait(10) in (130, 143), demo.text()
    assert_all_have_ended(small_pipeline, demo.text())


@pytest.mark.timeout(150)
def test_ctrl_c_in_a_terminal(small_pipeline: Pipeline) -> None:
    with closing(
        Terminal(small_pipeline.env, "-m", "ops", "demo", "--evals", "2", columns=80)
    ) as terminal:
        terminal.says(r"✔ initialize done", 90)
        # A row for each process with its newest figures, and no line for a message.
        terminal.says(r"● sample_app █+░+ \d+/150 answered · waiting", 60)
        terminal.says(r"● predictor  [\d.]+/s · model 1 · lag 0", 30)
        terminal.says(r"● trainer    model 1 serves", 30)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end(timeout=60) == 130, terminal.text()
        text, raw = terminal.text().replace("\r", "\n"), terminal.raw()
    assert "Traceback" not in text and "request id" not in text
    assert re.search(r"^\d\d:\d\d:\d\d initialize topics created: ", text, re.M)
    assert max(map(len, text.splitlines())) <= 80
    assert raw.rindex(SHOW_CURSOR) > raw.rindex(HIDE_CURSOR)
    # What is left on the screen is what has happened, without the rows.
    assert "●" not in raw[raw.rindex("\x1b[1A") :]
    assert_all_have_ended(small_pipeline, text)


def assert_all_have_ended(pipeline: Pipeline, output: str) -> None:
    until(lambda: not processes_of(pipeline.home), 5, lambda: f"{processes_of(pipeline.home)}")
    assert "Traceback" not in output
