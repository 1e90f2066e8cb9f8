"""Trains a first model of a data set, for initialize.py and for training jobs elsewhere."""

from collections.abc import Callable, Mapping

from rich.console import Console

from train import profile
from train.profile import Profile
from train.progress import SharedProgress
from train.results import Result
from train.retrain import train
from train.search import Progress
from train.training_rows import Rows, rows_of
from utils import data_set
from utils.settings import Settings
from utils.telemetry.live_line import LiveLine
from utils.telemetry.reporter import Reporter


def read_data_set(settings: Settings, report: Reporter) -> Rows:
    """Read the training file, and show what was understood of it.

    Raises:
        DataError: The file cannot be read, or does not fit the settings.
    """
    data, path = settings.data, settings.data_dir / settings.data.train
    found = data_set.read_data(path, data)
    understood = profile.describe(found, data, settings.training.folds)
    show_profile(understood, report)
    for line in understood.warnings:
        report(f"WARNING: {line}", level="warning")
    return rows_of(found, path, data)


def show_profile(understood: Profile, report: Reporter) -> None:
    """Show what was understood of the columns and classes: as tables, or as one line of JSON."""
    if report.is_json:
        report(f"read {understood.rows:,} rows", **vars(understood))
        return
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = 160  # whole lines for a log
    for table in profile.tables(understood):
        console.print(table)


def train_first(
    settings: Settings,
    base: Rows,
    report: Reporter,
    *,
    hyper: str,
    evals: int,
    outcomes_from: Mapping[int, int] | None = None,
    progress: Progress = lambda done, total, best: None,
    begin: Callable[[str], None] = lambda part: None,
) -> Result:
    """Search, fit and publish a first model, and show its figures.

    Args:
        settings: The pipeline's settings.
        base: The base data, from `read_data_set`.
        report: Prints the lines for the user, and a live line on a terminal.
        hyper: The optimiser's name.
        evals: Evaluations of the search.
        outcomes_from: By partition of `outcomes`, the first offset of its target.
        progress: Called with (done, total, best loss) after each evaluation.
        begin: Called with the name of each part of the training (`train.progress.PARTS`).
    """
    shared, tried = SharedProgress(), (0, 0.0)

    def show(done: int, total: int, best: float) -> None:
        nonlocal tried
        tried = done, best
        shared.search(done, total, best)
        progress(done, total, best)

    def begin_part(part: str) -> None:
        shared.begin(part)
        begin(part)

    with LiveLine(report, lambda: [one.in_words()] if (one := shared.read()) else []):
        result = train(
            settings,
            snapshot=None,
            hyper=hyper,
            evals=evals,
            base=base,
            outcomes_from=outcomes_from or {},
            progress=show,
            begin=begin_part,
        )
    report_model(result, *tried, report)
    return result


def report_model(result: Result, evaluations: int, best: float, report: Reporter) -> None:
    """Show the figures of a first model, and those of knowing nothing but the classes."""
    report(
        f"{evaluations} candidates tried, best log loss {best:.4f} in cross-validation",
        evaluations=evaluations,
        best_log_loss=best,
    )
    if result.learnt_from:
        report(
            f"the search learnt from {result.learnt_from} earlier candidates",
            learnt_from=result.learnt_from,
        )
    figures, known = result.challenger, result.challenger.log_loss is not None
    if not known or result.majority is None:
        report(
            f"model {result.model_id} serves; there are no validation rows to judge it by",
            **vars(result),
        )
        return
    report(
        f"model {result.model_id} serves: log loss {figures.log_loss:.4f}, accuracy "
        f"{figures.accuracy:.4f} on {figures.rows} validation rows; always predicting the shares "
        f"of the classes gives {result.majority.log_loss:.4f} and {result.majority.accuracy:.4f}",
        **vars(result),
    )
