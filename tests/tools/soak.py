"""Runs the whole pipeline for a long time and measures the resources of every process.

    python -m tests.tools.soak [--minutes 60] [--rate 300] [--retrain-every 6000]

Many messages a second and a retraining every few seconds stand for a much longer normal
run. Memory, open files, threads and disk are sampled. The table at the end says whether
they are flat, and for what grows by design, how many bytes a message costs.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.harness import Pipeline, Script
from utils.broker import VERSION, Broker
from utils.kafka_io import partition_bounds
from utils.messages import APP_MESSAGES, PREDICTIONS
from utils.model_store import ModelStore
from utils.settings import ROOT

REPORT = ROOT / "benchmarks" / "soak.md"
MIB = 1024 * 1024
EVERY_SECONDS = 2.0

#: A measure is flat if the line fitted to the second half of its samples, while one model
#: serves, rises in that half by less than 5 % of their mean, or by less than this.
SLACK = {"memory, MiB": 8.0, "open files": 2.0, "threads": 2.0}
#: Processes that keep data for each message or row by design, and which.
GROWS = {
    "sample app": "it remembers every request_id, to notice duplicate answers",
    "training": "all rows are in memory during a training",
}


class Sample(NamedTuple):
    """One measurement."""

    seconds: float
    messages: int
    model: int | None
    value: float


@dataclass
class Curve:
    """The samples of one measure."""

    samples: list[Sample] = field(default_factory=list)

    def half(self) -> list[Sample]:
        """The samples of the second half of the time."""
        middle = (self.samples[0].seconds + self.samples[-1].seconds) / 2
        return [sample for sample in self.samples if sample.seconds >= middle]

    def rise(self) -> float:
        """The rise of the line fitted to the second half, within that half."""
        half = self.half()
        times = [sample.seconds for sample in half]
        if len(set(times)) < 2:
            return 0.0
        line = statistics.linear_regression(times, [sample.value for sample in half])
        return line.slope * (times[-1] - times[0])

    def rise_with_one_model(self) -> float:
        """The rise without the steps between models: each model's samples get the same mean."""
        stretches: dict[int | None, list[Sample]] = defaultdict(list)
        for sample in self.half():
            stretches[sample.model].append(sample)
        above = below = 0.0
        for samples in stretches.values():
            moment = statistics.mean(sample.seconds for sample in samples)
            value = statistics.mean(sample.value for sample in samples)
            above += sum((s.seconds - moment) * (s.value - value) for s in samples)
            below += sum((s.seconds - moment) ** 2 for s in samples)
        half = self.half()
        return above / below * (half[-1].seconds - half[0].seconds) if below else 0.0

    def mean(self) -> float:
        """The mean of the second half."""
        return statistics.mean(sample.value for sample in self.half())

    def per_message(self) -> float:
        """The rise in the second half, divided by its messages."""
        half = self.half()
        return self.rise() / max(half[-1].messages - half[0].messages, 1)

    def is_flat(self, slack: float) -> bool:
        """Whether the measure is flat, as defined at `SLACK`."""
        return self.rise_with_one_model() < max(0.05 * self.mean(), slack)


Curves = dict[tuple[str, str], Curve]


class Watcher:
    """Samples processes and folders.

    Args:
        processes: Process ids by name; children of `trainer` are sampled as `training`.
        folders: Folders by name.
    """

    def __init__(self, processes: dict[str, int], folders: dict[str, Path]) -> None:
        self.curves: Curves = defaultdict(Curve)
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._folders = folders
        self._begun = time.monotonic()

    def sample(self, messages: int, model: int | None) -> None:
        """Sample everything; `messages` were sent so far, and `model` serves."""
        self._place = (time.monotonic() - self._begun, messages, model)
        for name, process in self._all():
            with suppress(psutil.NoSuchProcess), process.oneshot():
                self._note(name, "memory, MiB", process.memory_info().rss / MIB)
                self._note(name, "open files", process.num_fds())
                self._note(name, "threads", process.num_threads())
        for name, folder in self._folders.items():
            self._note(name, "disk, MiB", size_of(folder) / MIB)

    def ended(self) -> list[str]:
        """The names of processes that have ended."""
        return [name for name, process in self._processes.items() if not process.is_running()]

    def _all(self) -> Iterator[tuple[str, psutil.Process]]:
        yield from self._processes.items()
        for child in self._processes["trainer"].children():
            with suppress(psutil.Error):
                if not any("resource_tracker" in word for word in child.cmdline()):
                    yield "training", child

    def _note(self, name: str, what: str, value: float) -> None:
        self.curves[name, what].samples.append(Sample(*self._place, value))


def size_of(folder: Path) -> int:
    """Bytes that a folder uses on disk."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # deleted meanwhile
            total += path.lstat().st_blocks * 512
    return total


@dataclass
class Soak:
    """One run.

    Attributes:
        figures: What the run did, by name.
        curves: The samples, by process and measure.
    """

    pipeline: Pipeline
    broker: Broker
    options: argparse.Namespace
    figures: dict[str, str] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)

    def run(self) -> None:
        """Run the pipeline for the requested time and sample it."""
        home, options = self.pipeline.home, self.options
        predictor = self.pipeline.start("predictor.py")
        trainer = self.pipeline.start("trainer.py", "--evals", "1")
        predictor.says("serves partitions", 60)
        trainer.says("ready", 60)
        sample_app = self.pipeline.start(
            *("sample_app.py", "--messages", str(10**9), "--interval", str(1 / options.rate))
        )
        scripts = {"predictor": predictor, "trainer": trainer, "sample app": sample_app}
        watcher = Watcher(
            {"broker": self.broker.pid, **{n: s.process.pid for n, s in scripts.items()}},
            {
                "models": home / "models",
                "messages": home / "messages",
                "broker's log": self.broker.home,
            },
        )
        store = ModelStore(self.pipeline.settings.models_dir)
        started = time.monotonic()
        while (now := time.monotonic() - started) < 60 * options.minutes and not watcher.ended():
            sent = self._sent()
            watcher.sample(sent, store.current_id())
            print(f"\r{now:5.0f} s, {sent:,} messages", end="", flush=True)
            time.sleep(EVERY_SECONDS)
        print()
        if ended := watcher.ended():
            outputs = "\n".join(scripts[name].text()[-2000:] for name in ended if name in scripts)
            raise SystemExit(f"{', '.join(ended)} ended by itself\n{outputs}")
        self.curves = watcher.curves
        self._finish(sample_app, trainer, time.monotonic() - started)

    def _sent(self) -> int:
        ends = partition_bounds(self.pipeline.settings.kafka, APP_MESSAGES)
        return sum(end for _, end in ends.values())

    def _finish(self, sample_app: Script, trainer: Script, seconds: float) -> None:
        status = sample_app.end(timeout=120)
        predicted = partition_bounds(self.pipeline.settings.kafka, PREDICTIONS)
        self.figures = {
            "time": f"{seconds / 60:.0f} minutes",
            "messages": f"{self._sent():,} ({self._sent() / seconds:.0f} a second)",
            "trainings": str(trainer.text().count("RETRAINING COMPLETED")),
            "sample app": f"status {status}; {sample_app.text().strip().splitlines()[-2]}",
            "offsets of `predictions`": str(sum(end for _, end in predicted.values())),
        }


def report(soak: Soak) -> str:
    """The results as a page for benchmarks/."""
    machine = f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    versions = ", ".join(
        f"{name} {metadata.version(name)}"
        for name in ("kafka-python", "lightgbm", "numpy", "SQLAlchemy")
    )
    lines = [
        "# A long run: the resources of every process",
        "",
        f"`make soak MINUTES={soak.options.minutes:g}` on {datetime.now(UTC):%Y-%m-%d}: "
        f"{machine}, {platform.system()} {platform.machine()}, Python "
        f"{platform.python_version()}, Kafka {VERSION}, {versions}.",
        "",
        *(f"- {name}: {text}" for name, text in soak.figures.items()),
        "",
        f"Sampled every {EVERY_SECONDS:g} s. A measure is flat if the line fitted to the second "
        "half of its samples, while one model serves (a larger model is a step), rises in that "
        "half by less than 5 % of their mean, or by less than "
        + ", ".join(f"{slack:g} ({what})" for what, slack in SLACK.items())
        + ".",
        "",
        "| process | what | mean of the second half | rise in it | while one model serves | |",
        "|---|---|---|---|---|---|",
        *(_row(name, what, curve) for (name, what), curve in sorted(soak.curves.items())),
        "",
        *(f"- {name}: {why}." for name, why in GROWS.items()),
        "- The broker's log keeps messages and predictions, and `messages/` the training data: "
        "both grow with every message by design. `models/` keeps "
        f"{soak.pipeline.settings.training.extra_models_to_keep + 1} bundles.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, what: str, curve: Curve) -> str:
    if what in SLACK:
        verdict = (
            "flat"
            if curve.is_flat(SLACK[what])
            else f"{'grows' if grows(name, what) else 'NOT FLAT'}"
        )
    else:
        verdict = ""
    if what == "disk, MiB" or verdict == "grows":
        verdict = f"{verdict} {curve.per_message() * MIB:,.0f} bytes a message".strip()
    rises = f"{curve.rise():+,.1f} | {curve.rise_with_one_model():+,.1f}"
    return f"| {name} | {what} | {curve.mean():,.1f} | {rises} | {verdict} |"


def grows(name: str, what: str) -> bool:
    """Whether this measure grows by design."""
    return name in GROWS and what == "memory, MiB"


def leaks(curves: Curves) -> list[str]:
    """The measures that should be flat and are not."""
    return [
        f"{name}: {what}"
        for (name, what), curve in curves.items()
        if what in SLACK and not grows(name, what) and not curve.is_flat(SLACK[what])
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak and write the page; returns 1 if a measure is not flat."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="duration (60)")
    parser.add_argument("--rate", type=float, default=300.0, help="messages a second (300)")
    parser.add_argument("--retrain-every", type=int, default=6_000, help="outcomes (6000)")
    parser.add_argument("--output", type=Path, default=REPORT, help=f"the page ({REPORT.name})")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        with Broker(Path(folder) / "broker") as broker:
            pipeline = Pipeline(home, broker.bootstrap, RETRAIN_EVERY=str(options.retrain_every))
            try:
                done = pipeline.run("initialize.py", "--evals", "1", timeout=300)
                if done.returncode:
                    sys.exit(done.stdout + done.stderr)
                soak = Soak(pipeline, broker, options)
                soak.run()
            finally:
                pipeline.close()
    text = report(soak)
    options.output.write_text(text)
    print(text)
    if found := leaks(soak.curves):
        print(f"NOT FLAT: {', '.join(found)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
