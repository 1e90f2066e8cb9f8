"""What a person sees in the terminals: live figures, and a terminal that is left in order."""

import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.conftest import MakePipeline
from tests.harness import until
from tests.terminal import HIDE_CURSOR, Terminal


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Terminals that are closed after the test."""
    started: list[Terminal] = []
    yield started
    for terminal in started:
        terminal.close()


def is_in_order(terminal: Terminal) -> bool:
    """Whether the cursor is visible and stands at the beginning of a line."""
    return HIDE_CURSOR not in terminal.raw() and terminal.raw().endswith("\n")


@pytest.mark.timeout(150)
def test_live_lines_of_the_scripts(make_pipeline: MakePipeline, terminals: list[Terminal]) -> None:
    pipeline = make_pipeline()

    def start(*command: str, columns: int = 100) -> Terminal:
        terminals.append(Terminal(pipeline.env, *command, columns=columns))
        return terminals[-1]

    predictor, trainer = start("predictor.py"), start("trainer.py", "--evals", "40")
    predictor.says(r"serves partitions \[0\]", 60)
    trainer.says("ready", 60)
    app = start("sample_app.py", "--messages", "60", "--interval", "0.05", columns=40)

    # The trainer: how far the search is, with the best loss, and afterwards which model serves.
    # A search of a few evaluations may end between two refreshes of the line.
    trainer.says(r"searching █+░+ \d+/40, best 0\.\d{4} · model 1 serves", 90)
    trainer.says(r"RETRAINING COMPLETED: model 2 serves now: log loss", 90)
    trainer.says(r"model [234] serves · .*trainings [123]", 30)

    # The sample app: one line, not one for each message, that fits into 40 columns.
    assert app.process.wait(30) == 0, app.text()
    app.says(r"sent 60, answered 60, rejected 0")
    assert re.search(r"█░+ \d+/60 answered · waiting \d+", app.text()), app.text()
    assert "request id" not in app.text() and "Sent message" not in app.text()
    assert [line for line in app.live_lines() if "░" in line and len(line) >= 40] == []
    assert is_in_order(app)

    # The predictor: rate, model, lag, latency and what is missing; then what was rejected.
    predictor.says(r"\d/s · model \d · lag 0 · p50 [\d.]+ m?s p99 [\d.]+ m?s · missing: \w+ \d")
    predictor.says(r"NEW MODEL RELOADED 2", 60)
    predictor.says(r"/s · model [234] · lag 0")
    pipeline.send([("app_messages", b"broken", b"{")])
    predictor.says(r"lag 0 · rejected 1", 30)

    # The first Ctrl-C ends it in order: nothing of the live line is left.
    assert predictor.end(signal.SIGINT) == 0
    assert is_in_order(predictor)
    *_, last = predictor.raw().split("\x1b[2K")
    assert "predictions\r\n" in last and "lag" not in last

    # A second one ends it at once, in the middle of a training.
    until(lambda: trainer.text().rindex("trainings") > trainer.text().rindex("STARTED"), 90)
    assert pipeline.run("-m", "ops", "retrain").returncode == 0
    trainer.says(r"STARTED \(manual", 30)
    trainer.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert trainer.end(signal.SIGINT, timeout=5) == 130
    assert is_in_order(trainer)
