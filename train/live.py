"""Watches the loss of the real predictions, as their outcomes become known.

What it knows is in `searches/drift.json`, so that a restart goes on where the last one ended.
Without the file it begins again with the latest outcomes.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from train import evaluate
from train.drift import WARM_UP, Alarm, LossDrift
from utils import durable_files
from utils.feature_tools import FeatureTools
from utils.message_store import KnownPredictions, MessageStore, Offsets
from utils.metrics import LiveLoss
from utils.settings import Settings

FILE = "drift.json"
#: The most outcomes of one look, so that its cost does not grow with the log.
LATEST = 20_000
#: How many outcomes "the last" are, whose mean loss is compared with that of those before.
RECENT = 500
#: No interval for the mean of fewer outcomes.
LEAST_RECENT = 50
#: Half the width of the interval, in standard errors. It is looked at after each outcome, so
#: chance must not leave it once in a thousand looks.
STANDARD_ERRORS = 4.0


class Place(msgspec.Struct, frozen=True):
    """The next offset of a partition."""

    topic: str
    partition: int
    offset: int


class Moments(msgspec.Struct):
    """The number of losses, their sum and the sum of their squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, loss: float) -> None:
        """Add a loss."""
        self.count += 1
        self.total += loss
        self.squares += loss * loss

    @property
    def mean(self) -> float:
        """The mean of at least one loss."""
        return self.total / self.count

    @property
    def variance(self) -> float:
        """The variance; 0 of fewer than two losses."""
        if self.count < 2:
            return 0.0
        return max(self.squares - self.count * self.mean**2, 0.0) / (self.count - 1)


class Watch(msgspec.Struct, kw_only=True):
    """The state of the watch, the content of its file.

    Attributes:
        target: The target and the classes; losses of others are not comparable.
        topic_ids: Kafka's ids of the topics; a recreated topic has another one.
        places: Up to where the log has been looked at.
        outcomes: The number of outcomes seen.
        drift: The detector.
        alarm: The last alarm that asks for a retraining.
        recent: The losses of the last outcomes since the last rise, in order, in nats.
        before: The losses of those before them.
    """

    target: tuple[str, ...] = ()
    topic_ids: dict[str, str] = msgspec.field(default_factory=dict)
    places: list[Place] = msgspec.field(default_factory=list)
    outcomes: int = 0
    drift: LossDrift = msgspec.field(default_factory=LossDrift)
    alarm: Alarm | None = None
    recent: list[float] = msgspec.field(default_factory=list)
    before: Moments = msgspec.field(default_factory=Moments)

    def offsets(self) -> Offsets:
        """Up to where the log has been looked at, by (topic, partition)."""
        return {(place.topic, place.partition): place.offset for place in self.places}

    def fits(self, target: tuple[str, ...], topic_ids: Mapping[str, str]) -> bool:
        """Whether it is about this target and these topics."""
        same = all(topic_ids.get(t, then) == then for t, then in self.topic_ids.items())
        return same and self.target == target

    def see(self, losses: list[float], interval: int, model_id: int) -> None:
        """Take losses in order; an alarm counts if the one before is `interval` outcomes ago."""
        for loss in losses:
            self.outcomes += 1
            self.recent.append(loss)
            if not self.drift.update(loss):
                continue
            # The loss has another level now: what came before says nothing of it.
            self.recent, self.before = self.recent[-max(self.drift.outcomes, 1) :], Moments()
            if self.alarm is None or self.outcomes - self.alarm.at >= interval:
                self.alarm = Alarm(
                    # The same id after a kill between this alarm and its request.
                    batch_id=f"drift-{model_id}-{self.outcomes}",
                    at=self.outcomes,
                    log_loss=self.drift.recent,
                    expected=self.drift.expected,
                    outcomes=self.drift.outcomes,
                )
        for loss in self.recent[:-RECENT]:
            self.before.add(loss)
        del self.recent[:-RECENT]

    def figures(self) -> LiveLoss | None:
        """The mean loss of the last outcomes and the interval for it; None without outcomes."""
        if not self.recent:
            return None
        recent, before = Moments(), self.before
        for loss in self.recent:
            recent.add(loss)
        live = LiveLoss(
            log_loss=recent.mean,
            standard_error=math.sqrt(recent.variance / recent.count),
            outcomes=recent.count,
        )
        if before.count < WARM_UP or recent.count < LEAST_RECENT:
            return live
        error = math.sqrt(before.variance * (1 / recent.count + 1 / before.count))
        return msgspec.structs.replace(
            live,
            expected=before.mean,
            low=max(before.mean - STANDARD_ERRORS * error, 0.0),
            high=before.mean + STANDARD_ERRORS * error,
        )


def figures(settings: Settings) -> LiveLoss | None:
    """What the last look has left; None before any outcome was seen."""
    return read(settings.searches_dir / FILE).figures()


def in_words(settings: Settings) -> str | None:
    """Whether the world moves, in a line; None before any outcome was seen."""
    watch = read(settings.searches_dir / FILE)
    if not watch.outcomes:
        return None
    mean, outcomes = watch.drift.usual
    line = f"live log loss {mean:.4f} over the last {outcomes:,} outcomes: "
    if watch.alarm is None:
        return f"{line}no drift so far"
    ago = watch.outcomes - watch.alarm.at
    return f"{line}steady since a drift {ago:,} outcomes ago ({watch.alarm})"


def look(
    settings: Settings, messages: MessageStore, features: FeatureTools, model_id: int
) -> Alarm | None:
    """Take the outcomes that became known since the last look; returns the last alarm, if any.

    Args:
        settings: The pipeline's settings.
        messages: The message store.
        features: The serving model's preprocessor, which encodes the classes.
        model_id: The serving model, for the alarm's id.

    Raises:
        StoreError: The message store cannot be read.
        OSError: The state cannot be written.
    """
    path = settings.searches_dir / FILE
    target = (features.target, *features.classes)
    watch = read(path)
    if not watch.fits(target, messages.topic_ids()):
        watch = Watch(target=target)
    found = messages.known_since(watch.offsets(), LATEST)
    losses = losses_of(found, features)
    watch.target, watch.topic_ids = target, found.topic_ids
    # Never back: a store that was lost is read again from the log's start.
    seen = watch.offsets()
    watch.places = [
        Place(*place, max(offset, seen.get(place, 0)))
        for place, offset in sorted(found.offsets.items())
    ]
    watch.see(losses, settings.training.drift_interval, model_id)
    write(path, watch)
    return watch.alarm


def losses_of(found: KnownPredictions, features: FeatureTools) -> list[float]:
    """The log loss of each prediction, in nats, without outcomes of no known class."""
    codes = features.encode_target(found.outcomes)
    losses: list[float] = evaluate.row_losses(
        found.probabilities[codes >= 0], codes[codes >= 0]
    ).tolist()
    return losses


def read(path: Path) -> Watch:
    """The state in a file; a new one if there is none, or it is damaged."""
    return durable_files.read_state(path, Watch) or Watch()


def write(path: Path, watch: Watch) -> None:
    """Write the state; a reader or a crash finds the old file or the new one."""
    durable_files.replace_file(path, msgspec.json.encode(watch))
