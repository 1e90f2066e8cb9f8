"""The figures of a replay, as tables, as JSON and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ops import backtest_rivals, line_chart
from ops.backtest import Plan, Progress, Replay, replay
from ops.backtest_stream import Stream, temporary_home
from ops.line_chart import Line, Mark, Panel
from train import evaluate
from train.adapt import GRID
from train.training_rows import Problem, Rows, base_rows
from utils.feature_tools import IntegerCodes, Matrix
from utils.model_store import Bundle
from utils.model_store.manifest import StandingRecord
from utils.settings import Settings

#: The parts of the stream that have figures of their own.
BLOCKS = 10
#: How other N and delays differ, for --compare.
FACTOR = 5
#: The picture's sliding window is this part of the rows, and no shorter than a scored block.
WINDOW_SHARE = 40
LEAST_WINDOW = GRID


class Score(msgspec.Struct, frozen=True):
    """Figures of some rows; None if they are not known."""

    log_loss: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Contender:
    """What was served, or what is compared with it.

    Attributes:
        name: What it is.
        losses: (rows,), the log loss of each row; NaN where it is not known, None if it never is.
        right: (rows,), whether the prediction is right; None if it is not known.
    """

    name: str
    losses: Matrix | None
    right: npt.NDArray[np.bool_] | None


class ContenderFigures(msgspec.Struct, frozen=True):
    """The figures of a contender.

    Attributes:
        name: What it is.
        rows: How many rows it is scored on.
        overall: The figures of these rows.
        blocks: The figures of each part of the stream.
    """

    name: str
    rows: int
    overall: Score
    blocks: list[Score]


class Change(msgspec.Struct, frozen=True):
    """From which row on another policy served."""

    row: int
    policy: str


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a replay, as `--json` prints it.

    Attributes:
        rows: The number of rows.
        left_out: How many more there are, of unknown class.
        every: Outcomes from one training to the next.
        delay: After how many more rows an outcome became known.
        policy: Who decided how much of the past counts.
        contenders: What was served, first, and what is compared with it.
        trainings: The number of trainings, and how many models the gate refused.
        refused: How many models the gate refused.
        rollbacks: How often a model was rolled back.
        seconds: How long the trainings took.
        memory: What the last model learnt from, in words.
        changes: When another policy began to serve.
        standings: What other memories would have had.
    """

    rows: int
    left_out: int
    every: int
    delay: int
    policy: str
    contenders: list[ContenderFigures]
    trainings: int
    refused: int
    rollbacks: int
    seconds: float
    memory: str
    changes: list[Change]
    standings: list[StandingRecord]

    @property
    def served(self) -> Score:
        """The overall figures of what was served."""
        return self.contenders[0].overall


def run(
    settings: Settings,
    bundle: Bundle,
    stream: Stream,
    plan: Plan,
    progress: Progress = lambda done, total: None,
) -> Replay:
    """Replay a stream in a temporary home."""
    with temporary_home(settings, bundle) as temporary:
        base = base_of_bundle(temporary, bundle)
        return replay(temporary, base, stream.frame, stream.labels, plan, progress)


def base_of_bundle(settings: Settings, bundle: Bundle) -> Rows:
    """The base data of a bundle.

    Raises:
        DataError: They cannot be read.
    """
    return base_rows(Problem.of(settings, bundle))


def contenders_of(
    settings: Settings,
    bundle: Bundle,
    stream: Stream,
    plan: Plan,
    found: Replay,
    *,
    forest: bool = False,
) -> list[Contender]:
    """What was served, first, and its rivals; `forest` adds river's adaptive random forest.

    Raises:
        UserError: river is not installed.
    """
    contenders = [
        Contender("served", found.losses, found.correct),
        Contender("frozen: the first model", found.first_losses, found.first_correct),
        Contender("everything: one model of all rows", found.everything, None),
        *_simple_rivals(settings, bundle, plan, found),
    ]
    if forest:
        contenders.append(_forest(settings, bundle, stream, plan, found.codes))
    return contenders


def figures_of(
    stream: Stream, plan: Plan, found: Replay, contenders: Sequence[Contender]
) -> Figures:
    """The figures of a replay and its contenders."""
    return Figures(
        rows=len(found.losses),
        left_out=stream.left_out,
        every=plan.every,
        delay=plan.delay,
        policy=plan.policy,
        contenders=[_figures(one, len(found.losses)) for one in contenders],
        trainings=found.trainings,
        refused=found.refused,
        rollbacks=found.rollbacks,
        seconds=round(found.seconds, 3),
        memory=found.memories[-1] if found.memories else "the base data alone",
        changes=[Change(row, policy) for row, policy in found.changes],
        standings=found.standings,
    )


def _base(settings: Settings, bundle: Bundle) -> tuple[pd.DataFrame, IntegerCodes]:
    """The training rows of the base data, and their class codes."""
    frame, labels = base_of_bundle(settings, bundle).training
    codes = bundle.features.encode_target(labels)
    return frame[codes >= 0], codes[codes >= 0]


def _forest(
    settings: Settings, bundle: Bundle, stream: Stream, plan: Plan, codes: IntegerCodes
) -> Contender:
    chances = backtest_rivals.adaptive_random_forest(
        _base(settings, bundle), (stream.frame, codes), len(bundle.features.classes), plan.delay
    )
    right = chances.argmax(axis=1) == codes
    return Contender("river's adaptive random forest", _losses(chances, codes), right)


def _simple_rivals(
    settings: Settings, bundle: Bundle, plan: Plan, found: Replay
) -> list[Contender]:
    codes, classes = found.codes, len(bundle.features.classes)
    _, base = _base(settings, bundle)
    shares = backtest_rivals.class_shares(codes, classes, base, plan.delay)
    majority = shares.argmax(axis=1)
    last = backtest_rivals.last_label(codes, int(majority[0]), plan.delay)
    return [
        Contender("the majority so far", _losses(shares, codes), majority == codes),
        Contender("the last known label", None, last == codes),
    ]


def _losses(shares: Matrix, codes: IntegerCodes) -> Matrix:
    return evaluate.row_losses(shares[:, 1] if shares.shape[1] == 2 else shares, codes)


def _figures(one: Contender, rows: int) -> ContenderFigures:
    losses, right = one.losses, one.right
    edges = np.linspace(0, rows, min(BLOCKS, rows) + 1).astype(int)
    known = rows if losses is None else int((~np.isnan(losses)).sum())

    def score(first: int, end: int) -> Score:
        part = np.empty(0) if losses is None else losses[first:end]
        part = part[~np.isnan(part)]
        return Score(
            round(float(part.mean()), 6) if len(part) else None,
            None if right is None else round(float(right[first:end].mean()), 6),
        )

    blocks = [score(*pair) for pair in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    return ContenderFigures(one.name, known, score(0, rows), blocks)


def show(figures: Figures, console: Console) -> None:
    """Print the figures."""
    rows, delay = f"{figures.rows:,} rows", figures.delay
    late = f"labels {delay:,} rows late" if delay else "labels known at once"
    left_out = f"; {figures.left_out:,} of unknown class left out" if figures.left_out else ""
    console.print(f"{rows}, {late}, retraining every {figures.every:,}{left_out}", markup=False)
    for metric in ("log_loss", "accuracy"):
        console.print(_table(figures, metric))
    console.print(
        f"{figures.trainings:,} trainings in {figures.seconds:.1f} s, {figures.refused:,} models "
        f"refused, {figures.rollbacks:,} rollbacks; the last model learnt from {figures.memory}",
        highlight=False,
    )
    for change in figures.changes:
        console.print(f"from row {change.row:,} on: {change.policy}", highlight=False)
    if figures.standings:
        console.print(_standings(figures.standings))


def _table(figures: Figures, metric: str) -> Table:
    shown = Table(title=metric.replace("_", " "), caption="all rows, then each tenth of them")
    shown.add_column("")
    shown.add_column("all", justify="right")
    for place in range(len(figures.contenders[0].blocks)):
        shown.add_column(str(place + 1), justify="right")
    for one in figures.contenders:
        scores = [getattr(score, metric) for score in (one.overall, *one.blocks)]
        if scores[0] is not None:
            cells = ["" if score is None else f"{score:.4f}" for score in scores]
            partly = "" if one.rows == figures.rows else f" ({one.rows:,} rows)"
            shown.add_row(escape(one.name + partly), *cells)
    return shown


def _standings(standings: list[StandingRecord]) -> Table:
    """The best number of rounds of each candidate, the best candidate first."""
    best: dict[str, StandingRecord] = {}
    for one in sorted(standings, key=lambda one: one.log_loss or 0.0):
        best.setdefault(one.name, one)
    shown = Table(
        title="what each memory would have had",
        caption="the last outcomes count most; weight: in the blend that serves",
    )
    for heading in ("memory", "rounds", "log loss", "weight"):
        shown.add_column(heading, justify="left" if heading == "memory" else "right")
    for one in best.values():
        loss = "" if one.log_loss is None else f"{one.log_loss:.4f}"
        weight = sum(each.weight for each in standings if each.name == one.name)
        shown.add_row(escape(one.name), str(one.rounds), loss, f"{weight:.2f}" if weight else "")
    return shown


# Other N and delays


def other_plans(plan: Plan) -> list[Plan]:
    """The plans that --compare replays besides."""
    others = [
        *(replace(plan, every=every) for every in (plan.every // FACTOR, plan.every * FACTOR)),
        *(replace(plan, delay=delay) for delay in (0, plan.delay * FACTOR)),
    ]
    chosen: list[Plan] = []
    for one in others:
        if one.every and one not in (plan, *chosen):
            chosen.append(one)
    return chosen


def line_of(plan: Plan, found: Replay) -> str:
    """One line of text about a replay."""
    return (
        f"N {plan.every:>6,}, delay {plan.delay:>6,}: log loss {found.losses.mean():.4f}, "
        f"accuracy {found.correct.mean():.4f}, {found.trainings:>5,} trainings in "
        f"{found.seconds:.1f} s"
    )


# The picture


def picture(found: Replay, contenders: Sequence[Contender]) -> str:
    """Log loss and accuracy in a sliding window, as the text of an SVG file."""
    window = window_of(len(found.losses))
    losses = [
        Line(one.name, windowed(one.losses, window)) for one in contenders if one.losses is not None
    ]
    right = [
        Line(one.name, windowed(one.right.astype(np.float64), window))
        for one in contenders
        if one.right is not None
    ]
    return line_chart.draw(
        f"The last {window:,} rows",
        "rows",
        [Panel("log loss, nats", losses), Panel("accuracy", right)],
        [Mark(row, f"policy: {policy}") for row, policy in found.changes],
    )


def window_of(rows: int) -> int:
    """The length of the sliding window for so many rows."""
    return max(LEAST_WINDOW, rows // WINDOW_SHARE)


def windowed(values: Matrix, window: int) -> Matrix:
    """The mean of the last values that are known; NaN with fewer than half of a window."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.where(known, values, 0.0).cumsum()])
    counts = np.concatenate([[0], known.cumsum()])
    ends = np.arange(1, len(values) + 1)
    firsts = np.maximum(ends - window, 0)
    number = counts[ends] - counts[firsts]
    means: Matrix = (sums[ends] - sums[firsts]) / np.maximum(number, 1)
    means[number < min(window, len(values)) / 2] = np.nan
    return means
