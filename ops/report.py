"""Reports the live quality of each model's predictions."""

import time

from rich.console import Console
from rich.table import Table

from train.quality import Quality, measure_quality
from utils.message_store import Counts, MessageStore
from utils.metrics import Metrics
from utils.model_store import ModelStore
from utils.settings import Settings


def show(settings: Settings, last: int, console: Console) -> None:
    """Print each model's live quality, from the message store.

    Args:
        settings: The pipeline's settings.
        last: How many of the latest outcomes each model's second row covers.
        console: Where to print.

    Raises:
        StoreError, ModelStoreError: The message store or the models cannot be read.
    """
    models = ModelStore(settings.models_dir)
    features = models.load(models.current_id()).features
    with MessageStore.open(settings.messages_url, features) as store:
        judged, counts = store.predictions_by_model(), store.counts()
    now = time.time() * 1000
    figures = [measure_quality(one, features, last=last, now=now) for one in judged]
    console.print(table(figures, last))
    console.print(totals(counts), highlight=False)


def table(figures: list[Quality], last: int) -> Table:
    """A table with two rows per model: over all predictions, and over the last ones."""
    shown = Table(caption="calibration: mean gap between probability and frequency (0 is best)")
    for heading in ("model", "over", "predictions", "with outcome", "missing"):
        shown.add_column(heading, justify="left" if heading == "over" else "right")
    for heading in ("oldest", "median", "log loss", "AUC", "accuracy", "calibration"):
        shown.add_column(heading, justify="right")
    for one in figures:
        shown.add_row(
            str(one.model_id),
            "all",
            str(one.known + one.missing),
            str(one.known),
            str(one.missing),
            age(one.oldest),
            age(one.median),
            *_cells(one.overall),
        )
        rows = str(one.last.rows)
        shown.add_row("", f"last {last}", "", rows, "", "", "", *_cells(one.last), end_section=True)
    return shown


def totals(counts: Counts) -> str:
    """A line of text with the totals of the store."""
    return (
        f"{counts.messages} messages, {counts.known_outcomes} of them with an outcome; "
        f"{counts.predictions} predictions; {counts.unmatched_outcomes} outcomes without a "
        f"message, {counts.rejected_outcomes} rejected (unknown class)"
    )


def age(seconds: float | None) -> str:
    """A duration as text for display.

    >>> [age(seconds) for seconds in (None, 4.2, 130, 9000, 400000)]
    ['', '4 s', '2 min', '2.5 h', '4.6 d']
    """
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86400 else f"{seconds / 86400:.1f} d"


def _cells(metrics: Metrics) -> list[str]:
    figures = (metrics.log_loss, metrics.auc, metrics.accuracy, metrics.calibration)
    return ["" if figure is None else f"{figure:.4f}" for figure in figures]
