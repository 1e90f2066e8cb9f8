"""Cost by number of predictors and partitions, trees and features, and for a million messages.

The benchmark `store` measures cost by number of stored rows.
"""

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import lightgbm as lgb
import msgspec
import numpy as np
import pandas as pd

from benchmarks.common import (
    NEVER,
    Pipeline,
    Plot,
    Section,
    Table,
    Workshop,
    ends,
    fill,
    rate,
    resident,
    rows_of,
    running,
    stamps,
)
from benchmarks.throughput import booster_alone
from train import fit
from train.training_rows import Problem, gather_rows, training_matrix
from utils import messages, process
from utils.message_store import MessageStore
from utils.model_store import ModelStore
from utils.model_store.bundle import Bundle, Draft
from utils.model_store.manifest import TrainingRecord
from utils.settings import Settings

CONFIG = """\
[data]
train = "made.data"
test = "made.test"
target = "target"
positive = "yes"
"""
MADE_ROWS = 4_000


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parts = list(PARTS)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rows", type=process.at_least(1), default=10_000 if quick else 120_000)
    parser.add_argument(
        "--predictors", type=process.at_least(1), nargs="+", default=[1, 2] if quick else [1, 2, 4]
    )
    parser.add_argument(
        "--partitions", type=process.at_least(1), nargs="+", default=[4] if quick else [4, 8]
    )
    trees = [20, 50] if quick else [50, 200, 500, 1000, 2000]
    parser.add_argument("--trees", type=process.at_least(1), nargs="+", default=trees)
    features = [14, 30] if quick else [14, 50, 150, 500]
    parser.add_argument("--features", type=process.at_least(1), nargs="+", default=features)
    parser.add_argument(
        "--messages", type=process.at_least(1), default=20_000 if quick else 1_000_000
    )


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    section = Section("Growth")
    for name in options.parts:
        workshop.say(f"growth: {name}")
        PARTS[name](options, workshop, section)
    return section


# Predictors and partitions


def _predictors(options: argparse.Namespace, workshop: Workshop, section: Section) -> None:
    table = Table(
        "Rows a second by predictors and partitions",
        ["partitions", "predictors", "rows/s", "times one predictor"],
    )
    curves: dict[str, list[tuple[float, float]]] = {}
    for partitions in options.partitions:
        curve = [
            (count, _measure_predictors(workshop, options.rows, count, partitions))
            for count in options.predictors
        ]
        curves[f"{partitions} partitions"] = curve
        for count, value in curve:
            ratio = value / curve[0][1]
            table.add(str(partitions), str(count), f"{value:,.0f}", f"{ratio:.2f}")
    section.tables.append(table)
    gains = ", ".join(f"{c[-1][1] / c[0][1]:.2f} times on {name}" for name, c in curves.items())
    section.notes.append(
        f"From {options.predictors[0]} to {options.predictors[-1]} predictors, rows a second grow "
        f"{gains}. Predictors and broker share this machine's cores, which limits the gain. "
        "Measured while the middle half of the rows was answered."
    )
    section.plots.append(
        Plot("predictors", "Throughput by predictors", curves, x="predictors", y="rows/s")
    )


def _measure_predictors(workshop: Workshop, rows: int, count: int, partitions: int) -> float:
    with workshop.pipeline(partitions=partitions, RETRAIN_EVERY=NEVER) as pipeline:
        fill(pipeline, rows_of(pipeline.settings), rows, "g", partitions)
        since = ends(pipeline)
        with ExitStack() as resources:
            for _ in range(count):
                resources.enter_context(running(pipeline, "predictor.py"))
            stamped = stamps(pipeline, since, rows)
    # In this part of the run all have joined, and none has run out of rows.
    return rate(stamped, 0.4)


# Trees


def _trees(options: argparse.Namespace, workshop: Workshop, section: Section) -> None:
    table = Table(
        "Microseconds a row by trees",
        ["trees", "predictor.py", "Booster.predict alone", "predictor.py above it"],
    )
    ours: list[tuple[float, float]] = []
    alone: list[tuple[float, float]] = []
    with workshop.pipeline(RETRAIN_EVERY=NEVER) as pipeline:
        rows = rows_of(pipeline.settings)
        largest = _fit(pipeline.settings, max(options.trees))
        for trees in sorted(options.trees):
            bundle = _publish(pipeline.settings, largest, trees, rows)
            count = max(options.rows // 6, 5_000)
            ours.append((trees, 1e6 / _measure_rate(pipeline, rows, count)))
            alone.append((trees, 1e6 / booster_alone(bundle, rows, count)))
            table.add(
                str(trees),
                f"{ours[-1][1]:.1f}",
                f"{alone[-1][1]:.1f}",
                f"{ours[-1][1] - alone[-1][1]:.1f}",
            )
    section.tables.append(table)
    section.notes.append(_growth("trees", "a row in the predictor", ours))
    curves = {"predictor.py": ours, "Booster.predict alone": alone}
    section.plots.append(
        Plot("trees", "Cost of a row", curves, x="trees", y="microseconds a row", log=True)
    )


def _fit(config: Settings, trees: int) -> lgb.Booster:
    bundle = ModelStore(config.models_dir).load_current()
    matrix, codes = training_matrix(gather_rows(Problem.of(config, None), None), bundle.features)
    params = dict(bundle.manifest.hyperparameters)
    params.pop("num_boost_round")
    return fit.fit(matrix, codes, bundle.features, params, trees, threads=1)


def _publish(
    config: Settings, largest: lgb.Booster, trees: int, rows: list[dict[str, Any]]
) -> Bundle:
    """Publish the first trees of a model as the serving bundle."""
    store = ModelStore(config.models_dir)
    model = lgb.Booster(model_str=largest.model_to_string(num_iteration=trees))
    draft = Draft(
        model_text=fit.model_text(model),
        features=store.load_current().features,
        hyperparameters={"num_boost_round": trees},
        seed=1,
        training=TrainingRecord(rows=0),
        golden_rows=rows[:5],
    )
    store.publish(draft)
    store.prune(1)
    return store.load_current()


def _measure_rate(pipeline: Pipeline, rows: Sequence[dict[str, Any]], count: int) -> float:
    """Rows per second of a predictor that starts when all rows are on the topic."""
    fill(pipeline, rows, count, f"a{time.monotonic_ns()}")
    since = ends(pipeline)
    with running(pipeline, "predictor.py"):
        return rate(stamps(pipeline, since, count))


# Features


def _features(options: argparse.Namespace, workshop: Workshop, section: Section) -> None:
    table = Table(
        "Microseconds a row by features",
        ["features", "bytes a message", "predictor.py", "Booster.predict alone"],
    )
    ours: list[tuple[float, float]] = []
    alone: list[tuple[float, float]] = []
    config = workshop.folder() / "pipeline.toml"
    config.write_text(CONFIG)
    for count in options.features:
        with workshop.empty(PIPELINE_CONFIG=str(config), RETRAIN_EVERY=NEVER) as pipeline:
            data = pipeline.settings.data_dir
            data.mkdir()
            make_data(MADE_ROWS, count).to_csv(data / "made.data", index=False)
            make_data(MADE_ROWS, count).to_csv(data / "made.test", index=False)
            done = pipeline.run("initialize.py", "--evals", "1", timeout=300)
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
            rows = rows_of(pipeline.settings)
            answers = max(options.rows // 10, 5_000)
            bundle = ModelStore(pipeline.settings.models_dir).load_current()
            ours.append((count, 1e6 / _measure_rate(pipeline, rows, answers)))
            alone.append((count, 1e6 / booster_alone(bundle, rows, answers)))
            size = len(encode_message(rows[0]))
            table.add(str(count), str(size), f"{ours[-1][1]:.1f}", f"{alone[-1][1]:.1f}")
    section.tables.append(table)
    section.notes.append(
        _growth("features", "a row in the predictor", ours)
        + " Synthetic data: half of the features are numbers, half have ten categories. A "
        "message names each feature."
    )
    curves = {"predictor.py": ours, "Booster.predict alone": alone}
    section.plots.append(
        Plot("features", "Cost of a row", curves, x="features", y="microseconds a row", log=True)
    )


def encode_message(row: dict[str, Any]) -> bytes:
    """A row as a message's bytes."""
    return msgspec.json.encode({"request_id": "a" * 16, "data": row})


def make_data(rows: int, features: int) -> pd.DataFrame:
    """Synthetic data: alternating numbers and categories; the target depends on two of them."""
    random = np.random.default_rng(1)
    columns: dict[str, Any] = {}
    for place in range(features):
        if place % 2:
            columns[f"text{place}"] = random.choice([f"name-{n}" for n in range(10)], rows)
        else:
            columns[f"number{place}"] = random.normal(size=rows).round(4)
    chance = 1 / (1 + np.exp(-2 * columns["number0"] - (columns["text1"] == "name-3")))
    columns["target"] = np.where(random.random(rows) < chance, "yes", "no")
    return pd.DataFrame(columns)


# A million messages


def _million(options: argparse.Namespace, workshop: Workshop, section: Section) -> None:
    samples: list[tuple[int, dict[str, float]]] = []
    with (
        workshop.pipeline(RETRAIN_EVERY=NEVER) as pipeline,
        running(pipeline, "predictor.py", says="serves part") as predictor,
        running(pipeline, "trainer.py", says="ready") as trainer,
    ):
        pids = {
            "predictor.py": predictor.process.pid,
            "trainer.py": trainer.process.pid,
            "broker": pipeline.broker.pid,
        }
        rows, since, done = rows_of(pipeline.settings), ends(pipeline), threading.Event()
        sampling = threading.Thread(target=_sample, args=(pipeline, pids, samples, done))
        sampling.start()
        began = time.monotonic()
        fill(pipeline, rows, options.messages, "m")
        sent = time.monotonic() - began
        answered = _until_answered(pipeline, since, options.messages) - began
        stored = _until_stored(pipeline, options.messages) - began
        done.set()
        sampling.join()
    table = Table("Resident memory (MB) by predictions made", ["predictions", *pids])
    for share in (0.05, 0.25, 0.5, 0.75, 1.0):
        made_so_far = min(share * options.messages, samples[-1][0])
        number, sizes = next(s for s in samples if s[0] >= made_so_far)
        table.add(f"{number:,}", *(f"{size:.0f}" for size in sizes.values()))
    table.add("after storing", *(f"{size:.0f}" for size in samples[-1][1].values()))
    section.tables.append(table)
    middle = next(s for s in samples if s[0] >= samples[-1][0] / 2)[1]
    changes = ", ".join(f"{n} {samples[-1][1][n] - middle[n]:+.0f} MB" for n in pids)
    section.notes.append(
        f"{options.messages:,} messages end to end: sent in {sent:.0f} s, all answered after "
        f"{answered:.0f} s, all in the trainer's store after {stored:.0f} s, on one machine. "
        f"Change of memory from half of the predictions to the end: {changes}."
    )
    curves = {name: [(n / 1e6, sizes[name]) for n, sizes in samples] for name in pids}
    section.plots.append(
        Plot("memory", "Memory", curves, x="million predictions", y="resident memory, MB")
    )


def _sample(
    pipeline: Pipeline,
    pids: dict[str, int],
    samples: list[tuple[int, dict[str, float]]],
    done: threading.Event,
) -> None:
    """Record the memory of each process and the number of predictions every second."""
    while not done.wait(1.0):
        made_so_far = sum(ends(pipeline).values())
        samples.append((made_so_far, {name: resident(pid) for name, pid in pids.items()}))


def _until_answered(pipeline: Pipeline, since: dict[tuple[str, int], int], count: int) -> float:
    """Wait for the predictions; returns the time of the last one (monotonic seconds)."""
    stamped = stamps(pipeline, since, count, timeout=600)
    return time.monotonic() - (time.time() - stamped[-1])


def _until_stored(pipeline: Pipeline, count: int) -> float:
    """Wait until the trainer has stored everything; returns the time (monotonic seconds)."""
    config, deadline = pipeline.settings, time.monotonic() + 900
    features = ModelStore(config.models_dir).load_current().features
    with MessageStore.open(config.messages_url, features) as store:
        while any(
            store.offsets().get((topic, 0), 0) < count
            for topic in (messages.APP_MESSAGES, messages.PREDICTIONS)
        ):
            if time.monotonic() > deadline:
                raise RuntimeError("the trainer does not store the messages")
            time.sleep(0.5)
    return time.monotonic()


def _growth(what: str, cost_of: str, points: list[tuple[float, float]]) -> str:
    (first, low), (last, high) = points[0], points[-1]
    return (
        f"From {first:g} to {last:g} {what} ({last / first:.0f} times as many), {cost_of} costs "
        f"{high / low:.1f} times as much."
    )


PARTS: dict[str, Callable[[argparse.Namespace, Workshop, Section], None]] = {
    "predictors": _predictors,
    "trees": _trees,
    "features": _features,
    "million": _million,
}
