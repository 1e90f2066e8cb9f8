"""Explains a prediction: all that is known about a request, and each feature's contribution."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from utils import messages
from utils.errors import UserError
from utils.feature_tools import FeatureTools, Row
from utils.kafka_io import KafkaUnavailable, Record, TopicPartition, log_scan
from utils.message_decoder import class_name, load_json, request_id_of
from utils.message_store import MessageStore, RawLog, StoreError
from utils.message_store.ingest import TOPICS, RecordDecoder
from utils.message_store.timestamps import Timestamps
from utils.metrics import BothMetrics, Comparison
from utils.model_store import Bundle, ModelStore, predicted_codes
from utils.model_store.manifest import MemoryRecord, PublishedModel, TopicOffsets
from utils.settings import Kafka, Settings
from utils.value_counts import KINDS, new_tally
from utils.values import Label, date_text

#: Rounding tolerance for the probability that follows from the sum of the contributions.
TOLERANCE = 1e-9

Probability = float | list[float]


class Place(msgspec.Struct):
    """Where a record is in its topic; `timestamp` in milliseconds since 1970."""

    partition: int
    offset: int
    timestamp: int


class Value(msgspec.Struct, frozen=True):
    """A value of a message in a column of the model.

    Attributes:
        column: The column.
        sent: The value as it was sent; unset if the column was not, or if that is not known.
        read: What it means: a number, a date as text, a category; None if it is missing.
        kind: "known", "missing", "unknown" (a category that training did not see), "lenient"
            (written in another way than in the data set), "other" (a category that shares its
            code with all that are not among the most frequent ones), or "as sent" if the model
            was pruned.
    """

    column: str
    sent: object | UnsetType = UNSET
    read: Label | None = None
    kind: str = "known"


class Message(Place):
    """The message of a request.

    Attributes:
        values: What its values mean, by column of the model; None for a rejected message.
        details: The same, with what was sent.
        rejected: Why the message was rejected, or None.
    """

    values: Mapping[str, Label | None] | None = None
    details: list[Value] = []
    rejected: str | None = None


class KnownOutcome(msgspec.Struct, frozen=True):
    """The valid outcome; without a place if it was inside the message."""

    outcome: str
    partition: int | None = None
    offset: int | None = None
    timestamp: int | None = None


class MadePrediction(Place, kw_only=True):
    """A record of `predictions`, with its class if the model's classes are known."""

    model_id: int
    probability: Probability
    prediction: int | UnsetType = UNSET
    label: str | UnsetType | None = UNSET


class Model(msgspec.Struct, kw_only=True):
    """The model of a prediction, from its manifest or the history.

    Attributes:
        pruned: Whether its bundle was deleted.
        absent: Whether this home never had it.
        memory: How the rows are weighed that it learnt from; None if it is not known.
    """

    model_id: int
    pruned: bool
    absent: bool = False
    parent_id: int | None = None
    created: str | None = None
    accepted: bool | None = None
    batch_ids: Sequence[str] | None = None
    gate: Comparison | None = None
    metrics: BothMetrics | None = None
    rows: int | None = None
    base_data_sha256: str | None = None
    offsets: TopicOffsets | None = None
    memory: MemoryRecord | None = None


class Contribution(msgspec.Struct, frozen=True):
    """What a feature adds to the log-odds; `value` is the raw value, or both of a cross."""

    name: str
    value: Label | None
    contribution: float


class Contributions(msgspec.Struct, frozen=True):
    """The contributions of the features to a score.

    Attributes:
        of: The class whose log-odds are explained; with more than two classes, its score
            before the softmax.
        base_value: The score without any feature.
        features: The contributions, the largest first.
        sum: The sum of the base value and all contributions.
        probability: The probability that follows from the sum.
        adds_up: Whether the model predicts that probability, within `TOLERANCE`.
    """

    of: str
    base_value: float
    features: Sequence[Contribution]
    sum: float
    probability: float
    adds_up: bool


class Recomputed(msgspec.Struct, frozen=True):
    """The message's new score, and whether it equals the recorded prediction bit for bit."""

    probability: Probability
    same_bits: bool


class Explanation(msgspec.Struct, kw_only=True):
    """All that is known about a request.

    Attributes:
        request_id: The id of the request.
        source: Where the request was found, as text.
        sent: How many messages have the request_id; None if that is not known.
        message: The latest of them, by timestamp; None if there is none.
        predictions: The predictions for them, oldest first.
        answer: The one of them that belongs to `message`; None if there is none.
        gone: What is no longer in the log, as text: the message, or its prediction.
        outcome: The outcome; None while it is not known.
        outcomes: How many valid records on `outcomes` are about the request, of which the latest
            counts; None if that is not known.
        rejected_outcome: The outcome inside the message, if it is none of the classes.
        model: The answer's model; None without an answer.
        contributions: None without an answer, its bundle or a valid message.
        recomputed: None in the same cases.
    """

    request_id: str
    source: str
    sent: int | None = None
    message: Message | None = None
    outcome: KnownOutcome | None = None
    outcomes: int | None = None
    rejected_outcome: str | None = None
    predictions: list[MadePrediction] = []
    answer: MadePrediction | None = None
    gone: list[str] = []
    model: Model | None = None
    contributions: Contributions | None = None
    recomputed: Recomputed | None = None

    @property
    def is_whole(self) -> bool:
        """Whether both the message and its prediction were found."""
        return self.message is not None and self.answer is not None


def why(settings: Settings, request_id: str, *, log: bool = False) -> Explanation:
    """Explain a prediction.

    The request is looked up in the message store, then in the log. The log also decides if the
    stored prediction is not that of the stored message: the store keeps the latest of each, and
    those of a request_id sent twice need not belong together.

    Args:
        settings: The pipeline's settings.
        request_id: The request to explain.
        log: Read the log even if the store has the request: only the log has all messages
            with this request_id.

    Raises:
        UserError: There is no such request, or neither store nor log can be read.
        ModelStoreError: The models cannot be read.
    """
    found = _why(settings, request_id, log)
    if not log and found.recomputed is not None and not found.recomputed.same_bits:
        with suppress(UserError):  # what the store has may be all that is left
            in_log = _why(settings, request_id, log=True)
            found = in_log if in_log.is_whole else found
    return found


def _why(settings: Settings, request_id: str, log: bool) -> Explanation:
    store = ModelStore(settings.models_dir)
    serving = store.load_current()
    found, sent = _look_up(settings, serving, request_id, log)
    model_id = found.answer.model_id if found.answer is not None else None
    bundle = store.load(model_id) if model_id in store.on_disk() else None
    row = None
    if model_id is not None and bundle is None:
        _show_as_sent(found, sent)  # the rules of a pruned model are no longer known
    else:
        row = _read_message(found, sent, bundle or serving)
    if model_id is None or found.answer is None:
        return found
    found.model = _model(store, model_id, bundle)
    classes = (bundle or serving).features.classes
    for each in found.predictions:
        each.prediction = _code(each.probability)
        each.label = classes[each.prediction] if each.prediction < len(classes) else None
    if bundle is not None and row is not None and found.message is not None:
        found.contributions, found.recomputed = _contributions(
            bundle, row, found.message.values or {}, found.answer.probability
        )
    return found


def _read_message(found: Explanation, sent: bytes | None, bundle: Bundle) -> Row | None:
    """Read the message by the rules of the model that has answered; returns its row."""
    if found.message is None or sent is None:
        return None
    features, tally = bundle.features, new_tally(bundle.features)
    lenient = [0] * len(features.columns)
    try:
        row: Row = bundle.decoder(sent, lenient).data
    except messages.BadRecord as reason:
        found.message.rejected = str(reason)
        return None
    tally[2] += lenient
    features.transform_rows([row], tally)
    data = load_json(sent, ValueError()).get("data")
    assert isinstance(data, dict)
    found.message.details = [
        Value(
            name,
            data.get(name, UNSET),
            _shown(features, name, value),
            next((kind for kind, counted in zip(KINDS, counts, strict=True) if counted), "known"),
        )
        for name, value, counts in zip(
            features.columns, features.row_values(row), tally.T.tolist(), strict=True
        )
    ]
    found.message.values = {value.column: value.read for value in found.message.details}
    name = class_name(row.outcome, features)
    if name is not None and name not in features.classes:
        found.rejected_outcome = name
    elif name is not None and found.outcome is None:
        found.outcome = KnownOutcome(name)
    return row


def _show_as_sent(found: Explanation, sent: bytes | None) -> None:
    data = None if sent is None else load_json(sent, ValueError()).get("data")
    if found.message is not None and isinstance(data, dict):
        found.message.values = data
        found.message.details = [
            Value(name, value, None, "as sent") for name, value in data.items()
        ]


def _shown(features: FeatureTools, name: str, value: float | str | None) -> Label | None:
    if name in features.dates and isinstance(value, float):
        return date_text(value, with_time=getattr(features.column(name), "has_time", True))
    return value


def _code(probability: Probability) -> int:
    return int(predicted_codes(np.array([probability]))[0])


# Look-up


def _look_up(
    settings: Settings, serving: Bundle, request_id: str, log: bool
) -> tuple[Explanation, bytes | None]:
    """What is known about a request, and its latest message as it was sent."""
    stored, sent, failure = None, None, ""
    if not log:
        try:
            stored = _in_store(settings, serving, request_id)
            if stored is not None:
                sent = _copy_of(settings, stored.message)
        except StoreError as error:
            failure = str(error)
    if stored is not None and stored.is_whole and sent is not None:
        return stored, sent
    try:
        found, record = _in_log(settings, serving, request_id)
    except KafkaUnavailable as error:
        if stored is None:
            also = f"{failure}; " if failure else "" if log else "not in the message store; "
            raise UserError(f"{request_id!r}: {also}{error}") from None
        stored.source += f"; the log could not be read: {error}"
        return stored, sent
    if found is not None and (stored is None or found.message is not None):
        return found, record
    if stored is None:
        gone = "; ".join(_missing_records(settings.kafka, TOPICS))
        raise UserError(
            f"no request {request_id!r}, neither in the message store nor in the log"
            + (f" ({gone})" if gone else "")
        )
    return stored, sent


def _in_store(settings: Settings, serving: Bundle, request_id: str) -> Explanation | None:
    with MessageStore.open(settings.messages_url, serving.features) as store:
        row = store.request(request_id)
    if row is None:
        return None
    found = Explanation(
        request_id=request_id,
        source="the message store, which keeps the latest of a request_id sent twice",
    )
    if row.message is not None:
        found.message = Message(*row.message)
    if row.prediction is not None and row.model_id is not None and row.probability is not None:
        made = MadePrediction(*row.prediction, model_id=row.model_id, probability=row.probability)
        found.predictions = [made]
        # A message and its prediction have the same partition number.
        if row.message is None or row.message[0] == made.partition:
            found.answer = made
    if row.outcome is not None:
        found.outcome = KnownOutcome(row.outcome, *(row.late_outcome or ()))
    return found


def _copy_of(settings: Settings, message: Message | None) -> bytes | None:
    """A message as it was sent, from the store's copy of the log."""
    if message is None:
        return None
    with RawLog.open(settings.messages_url) as copy:
        record = copy.record(messages.APP_MESSAGES, message.partition, message.offset)
    return record.value if record else None


def _in_log(
    settings: Settings, serving: Bundle, request_id: str
) -> tuple[Explanation | None, bytes | None]:
    """Search the whole log; returns the latest message's bytes, too."""
    timestamps = Timestamps()
    same: dict[str, list[Record]] = {}
    # Read first, so that the log has the prediction of every message before these offsets.
    finished = log_scan.committed(settings.kafka, messages.PREDICTOR_GROUP, messages.APP_MESSAGES)
    for topic in TOPICS:
        bounds = log_scan.bounds(settings.kafka, topic)
        records = timestamps.stream(log_scan.scan(settings.kafka, topic, bounds))
        same[topic] = sorted(
            (record for record in records if request_id_of(record.value) == request_id),
            key=attrgetter("timestamp", "partition", "offset"),
        )
    if not any(same.values()):
        return None, None
    sent = same[messages.APP_MESSAGES]
    found = Explanation(request_id=request_id, source="the log", sent=len(sent), outcomes=0)
    decoder = RecordDecoder(serving.features, serving.manifest.training.outcomes_from)
    for record in same[messages.PREDICTIONS]:
        for row in decoder.batch({_partition(record): [record]}).predictions:
            found.predictions.append(
                MadePrediction(*_place(record), model_id=row[1], probability=row[2])
            )
    latest = None
    if sent:
        latest = _describe_latest(settings.kafka, found, sent, decoder, finished)
    else:
        found.gone = _gone("message", settings.kafka, messages.APP_MESSAGES)
    late = [
        KnownOutcome(outcome[1], *_place(record))
        for record in same[messages.OUTCOMES]
        for outcome in decoder.batch({_partition(record): [record]}).outcomes
        if outcome[1] in serving.features.classes
    ]
    if late:
        found.outcome, found.outcomes = late[-1], len(late)  # also over one inside the message
    return found, latest.value if latest else None


def _describe_latest(
    kafka: Kafka,
    found: Explanation,
    sent: Sequence[Record],
    decoder: RecordDecoder,
    finished: Mapping[int, int],
) -> Record:
    """Add the latest usable message, or the latest if none is, and its answer; returns it."""
    usable = [each for each in sent if decoder.batch({_partition(each): [each]}).messages]
    latest = (usable or sent)[-1]
    found.message, number = Message(*_place(latest)), latest.partition
    if usable:
        topics = (messages.APP_MESSAGES, messages.PREDICTIONS)
        is_whole = not _missing_records(kafka, topics, number)
        end = finished.get(number, 0 if is_whole else log_scan.END)
        found.answer = answer_of(latest, usable, found.predictions, None if is_whole else end)
        if found.answer is None and latest.offset < end:
            found.gone = _gone("prediction", kafka, messages.PREDICTIONS, number)
    return latest


def answer_of(
    message: Record,
    usable: Sequence[Record],
    predictions: Sequence[MadePrediction],
    finished: int | None = None,
) -> MadePrediction | None:
    """The prediction of one of the messages with the same request_id; None if it has none.

    The predictions of a partition have the order of its usable messages.

    Args:
        message: One of the messages.
        usable: All usable ones.
        predictions: The predictions with that request_id.
        finished: If records are gone: all messages before this offset were answered. What is
            gone is older than what remains, so that the last ones are paired then.
    """
    offsets = sorted(each.offset for each in usable if each.partition == message.partition)
    answers = sorted(
        (each for each in predictions if each.partition == message.partition),
        key=attrgetter("offset"),
    )
    if finished is not None:
        offsets = [offset for offset in offsets if offset < finished]
        count = min(len(offsets), len(answers))
        offsets, answers = offsets[len(offsets) - count :], answers[len(answers) - count :]
    return dict(zip(offsets, answers, strict=False)).get(message.offset)


def _gone(what: str, kafka: Kafka, topic: str, partition: int | None = None) -> list[str]:
    causes = "; ".join(_missing_records(kafka, (topic,), partition))
    return [f"its {what} is gone: {causes}"] if causes else [f"its {what} is not in the log"]


def _missing_records(
    kafka: Kafka, topics: Iterable[str], partition: int | None = None
) -> list[str]:
    """Why records may be missing in the log, as lines of text; empty if it is whole."""
    causes = []
    for topic in topics:
        causes += [
            f"the records of {topic}-{number} before offset {first} have expired"
            for number, (first, _) in log_scan.bounds(kafka, topic).items()
            if first and partition in (None, number)
        ]
        if log_scan.is_compacted(kafka, topic):
            causes.append(f"{topic} is compacted")
    return causes


def _partition(record: Record) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)


def _place(record: Record) -> tuple[int, int, int]:
    return record.partition, record.offset, record.timestamp


# The model and its score


def _model(store: ModelStore, model_id: int, bundle: Bundle | None) -> Model:
    line = bundle.manifest.history_line() if bundle else store.published(model_id)
    known = PublishedModel(model_id=model_id, accepted=False) if line is None else line
    return Model(
        model_id=model_id,
        pruned=bundle is None and line is not None,
        absent=line is None,
        parent_id=known.parent_id,
        created=known.created or None,
        accepted=None if line is None else line.accepted,
        batch_ids=known.batch_ids,
        gate=known.gate,
        metrics=known.metrics,
        rows=known.rows,
        base_data_sha256=known.base_data_sha256,
        offsets=known.offsets,
        memory=bundle.manifest.training.memory if bundle else None,
    )


def _contributions(
    bundle: Bundle, row: Row, values: Mapping[str, Label | None], recorded: Probability
) -> tuple[Contributions, Recomputed]:
    """Score a message again and compute the features' contributions."""
    features = bundle.features
    matrix = features.transform_rows([row])
    again = bundle.score(matrix)[0]
    code = _code(again.tolist()) if again.ndim else 1
    width = len(features.feature_names) + 1  # the last one is the base value
    parts = np.asarray(bundle.booster.predict(matrix, pred_contrib=True, num_threads=1))
    parts = parts.reshape(-1, width)  # a row for each class
    sums = parts.sum(axis=1)
    shares = np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum()
    probability = float(shares[code] if again.ndim else 1 / (1 + np.exp(-sums[0])))
    of_class = parts[code if again.ndim else 0].tolist()
    named = zip(features.feature_names, _raw_values(features, values), of_class, strict=False)
    contributions = Contributions(
        of=features.classes[code],
        base_value=of_class[-1],
        features=sorted(
            (Contribution(name, value, part) for name, value, part in named),
            key=lambda row: -abs(row.contribution),
        ),
        sum=float(sums[code if again.ndim else 0]),
        probability=probability,
        adds_up=abs(probability - float(again[code] if again.ndim else again)) <= TOLERANCE,
    )
    same_bits = np.asarray(recorded, np.float64).tobytes() == again.tobytes()
    return contributions, Recomputed(again.tolist(), same_bits)


def _raw_values(features: FeatureTools, values: Mapping[str, Label | None]) -> list[Label | None]:
    """The raw value of each feature; of a cross, both values."""
    return [
        values[source[0]]
        if len(source) == 1
        else " x ".join(value_text(values[name]) for name in source)
        for source in features.feature_sources
    ]


def value_text(value: Label | None) -> str:
    """A raw value as text for display."""
    return "missing" if value is None else str(value)
