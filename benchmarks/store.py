"""The time to read the stored rows by their number, compared with a CSV file of the same rows.

Fills a store with messages, predictions and late outcomes, as read from the log, and with the
copy of their records. At several
sizes it measures a snapshot as each retraining reads it, `pandas.read_csv` of the same rows,
and all steps of a training before its search.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from benchmarks.common import Plot, Section, Table, Workshop, at_most
from train.training_rows import Problem, fit_preprocessor, gather_rows, training_matrix
from utils import process
from utils.feature_tools import FeatureTools
from utils.message_store import Batch, MessageStore, RawRecord, Snapshot, StoredMessage
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS
from utils.settings import Settings

BATCH = 2000
NUMBERS = {  # the highest value, and the share that is not 0
    "age": (90, 1.0),
    "fnlwgt": (1_484_705, 1.0),
    "capital_gain": (99_999, 0.08),
    "capital_loss": (4_356, 0.05),
    "hours_per_week": (99, 1.0),
}
TEXTS = {  # how many categories
    "workclass": 9,
    "education": 16,
    "marital_status": 7,
    "occupation": 15,
    "relationship": 6,
    "race": 5,
    "gender": 2,
    "native_country": 42,
}


def make_rows(rows: int) -> pd.DataFrame:
    """Synthetic rows in the shape of the Adult data set, with ids and outcomes."""
    random = np.random.default_rng(1)
    columns: dict[str, Any] = {"request_id": [random.bytes(16).hex() for _ in range(rows)]}
    for name, (highest, share) in NUMBERS.items():
        values = random.integers(1, highest + 1, rows)
        columns[name] = np.where(random.random(rows) < share, values, 0).astype(np.float64)
    for name, count in TEXTS.items():
        texts = [f"{name[: 3 + i % 9].title()}-{i}" for i in range(count)]
        columns[name] = np.array(texts, dtype=object)[random.integers(0, count, rows)]
    columns["outcome"] = np.array(["<=50K", ">50K"], object)[random.integers(0, 2, rows)]
    return pd.DataFrame(columns)


def batches(frame: pd.DataFrame, begin: int, end: int) -> Iterator[Batch]:
    """Yield rows `begin` to `end` as batches; an outcome comes one batch after its row."""
    names = [*NUMBERS, *TEXTS]
    late: list[tuple[str, str, int, int, int]] = []
    for first in range(begin, end, BATCH):
        part = frame.iloc[first : min(first + BATCH, end)]
        values = zip(*(part[name].tolist() for name in names), strict=True)
        batch = Batch(outcomes=late)
        late = []
        rows = zip(part["request_id"], part["outcome"], values, strict=True)
        for offset, (name, outcome, row) in enumerate(rows, first):
            batch.messages.append(StoredMessage(name, 0, offset, offset, row, None))
            batch.predictions.append((name, 1, 0.25, 0, offset, offset))
            late.append((name, outcome, 0, offset, offset))
            for topic in (APP_MESSAGES, PREDICTIONS):
                batch.offsets[(topic, 0)] = offset + 1
        batch.raw = _raw_records(batch, names)
        yield batch
    last = Batch(outcomes=late, offsets={(OUTCOMES, 0): end})
    last.raw = _raw_records(last, names)
    yield last


def _raw_records(batch: Batch, names: list[str]) -> dict[tuple[str, int], list[RawRecord]]:
    """The records that a batch was decoded from."""
    values: dict[str, list[tuple[int, dict[str, Any]]]] = {
        APP_MESSAGES: [
            (
                m.offset,
                {"request_id": m.request_id, "data": dict(zip(names, m.values, strict=True))},
            )
            for m in batch.messages
        ],
        PREDICTIONS: [
            (
                offset,
                {
                    "request_id": name,
                    "prediction": 0,
                    "label": "<=50K",
                    "probability": probability,
                    "model_id": model_id,
                },
            )
            for name, model_id, probability, _, offset, _ in batch.predictions
        ],
        OUTCOMES: [
            (offset, {"request_id": name, "outcome": outcome})
            for name, outcome, _, offset, _ in batch.outcomes
        ],
    }
    return {
        (topic, 0): [
            RawRecord(offset, offset, msgspec.json.encode(value)) for offset, value in records
        ]
        for topic, records in values.items()
        if records
    }


def measure(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def check(frame: pd.DataFrame, snapshot: Snapshot) -> None:
    """Check that a snapshot has exactly the rows that were stored."""
    read = snapshot.frame.assign(request_id=snapshot.request_ids, outcome=snapshot.outcomes)
    read[list(TEXTS)] = read[list(TEXTS)].astype(object)
    pd.testing.assert_frame_equal(
        read.sort_values("request_id", ignore_index=True)[list(frame.columns)],
        frame.sort_values("request_id", ignore_index=True),
        check_dtype=False,
    )


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    sizes = [2_000, 8_000] if quick else [32_000, 125_000, 500_000, 2_000_000]
    parser.add_argument(
        "--sizes", type=process.at_least(1), nargs="+", default=sizes, help="stored rows"
    )
    parser.add_argument("--url", help="another database (default: SQLite in a temporary folder)")
    parser.add_argument("--repeat", type=process.at_least(1), default=1 if quick else 3)


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    sizes = sorted(options.sizes)
    frame = make_rows(sizes[-1])
    config = workshop.settings()
    columns = ["rows", "to store, rows/s", "snapshot, s", "read_csv, s", "snapshot / read_csv"]
    columns += ["goal", "reached?", "before the search, s", "database, MB", "CSV, MB"]
    table = Table("Stored rows", columns)
    curves: dict[str, list[tuple[float, float]]] = {"snapshot": [], "pandas.read_csv": []}
    curves |= {"all before the search": []}
    with tempfile.TemporaryDirectory() as folder:
        csv, url = Path(folder, "rows.csv"), options.url or f"sqlite:///{folder}/messages.db"
        with MessageStore(url, _features(frame)) as store:
            begin = 0
            for size in sizes:
                workshop.say(f"store: {size:,} rows")
                storing = _store(store, frame, begin, size)
                frame[:size].to_csv(csv, index=False)
                if begin == 0:
                    check(frame[:size], store.snapshot())
                # Interleaved, so that other load on the machine affects both.
                turns = [
                    (measure(store.snapshot)[0], measure(lambda: pd.read_csv(csv))[0])
                    for _ in range(options.repeat)
                ]
                reading, csv_reading = (median(times) for times in zip(*turns, strict=True))
                preparing = measure(lambda: _before_the_search(config, store))[0]
                ratio = reading / csv_reading
                database = sum(path.stat().st_size for path in Path(folder).glob("messages.db*"))
                table.add(
                    f"{size:,}",
                    f"{(size - begin) / storing:,.0f}",
                    f"{reading:.2f}",
                    f"{csv_reading:.2f}",
                    f"{ratio:.2f}",
                    *at_most(ratio, 1.0),
                    f"{preparing:.2f}",
                    f"{database / 1e6:.0f}",
                    f"{csv.stat().st_size / 1e6:.0f}",
                )
                for curve, seconds in zip(
                    curves.values(), (reading, csv_reading, preparing), strict=True
                ):
                    curve.append((size, seconds))
                begin = size
    section = Section("Stored rows", [table])
    (low, few), (high, many) = curves["snapshot"][0], curves["snapshot"][-1]
    section.notes.append(
        f"From {low:,.0f} to {high:,.0f} rows ({high / low:.0f} times as many), a snapshot takes "
        f"{many / few:.0f} times as long. A stored row is a message, a prediction and a late "
        "outcome. 'Before the search': reading a snapshot and the data set, fitting the "
        "preprocessor and encoding the matrix."
    )
    section.plots.append(Plot("store", "Stored rows", curves, x="rows", y="seconds", log=True))
    return section


def _features(frame: pd.DataFrame) -> FeatureTools:
    return FeatureTools().fit(
        frame.head(1000),
        target="outcome",
        numerical=list(NUMBERS),
        categorical=list(TEXTS),
        crosses=[],
        classes=["<=50K", ">50K"],
    )


def _store(store: MessageStore, frame: pd.DataFrame, begin: int, end: int) -> float:
    """Store rows; returns the seconds, without the time to create the batches."""
    seconds = 0.0
    for batch in batches(frame, begin, end):
        seconds += measure(lambda batch=batch: store.ingest(batch))[0]  # type: ignore[misc]
    return seconds


def _before_the_search(config: Settings, store: MessageStore) -> None:
    problem = Problem.of(config, None)
    rows = gather_rows(problem, store.snapshot())
    training_matrix(rows, fit_preprocessor(rows, problem))
