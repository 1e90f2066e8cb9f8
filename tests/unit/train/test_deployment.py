"""Deployments by the trainer, with programs in place of `python -m cloud deploy`."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.harness import Pipeline, until
from train import deployment
from train.deployment import COMMAND, FIRST_PAUSE, Deployment
from utils.settings import Sagemaker
from utils.telemetry.counts import TrainerCounts
from utils.telemetry.reporter import Reporter

Deploy = Callable[[str], Deployment]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counts() -> TrainerCounts:
    return TrainerCounts(model_id=1)


@pytest.fixture
def deploy(tmp_path: Path, counts: TrainerCounts, clock: Clock) -> Iterator[Deploy]:
    """Makes a deployment by a program in Python, which gets the model's number."""
    settings = Pipeline(tmp_path, "127.0.0.1:1").settings
    settings = settings.model_copy(update={"sagemaker": Sagemaker(endpoint="adult")})

    def make(program: str) -> Deployment:
        command = (sys.executable, "-c", f"import sys, time; model = sys.argv[1]\n{program}")
        report = Reporter("trainer", "magenta")
        return Deployment(settings, report, counts, command, clock)

    yield make


def finish(running: Deployment) -> None:
    """Wait until the process has ended, and look after it."""
    until(lambda: running._process is None or running._process.poll() is not None, 10)
    running.step()


def test_each_model_that_serves_is_deployed_once(
    deploy: Deploy, counts: TrainerCounts, capsys: pytest.CaptureFixture[str]
) -> None:
    with deploy("print('first'); print(f'model {model} serves'); print()") as running:
        for model_id in (1, 2, 1):  # the last one after a rollback
            counts.model_id = model_id
            running.step()
            finish(running)
            running.step()  # nothing more to do
            assert running._process is None
            assert counts.deployed_id == model_id
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("deployed: ")[2] for line in lines] == [
        "model 1 serves",
        "model 2 serves",
        "model 1 serves",
    ]
    assert counts.deployments == {True: 3}


def test_failure_is_repeated_with_growing_pauses_and_another_model_at_once(
    deploy: Deploy, counts: TrainerCounts, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with deploy(
        "print('trying'); print('no such bucket', file=sys.stderr); sys.exit(1)"
    ) as running:
        for times in (1, 2, 4):
            running.step()
            finish(running)
            line = capsys.readouterr().out
            pause = FIRST_PAUSE * times
            assert f"model 1 is not deployed, again in {pause:.0f} s: no such bucket" in line
            clock.now += pause - 1
            running.step()
            assert running._process is None
            clock.now += 1
        counts.model_id = 2
        clock.now -= 1
        running.step()
        assert running._process is not None
        finish(running)
        assert f"model 2 is not deployed, again in {FIRST_PAUSE:.0f} s" in capsys.readouterr().out
    assert counts.deployed_id is None
    assert counts.deployments == {False: 4}


def test_models_wait_for_the_running_deployment_and_the_newest_follows(
    deploy: Deploy, counts: TrainerCounts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = tmp_path / "gate"
    program = f"import pathlib\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)"
    with deploy(f"{program}\nprint(f'model {{model}} serves')") as running:
        for model_id in (1, 2, 3):
            counts.model_id = model_id
            running.step()
        gate.touch()
        finish(running)
        finish(running)
    lines = capsys.readouterr().out.splitlines()
    assert [line[-14:] for line in lines] == ["model 1 serves", "model 3 serves"]


def test_end_interrupts_the_process_and_does_not_wait_for_one_that_hangs(
    deploy: Deploy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deployment, "TIMEOUT", 0.2)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    for program, said in (("", "waiting"), (ignore, "waiting")):
        with deploy(f"{program}print('waiting', flush=True); time.sleep(60)") as running:
            running.step()
            assert (process := running._process) is not None and running._output is not None
            until(partial(_has_said_something, running), 10)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        assert process.poll() is not None
        assert f"the deployment of model 1 is not finished: {said}" in capsys.readouterr().out


def _has_said_something(running: Deployment) -> bool:
    assert running._output is not None
    return os.fstat(running._output.fileno()).st_size > 0


def test_program_that_cannot_be_started_is_a_failure(
    deploy: Deploy, counts: TrainerCounts, capsys: pytest.CaptureFixture[str]
) -> None:
    running = deploy("")
    running._command = ("/nonexistent/python",)
    running.step()
    assert "is not deployed, again in 10 s: No such file or directory" in capsys.readouterr().out
    assert counts.deployments == {False: 1}


def test_nothing_is_deployed_without_an_endpoint(tmp_path: Path, counts: TrainerCounts) -> None:
    settings = Pipeline(tmp_path, "127.0.0.1:1").settings
    with Deployment(settings, Reporter("trainer", "magenta"), counts) as running:
        running.step()
        assert running._process is None
    assert COMMAND[-1] == "deploy"
