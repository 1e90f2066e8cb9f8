"""What the live lines of predictor and trainer say: parts of text, the most important first."""

from collections.abc import Mapping

from utils.metrics import ValueShares
from utils.telemetry.counts import PredictorCounts, Recent, ServingCounts, TrainerCounts
from utils.telemetry.live_text import duration_text, rate_text

#: Kinds of values of which the column with the largest share is named.
NAMED_KINDS = ("missing", "unknown", "lenient")


def of_predictor(counts: PredictorCounts, last: ValueShares) -> list[str]:
    """What a predictor does.

    Args:
        counts: What it counts.
        last: The values of the last messages.
    """
    health, recent = counts.health.check(), counts.recent()
    parts = [] if health.ready else [health.text]
    parts += [
        rate_text(recent.rate),
        f"model {counts.model_id}",
        f"lag {sum(counts.lag.values()):,}",
    ]
    rejected = counts.rejected.total() + counts.unknown_outcomes
    if rejected:
        parts.append(f"rejected {rejected:,}")
    parts += _latency(recent)
    for kind in NAMED_KINDS:
        if largest := _largest(getattr(last, kind)):
            parts.append(f"{kind}: {largest}")
    parts.append(f"{counts.predictions:,} predictions")
    return parts


def _largest(shares: Mapping[str, float]) -> str:
    """The column with the largest share, and how many more there are; empty without any.

    >>> _largest({"age": 0.03, "race": 0.2})
    'race 20 % and 1 more'
    """
    if not shares:
        return ""
    name, share = max(shares.items(), key=lambda one: one[1])
    more = f" and {len(shares) - 1} more" if len(shares) > 1 else ""
    return f"{name} {share * 100:.2g} %{more}"


def of_serving(counts: ServingCounts) -> list[str]:
    """What an HTTP server does."""
    health, recent = counts.health.check(), counts.recent()
    parts = [] if health.ready else [health.text]
    parts += [rate_text(recent.rate), f"model {counts.model_id}", *_latency(recent)]
    if counts.refused:
        parts.append(f"refused {counts.refused:,}")
    failed = sum(count for status, count in counts.requests.copy().items() if status >= 400)
    if failed:
        parts.append(f"failed requests {failed:,}")
    parts.append(f"{counts.predictions:,} predictions")
    return parts


def _latency(recent: Recent) -> list[str]:
    if recent.p50_ms is None or recent.p99_ms is None:
        return []
    p50, p99 = duration_text(recent.p50_ms / 1000), duration_text(recent.p99_ms / 1000)
    return [f"p50 {p50} p99 {p99}"]


def of_trainer(counts: TrainerCounts, training: str) -> list[str]:
    """What a trainer does.

    Args:
        counts: What it counts.
        training: How far the running training is; empty if none runs, or it has not begun yet.
    """
    health = counts.health.check()
    parts = [] if health.ready else [health.text]
    if training or counts.training_since is not None:
        parts.append(training or "a training starts")
    parts.append(f"model {counts.model_id} serves")
    if counts.waiting:
        parts.append(f"{counts.waiting} request{'s wait' if counts.waiting > 1 else ' waits'}")
    if counts.live is not None:
        loss = f"{counts.live.log_loss:.4f} +- {counts.live.standard_error:.4f}"
        parts.append(f"live log loss {loss}")
    refused = f" ({counts.trainings[False]} refused)" if counts.trainings[False] else ""
    parts.append(f"trainings {counts.trainings.total()}{refused}")
    if counts.failures:
        parts.append(f"failed {counts.failures}")
    if counts.deployed_id is not None:
        parts.append(f"model {counts.deployed_id} deployed")
    return parts
