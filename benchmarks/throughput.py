"""Rows per second of one predictor, exactly-once, compared with three others.

All rows of adult.test, repeated twelve times, are on the topic before a process starts. Its
rate is computed from the broker's timestamps of predictions, from a quarter of the run to nine
tenths, so it includes neither start nor end. Rounds are interleaved; medians are compared.
"""

import argparse
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import pandas as pd

from benchmarks import rivals
from benchmarks.common import (
    NEVER,
    Pipeline,
    Section,
    Table,
    Workshop,
    at_least,
    by_turns,
    ends,
    fill,
    predictor_rate,
    rate,
    rows_of,
    running,
    stamps,
)
from utils import process
from utils.model_store import ModelStore
from utils.model_store.bundle import Bundle
from utils.settings import ROOT

QUIX_PYTHON = ROOT / ".venv-quix" / "bin" / "python"
QUIX, QUIX_FAST = "Quix Streams, Booster.predict", "Quix Streams, single-row C call"
#: Rows per call of `Booster.predict` alone.
BATCH = 2_000
ROW_BY_ROW = 300


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--rows", type=process.at_least(1), default=8_000 if quick else 195_372)
    parser.add_argument("--rounds", type=process.at_least(1), default=1 if quick else 3)


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    with workshop.pipeline(RETRAIN_EVERY=NEVER) as pipeline:
        contenders = Contenders(pipeline)
        workshop.say("throughput: warming up")
        by_turns(1, contenders.all(BATCH * 2), workshop.say)
        contenders.predictor(options.rows)  # until Java has compiled the broker's hot code
        workshop.say(f"throughput: {options.rounds} rounds of {options.rows} rows")
        found = by_turns(options.rounds, contenders.all(options.rows), workshop.say)
        bundle = contenders.bundle
    section = Section("Throughput", [_table(found)])
    section.notes.append(
        f"One process each, {options.rows} rows, median of {options.rounds} interleaved rounds; a "
        f"model of {bundle.booster.num_trees()} trees. Exactly-once, except the row-by-row program "
        f"(which got {ROW_BY_ROW} rows) and the model alone. Rates are computed from the broker's "
        "timestamps between a quarter and nine tenths of the run. By default Quix Streams commits "
        "every 5 s, so hardly once in its run."
    )
    section.notes.append(
        f"Quix Streams scores a row with {QUIX.split(', ')[1]}, as a user would write it, and with "
        "LightGBM's C function for single rows, the fastest way to score one row, which its Python "
        "package does not offer. The goal applies to both."
    )
    if QUIX not in found:
        section.notes.append(f"Quix Streams was left out: there is no {QUIX_PYTHON.parent}.")
    return section


class Contenders:
    """The programs that are compared; each method measures rows per second."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.rows = rows_of(pipeline.settings)
        self.bundle: Bundle = ModelStore(pipeline.settings.models_dir).load_current()
        names = ("quix_in", "quix_out", "rows_in", "rows_out")
        rivals.create_topics(pipeline.settings.kafka.bootstrap_servers, names)

    def all(self, rows: int) -> dict[str, Callable[[], float]]:
        """The measurements by name, with `rows` rows each."""
        turns: dict[str, Callable[[], float]] = {"predictor.py": lambda: self.predictor(rows)}
        if QUIX_PYTHON.exists():
            turns[QUIX] = lambda: self.quix(rows)
            turns[QUIX_FAST] = lambda: self.quix(rows, "fast")
        turns["row by row"] = self.row_by_row
        turns["Booster.predict alone"] = lambda: self.booster(rows)
        return turns

    def predictor(self, rows: int) -> float:
        """Measure this project's predictor, which starts when all rows are on the topic."""
        return predictor_rate(self.pipeline, self.rows, rows)

    def quix(self, rows: int, *how: str) -> float:
        """Measure Quix Streams in the same way."""
        fill(self.pipeline, self.rows, rows, _prefix(), topic="quix_in")
        since = ends(self.pipeline, "quix_out")
        command = ("-m", "benchmarks.rivals.quix_streams", "quix_in", "quix_out", *how)
        with running(self.pipeline, *command, python=str(QUIX_PYTHON)):
            return rate(stamps(self.pipeline, since, rows, "quix_out"))

    def row_by_row(self) -> float:
        """Measure one DataFrame and one flushed record per row, without transactions."""
        command = ("-m", "benchmarks.rivals.row_by_row", "rows_in", "rows_out")
        with running(self.pipeline, *command, says="ready"):
            since = ends(self.pipeline, "rows_out")
            fill(self.pipeline, self.rows, ROW_BY_ROW, _prefix(), topic="rows_in")
            return rate(stamps(self.pipeline, since, ROW_BY_ROW, "rows_out"))

    def booster(self, rows: int) -> float:
        """Measure the upper limit: the model alone, in batches on one thread."""
        return booster_alone(self.bundle, self.rows, rows)


def booster_alone(bundle: Bundle, rows: list[dict[str, Any]], count: int) -> float:
    """Rows per second of `Booster.predict` on encoded rows, with one thread."""
    matrix = bundle.features.transform(pd.DataFrame(list(islice(cycle(rows), count))))
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        bundle.booster.predict(matrix[start : start + BATCH], num_threads=1)
    return count / (time.perf_counter() - began)


def _prefix() -> str:
    return f"t{time.monotonic_ns()}"


def _table(found: dict[str, float]) -> Table:
    table = Table("Rows a second", ["what", "rows/s", "predictor.py / it", "goal", "reached?"])
    goals = {QUIX: 3.0, QUIX_FAST: 3.0, "row by row": 300.0, "Booster.predict alone": 0.7}
    ours = found["predictor.py"]
    for name, value in found.items():
        cells = at_least(ours / value, goals[name]) if name in goals else ("", "")
        table.add(name, f"{value:,.0f}", f"{ours / value:.2f}", *cells)
    return table
