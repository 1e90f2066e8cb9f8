"""Milliseconds from sending a message to reading its prediction (read_committed).

One process sends at an even pace and reads. All measured programs run beside it on one broker,
each with its own topics, and are measured in interleaved slices. Then the predictor is measured
alone, while the trainer trains a model, and while a model is swapped every second; and the bare
hop alone and during a training.
"""

import argparse
import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle
from statistics import median
from typing import Any

import msgspec

from benchmarks import rivals
from benchmarks.common import (
    NEVER,
    Pipeline,
    Section,
    Table,
    Workshop,
    at_most,
    ends,
    fill,
    percentile,
    rows_of,
    running,
    stamps,
)
from tests.harness import Script
from train.retrain import train
from train.training_rows import Problem, base_rows
from utils import kafka_io, messages, process
from utils.kafka_io import LogReader, Outgoing, Sender
from utils.messages import RetrainRequest
from utils.model_store import ModelStore
from utils.settings import Settings

#: Messages per second in the measurements during trainings and swaps.
BESIDE = 200
#: The highest rate for the row-by-row program; it cannot keep up with the next one.
SLOW_RATE = 20
SWAP_SECONDS = 1.0
CALM = "nothing"

#: The input and output topic of each program.
TOPICS = {
    "predictor.py": (messages.APP_MESSAGES, messages.PREDICTIONS),
    "bare hop": ("hop_in", "hop_out"),
    "at least once": ("loose_in", "loose_out"),
    "row by row": ("rows_in", "rows_out"),
}

RIVALS = [name for name in TOPICS if name != "predictor.py"]


class _Answer(msgspec.Struct):
    request_id: str


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--rates", type=process.at_least(1), nargs="+", default=[20, 200, 2000])
    parser.add_argument(
        "--messages", type=process.at_least(1), default=60 if quick else 200, help="per slice"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0 if quick else 5.0, help="least duration of a slice"
    )
    parser.add_argument("--warm", type=process.at_least(1), default=1_000 if quick else 100_000)
    parser.add_argument("--rounds", type=process.at_least(1), default=1 if quick else 2)
    parser.add_argument("--trainings", type=process.at_least(1), default=1 if quick else 4)


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    with workshop.pipeline(RETRAIN_EVERY=NEVER, EXTRA_MODELS_TO_KEEP="9") as pipeline:
        bench = Latency(pipeline)
        workshop.say(f"latency: {options.rates} messages a second")
        side_by_side = bench.compare(options)
        workshop.say("latency: alone, during trainings, during swaps")
        beside = bench.measure_beside(options)
    section = Section(
        "Latency",
        [_compared_table(side_by_side), _cost_table(side_by_side), _beside_table(beside)],
    )
    section.notes.append(
        "Sent at an even pace by one process, which also reads. The bare hop forwards the same "
        "bytes in a transaction, with the same client and without scoring; the hop at least once "
        "does so without transactions. The row-by-row program "
        f"is measured at {SLOW_RATE}/s only: it cannot keep up with higher rates."
    )
    section.notes.append(
        f"Meanwhile: the real trainer with 10 evaluations, {options.trainings} trainings each, "
        "with messages sent from start to end of each training; or a swap between two models "
        "every second."
    )
    return section


class Latency:
    """Measures latencies on one pipeline, which also has the topics of the rivals."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.rows = rows_of(pipeline.settings)
        names = [topic for name in RIVALS for topic in TOPICS[name]]
        rivals.create_topics(pipeline.settings.kafka.bootstrap_servers, names)
        self._numbers = 0

    def compare(self, options: argparse.Namespace) -> dict[tuple[int, str], list[float]]:
        """Measure all programs; returns latencies (ms) by rate and name."""
        found: dict[tuple[int, str], list[float]] = defaultdict(list)
        with ExitStack() as resources:
            resources.enter_context(running(self.pipeline, "predictor.py", says="serves part"))
            for name in RIVALS:
                command = ("-m", f"benchmarks.rivals.{name.replace(' ', '_')}", *TOPICS[name])
                resources.enter_context(running(self.pipeline, *command, says="ready"))
            self._warm(options.warm)
            for rate in options.rates:
                names = [n for n in TOPICS if n != "row by row" or rate <= SLOW_RATE]
                seconds = max(options.seconds, options.messages / rate)
                for number in range(options.rounds):
                    turn = number % len(names)
                    for name in names[turn:] + names[:turn]:
                        until = _for(seconds)
                        found[rate, name] += self.measure(name, rate, until)
        return found

    def _warm(self, messages: int) -> None:
        """Send messages in bulk, until Java has compiled the broker's hot code."""
        since = ends(self.pipeline)
        fill(self.pipeline, self.rows, messages, f"warm{self._numbers}")
        stamps(self.pipeline, since, messages)

    def measure_beside(self, options: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
        """Measure alone and during other work; returns latencies (ms) by name and work."""
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        config = self.pipeline.settings
        base = base_rows(Problem.of(config, None))
        train(config, snapshot=None, hyper="hyperopt", evals=1, base=base)
        models = ModelStore(self.pipeline.settings.models_dir).on_disk()[-2:]
        hop = ("-m", "benchmarks.rivals.bare_hop", *TOPICS["bare hop"])
        with (
            running(self.pipeline, "predictor.py", says="serves part"),
            running(self.pipeline, *hop, says="ready"),
        ):
            for _ in range(options.trainings):
                for name in ("predictor.py", "bare hop"):
                    found[name, CALM] += self.measure(name, BESIDE, _for(options.seconds))
                    with running(self.pipeline, "trainer.py", says="ready") as trainer:
                        found[name, "a model is trained"] += self._measure_training(name, trainer)
                swapping = self._measure_swapping(options.seconds, models)
                found["predictor.py", "a model is swapped"] += swapping
        return found

    def _measure_training(self, name: str, trainer: Script) -> list[float]:
        request = RetrainRequest(
            batch_id=f"latency-{self._numbers}",
            topic=messages.APP_MESSAGES,
            partition=0,
            first_offset=0,
            last_offset=0,
            count=1,
        )
        kafka_io.announce(self.pipeline.settings, request)
        trainer.says("RETRAINING STARTED")
        # Searching its output for every message would cost more than sending the message.
        looks = cycle([True] + [False] * 9)
        return self.measure(
            name,
            BESIDE,
            lambda: next(looks) and "RETRAINING COMPLETED" in trainer.text(),
        )

    def _measure_swapping(self, seconds: float, models: Sequence[int]) -> list[float]:
        # In a separate process, so as not to disturb the measurement.
        context = multiprocessing.get_context("spawn")
        ready, done = context.Event(), context.Event()
        arguments = (self.pipeline.settings, models, ready, done)
        swapping = context.Process(target=_swap, args=arguments)
        swapping.start()
        try:
            ready.wait(30)
            return self.measure("predictor.py", BESIDE, _for(seconds))
        finally:
            done.set()
            swapping.join()

    def measure(self, name: str, rate: float, over: Callable[[], bool]) -> list[float]:
        """Send at an even pace until `over`; returns the latency (ms) of each message."""
        source, target = TOPICS[name]
        self._numbers += 1
        kafka, sent, answered = self.pipeline.settings.kafka, {}, {}
        stop = threading.Event()
        with LogReader(kafka, [target], default="latest") as reader, Sender(kafka) as sender:

            def read() -> None:
                decode = msgspec.json.Decoder(_Answer).decode
                while not stop.is_set():
                    polled = reader.poll(timeout_ms=100)
                    now = time.perf_counter()
                    for records in polled.values():
                        for record in records:
                            answered[decode(record.value or b"").request_id] = now

            def send(request_id: str, row: dict[str, Any]) -> None:
                value = msgspec.json.encode({"request_id": request_id, "data": row})
                sent[request_id] = time.perf_counter()
                sender.send(Outgoing(source, 0, request_id.encode(), value))

            reading = threading.Thread(target=read)
            reading.start()
            try:
                send("warm", self.rows[0])
                _wait(sent, answered)
                due = time.perf_counter()
                for number, row in enumerate(cycle(self.rows)):
                    if over():
                        break
                    due += 1 / rate
                    time.sleep(max(0.0, due - time.perf_counter()))
                    send(f"{self._numbers}-{number}", row)
                _wait(sent, answered)
            finally:
                stop.set()
                reading.join()
        del sent["warm"]
        return [(answered[name] - at) * 1000 for name, at in sent.items()]


def _swap(settings: Settings, models: Sequence[int], ready: Any, done: Any) -> None:
    """Roll back to the next of the models every second."""
    store = ModelStore(settings.models_dir)
    with Sender(settings.kafka) as sender:
        ready.set()
        for model_id in cycle(models):
            if done.wait(SWAP_SECONDS):
                return
            store.rollback(model_id, reason="benchmark")
            value = msgspec.json.encode({"rollback": True, "model_id": model_id})
            sender.send(Outgoing(messages.RETRAIN_TOPIC, 0, None, value))


def _for(seconds: float) -> Callable[[], bool]:
    """Return a function that says whether `seconds` have passed since its first call."""
    ends: list[float] = []

    def over() -> bool:
        if not ends:
            ends.append(time.monotonic() + seconds)
        return time.monotonic() > ends[0]

    return over


def _wait(sent: dict[str, float], answered: dict[str, float]) -> None:
    deadline = time.monotonic() + 30
    while sent.keys() - answered.keys():
        if time.monotonic() > deadline:
            missing = sent.keys() - answered.keys()
            raise RuntimeError(f"{len(missing)} of {len(sent)} messages have no answer")
        time.sleep(0.02)


def _figures(latencies: Sequence[float]) -> tuple[str, str, str, str]:
    return (
        str(len(latencies)),
        f"{median(latencies):.1f}",
        f"{percentile(latencies, 0.99):.1f}",
        f"{max(latencies):.1f}",
    )


def _compared_table(found: dict[tuple[int, str], list[float]]) -> Table:
    table = Table(
        "Milliseconds, message sent to prediction read",
        ["rate", "what", "messages", "p50", "p99", "max", "p50 / bare hop", "goal", "reached?"],
    )
    for (rate, name), latencies in found.items():
        ratio = median(latencies) / median(found[rate, "bare hop"])
        goal = at_most(ratio, 1.3) if name == "predictor.py" else ("", "")
        table.add(f"{rate}/s", name, *_figures(latencies), f"{ratio:.2f}", *goal)
    return table


def _cost_table(found: dict[tuple[int, str], list[float]]) -> Table:
    """What exactly-once and scoring cost, at rates at which messages do not queue."""
    table = Table(
        "predictor.py compared with a hop at least once",
        ["rate", "p50 / at least once", "goal", "reached?", "p99 (ms)", "goal", "reached?"],
    )
    for rate in sorted({rate for rate, _ in found if rate <= BESIDE}):
        latencies = found[rate, "predictor.py"]
        ratio = median(latencies) / median(found[rate, "at least once"])
        late = percentile(latencies, 0.99)
        table.add(
            f"{rate}/s", f"{ratio:.2f}", *at_most(ratio, 3.0), f"{late:.1f}", *at_most(late, 25.0)
        )
    return table


def _beside_table(found: dict[tuple[str, str], list[float]]) -> Table:
    table = Table(
        f"Milliseconds at {BESIDE}/s, by what runs at the same time",
        ["what", "meanwhile", "messages", "p50", "p99", "max", "p99 / alone", "goal", "reached?"],
    )
    for (name, beside), latencies in sorted(found.items(), reverse=True):
        ratio = percentile(latencies, 0.99) / percentile(found[name, CALM], 0.99)
        measured = name == "predictor.py" and beside != CALM
        goal = at_most(ratio, 2.0) if measured else ("", "")
        table.add(name, beside, *_figures(latencies), f"{ratio:.2f}", *goal)
    return table
