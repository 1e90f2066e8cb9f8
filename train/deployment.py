"""Deploys the serving model to SageMaker from a separate process, if an endpoint is set.

The process is `python -m cloud deploy`: it alone needs boto3, and nothing waits for it. A failed
deployment is repeated with growing pauses. One that the trainer's end interrupts leaves the
endpoint as it is; the next one goes on from there.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO

from utils.settings import ROOT, Settings
from utils.telemetry.counts import TrainerCounts
from utils.telemetry.reporter import Reporter

#: What deploys; the model's number and options follow. With -P a folder `cloud` where the trainer
#: was started is not taken for the package.
COMMAND = (sys.executable, "-P", "-m", "cloud", "--log-format", "text", "deploy")
#: Seconds after a failure: the first pause, and the most that it doubles to.
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 900.0
#: Seconds that the process may take to end with the trainer.
TIMEOUT = 3.0
#: Niceness of the process: predictors and trainings go first.
NICENESS = 15
#: The bytes at the end of the process's output in which its last line is looked for.
TAIL = 4096


class Deployment:
    """Keeps the endpoint at the serving model: one process at a time, the newest model first.

    Use it in a `with` block; at its end a running process is interrupted.

    Args:
        settings: The pipeline's settings; without [sagemaker] endpoint nothing is done.
        report: Prints a line for each deployment.
        counts: The trainer's counts.
        command: What deploys; the model's number is added.
        clock: Returns seconds; never goes back.
    """

    def __init__(
        self,
        settings: Settings,
        report: Reporter,
        counts: TrainerCounts,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._enabled = bool(settings.sagemaker.endpoint)
        self._settings = settings
        self._report = report
        self._counts = counts
        self._command = command
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._model_id: int | None = None  # of the process that runs or ran last
        self._deployed: int | None = None
        self._not_before, self._pause = 0.0, FIRST_PAUSE

    def __enter__(self) -> "Deployment":
        return self

    def step(self) -> None:
        """Look after the process, or start one if another model serves; returns at once."""
        if not self._enabled:
            return
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return
            self._finish(status)
        model_id = self._counts.model_id
        if model_id in (None, self._deployed):
            return
        if model_id != self._model_id:  # another model may succeed where the last one has failed
            self._not_before, self._pause = 0.0, FIRST_PAUSE
        if self._clock() >= self._not_before:
            self._start(model_id)

    def _start(self, model_id: int | None) -> None:
        self._model_id, self._deployed = model_id, None
        command = [*self._command, str(model_id), "--niceness", str(NICENESS)]
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115 - `_close` closes it
            self._process = subprocess.Popen(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:  # no memory, no more processes, a full disk
            self._close()
            self._failed(error.strerror or str(error))

    def _environment(self) -> dict[str, str]:
        """The trainer's, wherever it was started from."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def _finish(self, status: int) -> None:
        said = self._close()
        if status:
            self._failed(said or f"the process ended with {status}")
            return
        self._deployed = self._counts.deployed_id = self._model_id
        self._counts.deployments[True] += 1
        self._report(f"deployed: {said}", model_id=self._model_id)

    def _failed(self, reason: str) -> None:
        self._counts.deployments[False] += 1
        self._report(
            f"model {self._model_id} is not deployed, again in {self._pause:.0f} s: {reason}",
            level="error",
            model_id=self._model_id,
        )
        self._not_before = self._clock() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _close(self) -> str:
        """Forget the process; returns the last line that it printed."""
        self._process, output, self._output = None, self._output, None
        if output is None:
            return ""
        with output:
            output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL))
            lines = output.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def __exit__(self, *exception: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:  # its calls are idempotent: the next one repairs
            self._process.kill()
            self._process.wait()
        said = self._close()
        self._report(
            f"the deployment of model {self._model_id} is not finished: {said or 'killed'}",
            level="warning",
            model_id=self._model_id,
        )
