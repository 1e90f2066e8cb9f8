"""What every benchmark needs: a pipeline to measure, turns, and what its results are.

What is measured runs as processes of its own, on a broker of its own; this process sends
and reads. The broker stamps each record when it appends it, so how fast something was is
read off the log afterwards, and nobody reads beside what is measured.
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

#: RETRAIN_EVERY of benchmarks in which nothing is to be trained.
NEVER = str(10**9)

_STAMPED = {"log.message.timestamp.type": "LogAppendTime"}


@dataclass
class Table:
    """Figures as text; the first column says what each row is about."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """One more row."""
        self.rows.append(cells)


@dataclass
class Plot:
    """Curves over one pair of axes; drawn when results are kept.

    Attributes:
        name: Of its file, without the suffix.
        curves: The points (x, y) of each, by its label.
        log: Both axes logarithmic: there a cost that grows with the work rises at 45 degrees.
        level: A line across, and what it is.
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
    """What one benchmark found.

    Attributes:
        title: Its heading.
        tables: With a goal and whether it is reached where the project has set one.
        notes: A sentence or two each.
        plots: Drawn beside results.md.
    """

    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


def at_least(value: float, goal: float) -> tuple[str, str]:
    """The cells of a goal that wants this much or more."""
    return f">= {goal:g}", "reached" if value >= goal else "NOT reached"


def at_most(value: float, goal: float) -> tuple[str, str]:
    """The cells of a goal that wants this much or less."""
    return f"<= {goal:g}", "reached" if value <= goal else "NOT reached"


def by_turns(
    rounds: int, contenders: Mapping[str, Callable[[], float]], say: Callable[[str], None]
) -> dict[str, float]:
    """Let each have its turn once a round, in another order each round; the medians."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(contenders[name]())
            say(f"{name}: {found[name][-1]:,.0f}")
    return {name: statistics.median(values) for name, values in found.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# A pipeline to measure


class Pipeline(harness.Pipeline):
    """A home, its processes, and a broker of its own."""

    def __init__(self, home: Path, broker: Broker, **environment: str) -> None:
        super().__init__(home, broker.bootstrap, **environment)
        self.broker = broker


class Workshop:
    """Where benchmarks get their pipelines; made once, a context manager.

    Args:
        evals: Evaluations of the search that finds the model most of them serve.
        say: Told in one line what is going on.
        home: One that initialize.py has prepared, instead of making one.
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
            self.say(f"the model, by a search of {self._evals} evaluations")
            home = self.folder()
            _fetch_data(home)
            with Broker(self.folder()) as broker:
                pipeline = Pipeline(home, broker)
                _ended_well(pipeline.run("initialize.py", "--evals", str(self._evals), timeout=600))
            self._prepared = home
        return self._prepared

    def settings(self) -> Settings:
        """The settings of the prepared home."""
        return settings.load({"PIPELINE_HOME": str(self.prepared)})

    @contextmanager
    def pipeline(self, partitions: int = 1, **environment: str) -> Iterator[Pipeline]:
        """A copy of the prepared home on a new broker; its processes end with it."""
        with self.empty(PARTITIONS=str(partitions), **environment) as pipeline:
            pipeline.copy_of(self.prepared)
            yield pipeline

    @contextmanager
    def empty(self, **environment: str) -> Iterator[Pipeline]:
        """A home with nothing in it, on a new broker."""
        with ExitStack() as resources:
            folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
            home = folder / "home"
            home.mkdir()
            broker = resources.enter_context(Broker(folder / "broker", overrides=_STAMPED))
            pipeline = Pipeline(home, broker, **environment)
            resources.callback(pipeline.close)
            yield pipeline

    def folder(self) -> Path:
        """A folder that goes with the workshop."""
        return Path(self._resources.enter_context(tempfile.TemporaryDirectory()))


def _fetch_data(home: Path) -> None:
    """The data set, kept in the clone's data/ for the next time."""
    config = settings.load({})
    config.data_dir.mkdir(parents=True, exist_ok=True)
    (home / "data").mkdir()
    for data_file in config.data.files:
        path = download.fetch(data_file, config.data_dir, lambda line: None)
        (home / "data" / data_file.name).write_bytes(path.read_bytes())


def _ended_well(done: "subprocess.CompletedProcess[str]") -> None:
    if done.returncode:
        raise RuntimeError(f"{done.args}: {done.stdout}{done.stderr}")


def rows_of(config: Settings, *, outcome: bool = False) -> list[dict[str, Any]]:
    """The rows that sample_app.py would send (adult.test), as messages carry them."""
    rows: list[dict[str, Any]] = preprocess_data.sample_rows(config.data_dir, config.data)
    if not outcome:
        for row in rows:
            del row[config.data.target]
    return rows


@contextmanager
def running(pipeline: Pipeline, *command: str, says: str = "", **more: Any) -> Iterator[Script]:
    """A script, from the time it says `says` until it is asked to end."""
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
    """Send so many messages as fast as they go, the rows over and over."""
    with Sender(pipeline.settings.kafka, linger_ms=20) as sender:
        for number, row in enumerate(islice(cycle(rows), count)):
            name = f"{prefix}-{number}"
            value = msgspec.json.encode({"request_id": name, "data": row})
            sender.send(Outgoing(topic, number % partitions, name.encode(), value))
        sender.flush(120)


def ends(pipeline: Pipeline, topic: str = messages.PREDICTIONS) -> dict[tuple[str, int], int]:
    """Where each partition of a topic ends now."""
    with LogReader(pipeline.settings.kafka, [topic]) as reader:
        return {(tp.topic, tp.partition): end for tp, end in reader.ends().items()}


def stamps(
    pipeline: Pipeline,
    since: Mapping[tuple[str, int], int],
    count: int,
    topic: str = messages.PREDICTIONS,
    timeout: float = 120.0,
) -> list[float]:
    """When (s) the broker appended each of the next `count` records, ascending.

    Waits until the log is long enough before it reads, so as not to disturb the writer.
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
    """Records a second between two appends in the middle of a run, given as parts of it.

    As much is on its way at the one as at the other: from the first append to the last,
    what was decoded and scored before the clock began would count as done in no time.
    """
    first, last = (stamped[int(len(stamped) * part)] for part in (begin, end))
    if first == last:
        raise RuntimeError("all was appended at once: too few rows to time")
    return sum(first < stamp <= last for stamp in stamped) / (last - first)


def resident(pid: int) -> float:
    """A process's resident memory, MB."""
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
    return int(done.stdout.strip() or 0) / 1024


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    done = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True)
    pairs = [line.split() for line in done.stdout.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]
