"""The numbers that the processes keep about themselves.

The loop of a process adds to them; the live line and the metrics only look, from other threads.
A number is replaced by a larger one, and what consists of several is replaced as a whole, so
looking needs no lock, and the loop pays for nothing but an addition per batch.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from utils.messages import OLDEST_MS
from utils.metrics import LiveLoss
from utils.telemetry.health import Health, State
from utils.telemetry.latency import Histogram, Latencies
from utils.value_counts import ValueTotals

#: "Recent" are the last so many seconds.
RECENT_S = 10.0
#: Seconds between two marks, from which "recent" is computed.
MARK_EVERY_S = 1.0
#: Seconds that a step may take before its process counts as one that hangs: a predictor's commit
#: may take 5, and a trainer waits as long for a locked store.
PREDICTOR_STEP_S = 7.0
TRAINER_STEP_S = 15.0
APP_STEP_S = 7.0
MONITOR_STEP_S = 15.0
SERVING_STEP_S = 5.0


class Recent(NamedTuple):
    """The last seconds.

    Attributes:
        seconds: How many.
        rate: Answers a second.
        p50_ms: The median latency in milliseconds; None without an answer.
        p99_ms: The 99th percentile.
    """

    seconds: float
    rate: float
    p50_ms: float | None
    p99_ms: float | None


class RecentAnswers:
    """Rate and latency of the last seconds.

    Args:
        latencies: Those since the start.
        clock: Returns seconds; never goes back.
    """

    def __init__(self, latencies: Latencies, clock: Callable[[], float] = time.monotonic) -> None:
        self._latencies = latencies
        self._clock = clock
        self._marks: tuple[tuple[float, int, Histogram], ...] = ((clock(), 0, latencies.now()),)

    def mark(self, answers: int) -> None:
        """Note the number of answers since the start; to be called several times a second."""
        now = self._clock()
        if now - self._marks[-1][0] >= MARK_EVERY_S:
            kept = (mark for mark in self._marks if mark[0] >= now - RECENT_S)
            self._marks = (*kept, (now, answers, self._latencies.now()))

    def now(self, answers: int) -> Recent:
        """The last seconds, given the number of answers since the start."""
        now, marks = self._clock(), self._marks
        at, before, histogram = next(
            (mark for mark in marks if mark[0] >= now - RECENT_S), marks[-1]
        )
        seconds = max(now - at, MARK_EVERY_S)
        recent = self._latencies.now().since(histogram)
        return Recent(
            seconds,
            max(answers - before, 0) / seconds,
            recent.percentile(0.5),
            recent.percentile(0.99),
        )


@dataclass
class PredictorCounts:
    """What a predictor counts.

    Attributes:
        model_id: The model that serves; None before it is loaded.
        swaps: How many models have been loaded while it served.
        predictions: Those that are committed.
        outcomes: Known outcomes in committed records.
        last_outcome_ms: The newest timestamp of a known outcome, in milliseconds since 1970; None
            before the first one. If the record's own makes no sense, it is when it was read.
        rejected: Records without a prediction that went to `dead_letters`, by their topic.
        unknown_outcomes: Messages with a prediction of which the outcome went to `dead_letters`.
        requests: Retrain requests that were sent.
        batches: Transactions that are committed.
        errors: Steps that have failed; what they had polled is polled again.
        values: Missing, unknown and leniently read values by column.
        latencies: From a message's timestamp to the commit of its prediction.
        lag: Records that are not read yet, by (topic, partition); only of those it reads, and of
            which the end is known.
        partitions: The (topic, partition) that it reads.
        held_back: Those that are its own but cannot be read yet.
        health: Whether it serves.
    """

    process: ClassVar[str] = "predictor"
    model_id: int | None = None
    swaps: int = 0
    predictions: int = 0
    outcomes: int = 0
    last_outcome_ms: float | None = None
    rejected: Counter[str] = field(default_factory=Counter)
    unknown_outcomes: int = 0
    requests: int = 0
    batches: int = 0
    errors: int = 0
    values: ValueTotals = field(default_factory=ValueTotals)
    latencies: Latencies = field(default_factory=Latencies)
    lag: Mapping[tuple[str, int], int] = field(default_factory=dict)
    partitions: tuple[tuple[str, int], ...] = ()
    held_back: tuple[tuple[str, int], ...] = ()
    health: Health = field(default_factory=lambda: Health(PREDICTOR_STEP_S))

    def __post_init__(self) -> None:
        self._recent = RecentAnswers(self.latencies)
        self.assign(())

    def assign(
        self, partitions: Iterable[tuple[str, int]], held_back: Iterable[tuple[str, int]] = ()
    ) -> None:
        """Note the (topic, partition) that it reads from now on, and those it cannot read yet."""
        self.partitions, self.held_back = tuple(sorted(partitions)), tuple(sorted(held_back))
        numbers = sorted({number for _, number in self.partitions})
        if numbers:
            self._assigned = State(True, f"serves partitions {', '.join(map(str, numbers))}")
        elif self.held_back:
            self._assigned = State(False, "its partitions cannot be read yet")
        else:
            self._assigned = State(True, "a spare: there is no partition for it to serve")

    def add_outcomes(self, count: int, newest_ms: float, now_ms: float) -> None:
        """Count known outcomes, and keep the newest timestamp.

        Args:
            count: How many.
            newest_ms: The timestamp of the last one, in milliseconds since 1970.
            now_ms: The same; counts instead of a timestamp that makes no sense.
        """
        self.outcomes += count
        newest = newest_ms if OLDEST_MS <= newest_ms <= now_ms else now_ms
        self.last_outcome_ms = max(newest, self.last_outcome_ms or 0.0)

    def stepped(self, *, member: bool, trouble: str = "") -> None:
        """Note the end of a step.

        Args:
            member: Whether the group has this process as a member now.
            trouble: Why steps have failed a moment ago; empty if they have not.
        """
        self._recent.mark(self.predictions)
        if trouble:
            self.health.fails(trouble)
        elif member:
            self.health.note(self._assigned)
        else:
            self.health.fails("not a member of the consumer group yet")

    def failed(self, reason: str) -> None:
        """Note that a step has failed."""
        self.errors += 1
        self._recent.mark(self.predictions)
        self.health.fails(reason)

    def recent(self) -> Recent:
        """Predictions a second and their latency, over the last seconds."""
        return self._recent.now(self.predictions)


class Spent(NamedTuple):
    """How often something was done, and the seconds that it took in all."""

    times: int
    seconds: float


@dataclass
class TrainerCounts:
    """What a trainer counts.

    Attributes:
        model_id: The model that serves; None before it is loaded.
        trainings: Trainings that have ended, by whether the model was accepted.
        failures: Trainings that have failed.
        rollbacks: Models that the trainer has taken back.
        received: Retrain requests on the topic, by reason.
        requested: Retrain requests by this trainer itself, by reason.
        waiting: Requests that no training has answered.
        waiting_since: The time of the oldest of them, in seconds since 1970, or None.
        spent: The time that the parts of the trainings took.
        training_since: When the running training began, in seconds since 1970, or None.
        ingested: Records that were read from the log into the message store.
        challenger_log_loss: Of the last training's model, at the gate, in nats, or None.
        champion_log_loss: Of the model that served then, on the same rows, or None.
        live: The loss of the real predictions, or None while it is not known.
        deployed_id: The model that was deployed to SageMaker last, or None.
        deployments: Deployments to SageMaker that have ended, by whether they succeeded.
        errors: Steps that have failed; they are repeated.
        health: Whether it serves.
    """

    process: ClassVar[str] = "trainer"
    model_id: int | None = None
    trainings: Counter[bool] = field(default_factory=Counter)
    failures: int = 0
    rollbacks: int = 0
    received: Counter[str] = field(default_factory=Counter)
    requested: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    waiting_since: float | None = None
    spent: dict[str, Spent] = field(default_factory=dict)
    training_since: float | None = None
    ingested: int = 0
    challenger_log_loss: float | None = None
    champion_log_loss: float | None = None
    live: LiveLoss | None = None
    deployed_id: int | None = None
    deployments: Counter[bool] = field(default_factory=Counter)
    errors: int = 0
    health: Health = field(default_factory=lambda: Health(TRAINER_STEP_S))

    def add_training(self, accepted: bool, seconds: Mapping[str, float]) -> None:
        """Count a training and the time that its parts took."""
        self.trainings[accepted] += 1
        for part, value in seconds.items():
            times, total = self.spent.get(part, Spent(0, 0.0))
            self.spent[part] = Spent(times + 1, total + value)

    def stepped(self, *, owner: bool, trouble: str = "") -> None:
        """Note the end of a step.

        Args:
            owner: Whether this trainer is the one that reads the requests.
            trouble: Why steps have failed a moment ago; empty if they have not.
        """
        if trouble:
            self.health.fails(trouble)
        elif not owner:
            self.health.fails("it does not read the retrain requests")
        else:
            self.health.serves("trains" if self.training_since else "waits for requests")

    def failed(self, reason: str) -> None:
        """Note that a step has failed."""
        self.errors += 1
        self.health.fails(reason)


@dataclass
class AppCounts:
    """What the sample application counts.

    Attributes:
        sent: Messages.
        answered: Messages with a prediction.
        rejected: Messages that were rejected instead.
        rejected_outcomes: Outcomes that were rejected.
        twice: Predictions beyond the first of a message.
        right: Predictions of the true class.
        latencies: From sending a message to reading its prediction.
        health: Whether it sends and receives.
    """

    process: ClassVar[str] = "sample_app"
    sent: int = 0
    answered: int = 0
    rejected: int = 0
    rejected_outcomes: int = 0
    twice: int = 0
    right: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    health: Health = field(default_factory=lambda: Health(APP_STEP_S))

    def __post_init__(self) -> None:
        self._recent = RecentAnswers(self.latencies)

    @property
    def waiting(self) -> int:
        """Messages without an answer."""
        return max(self.sent - self.answered - self.rejected, 0)

    def mark(self) -> None:
        """To be called several times a second, so that `recent` knows what was when."""
        self._recent.mark(self.answered)

    def recent(self) -> Recent:
        """Answers a second and their latency, over the last seconds."""
        return self._recent.now(self.answered)


@dataclass
class InitializeCounts:
    """What initialize.py counts.

    Attributes:
        evaluations: Evaluations of the search that are done.
        best_log_loss: The best of them so far, in nats, or None.
        health: It prepares, and serves nothing.
    """

    process: ClassVar[str] = "initialize"
    evaluations: int = 0
    best_log_loss: float | None = None
    health: Health = field(default_factory=lambda: Health(0.0))


@dataclass
class MonitorCounts:
    """What the live page counts.

    Attributes:
        viewers: How many pages are open.
        health: Whether it shows the newest figures.
    """

    process: ClassVar[str] = "monitor"
    viewers: int = 0
    health: Health = field(default_factory=lambda: Health(MONITOR_STEP_S))


@dataclass
class ServingCounts:
    """What the HTTP server counts; its event loop counts, any thread may look.

    Attributes:
        model_id: The model that serves.
        swaps: How many models have been loaded while it served.
        requests: Answered requests by HTTP status.
        predictions: Rows with a prediction.
        refused: Rows that could not be scored.
        repeated: Rows that were answered before, and got the same answer.
        values: Missing, unknown and leniently read values by column, of rows scored here.
        latencies: From the arrival of a request's headers to its answer.
        health: Whether it serves.
    """

    process: ClassVar[str] = "serving"
    model_id: int | None = None
    swaps: int = 0
    requests: Counter[int] = field(default_factory=Counter)
    predictions: int = 0
    refused: int = 0
    repeated: int = 0
    values: ValueTotals = field(default_factory=ValueTotals)
    latencies: Latencies = field(default_factory=Latencies)
    health: Health = field(default_factory=lambda: Health(SERVING_STEP_S))

    def __post_init__(self) -> None:
        self._recent = RecentAnswers(self.latencies)

    def mark(self) -> None:
        """To be called several times a second, so that `recent` knows what was when."""
        self._recent.mark(self.requests.total())

    def recent(self) -> Recent:
        """Requests a second and their latency, over the last seconds."""
        return self._recent.now(self.requests.total())


#: What some process counts.
Counts = (
    PredictorCounts | TrainerCounts | AppCounts | InitializeCounts | MonitorCounts | ServingCounts
)
