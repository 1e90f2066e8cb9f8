"""What METRICS_PORT costs: the predictor's processor time per message, when it is scraped.

The predictor works off one long backlog. In turns it is scraped many times a second for a while,
and not at all: so both see the same machine, and what one scrape costs stands out from its noise.
"""

import argparse
import os
import statistics
import threading
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

from benchmarks.common import (
    NEVER,
    Pipeline,
    Section,
    Table,
    Workshop,
    at_most,
    ends,
    fill,
    rows_of,
    running,
)
from utils import messages, process
from utils.broker.ports import free_port
from utils.kafka_io import LogReader

#: Scrapes a second that are asked for, of which a busy predictor answers some.
SCRAPES = 20
#: Seconds of a turn; what its change has caused before the turn is left out.
TURN_S, PAUSE_S = 1.5, 0.2


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--rows", type=process.at_least(1), default=100_000 if quick else 1_000_000)


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    with workshop.pipeline(RETRAIN_EVERY=NEVER) as pipeline:
        workshop.say(f"metrics: a backlog of {options.rows} rows")
        idle, busy, scrapes = measure(pipeline, options.rows)
    ratio = 1 + (busy / idle - 1) / scrapes
    table = Table("Processor time a row", ["what", "us", "ratio", "goal", "reached?"])
    table.add("not scraped", f"{idle:.1f}", "", "", "")
    table.add(f"{scrapes:.1f} scrapes a second", f"{busy:.1f}", f"{busy / idle:.3f}", "", "")
    table.add("so, one scrape a second", "", f"{ratio:.3f}", *at_most(ratio, 1.02))
    note = f"Medians of turns of {TURN_S} s, of one predictor on a backlog of {options.rows} rows."
    return Section("Metrics", [table], [note])


def measure(pipeline: Pipeline, rows: int) -> tuple[float, float, float]:
    """Microseconds a row without scrapes and with them, and how many those were a second."""
    fill(pipeline, rows_of(pipeline.settings, outcome=True), rows, f"m{time.monotonic_ns()}")
    end = sum(ends(pipeline).values()) + rows
    port = free_port()
    found: dict[bool, list[float]] = defaultdict(list)
    scrapes, seconds = 0, 0.0
    with (
        running(pipeline, "predictor.py", says="serves partitions", METRICS_PORT=str(port)) as it,
        LogReader(pipeline.settings.kafka, [messages.PREDICTIONS]) as reader,
        Scraper(port) as scraper,
    ):
        while True:
            scraper.on = not scraper.on
            time.sleep(PAUSE_S)
            before = sum(reader.ends().values()), _processor_seconds(it.process.pid), scraper.count
            time.sleep(TURN_S)
            after = sum(reader.ends().values()), _processor_seconds(it.process.pid), scraper.count
            if after[0] >= end:
                break
            if it.process.poll() is not None:
                raise RuntimeError(f"the predictor has ended: {it.text()}")
            if (done := after[0] - before[0]) > 0:
                found[scraper.on].append((after[1] - before[1]) / done * 1e6)
            if scraper.on:
                scrapes, seconds = scrapes + after[2] - before[2], seconds + TURN_S
    idle, busy = (statistics.median(found[on]) for on in (False, True))
    return idle, busy, scrapes / seconds


class Scraper(threading.Thread):
    """Asks for the metrics again and again while `on`; a context manager."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.on, self.count = False, 0
        self._address = f"http://127.0.0.1:{port}/metrics"
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(1 / SCRAPES):
            if self.on:
                with urllib.request.urlopen(self._address, timeout=30) as answer:
                    answer.read()
                self.count += 1

    def __enter__(self) -> "Scraper":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self.join()


def _processor_seconds(pid: int) -> float:
    """The processor time of a process so far, of all its threads (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
