"""Start times, their breakdown by imports, and the memory of each process."""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.common import (
    NEVER,
    Pipeline,
    Section,
    Table,
    Workshop,
    at_most,
    children,
    fill,
    resident,
    rows_of,
    running,
)
from utils import messages, process
from utils.broker import Broker
from utils.kafka_io import LogReader
from utils.settings import ROOT

SCRIPTS = ("predictor", "trainer", "initialize", "sample_app")
#: How many rows are processed before memory is measured.
ROWS = 5_000


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--repeat", type=process.at_least(1), default=1 if quick else 5)


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    workshop.say(f"start: {options.repeat} starts of the broker and the predictor")
    first, again = zip(*(_broker_starts() for _ in range(options.repeat)), strict=True)
    with workshop.pipeline(RETRAIN_EVERY=NEVER) as pipeline:
        seconds = [_first_prediction(pipeline, n) for n in range(options.repeat)]
        workshop.say("start: memory")
        memory = _memory(pipeline)
    starts = Table("Seconds", ["what", "median", "slowest", "goal", "reached?"])
    for what, values in (
        ("broker, an empty folder, to ready", first),
        ("broker, the same folder again, to ready", again),
    ):
        starts.add(what, f"{median(values):.2f}", f"{max(values):.2f}", "", "")
    goal = at_most(median(seconds), 1.5)
    what = "predictor.py, start to first prediction read"
    starts.add(what, f"{median(seconds):.2f}", f"{max(seconds):.2f}", *goal)
    sizes = Table("Resident memory", ["process", "MB"])
    for name, megabytes in memory.items():
        sizes.add(name, f"{megabytes:.0f}")
    section = Section("Start and size", [starts, sizes, _imports()])
    section.notes.append(
        f"Median of {options.repeat}; the message is on the topic before the predictor starts. "
        f"Memory after {ROWS} rows."
    )
    return section


def _broker_starts() -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):
            broker = Broker(Path(folder))
            began = time.perf_counter()
            with broker:
                seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1]


def _first_prediction(pipeline: Pipeline, number: int) -> float:
    rows = rows_of(pipeline.settings)
    with LogReader(pipeline.settings.kafka, [messages.PREDICTIONS], default="latest") as reader:
        reader.poll(200)
        fill(pipeline, rows, 1, f"first-{number}")
        began = time.perf_counter()
        with running(pipeline, "predictor.py"):
            while not reader.poll(20):
                if time.perf_counter() - began > 60:
                    raise RuntimeError("the predictor does not answer")
            return time.perf_counter() - began


def _memory(pipeline: Pipeline) -> dict[str, float]:
    found: dict[str, float] = {}
    with ExitStack() as resources:
        predictor = resources.enter_context(running(pipeline, "predictor.py", says="serves part"))
        trainer = resources.enter_context(running(pipeline, "trainer.py", says="ready"))
        command = ("sample_app.py", "--messages", str(ROWS), "--interval", "0")
        app = resources.enter_context(running(pipeline, *command))
        sizes = []
        while app.process.poll() is None:
            sizes.append(resident(app.process.pid))
            time.sleep(0.2)
        found["broker (Java)"] = resident(pipeline.broker.pid)
        found["predictor.py"] = resident(predictor.process.pid)
        found["trainer.py"] = resident(trainer.process.pid)
        workers = [resident(pid) for pid in children(trainer.process.pid)]
        found["trainer.py's worker, idle"] = max(workers)
        found["sample_app.py"] = max(sizes)
    return found


def _imports() -> Table:
    """Measure the import time of each script, and its most expensive packages."""
    table = Table("What is imported", ["script", "seconds", "of which"])
    for script in SCRIPTS:
        command = [sys.executable, "-X", "importtime", "-c", f"import {script}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        packages: Counter[str] = Counter()
        for line in done.stderr.splitlines():
            if found := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)", line):
                packages[found[2]] += int(found[1])
        most_expensive = ", ".join(f"{name} {us / 1e6:.2f}" for name, us in packages.most_common(8))
        table.add(f"{script}.py", f"{packages.total() / 1e6:.2f}", most_expensive)
    return table
