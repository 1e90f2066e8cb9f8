"""The message store against a CSV file of the same rows.

Fills a store with messages, predictions and late outcomes as they come off the log, then
reads it as a retrain does (`snapshot`) and reads a CSV of the same rows with pandas, by
turns. The CSV has the request_id, the columns of the Adult data set and the outcome.

    python -m benchmarks.store [--rows 1000000] [--url sqlite:///...] [--partitions 1]
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.feature_tools import FeatureTools
from utils.message_store import Batch, MessageStore, Snapshot, StoredMessage
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS

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


def made_up(rows: int) -> pd.DataFrame:
    """Rows of the shape of the Adult data set, with ids and outcomes."""
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


def batches(frame: pd.DataFrame, partitions: int) -> Iterator[Batch]:
    """The frame as the log brings it; the outcome of a row comes one batch later."""
    names = [*NUMBERS, *TEXTS]
    late: list[tuple[str, str, int, int, int]] = []
    for first in range(0, len(frame), BATCH):
        part = frame.iloc[first : first + BATCH]
        places = [(row % partitions, row // partitions) for row in range(first, first + len(part))]
        values = zip(*(part[name].tolist() for name in names), strict=True)
        batch = Batch(outcomes=late)
        late = []
        rows = zip(part["request_id"], part["outcome"], places, values, strict=True)
        for name, outcome, (partition, offset), row in rows:
            batch.messages.append(StoredMessage(name, partition, offset, offset, row, None))
            batch.predictions.append((name, 1, 0.25, partition, offset, offset))
            late.append((name, outcome, partition, offset, offset))
            for topic in (APP_MESSAGES, PREDICTIONS):
                batch.offsets[(topic, partition)] = offset + 1
        yield batch
    yield Batch(outcomes=late, offsets={(OUTCOMES, p): len(frame) for p in range(partitions)})


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def check(frame: pd.DataFrame, snapshot: Snapshot) -> None:
    """What the store gives is what was put in."""
    read = snapshot.frame.assign(request_id=snapshot.request_ids, outcome=snapshot.outcomes)
    read[list(TEXTS)] = read[list(TEXTS)].astype(object)
    pd.testing.assert_frame_equal(
        read.sort_values("request_id", ignore_index=True)[list(frame.columns)],
        frame.sort_values("request_id", ignore_index=True),
        check_dtype=False,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--url", help="another database (default: SQLite in a temporary folder)")
    parser.add_argument("--repeat", type=int, default=5, help="of the reading (%(default)s)")
    arguments = parser.parse_args(argv)
    frame = made_up(arguments.rows)
    features = FeatureTools().fit(
        frame.head(1000),
        target="outcome",
        numerical=list(NUMBERS),
        categorical=list(TEXTS),
        crosses=[],
        classes=["<=50K", ">50K"],
    )
    with tempfile.TemporaryDirectory() as folder:
        csv, url = Path(folder, "rows.csv"), arguments.url or f"sqlite:///{folder}/messages.db"
        frame.to_csv(csv, index=False)
        with MessageStore(url, features) as store:
            seconds = 0.0
            for batch in batches(frame, arguments.partitions):
                seconds += timed(lambda batch=batch: store.ingest(batch))[0]  # type: ignore[misc]
            print(
                f"stored {len(frame)} messages, as many predictions and outcomes: {seconds:.1f} s, "
                f"{3 * len(frame) / seconds:,.0f} records/s, {len(frame) / seconds:,.0f} whole "
                "rows/s"
            )
            check(frame, store.snapshot())
            # By turns, so that a busy moment of the machine falls on both.
            turns = [
                (timed(lambda: pd.read_csv(csv))[0], timed(store.snapshot)[0])
                for _ in range(arguments.repeat)
            ]
        if not arguments.url:
            size = sum(path.stat().st_size for path in Path(folder).glob("messages.db*"))
            print(f"on disk: store {size / 1e6:.0f} MB, CSV {csv.stat().st_size / 1e6:.0f} MB")
    csv_seconds, store_seconds = (float(np.median(times)) for times in zip(*turns, strict=True))
    print(f"pandas.read_csv: {csv_seconds:.2f} s (median of {arguments.repeat})")
    print(f"snapshot:        {store_seconds:.2f} s")
    print(f"snapshot / read_csv = {store_seconds / csv_seconds:.2f} (at most 1 is wanted)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the whole benchmark: {peak:.0f} MB")


if __name__ == "__main__":
    main()
