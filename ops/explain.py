"""Explains a prediction: all that is known about a request, and each feature's contribution."""

from collections.abc import Mapping, Sequence

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
from utils.metrics import BothMetrics, Comparison
from utils.model_store import Bundle, ModelStore, predicted_codes
from utils.model_store.manifest import MemoryRecord, PublishedModel, TopicOffsets
from utils.settings import Settings
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
            (written in another way than in the data set), or "as sent" if the model was pruned.
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
        message: The newest of them; None if there is none.
        predictions: The predictions for them, oldest first.
        answer: The one of them that belongs to `message`; None if there is none.
        outcome: The outcome; None while it is not known.
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
    rejected_outcome: str | None = None
    predictions: list[MadePrediction] = []
    answer: MadePrediction | None = None
    model: Model | None = None
    contributions: Contributions | None = None
    recomputed: Recomputed | None = None

    @property
    def is_whole(self) -> bool:
        """Whether both the message and its prediction were found."""
        return self.message is not None and self.answer is not None


def why(settings: Settings, request_id: str, *, log: bool = False) -> Explanation:
    """Explain a prediction.

    The request is looked up in the message store, then in the log.

    Args:
        settings: The pipeline's settings.
        request_id: The request to explain.
        log: Read the log even if the store has the request: only the log has all messages
            with this request_id.

    Raises:
        UserError: There is no such request, or neither store nor log can be read.
        ModelStoreError: The models cannot be read.
    """
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
    """What is known about a request, and its newest message as it was sent."""
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
    if found is not None:
        return found, record
    if stored is None:
        raise UserError(f"no request {request_id!r}, neither in the message store nor in the log")
    return stored, sent


def _in_store(settings: Settings, serving: Bundle, request_id: str) -> Explanation | None:
    with MessageStore.open(settings.messages_url, serving.features) as store:
        row = store.request(request_id)
    if row is None:
        return None
    found = Explanation(
        request_id=request_id,
        source="the message store, which keeps the newest of a request_id sent twice",
    )
    if row.message is not None:
        found.message = Message(*row.message)
    if row.prediction is not None and row.model_id is not None and row.probability is not None:
        found.answer = MadePrediction(
            *row.prediction, model_id=row.model_id, probability=row.probability
        )
        found.predictions = [found.answer]
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
    """Search the whole log; returns the newest message's bytes, too."""
    same: dict[str, list[Record]] = {}
    for topic in TOPICS:
        bounds = log_scan.bounds(settings.kafka, topic)
        records = log_scan.scan(settings.kafka, topic, bounds)
        same[topic] = sorted(
            (record for record in records if request_id_of(record.value) == request_id),
            key=lambda record: (record.partition, record.offset),
        )
    if not any(same.values()):
        return None, None
    sent = same[messages.APP_MESSAGES]
    found = Explanation(request_id=request_id, source="the log", sent=len(sent))
    decoder = RecordDecoder(serving.features)
    for record in same[messages.PREDICTIONS]:
        for row in decoder.batch({_partition(record): [record]}).predictions:
            found.predictions.append(
                MadePrediction(*_place(record), model_id=row[1], probability=row[2])
            )
    if sent:
        _describe_newest(found, sent, decoder)
    for record in same[messages.OUTCOMES]:  # the last one counts, also over one inside the message
        for late in decoder.batch({_partition(record): [record]}).outcomes:
            if late[1] in serving.features.classes:
                found.outcome = KnownOutcome(late[1], *_place(record))
    return found, sent[-1].value if sent else None


def _describe_newest(found: Explanation, sent: Sequence[Record], decoder: RecordDecoder) -> None:
    """Add the newest message and its answer; predictions have the order of the messages."""
    record, usable = sent[-1], 0
    for each in sent:
        rows = decoder.batch({_partition(each): [each]}).messages
        usable += bool(rows) and each.partition == record.partition
    found.message = Message(*_place(record))
    answers = [each for each in found.predictions if each.partition == record.partition]
    if rows and len(answers) >= usable:
        found.answer = answers[-1]


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
