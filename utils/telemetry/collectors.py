"""What the processes count, in the form of Prometheus.

A family is built from the counts when somebody asks for it. Names and units follow
https://prometheus.io/docs/practices/naming/.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from utils import version
from utils.metrics import LiveLoss
from utils.telemetry.counts import (
    AppCounts,
    Counts,
    InitializeCounts,
    PredictorCounts,
    ServingCounts,
    TrainerCounts,
)
from utils.telemetry.latency import BOUNDS_MS, Latencies
from utils.value_counts import ValueTotals

Families = Iterator[Metric]


def registry(counts: Counts, pipeline: str) -> CollectorRegistry:
    """The registry of a process that counts this, of the pipeline of this name."""
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    made.register(_Counts(counts, pipeline))
    return made


class _Counts(Collector):
    def __init__(self, counts: Counts, pipeline: str) -> None:
        name, number = version.name_and_version().rsplit(" ", 1)
        build = {"project": name, "version": number, "process": counts.process}
        build["pipeline"] = pipeline
        self._build = InfoMetricFamily("pipeline_build", "What runs, and its version", build)
        self._counts = counts

    def collect(self) -> Families:
        counts = self._counts
        yield self._build
        ready = int(counts.health.check().ready)
        yield _gauge("ready", "Whether the process serves", ready, process=counts.process)
        if isinstance(counts, PredictorCounts):
            yield from _predictor(counts)
        elif isinstance(counts, TrainerCounts):
            yield from _trainer(counts)
        elif isinstance(counts, AppCounts):
            yield from _app(counts)
        elif isinstance(counts, InitializeCounts):
            yield from _initialize(counts)
        elif isinstance(counts, ServingCounts):
            yield from _serving(counts)
        else:
            yield _gauge("pages_open", "Browsers that show the page", counts.viewers)


def _predictor(counts: PredictorCounts) -> Families:
    if counts.model_id is not None:
        yield _gauge("model_id", "The model that serves", counts.model_id, process="predictor")
    yield _counter("models_loaded", "Models loaded while it served", counts.swaps)
    yield _counter("predictions", "Predictions committed", counts.predictions)
    yield _histogram(
        "prediction_latency_seconds",
        "Time from a message's timestamp to the commit of its prediction",
        counts.latencies,
    )
    yield _counter(
        "undated_predictions",
        "Predictions of messages whose timestamp is unset or in the future; the latency is "
        "without them",
        counts.latencies.undated,
    )
    lag = GaugeMetricFamily(
        "pipeline_consumer_lag_records",
        "Records not read yet, at the last fetch",
        labels=("topic", "partition"),
    )
    for (topic, partition), records in counts.lag.items():
        lag.add_metric((topic, str(partition)), records)
    yield lag
    yield _gauge("assigned_partitions", "Partitions that it reads", len(counts.partitions))
    yield _gauge(
        "held_back_partitions",
        "Partitions that are assigned to it and cannot be read yet",
        len(counts.held_back),
    )
    yield _counter("outcomes", "Known outcomes read", counts.outcomes)
    if counts.last_outcome_ms is not None:
        yield _gauge(
            "last_outcome_timestamp_seconds",
            "The newest timestamp of a known outcome",
            counts.last_outcome_ms / 1000,
        )
    letters = CounterMetricFamily(
        "pipeline_dead_letters",
        "Records sent to dead_letters, by their topic and what was rejected: the record or, of "
        "a message with a prediction, its outcome",
        labels=("topic", "content"),
    )
    rejected = {"app_messages": 0, "outcomes": 0, **counts.rejected}
    for topic, records in rejected.items():
        letters.add_metric((topic, "record"), records)
    letters.add_metric(("app_messages", "outcome"), counts.unknown_outcomes)
    yield letters
    yield from _values(counts.values)
    yield _labelled(
        "retrain_requests_sent",
        "Retrain requests that this process has sent",
        "reason",
        {"count": counts.requests},
    )
    yield _counter("transactions", "Transactions committed", counts.batches)
    yield _counter("step_errors", "Steps that have failed and were repeated", counts.errors)


_VALUES = {
    "missing": "Missing values in scored messages",
    "unknown": "Categories in scored messages that training did not see",
    "lenient": "Values in scored messages that are written in another way than in the data set",
    "other": "Categories in scored messages that were not learnt one by one",
}


def _values(values: ValueTotals) -> Families:
    for kind, text in _VALUES.items():
        yield _labelled(f"{kind}_values", text, "column", values.by_column(kind))


def _serving(counts: ServingCounts) -> Families:
    if counts.model_id is not None:
        yield _gauge("model_id", "The model that serves", counts.model_id, process="serving")
    yield _counter("models_loaded", "Models loaded while it served", counts.swaps)
    statuses = {str(status): count for status, count in sorted(counts.requests.items())}
    yield _labelled("http_requests", "Answered HTTP requests", "status", statuses)
    yield _counter("http_predictions", "Rows with a prediction", counts.predictions)
    yield _counter("http_refused_rows", "Rows that could not be scored", counts.refused)
    yield _counter(
        "http_repeated_rows", "Rows with the answer that they had before", counts.repeated
    )
    yield _histogram(
        "http_latency_seconds",
        "Time from the arrival of a request's headers to its answer",
        counts.latencies,
    )
    yield from _values(counts.values)


def _trainer(counts: TrainerCounts) -> Families:
    if counts.model_id is not None:
        yield _gauge("model_id", "The model that serves", counts.model_id, process="trainer")
    trainings = {"true": counts.trainings[True], "false": counts.trainings[False]}
    yield _labelled("trainings", "Trainings, by whether the model serves", "accepted", trainings)
    spent = SummaryMetricFamily(
        "pipeline_training_seconds", "Time that trainings took, by part", labels=("part",)
    )
    for part, (times, seconds) in list(counts.spent.items()):
        spent.add_metric((part,), times, seconds)
    yield spent
    yield _counter("training_failures", "Trainings that have failed", counts.failures)
    yield _counter("rollbacks", "Models that this trainer has taken back", counts.rollbacks)
    running = int(counts.training_since is not None)
    yield _gauge("training_running", "Whether a training runs", running)
    yield _labelled(
        "retrain_requests", "Retrain requests on the topic", "reason", dict(counts.received)
    )
    yield _labelled(
        "retrain_requests_sent",
        "Retrain requests that this process has sent",
        "reason",
        {"drift": 0, "age": 0, **counts.requested},
    )
    yield _gauge("requests_waiting", "Retrain requests without an answer", counts.waiting)
    if counts.waiting_since is not None:
        yield _gauge(
            "oldest_request_timestamp_seconds",
            "The timestamp of the oldest of them",
            counts.waiting_since,
        )
    yield _counter("ingested_records", "Records read into the message store", counts.ingested)
    gate = GaugeMetricFamily(
        "pipeline_gate_log_loss",
        "Mean log loss (nats) on the outcomes by which the last training was judged",
        labels=("model",),
    )
    for model, loss in (
        ("challenger", counts.challenger_log_loss),
        ("champion", counts.champion_log_loss),
    ):
        if loss is not None:
            gate.add_metric((model,), loss)
    yield gate
    if counts.live is not None:
        yield from _live(counts.live)
    if counts.deployed_id is not None:
        yield _gauge("deployed_model_id", "The model deployed to SageMaker", counts.deployed_id)
    deployments = {"true": counts.deployments[True], "false": counts.deployments[False]}
    yield _labelled(
        "deployments", "Deployments to SageMaker, by whether they succeeded", "success", deployments
    )
    yield _counter("step_errors", "Steps that have failed and were repeated", counts.errors)


def _live(live: LiveLoss) -> Families:
    yield _gauge(
        "live_log_loss", "Mean log loss (nats) of the last predictions with outcome", live.log_loss
    )
    yield _gauge("live_log_loss_standard_error", "Its standard error", live.standard_error)
    yield _gauge("live_log_loss_outcomes", "Its number of outcomes", live.outcomes)
    for name, text, value in (
        ("expected", "The mean log loss before", live.expected),
        ("low", "The least to be expected unless the loss has changed", live.low),
        ("high", "The most to be expected unless the loss has changed", live.high),
    ):
        if value is not None:
            yield _gauge(f"live_log_loss_{name}", text, value)


def _app(counts: AppCounts) -> Families:
    yield _counter("messages_sent", "Messages sent", counts.sent)
    yield _counter("messages_answered", "Messages with a prediction", counts.answered)
    yield _counter("messages_rejected", "Messages that were rejected", counts.rejected)
    yield _counter("outcomes_rejected", "Outcomes that were rejected", counts.rejected_outcomes)
    yield _counter("duplicate_answers", "Predictions beyond a message's first", counts.twice)
    yield _counter("correct_answers", "Predictions of the true class", counts.right)
    yield _gauge("messages_waiting", "Messages without an answer", counts.waiting)
    yield _histogram(
        "answer_latency_seconds",
        "Time from sending a message to reading its prediction",
        counts.latencies,
    )


def _initialize(counts: InitializeCounts) -> Families:
    yield _gauge("search_evaluations", "Evaluations of the search done", counts.evaluations)
    if counts.best_log_loss is not None:
        yield _gauge("search_log_loss", "The best log loss (nats) so far", counts.best_log_loss)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"pipeline_{name}", text, value)


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    if not labels:
        return GaugeMetricFamily(f"pipeline_{name}", text, value)
    family = GaugeMetricFamily(f"pipeline_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"pipeline_{name}", text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _histogram(name: str, text: str, latencies: Latencies) -> Metric:
    found, reached = latencies.now(), 0
    buckets: list[tuple[str, float]] = []
    bounds = [repr(bound / 1000) for bound in BOUNDS_MS.tolist()] + ["+Inf"]
    for bound, count in zip(bounds, found.counts.tolist(), strict=True):
        reached += count
        buckets.append((bound, reached))
    return HistogramMetricFamily(
        f"pipeline_{name}", text, buckets=buckets, sum_value=found.total_ms / 1000
    )
