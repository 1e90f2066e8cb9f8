"""How the detector of a higher live loss does: false alarms, and outcomes until a change is seen.

LightGBM learns from Adult's training file; the losses on its test file, drawn at random, are a
stream without drift. In others all labels are swapped from some outcome on, or so many that the
accuracy falls by five points. River's ADWIN (rises only) and PageHinkley (upwards) read the
same streams if river is installed.
"""

import argparse
import importlib
import importlib.util
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks import datasets
from benchmarks.common import Section, Table, Workshop
from train import evaluate, fit
from train.drift import MAX_LOSS, RUN_LENGTH, LossDrift
from train.search_space import space_of
from utils.feature_tools import Matrix

ROUNDS = 100
#: Outcomes before a change, and after it until the search for it is given up.
BEFORE, AFTER = (500, 3_000), 10_000
#: By how much the accuracy falls.
POINTS = 0.05

Update = Callable[[float], bool]


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--orders", type=int, default=5 if quick else 200, help="stationary orders")
    parser.add_argument("--changes", type=int, default=3 if quick else 20, help="orders to change")


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    right, swapped, accuracy = _losses()
    table = Table(
        "A detector of a higher live loss",
        [
            *("detector", f"false alarms in {RUN_LENGTH:,}"),
            *(
                f"{change} after {before:,}"
                for change in ("swapped labels", "accuracy -5 points")
                for before in BEFORE
            ),
        ],
    )
    shares = {"swapped": 1.0, "worse": POINTS / (2 * accuracy - 1)}
    for name, make in _detectors().items():
        workshop.say(f"drift: {name}")
        alarms = [
            sum(map(make(), _draw(right, RUN_LENGTH, seed).tolist()))
            for seed in range(options.orders)
        ]
        delays = [
            [_delay(make(), right, swapped, before, share, seed) for seed in range(options.changes)]
            for share in shares.values()
            for before in BEFORE
        ]
        cells = [f"{np.median(some):.0f} / {max(some)}" for some in delays]
        table.add(name, f"{np.mean(alarms):.3f}", *cells)
    section = Section("Drift", [table])
    section.notes.append(
        f"Outcomes until the alarm: median / most of {options.changes} orders; {AFTER:,} is "
        f"none. False alarms: mean of {options.orders} orders. Losses are cut off at "
        f"{MAX_LOSS:g} nats."
    )
    return section


def _losses() -> tuple[Matrix, Matrix, float]:
    """The losses on Adult's test file, those with the other label, and the accuracy."""
    split = datasets.load("adult", 0)
    X, y = split.encode(split.train)
    centres = {name: spec.centre for name, spec in space_of(split.features).items()}
    booster = fit.fit(X, y, split.features, {**centres, "learning_rate": 0.1}, ROUNDS, threads=1)
    rows, codes = split.encode(split.test)
    chances = np.asarray(booster.predict(rows))
    accuracy = float(((chances > 0.5) == codes).mean())
    return evaluate.row_losses(chances, codes), evaluate.row_losses(chances, 1 - codes), accuracy


def _draw(losses: Matrix, count: int, seed: int) -> Matrix:
    drawn: Matrix = np.random.default_rng(seed).choice(losses, count)
    return drawn


def _delay(
    update: Update, right: Matrix, swapped: Matrix, before: int, share: float, seed: int
) -> int:
    """Outcomes from a change to the alarm."""
    rng = np.random.default_rng(1_000 + seed)
    for loss in rng.choice(right, before).tolist():
        update(loss)
    rows = rng.integers(0, len(right), AFTER)
    after = np.where(rng.random(AFTER) < share, swapped[rows], right[rows])
    return next((n for n, loss in enumerate(after.tolist(), 1) if update(loss)), AFTER)


def _detectors() -> dict[str, Callable[[], Update]]:
    found: dict[str, Callable[[], Update]] = {"the trainer's": lambda: LossDrift().update}
    if importlib.util.find_spec("river"):
        found["ADWIN(0.002)"] = partial(_adwin, 0.002)
        for threshold in (25.0, 50.0):
            found[f"PageHinkley({threshold:g})"] = partial(_page_hinkley, threshold)
    return found


def _adwin(delta: float) -> Update:
    detector = importlib.import_module("river.drift").ADWIN(delta=delta)

    def update(loss: float) -> bool:
        before = detector.estimation
        detector.update(min(loss, MAX_LOSS))
        return bool(detector.drift_detected and detector.estimation > before)

    return update


def _page_hinkley(threshold: float) -> Update:
    river = importlib.import_module("river.drift")
    detector = river.PageHinkley(threshold=threshold, mode="up")

    def update(loss: float) -> bool:
        detector.update(min(loss, MAX_LOSS))
        return bool(detector.drift_detected)

    return update
