"""Seconds from the last outcome that a retraining waits for to the new model's first prediction.

Predictor and trainer run; messages keep coming, so that predictions do; 25 outcomes are
sent, and when the new model predicts, 25 more. The times of the request and of the
announcement are the broker's, those inside a training are what the trainer reports. Then
both ways of training with nothing beside them, this one's and the original's, on the same
rows and with as many evaluations.
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
#: A new model can be refused; then the next outcomes make another. So often at most.
REFUSALS = 5
#: Between two messages that only ask for predictions.
PAUSE = 0.05
PARTS = ("waiting", "reading", "searching", "fitting", "gate", "publishing")


@dataclass
class Fresh:
    """Several retrainings one after the other, and what came out.

    Attributes:
        parts: Of the one with the median overhead, in their order (s).
        overheads: Of each (s).
        alone: A training of the same rows with nothing beside it (s).
        loss: Of the last model.
        used: Outcomes of adult.test that it has learnt from.
    """

    parts: dict[str, float]
    overheads: list[float]
    alone: float
    loss: float
    used: int
    refused: int

    @property
    def total(self) -> float:
        """From the last outcome sent to the first prediction read."""
        return sum(self.parts.values())

    @property
    def training(self) -> float:
        """From reading to publishing, beside the predictor."""
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
        found[evals] = fresh = _ours(workshop, evals, options.rounds)
        workshop.say(f"freshness: the original's way, {evals} evaluations")
        seconds, loss = _original(workshop.settings(), evals, fresh.used)
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
        f"{options.rounds} retrainings one after the other, from 5 s after the broker's start; the "
        "parts are those of the one in the middle by all but searching and fitting. "
        f"{EVERY} outcomes each; a message every {PAUSE * 1000:.0f} ms asks for a prediction "
        "meanwhile. 'requesting': outcome sent to request on the log; 'announcing': what is "
        "left between the request and the announcement on the log; 'loading': announcement to "
        "prediction read. Beside the predictor a training is niced and takes what that and the "
        "broker leave. The original's way: reading its data, preparing, searching, fitting; a "
        "category not seen in training, which ended it, has a code here. Rows that were trained "
        f"on are not in the log loss. Refused by the gate: {refused}."
    )
    return section


def _parts_table(found: dict[int, Fresh]) -> Table:
    """A column for each number of evaluations, a row for each part."""
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
    """All but searching and fitting."""
    return sum(parts.values()) - parts["searching"] - parts["fitting"]


def _ours(workshop: Workshop, evals: int, rounds: int) -> Fresh:
    with workshop.pipeline(RETRAIN_EVERY=str(EVERY), EXTRA_MODELS_TO_KEEP="9") as pipeline:
        with (
            running(pipeline, "predictor.py", says="serves part"),
            running(pipeline, "trainer.py", "--evals", str(evals), says="ready") as trainer,
        ):
            each, refused = _retrained(pipeline, trainer, rounds)
        bundle = ModelStore(pipeline.settings.models_dir).load_current()
        used = (rounds + refused) * EVERY
        return Fresh(
            parts=sorted(each, key=overhead)[len(each) // 2],
            overheads=[overhead(parts) for parts in each],
            alone=_alone(pipeline.settings, evals),
            loss=our_loss(pipeline.settings, bundle.features, bundle.booster, used),
            used=used,
            refused=refused,
        )


def _retrained(pipeline: Pipeline, trainer: Any, rounds: int) -> tuple[list[dict[str, float]], int]:
    """Outcomes, and again, each time until a model of theirs predicts.

    Returns:
        The parts of each time, and how many models were refused.
    """
    found: list[dict[str, float]] = []
    refused, serving = 0, 1
    rows = rows_of(pipeline.settings, outcome=True)
    target = pipeline.settings.data.target
    bare = [{k: v for k, v in row.items() if k != target} for row in rows]
    time.sleep(5)  # the trainer's worker imports; later it has long done so
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


def _alone(config: Settings, evals: int) -> float:
    """Seconds of a training on what the store holds."""
    began = time.perf_counter()
    features = ModelStore(config.models_dir).load_current().features
    with MessageStore.open(config.messages_url, features) as store:
        train(config, snapshot=store.snapshot(), hyper="hyperopt", evals=evals)
    return time.perf_counter() - began


def _send_outcomes(pipeline: Pipeline, outcomes: Sequence[str], prefix: str) -> float:
    """Send the outcomes of messages; when (s) the last of them was sent."""
    with Sender(pipeline.settings.kafka) as sender:
        for number, outcome in enumerate(outcomes):
            name = f"{prefix}-{number}"
            value = msgspec.json.encode({"request_id": name, "outcome": outcome})
            if number == len(outcomes) - 1:
                sender.flush()  # so that the last one finds the connection open
            sent = time.time()
            sender.send(Outgoing(messages.OUTCOMES, 0, name.encode(), value))
        sender.flush()
    return sent


@contextmanager
def _asking(pipeline: Pipeline, rows: list[dict[str, Any]], prefix: str) -> Iterator[None]:
    """Messages that ask for predictions, one after the other, while the block runs."""
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
    """Wait until those who ask are answered: from then on all is as it is later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for records in reader.poll(100).values():
            if any(record.key.startswith(prefix.encode()) for record in records):
                return
    raise RuntimeError("the predictor does not answer")


def _first_of_another(
    reader: LogReader, trainer: Any, serving: int, refused: int
) -> tuple[int, float] | None:
    """The model id and the time (s) of the first prediction by a newer model than `serving`.

    None when one more model was refused instead.
    """
    decode = msgspec.json.Decoder(messages.Prediction).decode
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for records in reader.poll(100).values():
            now = time.time()
            for record in records:
                model_id = decode(record.value).model_id
                if model_id > serving:
                    return model_id, now
        if trainer.text().count("REFUSED") > refused:
            return None
    raise RuntimeError(f"no new model: {trainer.text()}")


def _parts(pipeline: Pipeline, told: str, sent: float, read_at: float) -> dict[str, float]:
    """The whole time in its parts, which add up to it."""
    found = re.findall(r"COMPLETED.*\(seconds: ([^)]*)\)", told)[-1]
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


def _original(config: Settings, evals: int, used: int) -> tuple[float, float]:
    """Seconds of the original's way of training on the same rows, and its log loss."""
    began = time.perf_counter()
    frame, labels = original.read(config, config.data.train)
    more, more_labels = original.read(config, config.data.test)
    frame = pd.concat([frame, more[:used]], ignore_index=True)
    both = np.concatenate([labels, more_labels[:used]])
    trained = original.train(frame, both, config, evals)
    seconds = time.perf_counter() - began
    return seconds, original_loss(config, trained, used)
