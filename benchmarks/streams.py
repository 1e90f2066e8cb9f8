"""Streams that change, replayed: what is served, and what rivals would have had on them.

Each stream is replayed by the engine of `python -m ops backtest`, with the defaults of
pipeline.toml, labels known at once or 25, 500 and 5,000 rows later. The first model learns from
the first 2,000 rows, on Adult from its training file. River's adaptive random forest, which
learns from the same rows and then from each label once it is known, runs beside it.
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from benchmarks import datasets
from benchmarks.common import Plot, Section, Table, Workshop, at_least, at_most
from benchmarks.datasets import TARGET
from ops import backtest_report as report
from ops import backtest_stream
from ops.backtest import Plan
from ops.backtest_report import Contender, ContenderFigures
from train.retrain import train
from train.training_rows import Problem, base_rows
from utils import settings
from utils.settings import Training

#: The first rows of a stream, of which the first model learns.
BASE = 2_000
#: From which row on the labels of Adult are swapped, and how many rows are replayed.
SWAPPED_FROM, SWAPPED_ROWS = 4_000, 12_000
#: How soon the swapped stream has to be back, and on how many outcomes that is measured.
BACK_AFTER, BACK_ROWS = 1_000, 500
DELAYS = (25, 500, 5_000)
#: The points of a plotted curve.
POINTS = 200
CONFIG = f'[data]\ntrain = "base.csv"\ntarget = "{TARGET}"\n'

Parts = tuple[pd.DataFrame, pd.DataFrame]


def _in_order(name: str, most: int | None = None) -> Callable[[], Parts]:
    def read() -> Parts:
        frame = datasets.read(name).iloc[:most]
        return frame.iloc[:BASE], frame.iloc[BASE:]

    return read


def _adult() -> Parts:
    split = datasets.load("adult", 0)
    return split.train, split.test


def _swapped() -> Parts:
    base, stream = _adult()
    stream = stream.iloc[:SWAPPED_ROWS].copy()
    first, second = sorted(set(base[TARGET]))
    swapped = stream[TARGET].map({first: second, second: first})
    stream[TARGET] = np.where(np.arange(len(stream)) < SWAPPED_FROM, stream[TARGET], swapped)
    return base, stream


STREAMS: dict[str, Callable[[], Parts]] = {
    "elec2": _in_order("elec2"),
    "sea": _in_order("sea"),
    "swapped": _swapped,
    "adult": _adult,
    "covtype": _in_order("covtype", 100_000),
}
#: What is plotted: a stream with its delay.
PLOTTED = (("elec2", 500), ("swapped", 25))


@dataclass(frozen=True)
class Case:
    """A stream, the outcomes between trainings, and the rows by which labels are late."""

    stream: str
    every: int
    delay: int


#: With labels known at once: the cases with a goal, the least accuracy and the most log loss.
GOALS: dict[Case, tuple[float, float] | None] = {
    Case("elec2", 500, 0): (0.785, 0.47),
    Case("elec2", 25, 0): (0.81, 0.417),
    Case("sea", 500, 0): (0.892, 0.344),
    Case("swapped", 250, 0): None,
    Case("adult", 250, 0): None,
}
#: Streams and delays at which N is the default of pipeline.toml. For the others it is larger, to
#: spare time: they move slowly, or their labels come too late for it to matter.
OFTEN = {("elec2", 25), ("swapped", 25), ("swapped", 500), ("swapped", 5_000)}


def _every(stream: str, delay: int) -> int:
    if (stream, delay) in OFTEN:
        return Training().retrain_every
    return 250 if stream in ("swapped", "adult") else 500


@dataclass(frozen=True)
class Found:
    """What came of a case.

    Attributes:
        case: The case.
        contenders: The figures of what was served, first, and of its rivals.
        back: The accuracy of the last `BACK_ROWS` of `BACK_AFTER` outcomes after the swap.
        trainings: The number of trainings, and `refused` how many models the gate refused.
        seconds: How long the trainings took.
        curves: The log loss in a sliding window, by contender.
    """

    case: Case
    contenders: list[ContenderFigures]
    back: float
    trainings: int
    refused: int
    seconds: float
    curves: dict[str, list[tuple[float, float]]]

    def named(self, start: str) -> ContenderFigures | None:
        """The contender whose name begins so."""
        return next((one for one in self.contenders if one.name.startswith(start)), None)


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    names = list(STREAMS)
    parser.add_argument("--streams", nargs="+", choices=names, default=names)
    parser.add_argument("--rows", type=int, default=1_500 if quick else None, help="of each stream")
    parser.add_argument("--delays", type=int, nargs="*", default=[25] if quick else list(DELAYS))


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    cases = [case for case in GOALS if case.stream in options.streams]
    cases += [
        Case(stream, _every(stream, delay), delay)
        for stream in options.streams
        for delay in options.delays
    ]
    found = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        try:
            waiting: list[Future[Found]] = [
                pool.submit(_replay, case, options.rows, options.evals) for case in cases
            ]
            for future in waiting:
                one = future.result()
                workshop.say(f"streams: {one.case}: {_cells(one.contenders[0])}")
                found.append(one)
        except BaseException:
            for child in multiprocessing.active_children():  # else they finish their cases first
                child.kill()
            raise
    some = "" if set(options.streams) == set(STREAMS) else f": {', '.join(options.streams)}"
    some += f", {options.rows:,} rows of each" if options.rows else ""
    section = Section(f"Streams{some}", [_goals(found), _table(found)])
    section.notes.append(
        "Accuracy / log loss of each row's prediction, made before its label was learnt from; "
        "the defaults of pipeline.toml. ARF: river's adaptive random forest of 10 trees; "
        "everything: one model of all rows, retrained as often. Behind: what was served has a "
        "lower accuracy or a higher log loss than ARF."
    )
    section.plots += [
        Plot(
            f"streams-{one.case.stream}",
            f"{one.case.stream}, labels {one.case.delay} rows late",
            one.curves,
            "rows",
            "log loss in a sliding window, nats",
        )
        for one in found
        if (one.case.stream, one.case.delay) in PLOTTED
    ]
    return section


def _goals(found: Sequence[Found]) -> Table:
    table = Table(
        "Goals, labels known at once", ["stream", "N", "figure", "measured", "goal", "verdict"]
    )
    for one in found:
        if one.case not in GOALS:
            continue
        name, every, served = one.case.stream, f"{one.case.every}", one.contenders[0].overall
        accuracy, loss = served.accuracy or 0.0, served.log_loss or 0.0
        goal = GOALS[one.case]
        if goal is not None:
            table.add(name, every, "accuracy", f"{accuracy:.4f}", *at_least(accuracy, goal[0]))
            table.add(name, every, "log loss", f"{loss:.4f}", *at_most(loss, goal[1]))
        elif name == "swapped":
            words = f"accuracy of {BACK_ROWS} outcomes, {BACK_AFTER:,} after the swap"
            table.add(name, every, words, f"{one.back:.4f}", *at_least(one.back, 0.80))
        else:
            first = one.contenders[1].overall.log_loss or 0.0
            goal_cells = at_most(round(loss, 4), round(first, 4))
            table.add(name, every, "log loss, the first model's", f"{loss:.4f}", *goal_cells)
    return table


def _table(found: Sequence[Found]) -> Table:
    columns = ["stream", "N", "delay", "served", "first model", "everything", "majority"]
    table = Table("Streams", [*columns, "last label", "ARF", "trainings", "seconds", "against ARF"])
    for one in found:
        case, forest = one.case, one.named("river")
        rivals = [
            _cells(one.named(start))
            for start in ("served", "frozen", "everything", "the majority", "the last", "river")
        ]
        trainings = f"{one.trainings} ({one.refused} refused)"
        table.add(
            *(case.stream, f"{case.every}", f"{case.delay:,}"),
            *rivals,
            *(trainings, f"{one.seconds:.0f}", _against(one.contenders[0], forest)),
        )
    return table


def _against(served: ContenderFigures, forest: ContenderFigures | None) -> str:
    if forest is None:
        return ""
    ours, theirs = served.overall, forest.overall
    behind = [
        name
        for name, gain in (
            ("accuracy", (ours.accuracy or 0.0) - (theirs.accuracy or 0.0)),
            ("log loss", (theirs.log_loss or 0.0) - (ours.log_loss or 0.0)),
        )
        if gain < 0
    ]
    return f"behind in {' and '.join(behind)}" if behind else "ahead"


def _cells(one: ContenderFigures | None) -> str:
    if one is None:
        return ""
    figures = (one.overall.accuracy, one.overall.log_loss)
    return " / ".join("" if figure is None else f"{figure:.4f}" for figure in figures)


def _replay(case: Case, rows: int | None, evals: int) -> Found:
    base, stream = STREAMS[case.stream]()
    with TemporaryDirectory(prefix="streams-") as folder:
        home = Path(folder)
        (home / "data").mkdir()
        base.to_csv(home / "data" / "base.csv", index=False)
        stream.iloc[:rows].to_csv(home / "stream.csv", index=False)
        (home / "pipeline.toml").write_text(CONFIG)
        return _replay_in(home, case, evals)


def _replay_in(home: Path, case: Case, evals: int) -> Found:
    config = settings.load(
        {"PIPELINE_HOME": str(home), "PIPELINE_CONFIG": str(home / "pipeline.toml")}
    )
    base = base_rows(Problem.of(config, None))
    train(config, snapshot=None, hyper="hyperopt", evals=evals, base=base)
    bundle = backtest_stream.serving_of(config)
    stream = backtest_stream.read_file(config, bundle, home / "stream.csv")
    plan = Plan(case.every, case.delay, first=bundle.manifest.hyperparameters)
    found = report.run(config, bundle, stream, plan)
    contenders = report.contenders_of(config, bundle, stream, plan, found, forest=case.delay > 0)
    figures = report.figures_of(stream, plan, found, contenders)
    back = found.correct[: SWAPPED_FROM + BACK_AFTER][SWAPPED_FROM + BACK_AFTER - BACK_ROWS :]
    return Found(
        case,
        figures.contenders,
        float(back.mean()) if len(back) else float("nan"),
        figures.trainings,
        figures.refused,
        figures.seconds,
        {one.name: curve for one in contenders if (curve := _curve(one))},
    )


def _curve(one: Contender) -> list[tuple[float, float]]:
    if one.losses is None:
        return []
    values = report.windowed(one.losses, report.window_of(len(one.losses)))
    places = np.linspace(0, len(values) - 1, min(POINTS, len(values))).astype(int)
    return [(float(at), float(values[at])) for at in places if not np.isnan(values[at])]
