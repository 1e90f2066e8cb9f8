"""Train a first model as a SageMaker training job does.

    input/config/hyperparameters.json   the hyperparameters below; all values are text
    input/config/inputdataconfig.json   the channels; text/csv, input mode File or FastFile
    input/data/train/                   one or several CSV files, to learn from
    input/data/validation/              CSV files to score the finished model with; optional
    model/                              gets the model, as models/ does: 1/, current.json, ...
    output/failure                      gets one line if the job fails
    output/data/                        gets the rows that are never trained on, without validation/

The folders are under SAGEMAKER_BASE_DIR. With the hyperparameter target, the hyperparameters
describe the data set by themselves; without it they change single settings of pipeline.toml's
[data]. seed and folds are pipeline.toml's unless they are named. Hyperparameters of SageMaker
itself (sagemaker_...) are ignored.

A further run in the same folder trains a new first model with the next number; the one before
serves until the new one is complete, and is kept as [training] extra_models_to_keep says.

Exit status: 0 if the model is complete, 1 if the job failed, 143 if SIGTERM (or 130 if SIGINT)
ended it before the model was complete. Then no part of it is left, and there is no output/failure.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cloud import hyperparameters
from cloud.container import Container, ContainerSettings, read_config
from cloud.hyperparameters import Plan
from utils.errors import UserError, one_line
from utils.metrics import Metrics
from utils.settings import Settings, base_dir
from utils.telemetry.reporter import Reporter

if TYPE_CHECKING:
    from cloud.channels import Channel
    from train.results import Result
    from train.training_rows import Rows

#: Seconds that MLflow may take to log the model, if it is used; SageMaker waits for 120 in all.
TRACKING_TIMEOUT = 60.0
#: The parts of a training whose beginning is a line of its own.
PARTS = {"searching": "searches", "fitting": "fits the model", "publishing": "publishes the model"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the hyperparameters; there are no options, because SageMaker gives none."""
    parser.epilog = hyperparameters.help_text()


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the job; returns the exit status."""
    report = Reporter("train", "yellow", settings.log_format)
    container, stop = Container.of(settings), _Stop()
    try:
        with suppress(OSError):  # there is none of an earlier run
            container.failure.unlink()
        with stop.on_signals(), tempfile.TemporaryDirectory(prefix="training-") as home:
            _run(settings, container, Path(home), stop, report)
    except (UserError, OSError):
        raise
    except _Stopped as signaled:
        report("stopped before the model was complete")
        return signaled.status
    except Exception as error:  # SageMaker shows this line; the traceback is in the log
        on_error(f"{type(error).__name__}: {one_line(error)}")
        raise
    if stop.asked:
        report("asked to stop while the model was published: it is complete")
    return 0


def on_error(text: str) -> None:
    """Write why the job failed to `output/failure`; the log has it in any case."""
    container = Container(base_dir())
    try:
        container.write_failure(text)
    except OSError as error:
        sys.stderr.write(f"cannot write {container.failure}: {error.strerror}\n")


class _Stopped(BaseException):
    """A signal ends the job; not an Exception, so that nothing on its way handles it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Stop:
    """Ends the job at SIGTERM or SIGINT, unless the model is about to be complete.

    Until the model is published nothing of it is in the container, so the job can end anywhere.
    From then on it takes moments, and the signal changes nothing. A second one ends the process.

    Attributes:
        asked: Whether there was a signal.
    """

    def __init__(self) -> None:
        self.asked = False
        self._completes = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Install the handlers for the block."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def completes(self) -> None:
        """From now on the model is about to be complete."""
        self._completes = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        if not self._completes:
            raise _Stopped(128 + number)


def _run(
    settings: Settings, container: Container, home: Path, stop: _Stop, report: Reporter
) -> None:
    """Read the job, train, and print the figures."""
    path = container.config / "hyperparameters.json"
    plan = hyperparameters.plan_of(read_config(path), settings, path)
    _report_plan(plan, report)
    from cloud import channels  # these are slow to import, and a wrong job should fail at once
    from train import tracking
    from utils.model_store import ModelStore

    job = _Job(container, plan, *channels.read_channels(container))
    made = job.settings(tracking.with_tracking(settings, wanted=False), home)
    made.data_dir.mkdir()
    with job.errors(made):
        base = job.read(made, report)
        for line in ModelStore(made.models_dir).reconcile():
            report(line)
        with tracking.Tracking(made, timeout=TRACKING_TIMEOUT, niceness=0):
            result = _train(made, plan, base, stop, report)
    _report_figures(made, job, result, report)


def _report_plan(plan: Plan, report: Reporter) -> None:
    by = "the hyperparameters alone" if plan.by_itself else "pipeline.toml and the hyperparameters"
    report(f"{plan.data.target} is predicted; the data set is described by {by}")
    if plan.ignored:
        report(f"hyperparameters of SageMaker itself are ignored: {', '.join(plan.ignored)}")


@dataclass(frozen=True)
class _Job:
    """What is learnt, and from which files."""

    container: Container
    plan: Plan
    train: "Channel"
    validation: "Channel | None"

    def settings(self, settings: Settings, home: Path) -> ContainerSettings:
        """The settings of the training, which reads its files in a folder of its own."""
        files = self.train.files
        train = files[0].name if len(files) == 1 else "train.csv"
        test = "validation.csv" if train != "validation.csv" else "validation-rows.csv"
        named = {"train": train, "test": test if self.validation else ""}
        return ContainerSettings.of(
            settings,
            home=home,
            data=self.plan.data.model_copy(update=named),
            training=self.plan.training,
        )

    @contextmanager
    def errors(self, settings: Settings) -> Iterator[None]:
        """Name files and settings in errors of the data set as whoever runs the job does."""
        from utils.data_set import DataError

        try:
            yield
        except DataError as error:
            text = str(error).replace(f"{settings.data_dir}/", "")
            text = text.replace(f"{self.container.channels}/", "")
            if self.plan.by_itself:
                text = text.replace("pipeline.toml names", "the hyperparameters name")
            else:
                text += " (pipeline.toml describes the data set: no hyperparameter names a target)"
            raise UserError(text) from None

    def read(self, settings: ContainerSettings, report: Reporter) -> "Rows":
        """Read the files; keep rows for testing if there is no channel for that."""
        from cloud import channels
        from train import first_model
        from utils import data_set, preprocess_data

        data, folder = settings.data, settings.data_dir
        for channel, name in ((self.train, data.train), (self.validation, data.test)):
            if channel is not None:
                channels.join(channel, data, folder / name)
                _report_files(channel, report)
        base = first_model.read_data_set(settings, report)
        if data.test:
            data_set.read_data(folder / data.test, data, base.types)  # fails before the training
        else:
            rows = preprocess_data.split_off_test_rows(folder, data)
            kept = self.container.output_data / preprocess_data.held_out_file(data)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes((folder / kept.name).read_bytes())
            report(f"{rows:,} rows are never trained on: they are in {kept}")
        return base


def _report_files(channel: "Channel", report: Reporter) -> None:
    report(f"channel {channel.name}: {', '.join(path.name for path in channel.files)}")
    if channel.skipped:
        names = ", ".join(path.name for path in channel.skipped)
        report(f"channel {channel.name}: {names} skipped, empty or hidden", level="warning")


def _train(
    settings: ContainerSettings, plan: Plan, base: "Rows", stop: _Stop, report: Reporter
) -> "Result":
    """Train and publish, with a line for each step."""
    from train import first_model

    def show(done: int, total: int, best: float) -> None:
        report(f"candidate {done} of {total}: {_metrics('search', {'log_loss': best})}")

    def begin(part: str) -> None:
        if part == "publishing":
            stop.completes()
        if part in PARTS:
            report(PARTS[part])

    return first_model.train_first(
        settings, base, report, hyper=plan.hyper, evals=plan.evals, progress=show, begin=begin
    )


def _report_figures(
    settings: ContainerSettings, job: _Job, result: "Result", report: Reporter
) -> None:
    """Print the figures for metric definitions; those of the channel if there is one."""
    from utils.model_store import ModelStore

    figures, unusable = result.challenger, 0
    if job.validation is not None:
        from cloud.validation import validate

        bundle = ModelStore(settings.models_dir).load(result.model_id)
        validated = validate(bundle, settings.data_dir / settings.data.test, settings.data)
        figures, unusable = validated.metrics, validated.unusable.total()
        report(validated.in_words(), level="warning" if unusable else "info")
    report(_metrics("train", {"rows": result.rows, "model_id": result.model_id}))
    report(_metrics("validation", {**_figures(figures), "unusable_rows": unusable}))


def _figures(metrics: Metrics) -> dict[str, float | int | None]:
    return {
        "rows": metrics.rows,
        "log_loss": metrics.log_loss,
        "accuracy": metrics.accuracy,
        "auc": metrics.auc,
        "calibration": metrics.calibration,
    }


def _metrics(stage: str, figures: Mapping[str, float | int | None]) -> str:
    """Figures in the form that the regular expressions of metric definitions look for.

    >>> _metrics("validation", {"rows": 20, "log_loss": 0.25, "auc": None})
    'metric validation:rows=20; validation:log_loss=0.250000;'
    """
    shown = [
        f"{stage}:{name}={value:.6f};" if isinstance(value, float) else f"{stage}:{name}={value};"
        for name, value in figures.items()
        if value is not None
    ]
    return " ".join(("metric", *shown))
