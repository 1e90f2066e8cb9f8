"""Shared code of the benchmarks: pipelines to measure, interleaved rounds, and results.

The measured programs run as separate processes on a separate broker; this process sends and
reads. Speed is computed afterwards from the timestamps with which the broker appends records
(LogAppendTime), so that no consumer disturbs the measurement.
"""

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec

from tests import harness
from tests.harness import Script, until
from utils import download, messages, preprocess_data, settings
from utils.broker import Broker
from utils.kafka_io import LogReader, Outgoing, Sender
from utils.settings import Settings

#: RETRAIN_EVERY for benchmarks without retraining.
NEVER = str(10**9)

_STAMPED = {"log.message.timestamp.type": "LogAppendTime"}


@dataclass
class Table:
    """A table of formatted figures; the first column names each row."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(cells)


@dataclass
class Plot:
    """A plot of one or more curves; drawn when the results are written.

    Attributes:
        name: The file's name without its suffix.
        title: The plot's title.
        curves: The points (x, y) of each curve, by label.
        x: The label of the x axis.
        y: The label of the y axis.
        log: Whether both axes are logarithmic; linear growth then has a slope of 45 degrees.
        level: The height and the label of a horizontal line.
    """

    name: str
    title: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    x: str
    y: str
    log: bool = False
    level: tuple[float, str] | None = None


@dataclass
class Section:
    """The results of one benchmark.

    Attributes:
        title: The section's heading.
        tables: The figures; where the project has a goal, with the goal and the verdict.
        notes: Explanations of a sentence or two.
        plots: Plots to draw beside results.md.
    """

    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


def at_least(value: float, goal: float) -> tuple[str, str]:
    """The goal and verdict cells of a lower bound."""
    return f">= {goal:g}", "reached" if value >= goal else "NOT reached"


def at_most(value: float, goal: float) -> tuple[str, str]:
    """The goal and verdict cells of an upper bound."""
    return f"<= {goal:g}", "reached" if value <= goal else "NOT reached"


def by_turns(
    rounds: int, contenders: Mapping[str, Callable[[], float]], say: Callable[[str], None]
) -> dict[str, float]:
    """Run each contender once per round, in rotating order; returns their medians."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(contenders[name]())
            say(f"{name}: {found[name][-1]:,.0f}")
    return {name: statistics.median(values) for name, values in found.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile of the values; `share` is between 0 and 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# Pipelines to measure


class Pipeline(harness.Pipeline):
    """A home, its processes, and their broker."""

    def __init__(self, home: Path, broker: Broker, **environment: str) -> None:
        super().__init__(home, broker.bootstrap, **environment)
        self.broker = broker


class Workshop:
    """Creates the pipelines for all benchmarks; a context manager.

    Args:
        evals: Evaluations of the search for the model that most benchmarks serve.
        say: Called with one line of progress.
        home: A home that initialize.py has prepared; by default one is prepared here.
    """

    def __init__(self, evals: int, say: Callable[[str], None], home: Path | None = None) -> None:
        self.say = say
        self._evals = evals
        self._resources = ExitStack()
        self._prepared = home

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    @property
    def prepared(self) -> Path:
        """A home with the Adult data and a first model, as initialize.py makes it."""
        if self._prepared is None:
            self.say(f"training the model: a search of {self._evals} evaluations")
            home = self.folder()
            _fetch_data(home)
            with Broker(self.folder()) as broker:
                pipeline = Pipeline(home, broker)
                _check_status(
                    pipeline.run("initialize.py", "--evals", str(self._evals), timeout=600)
                )
            self._prepared = home
        return self._prepared

    def settings(self) -> Settings:
        """The settings of the prepared home."""
        return settings.load({"PIPELINE_HOME": str(self.prepared)})

    @contextmanager
    def pipeline(self, partitions: int = 1, **environment: str) -> Iterator[Pipeline]:
        """Provide a copy of the prepared home on a new broker, and stop its processes."""
        with self.empty(PARTITIONS=str(partitions), **environment) as pipeline:
            pipeline.copy_of(self.prepared)
            yield pipeline

    @contextmanager
    def empty(self, **environment: str) -> Iterator[Pipeline]:
        """Provide an empty home on a new broker, and stop its processes."""
        with ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
            home = folder / "home"
            home.mkdir()
            broker = resources.enter_context(Broker(folder / "broker", overrides=_STAMPED))
            pipeline = Pipeline(home, broker, **environment)
            resources.callback(pipeline.close)
            yield pipeline

    def folder(self) -> Path:
        """Create a folder that is deleted with the workshop."""
        return Path(self._resources.enter_context(tempfile.TemporaryDirectory()))


def _fetch_data(home: Path) -> None:
    """Copy the data set into a home; its download is cached in the clone's data/."""
    config = settings.load({})
    config.data_dir.mkdir(parents=True, exist_ok=True)
    (home / "data").mkdir()
    for data_file in config.data.files:
        path = download.fetch(data_file, config.data_dir, lambda line: None)
        (home / "data" / data_file.name).write_bytes(path.read_bytes())


def _check_status(done: "subprocess.CompletedProcess[str]") -> None:
    if done.returncode:
        raise RuntimeError(f"{done.args}: {done.stdout}{done.stderr}")


def rows_of(config: Settings, *, outcome: bool = False) -> list[dict[str, Any]]:
    """The rows that sample_app.py would send (adult.test), in the format of messages."""
    rows: list[dict[str, Any]] = preprocess_data.sample_rows(config.data_dir, config.data)
    if not outcome:
        for row in rows:
            del row[config.data.target]
    return rows


@contextmanager
def running(
    pipeline: harness.Pipeline, *command: str, says: str = "", **more: Any
) -> Iterator[Script]:
    """Start a script, wait until it prints `says`, and stop it after the block."""
    script = pipeline.start(*command, **more)
    try:
        if says:
            script.says(says, 120)
        yield script
    finally:
        script.end()


def fill(
    pipeline: Pipeline,
    rows: Sequence[dict[str, Any]],
    count: int,
    prefix: str,
    partitions: int = 1,
    topic: str = messages.APP_MESSAGES,
) -> None:
    """Send `count` messages as fast as possible, cycling through the rows."""
    with Sender(pipeline.settings.kafka, linger_ms=20) as sender:
        for number, row in enumerate(islice(cycle(rows), count)):
            name = f"{prefix}-{number}"
            value = msgspec.json.encode({"request_id": name, "data": row})
            sender.send(Outgoing(topic, number % partitions, name.encode(), value))
        sender.flush(120)


def ends(pipeline: Pipeline, topic: str = messages.PREDICTIONS) -> dict[tuple[str, int], int]:
    """The current end offset of each partition of a topic."""
    with LogReader(pipeline.settings.kafka, [topic]) as reader:
        return {(tp.topic, tp.partition): end for tp, end in reader.ends().items()}


def stamps(
    pipeline: Pipeline,
    since: Mapping[tuple[str, int], int],
    count: int,
    topic: str = messages.PREDICTIONS,
    timeout: float = 120.0,
) -> list[float]:
    """The append times (s) of the next `count` records, ascending.

    Waits until the log has all of them before it reads, so as not to disturb the writer.
    """
    with LogReader(pipeline.settings.kafka, [topic], since) as reader:

        def grown() -> bool:
            found = {(tp.topic, tp.partition): end for tp, end in reader.ends().items()}
            return sum(found.values()) - sum(since.values()) >= count

        until(grown, timeout, lambda: f"{count} records on {topic}")
        found: list[float] = []
        deadline = time.monotonic() + timeout
        while len(found) < count:
            for records in reader.poll(200).values():
                found += [record.timestamp / 1000 for record in records]
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(found)} of {count} records on {topic}")
    return sorted(found)


def rate(stamped: Sequence[float], begin: float = 0.25, end: float = 0.9) -> float:
    """Records per second between two appends in the middle of a run, given as parts of it.

    About as many records are in flight at both. From the first append to the last, records
    that were decoded and scored before the first append would count as free.
    """
    first, last = (stamped[int(len(stamped) * part)] for part in (begin, end))
    if first == last:
        raise RuntimeError("all records were appended at once: too few rows to measure")
    return sum(first < stamp <= last for stamp in stamped) / (last - first)


def predictor_rate(pipeline: Pipeline, rows: Sequence[dict[str, Any]], count: int) -> float:
    """Rows per second of a predictor that starts when `count` rows are on the topic."""
    fill(pipeline, rows, count, f"t{time.monotonic_ns()}")
    since = ends(pipeline)
    with running(pipeline, "predictor.py"):
        return rate(stamps(pipeline, since, count))


def resident(pid: int) -> float:
    """A process's resident memory in MB."""
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
    return int(done.stdout.strip() or 0) / 1024


def children(pid: int) -> list[int]:
    """The ids of a process's child processes."""
    done = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True)
    pairs = [line.split() for line in done.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]
