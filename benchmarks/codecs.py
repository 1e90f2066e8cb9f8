"""Rows per second of the predictor, and bytes on disk, by the codec of what it reads and writes.

The application and the predictor compress with the same codec. All rows are on the topic before
the predictor starts; its rate is measured as in the benchmark `throughput`. Rounds are interleaved.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from benchmarks.common import (
    NEVER,
    Pipeline,
    Section,
    Table,
    Workshop,
    by_turns,
    predictor_rate,
    rows_of,
)
from utils import messages, process
from utils.settings import ROOT, Kafka

CODECS: tuple[str, ...] = get_args(Kafka.model_fields["compression"].annotation)
TOPICS = (messages.APP_MESSAGES, messages.PREDICTIONS)


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--rows", type=process.at_least(1), default=8_000 if quick else 150_000)
    parser.add_argument("--rounds", type=process.at_least(1), default=1 if quick else 3)


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    with workshop.pipeline(RETRAIN_EVERY=NEVER) as pipeline:
        bench = Codecs(pipeline, workshop.folder())
        workshop.say("codecs: warming up")
        bench.measure("none", options.rows)
        bench.sizes.clear()
        workshop.say(f"codecs: {options.rounds} rounds of {options.rows} rows")
        turns: dict[str, Callable[[], float]] = {
            codec: partial(bench.measure, codec, options.rows) for codec in CODECS
        }
        found = by_turns(options.rounds, turns, workshop.say)
    table = Table(
        "Rows a second and bytes on disk",
        ["codec", "rows/s", "to uncompressed", "bytes a message", "bytes a prediction"],
    )
    for codec, value in found.items():
        sizes = (f"{bench.sizes[codec, topic] / options.rows:.0f}" for topic in TOPICS)
        table.add(codec, f"{value:,.0f}", f"{value / found['none']:.2f}", *sizes)
    section = Section("Codecs", [table])
    section.notes.append(
        f"{options.rows} rows, median of {options.rounds} interleaved rounds. Messages are "
        "compressed in batches of up to 256 KiB, predictions in batches of up to 512 KiB, both by "
        "kafka-python."
    )
    return section


class Codecs:
    """Measures on one broker; each codec has settings of its own.

    Attributes:
        sizes: The bytes that the last measurement has added, by codec and topic.
    """

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self.sizes: dict[tuple[str, str], int] = defaultdict(int)
        self._broker = pipeline.broker
        self._rows = rows_of(pipeline.settings)
        self._pipelines = {}
        for codec in CODECS:
            config = folder / f"{codec}.toml"
            text = (ROOT / "pipeline.toml").read_text("utf-8")
            config.write_text(text.replace('compression = "none"', f'compression = "{codec}"'))
            self._pipelines[codec] = Pipeline(
                pipeline.home, pipeline.broker, PIPELINE_CONFIG=str(config), RETRAIN_EVERY=NEVER
            )

    def measure(self, codec: str, rows: int) -> float:
        """Rows per second of a predictor that starts when all rows are on the topic."""
        pipeline, before = self._pipelines[codec], self._bytes()
        found = predictor_rate(pipeline, self._rows, rows)
        for topic, size in self._bytes().items():
            self.sizes[codec, topic] = size - before[topic]
        return found

    def _bytes(self) -> dict[str, int]:
        folder = self._broker.home / "log"
        return {
            topic: sum(file.stat().st_size for file in folder.glob(f"{topic}-0/*.log"))
            for topic in TOPICS
        }
