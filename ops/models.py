"""Lists the models, shows a manifest, and rolls back to an older model."""

import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.table import Table

from train import evaluate
from utils import kafka_io
from utils.feature_tools import Matrix
from utils.kafka_io import KafkaUnavailable
from utils.message_store import MessageStore, StoreError
from utils.messages import Rollback
from utils.metrics import Metrics
from utils.model_store import BundleError, ModelStore, ModelStoreError
from utils.model_store.manifest import Manifest, PublishedModel, absent, published
from utils.settings import Settings

HEADINGS = (
    *("model", "parent", "created", "accepted", "serving", "learns from", "log loss"),
    *("parent's", "at promotion", "since", "rows", "on disk"),
)


def announce_rollback(settings: Settings, model_id: int, from_id: int | None, reason: str) -> None:
    """Announce to every running predictor that `model_id` serves.

    Raises:
        ModelStoreError: The broker cannot be reached. Predictors read current.json when
            they start.
    """
    try:
        kafka_io.announce(
            settings, Rollback(model_id=model_id, from_model_id=from_id, reason=reason)
        )
    except KafkaUnavailable as error:
        raise ModelStoreError(
            f"bundle {model_id} serves from the next start on, but running predictors could "
            f"not be notified (run this again to notify them): {error}"
        ) from None


def table(settings: Settings) -> Table:
    """A table of every model ever published, then of those that only the log knows.

    Raises:
        ModelStoreError: The store cannot be read.
    """
    store = ModelStore(settings.models_dir)
    there = store.on_disk()
    try:
        current = store.current_id()
    except BundleError as error:
        current = None
        print(f"ops: {error}", file=sys.stderr)
    shown = Table(
        caption="log loss: of a first model on the validation rows, else on the latest outcomes, "
        "which neither had learnt from; since: real predictions against that; absent: only the "
        "log knows it"
    )
    for heading in HEADINGS:
        numbers = heading in ("model", "parent", "log loss", "parent's", "rows")
        shown.add_column(heading, justify="right" if numbers else "left")
    since = _since_promotion(settings, store)
    for line in published(store.history()):
        shown.add_row(*_cells(line, current, there, since.get(line.model_id, "")))
    for model_id in absent(store.history()):
        shown.add_row(str(model_id), *[""] * (len(HEADINGS) - 2), "absent")
    return shown


def _since_promotion(settings: Settings, store: ModelStore) -> dict[int, str]:
    """What each model's real predictions came to, against what was expected of it, in words."""
    expected = {
        line.model_id: line.metrics.challenger.log_loss
        for line in published(store.history())
        if line.metrics.challenger and line.metrics.challenger.log_loss is not None
    }
    found = {}
    with suppress(StoreError, ModelStoreError):  # the models can be listed without it
        features = store.load_current().features
        with MessageStore.open(settings.messages_url, features) as messages:
            judged = messages.predictions_by_model()
        for one in judged:
            codes = features.encode_target(one.outcomes)
            if one.model_id in expected and len(codes) and codes.min() >= 0:
                losses = evaluate.row_losses(one.probabilities, codes)
                words = as_expected(losses - expected[one.model_id])
                found[one.model_id] = f"{losses.mean():.4f} on {len(codes):,}, {words}"
    return found


def as_expected(differences: Matrix) -> str:
    """Differences of losses to an expectation, (rows,), in words.

    >>> import numpy as np
    >>> as_expected(np.array([0.1, -0.1, 0.2])), as_expected(np.array([0.3, 0.4, 0.3]))
    ('within noise', 'worse by 0.3333 +- 0.0333')
    """
    return evaluate.comparison(differences).in_words()


def _cells(
    line: PublishedModel, current: int | None, there: Sequence[int], since: str
) -> list[str]:
    def log_loss(metrics: Metrics | None) -> str:
        known = metrics is not None and metrics.log_loss is not None
        return f"{metrics.log_loss:.4f}" if metrics and known else ""

    return [
        str(line.model_id),
        str(line.parent_id or ""),
        line.created[:16].replace("T", " "),
        "yes" if line.accepted else "refused",
        "serving" if line.model_id == current else "",
        line.memory or "everything",
        log_loss(line.metrics.challenger),
        log_loss(line.metrics.champion),
        line.gate.in_words() if line.gate else "",
        since,
        str(line.rows or ""),
        "yes" if line.model_id in there else "pruned",
    ]


def manifest(settings: Settings, model_id: int) -> Manifest | PublishedModel:
    """The manifest of a verified bundle, or a pruned bundle's line of the history.

    Raises:
        ModelStoreError: The bundle never existed, or it does not load.
    """
    store = ModelStore(settings.models_dir)
    if model_id in store.on_disk():
        return store.load(model_id).manifest
    line, missing = store.published(model_id), store.describe_missing(model_id)
    if line is None:
        raise ModelStoreError(missing)
    print(f"{missing}; this is its line of the history:", file=sys.stderr)
    return line


def rollback(settings: Settings, model_id: int, reason: str) -> str:
    """Serve an older bundle, in running predictors too; returns a line of text for the user.

    Raises:
        ModelStoreError: It does not load, or the broker cannot be reached.
    """
    from_id = ModelStore(settings.models_dir).rollback(model_id, reason)
    announce_rollback(settings, model_id, from_id, reason)
    was = "as before" if from_id == model_id else f"instead of {from_id}" if from_id else "now"
    return f"bundle {model_id} serves {was}; running predictors are notified"
