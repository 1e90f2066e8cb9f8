"""The predictor against what scoring alone costs, and against a row at a time.

    python -m benchmarks.predictor [--rows 48843] [--rounds 3]

Exactly-once, one process, a broker of its own, all rows of adult.test three times over.
Compared with `Booster.predict` alone in one thread over the encoded rows (the limit), and
with a predictor in the style of the original: one row, one pandas frame, one flushed
record. Rounds are interleaved; the medians are compared.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from predictor import MAX_RECORDS, Predictor
from train.retrain import train
from utils import download, kafka_io, messages, preprocess_data, settings
from utils.broker import Broker
from utils.bundle_watcher import BundleWatcher
from utils.bundles import Bundle
from utils.kafka_io import ExactlyOnce, LogReader, Outgoing, Sender
from utils.model_store import ModelStore
from utils.settings import Settings

ROW_BY_ROW = 300


def prepared(home: Path, bootstrap: str) -> Settings:
    """A home with the Adult data, a model and topics."""
    found = settings.load({"PIPELINE_HOME": str(home), "KAFKA_BOOTSTRAP_SERVERS": bootstrap})
    found.data_dir.mkdir(parents=True, exist_ok=True)
    cache = settings.load({}).data_dir
    cache.mkdir(parents=True, exist_ok=True)
    for data_file in found.data.files:
        path = download.fetch(data_file, cache, lambda line: None)
        (found.data_dir / data_file.name).symlink_to(path)
    train(found, snapshot=None, hyper="hyperopt", evals=10, first=True)
    kafka_io.ensure_topics(found.kafka, messages.GROUPS)
    return found


def test_rows(config: Settings) -> list[dict[str, Any]]:
    """The rows of adult.test as messages carry them, without their outcome."""
    frame = preprocess_data.read_frame(config.data_dir / config.data.test, config.data)
    numerical, _ = preprocess_data.column_types(frame, config.data)
    return list(preprocess_data.records(frame.drop(columns=[config.data.target]), numerical))


def fill(config: Settings, rows: list[dict[str, Any]], prefix: str) -> None:
    """Put the rows on `app_messages`."""
    with Sender(config.kafka, linger_ms=20) as sender:
        for number, row in enumerate(rows):
            name = f"{prefix}-{number}"
            value = msgspec.json.encode({"request_id": name, "data": row})
            sender.send(Outgoing(messages.APP_MESSAGES, 0, name.encode(), value))
        sender.flush(120)


def pipeline(predictor: Predictor, rows: int) -> float:
    """Rows a second of the real loop, from the first batch to the last commit."""
    target = predictor.predictions + rows
    begun = time.perf_counter()
    while predictor.predictions < target:
        predictor.step()
    return rows / (time.perf_counter() - begun)


def booster_alone(bundle: Bundle, matrix: np.ndarray) -> float:
    """Rows a second of the model itself, one thread, in the predictor's batch size."""
    begun = time.perf_counter()
    for start in range(0, len(matrix), MAX_RECORDS):
        bundle.score(matrix[start : start + MAX_RECORDS])
    return len(matrix) / (time.perf_counter() - begun)


def row_by_row(config: Settings, bundle: Bundle, rows: list[dict[str, Any]]) -> float:
    """Rows a second of one frame and one flushed record a row, without transactions."""
    with (
        LogReader(config.kafka, [messages.APP_MESSAGES], max_records=1) as reader,
        Sender(config.kafka) as sender,
    ):
        reader.poll(1_000)
        done, begun = 0, time.perf_counter()
        while done < ROW_BY_ROW:
            for records in reader.poll(1_000).values():
                for record in records:
                    message = msgspec.json.decode(record.value)
                    frame = pd.DataFrame(message["data"], index=[0])
                    probability = bundle.score(bundle.features.transform(frame))[0]
                    value = msgspec.json.encode({"prediction": float(probability)})
                    sender.send(Outgoing(messages.PREDICTIONS, 0, None, value))
                    sender.flush()
                    done += 1
        return done / (time.perf_counter() - begun)


def measure(rows: int, rounds: int) -> dict[str, float]:
    """The medians, rows a second, by what was measured."""
    found: dict[str, list[float]] = {"predictor": [], "booster": [], "row by row": []}
    with ExitStack() as resources:
        home = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        broker = resources.enter_context(Broker(home / "broker"))
        config = prepared(home, broker.bootstrap)
        some = test_rows(config)
        sent = list(itertools.islice(itertools.cycle(some), rows))
        quiet: Callable[[str], None] = lambda line: None  # noqa: E731
        watcher = BundleWatcher(ModelStore(config.models_dir), config.kafka, quiet)
        resources.enter_context(watcher)
        bundle = watcher.current()
        exchange = ExactlyOnce(
            config.kafka,
            group=messages.PREDICTOR_GROUP,
            topics=messages.GROUPS[messages.PREDICTOR_GROUP],
            slot="benchmark",
            max_records=MAX_RECORDS,
            report=quiet,
        )
        resources.callback(exchange.close)
        predictor = Predictor(exchange, bundle, watcher, every=10**9, report=quiet)
        matrix = bundle.features.transform(pd.DataFrame(sent))
        fill(config, some[:5000], "warm")
        pipeline(predictor, 5000)
        for number in range(rounds):
            fill(config, sent, f"round-{number}")
            found["predictor"].append(pipeline(predictor, rows))
            found["booster"].append(booster_alone(bundle, matrix))
            found["row by row"].append(row_by_row(config, bundle, some))
        trees = bundle.booster.num_trees()
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {**medians, "trees": trees}


def table(found: dict[str, float]) -> Table:
    """The figures and their ratios."""
    result = Table("what", "rows/s", "the predictor's ratio to it")
    for name in ("predictor", "booster", "row by row"):
        ratio = found["predictor"] / found[name]
        result.add_row(name, f"{found[name]:,.0f}", f"{ratio:.2f}")
    result.caption = f"model of {found['trees']:.0f} trees; exactly-once, one process"
    return result


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=48_843)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    Console().print(table(measure(arguments.rows, arguments.rounds)))


if __name__ == "__main__":
    main()
