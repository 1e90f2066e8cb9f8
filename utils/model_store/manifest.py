"""The metadata of a bundle: its manifest, and its line of the history."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from utils.messages import KeyedUnion
from utils.metrics import BothMetrics, Comparison
from utils.settings import Data
from utils.values import Label

ModelId = Annotated[int, msgspec.Meta(ge=1)]
#: {topic: {partition: next offset to read}}; partitions are text, because JSON's keys are.
TopicOffsets = Mapping[str, Mapping[str, int]]
#: Integers stay integers in JSON, because LightGBM distinguishes 21 from 21.0.
Parameters = Mapping[str, int | float]


def split_rounds(hyperparameters: Parameters) -> tuple[Parameters, int]:
    """Split a manifest's hyperparameters into LightGBM's parameters and the boosting rounds."""
    params = dict(hyperparameters)
    rounds = int(params.pop("num_boost_round"))
    return params, rounds


class TrialRecord(msgspec.Struct, frozen=True):
    """One set of parameters that a search validated.

    Attributes:
        loss: Cross-validated log loss in nats; None if it was not a number.
        rounds: Boosting rounds at that loss.
        params: LightGBM's parameters.
        given_up: Whether the validation was stopped early.
        seconds: The duration of the validation.
    """

    loss: float | None
    rounds: int
    params: Parameters
    given_up: bool
    seconds: float


class MemberRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One of the models that were merged into one.

    Attributes:
        half_life: The age, in outcomes, at which a row counts half; None if all count alike.
        params: LightGBM's parameters.
        rounds: Numbers of boosting rounds, ascending.
        weights: The weight of the model of each of these numbers of rounds.
    """

    half_life: int | None
    params: Parameters
    rounds: Sequence[int]
    weights: Sequence[float]


class StandingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one candidate on outcomes that it had not learnt from.

    Attributes:
        name: Its memory and size.
        rounds: Its boosting rounds.
        log_loss: Its log loss in nats, newer outcomes counting more; None without outcomes.
        weight: Its weight in the model.
    """

    name: str
    rounds: int
    log_loss: float | None
    weight: float


class MemoryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the past a model learnt from, and why (`train.adapt`).

    Attributes:
        policy: "everything" or "recent".
        members: The models that were merged; none if one model learnt from everything.
        standings: All candidates.
        outcomes: The number of outcomes that were known.
        effective: The number of outcomes that count, by their weights; None for everything.
        sharpness: By what the merged raw scores were multiplied.
    """

    policy: Literal["everything", "recent"]
    members: Sequence[MemberRecord] = ()
    standings: Sequence[StandingRecord] = ()
    outcomes: int = 0
    effective: int | None = None
    sharpness: float = 1.0

    def in_words(self) -> str:
        """What it learns from, for a reader."""
        if self.effective is None:
            return "everything"
        return f"the last ~{self.effective:,} outcomes"


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The data and the search of a training.

    Attributes:
        rows: The number of rows that the model was fitted on.
        base_data: The data set's training file.
        data: The section [data] of pipeline.toml that the model was trained by, without the
            files to download.
        classes: The classes in the order of their codes.
        base_data_sha256: The SHA-256 of that file.
        offsets: The offsets up to which the log was read.
        topic_ids: Kafka's ids of those topics.
        outcomes_from: By partition of `outcomes`, the first offset of this target; records
            before it are about another one.
        hyper: The optimiser's name.
        evaluations: The number of candidates of the search.
        learnt_from: Number of candidates that the optimiser remembered from earlier searches.
        cv_loss: The winner's cross-validated log loss in nats.
        trials: All validations in their order.
        seconds: The duration of each part of the training.
        memory: How much of the past it learnt from; None for a first model.
    """

    rows: int | None = None
    base_data: str | None = None
    data: Mapping[str, object] = msgspec.field(default_factory=dict)
    classes: Sequence[str] = ()
    base_data_sha256: str | None = None
    offsets: TopicOffsets = msgspec.field(default_factory=dict)
    topic_ids: Mapping[str, str] = msgspec.field(default_factory=dict)
    outcomes_from: Mapping[int, int] = msgspec.field(default_factory=dict)
    hyper: str | None = None
    evaluations: int | None = None
    learnt_from: int = 0
    cv_loss: float | None = None
    trials: Sequence[TrialRecord] = ()
    seconds: Mapping[str, float] = msgspec.field(default_factory=dict)
    memory: MemoryRecord | None = None

    @property
    def target(self) -> str | None:
        """The target's column, if it is known."""
        return str(self.data["target"]) if "target" in self.data else None

    def problem(self, default: Data) -> Data:
        """The section [data] that the model was trained by; a version before did not keep it.

        Versions without `max_categories` learnt all categories.
        """
        if not self.data:
            return default.model_copy(update={"max_categories": 0})
        return Data.model_validate({"max_categories": 0, **self.data})


class GoldenRow(msgspec.Struct, frozen=True):
    """A row as a client may send it, and the probability that the bundle predicts for it."""

    data: Mapping[str, Label | None]
    probability: float | list[float]


class PublishedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the history: a bundle was published."""

    model_id: int
    parent_id: int | None = None
    created: str = ""
    accepted: bool
    batch_ids: Sequence[str] = ()
    gate: Comparison | None = None
    metrics: BothMetrics = BothMetrics()
    rows: int | None = None
    base_data_sha256: str | None = None
    offsets: TopicOffsets | None = None
    topic_ids: Mapping[str, str] | None = None
    target: str | None = None
    classes: Sequence[str] = ()
    memory: str | None = None


class RolledBack(msgspec.Struct, frozen=True, kw_only=True, rename={"from_id": "from"}):
    """A line of the history: another bundle serves from now on."""

    rollback_to: int
    from_id: int | None
    reason: str = ""
    created: str = ""


class AbsentModels(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the history: numbers of bundles that the log knows and the home lacks.

    So it is after the home was restored from a backup, or its models were deleted.
    """

    absent: Sequence[ModelId]
    created: str = ""


HistoryLine = PublishedModel | RolledBack | AbsentModels

decode_history_line: KeyedUnion[HistoryLine] = KeyedUnion(
    {"rollback_to": RolledBack, "model_id": PublishedModel, "absent": AbsentModels}
)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a bundle's manifest.json.

    Attributes:
        manifest_sha256: The SHA-256 of the file with this field empty.
        model_id: The bundle's number.
        parent_id: The bundle that it was trained to replace; None for the first.
        created: The time in UTC, ISO 8601.
        accepted: Whether the gate accepted it.
        batch_ids: The ids of the retrain requests that it answers.
        hyperparameters: LightGBM's hyperparameters, with `num_boost_round`.
        seed: The seed of the search and the fit.
        training: The data and the search.
        metrics: Its metrics and the champion's on the validation rows.
        gate: The gate's comparison; None if there was no champion.
        versions: The versions of Python and the libraries.
        sha256: The SHA-256 of model.txt and features.json.
        golden: Rows that the bundle has to score as recorded whenever it is loaded.
        history: The last lines of the history before it.
    """

    manifest_sha256: str = ""
    model_id: ModelId
    parent_id: ModelId | None
    created: str
    accepted: bool
    batch_ids: Sequence[str]
    hyperparameters: Parameters = msgspec.field(default_factory=dict)
    seed: int = 0
    training: TrainingRecord
    metrics: BothMetrics
    gate: Comparison | None
    versions: Mapping[str, str] = msgspec.field(default_factory=dict)
    sha256: Mapping[str, str]
    golden: Annotated[Sequence[GoldenRow], msgspec.Meta(min_length=1)]
    history: Sequence[msgspec.Raw]  # of `HistoryLine`

    def history_line(self) -> PublishedModel:
        """The bundle's line of the history."""
        return PublishedModel(
            model_id=self.model_id,
            parent_id=self.parent_id,
            created=self.created,
            accepted=self.accepted,
            batch_ids=self.batch_ids,
            gate=self.gate,
            metrics=self.metrics,
            rows=self.training.rows,
            base_data_sha256=self.training.base_data_sha256,
            offsets=self.training.offsets,
            topic_ids=self.training.topic_ids,
            target=self.training.target,
            classes=self.training.classes,
            memory=self.training.memory.in_words() if self.training.memory else None,
        )


def published(history: Iterable[HistoryLine]) -> list[PublishedModel]:
    """The bundles of a history, oldest first."""
    return [line for line in history if isinstance(line, PublishedModel)]


def absent(history: Iterable[HistoryLine]) -> list[int]:
    """The numbers of the bundles that the log knows and the home lacks, ascending."""
    lines = [line for line in history if isinstance(line, AbsentModels)]
    return sorted({model_id for line in lines for model_id in line.absent})
