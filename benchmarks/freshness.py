"""Seconds from the last outcome that a retraining needs to the new model's first prediction.

Predictor and trainer run, and messages that ask for predictions are sent all the time. 25
outcomes trigger a retraining; once the new model predicts, 25 more are sent. The times of the
request and the announcement are the broker's timestamps, those within a training are reported
by the trainer. Then this project's training and the original's run alone, on the same rows and
with the same number of evaluations.
"""

import argparse
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from benchmarks.common import Pipeline, Section, Table, Workshop, at_most, fill, rows_of, running
from benchmarks.quality import original_loss, our_loss
from benchmarks.rivals import original
from train.retrain import train
from utils import messages, process
from utils.kafka_io import LogReader, Outgoing, Sender
from utils.message_store import MessageStore
from utils.model_store import ModelStore
from utils.settings import Settings

EVERY = 25
#: How many new models the gate may refuse; the next outcomes then train another one.
REFUSALS = 5
#: Seconds between messages that only ask for predictions.
PAUSE = 0.05
PARTS = ("waiting", "reading", "searching", "fitting", "gate", "publishing")


@dataclass
class Fresh:
    """The results of several consecutive retrainings.

    Attributes:
        parts: The parts of the retraining with the median overhead, in order (s).
        overheads: The overhead of each retraining (s).
        alone: The duration of a training on the same rows while nothing else runs (s).
        loss: The log loss of the last model.
        used: How many outcomes of adult.test the last model was trained on.
        refused: How many models the gate refused.
    """

    parts: dict[str, float]
    overheads: list[float]
    alone: float
    loss: float
    used: int
    refused: int

    @property
    def total(self) -> float:
        """Seconds from the last outcome sent to the first prediction read."""
        return sum(self.parts.values())

    @property
    def training(self) -> float:
        """Seconds from reading the rows to publishing, while the predictor runs."""
        return sum(self.parts[name] for name in PARTS[1:])


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    default = [1, 2] if quick else [2, 10, 50]
    parser.add_argument("--evaluations", type=process.at_least(1), nargs="+", default=default)
    parser.add_argument(
        "--rounds", type=process.at_least(1), default=1 if quick else 5, help="retrainings"
    )


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    columns = ["evaluations", "beside the predictor", "alone", "original's way, alone", "ratio"]
    columns += ["goal", "reached?", "log loss on adult.test", "original's way", "better?"]
    against = Table("Training, seconds, and what comes of it", columns)
    found: dict[int, Fresh] = {}
    for evals in options.evaluations:
        workshop.say(f"freshness: {evals} evaluations")
        found[evals] = fresh = _measure_ours(workshop, evals, options.rounds)
        workshop.say(f"freshness: the original's way, {evals} evaluations")
        seconds, loss = _measure_original(workshop.settings(), evals, fresh.used)
        ratio = fresh.alone / seconds
        against.add(
            str(evals),
            f"{fresh.training:.2f}",
            f"{fresh.alone:.2f}",
            f"{seconds:.2f}",
            f"{ratio:.2f}",
            *(at_most(ratio, 0.5) if evals == 10 else ("", "")),
            f"{fresh.loss:.4f}",
            f"{loss:.4f}",
            "yes" if fresh.loss < loss else "NO",
        )
    refused = sum(fresh.refused for fresh in found.values())
    section = Section("Freshness", [_parts_table(found), against])
    section.notes.append(
        f"{options.rounds} consecutive retrainings, from 5 s after the broker's start; the parts "
        "are those of the retraining with the median time for all but searching and fitting. "
        f"{EVERY} outcomes each; meanwhile a message every {PAUSE * 1000:.0f} ms asks for a "
        "prediction. 'requesting': from the outcome sent to the request on the log; 'announcing': "
        "the rest of the time between the request and the announcement on the log; 'loading': "
        "from the announcement to the prediction read. Beside the predictor a training is niced "
        "and gets the CPU time that predictor and broker leave. The original's way: reading its "
        "data, preparing, searching, fitting; a category not seen in training crashed it and has "
        "a code here. The log loss excludes rows that were trained on. Refused by the gate: "
        f"{refused}."
    )
    return section


def _parts_table(found: dict[int, Fresh]) -> Table:
    """Build the table of parts: a column per number of evaluations, a row per part."""
    table = Table(
        "Seconds, last outcome sent to first prediction by the new model",
        ["part", *(f"{evals} evaluations" for evals in found)],
    )
    all_parts = [fresh.parts for fresh in found.values()]
    for name in all_parts[0]:
        table.add(name, *(f"{parts[name]:.2f}" for parts in all_parts))
    table.add("total", *(f"{fresh.total:.2f}" for fresh in found.values()))
    overheads = [overhead(parts) for parts in all_parts]
    table.add("all but searching and fitting", *(f"{value:.2f}" for value in overheads))
    goals = [at_most(value, 0.5) for value in overheads]
    table.add("goal", *(f"{goal}: {verdict}" for goal, verdict in goals))
    each = (" ".join(f"{value:.2f}" for value in fresh.overheads) for fresh in found.values())
    table.add("the same, each retraining", *each)
    return table


def overhead(parts: dict[str, float]) -> float:
    """Seconds for all but searching and fitting."""
    return sum(parts.values()) - parts["searching"] - parts["fitting"]


def _measure_ours(workshop: Workshop, evals: int, rounds: int) -> Fresh:
    with workshop.pipeline(RETRAIN_EVERY=str(EVERY), EXTRA_MODELS_TO_KEEP="9") as pipeline:
        with (
            running(pipeline, "predictor.py", says="serves part"),
            running(pipeline, "trainer.py", "--evals", str(evals), says="ready") as trainer,
        ):
            each, refused = _retrain(pipeline, trainer, rounds)
        bundle = ModelStore(pipeline.settings.models_dir).load_current()
        used = (rounds + refused) * EVERY
        return Fresh(
            parts=sorted(each, key=overhead)[len(each) // 2],
            overheads=[overhead(parts) for parts in each],
            alone=_train_alone(pipeline.settings, evals),
            loss=our_loss(pipeline.settings, bundle.features, bundle.booster, used),
            used=used,
            refused=refused,
        )


def _retrain(pipeline: Pipeline, trainer: Any, rounds: int) -> tuple[list[dict[str, float]], int]:
    """Send outcomes, wait until a model trained on them predicts, and repeat.

    Returns:
        The parts of each retraining, and how many models were refused.
    """
    found: list[dict[str, float]] = []
    refused, serving = 0, 1
    rows = rows_of(pipeline.settings, outcome=True)
    target = pipeline.settings.data.target
    bare = [{k: v for k, v in row.items() if k != target} for row in rows]
    time.sleep(5)  # until the trainer's worker has finished its imports
    with LogReader(pipeline.settings.kafka, [messages.PREDICTIONS], default="latest") as reader:
        reader.poll(200)
        for number in range(rounds + REFUSALS):
            begin = number * EVERY
            fill(pipeline, bare[begin : begin + EVERY], EVERY, f"try-{number}")
            outcomes = [row[target] for row in rows[begin : begin + EVERY]]
            with _asking(pipeline, bare[-1000:], f"ask-{number}"):
                _until_answered(reader, f"ask-{number}")
                sent = _send_outcomes(pipeline, outcomes, f"try-{number}")
                seen = _first_of_another(reader, trainer, serving, refused)
            if seen is None:
                refused += 1
                continue
            serving, read_at = seen
            found.append(_parts(pipeline, trainer.text(), sent, read_at))
            if len(found) == rounds:
                return found, refused
    raise RuntimeError(f"the gate refused {refused} models")


def _train_alone(config: Settings, evals: int) -> float:
    """Train alone on the rows of the store; returns the seconds."""
    began = time.perf_counter()
    features = ModelStore(config.models_dir).load_current().features
    with MessageStore.open(config.messages_url, features) as store:
        train(config, snapshot=store.snapshot(), hyper="hyperopt", evals=evals)
    return time.perf_counter() - began


def _send_outcomes(pipeline: Pipeline, outcomes: Sequence[str], prefix: str) -> float:
    """Send the outcomes of messages; returns the time (s) at which the last was sent."""
    with Sender(pipeline.settings.kafka) as sender:
        for number, outcome in enumerate(outcomes):
            name = f"{prefix}-{number}"
            value = msgspec.json.encode({"request_id": name, "outcome": outcome})
            if number == len(outcomes) - 1:
                sender.flush()  # so that the connection is open for the last one
            sent = time.time()
            sender.send(Outgoing(messages.OUTCOMES, 0, name.encode(), value))
        sender.flush()
    return sent


@contextmanager
def _asking(pipeline: Pipeline, rows: list[dict[str, Any]], prefix: str) -> Iterator[None]:
    """Send messages that ask for predictions while the block runs."""
    done = threading.Event()

    def ask() -> None:
        with Sender(pipeline.settings.kafka) as sender:
            for number, row in enumerate(cycle(rows)):
                name = f"{prefix}-{number}"
                value = msgspec.json.encode({"request_id": name, "data": row})
                sender.send(Outgoing(messages.APP_MESSAGES, 0, name.encode(), value))
                if done.wait(PAUSE):
                    return

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join()


def _until_answered(reader: LogReader, prefix: str) -> None:
    """Wait until the predictor answers the messages of `_asking`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for records in reader.poll(100).values():
            if any((record.key or b"").startswith(prefix.encode()) for record in records):
                return
    raise RuntimeError("the predictor does not answer")


def _first_of_another(
    reader: LogReader, trainer: Any, serving: int, refused: int
) -> tuple[int, float] | None:
    """Wait for the first prediction by a newer model than `serving`.

    Returns:
        The model's id and the time (s); None if the gate refused the model instead.
    """
    decode = msgspec.json.Decoder(messages.Prediction).decode
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for records in reader.poll(100).values():
            now = time.time()
            for record in records:
                model_id = decode(record.value or b"").model_id
                if model_id > serving:
                    return model_id, now
        if trainer.text().count("REFUSED") > refused:
            return None
    raise RuntimeError(f"no new model: {trainer.text()}")


def _parts(pipeline: Pipeline, output: str, sent: float, read_at: float) -> dict[str, float]:
    """Split the total time into its parts."""
    found = re.findall(r"COMPLETED.*\(seconds: ([^)]*)\)", output)[-1]
    reported = {name: float(value) for name, value in (part.split() for part in found.split(", "))}
    stamps: dict[str, float] = {}
    for record in pipeline.records(messages.RETRAIN_TOPIC):
        for kind in ("retrain", "training_completed"):
            if kind in msgspec.json.decode(record.value):
                stamps[kind] = record.timestamp / 1000
    inside = {name: reported[name] for name in PARTS}
    took = stamps["training_completed"] - stamps["retrain"]
    return {
        "requesting": stamps["retrain"] - sent,
        **inside,
        "announcing": took - sum(inside.values()),
        "loading": read_at - stamps["training_completed"],
    }


def _measure_original(config: Settings, evals: int, used: int) -> tuple[float, float]:
    """Train the original's way on the same rows; returns the seconds and the log loss."""
    began = time.perf_counter()
    frame, labels = original.read(config, config.data.train)
    more, more_labels = original.read(config, config.data.test)
    frame = pd.concat([frame, more[:used]], ignore_index=True)
    both = np.concatenate([labels, more_labels[:used]])
    trained = original.train(frame, both, config, evals)
    seconds = time.perf_counter() - began
    return seconds, original_loss(config, trained, used)
