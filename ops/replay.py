"""Scores the log again with the predictor's functions, and compares the predictions.

Nothing is written.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import takewhile

import msgspec

from utils import messages, scoring
from utils.errors import UserError
from utils.feature_tools import Row
from utils.kafka_io import Record, TopicPartition, log_scan
from utils.message_decoder import request_id_of
from utils.model_store import (
    Bundle,
    BundleError,
    ModelStore,
)
from utils.settings import Kafka, Settings

#: Called with (records done, records in total).
Progress = Callable[[int, int], object]

#: A prediction and its offset.
FoundPrediction = tuple[int, messages.Prediction]


class Difference(Exception):
    """The first result that differs; the text says where, on one line."""


@dataclass
class Replayed:
    """The result of a replay.

    Attributes:
        reproduced: Number of predictions that were reproduced, by model.
        pruned: Number of predictions whose model is gone, by model.
        absent: Those of the gone models that this home never had.
        rejected: Number of messages without a prediction because they were rejected.
        unanswered: Number of messages at the end that have no prediction yet.
        no_prediction: Number of messages whose prediction is no longer in the log.
        no_message: Number of predictions whose message is no longer in the log.
    """

    reproduced: Counter[int] = field(default_factory=Counter)
    pruned: Counter[int] = field(default_factory=Counter)
    absent: set[int] = field(default_factory=set)
    rejected: int = 0
    unanswered: int = 0
    no_prediction: int = 0
    no_message: int = 0

    def lines(self) -> list[str]:
        """The result as lines of text for the user."""
        models = ", ".join(f"{n} by model {m}" for m, n in sorted(self.reproduced.items()))
        count = self.reproduced.total()
        lines = [f"{count} predictions reproduced bit for bit" + (f": {models}" if models else "")]
        lines += [
            f"{number} cannot be replayed: model {model_id} "
            + ("is not in this home" if model_id in self.absent else "was pruned")
            for model_id, number in sorted(self.pruned.items())
        ]
        if self.rejected:
            lines.append(f"{self.rejected} messages were rejected and have no prediction")
        if self.unanswered:
            lines.append(f"{self.unanswered} messages at the end have no prediction yet")
        lines += [
            f"{number} cannot be replayed: its {what} is gone (compacted, expired or deleted)"
            for what, number in (("prediction", self.no_prediction), ("message", self.no_message))
            if number
        ]
        return lines


def replay(
    settings: Settings,
    *,
    first: int = 0,
    last: int | None = None,
    partition: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Replayed:
    """Score the log again with the models that the predictions name.

    The k-th usable message of a partition belongs to the k-th prediction there, so they are
    paired from the beginning of the partition, wherever the range begins. Where records of
    either topic are gone, they are paired by request_id.

    Args:
        settings: The pipeline's settings.
        first: The first offset of `app_messages` to score again.
        last: The last offset; None for the end of the log.
        partition: The only partition to score again; None for all.
        progress: Called with the progress.

    Raises:
        Difference: A prediction is different, missing or duplicated.
        KafkaUnavailable, ModelStoreError, UserError: The replay is not possible.
    """
    kafka = settings.kafka
    # Read in this order, so that the message of every prediction is within `message_bounds`.
    rejected = _rejected_offsets(kafka)
    answered = log_scan.committed(kafka, messages.PREDICTOR_GROUP, messages.APP_MESSAGES)
    prediction_bounds = log_scan.bounds(kafka, messages.PREDICTIONS)
    now_answered = log_scan.committed(kafka, messages.PREDICTOR_GROUP, messages.APP_MESSAGES)
    message_bounds = log_scan.bounds(kafka, messages.APP_MESSAGES)
    if partition is not None and partition not in message_bounds:
        raise UserError(f"{messages.APP_MESSAGES} has no partition {partition}")
    chosen = sorted(message_bounds) if partition is None else [partition]
    if first and all(first >= message_bounds[p][1] for p in chosen):
        ends = max(message_bounds[p][1] for p in chosen)
        raise UserError(f"{messages.APP_MESSAGES} ends before offset {first}, at {ends}")
    compacted = {
        topic
        for topic in (messages.APP_MESSAGES, messages.PREDICTIONS)
        if log_scan.is_compacted(kafka, topic)
    }
    wanted = range(first, log_scan.END if last is None else last + 1)
    replayed = Replayed()
    models = _Models(ModelStore(settings.models_dir))
    total = sum(
        max(0, min(message_bounds[p][1], wanted.stop) - message_bounds[p][0]) for p in chosen
    )
    done = 0
    for number in chosen:
        logs = {
            messages.APP_MESSAGES: log_scan.narrow(number, message_bounds),
            messages.PREDICTIONS: log_scan.narrow(number, prediction_bounds),
        }
        gone = {
            topic for topic, log in logs.items() if topic in compacted or log.get(number, (0, 0))[0]
        }
        partition_replay = _Partition(
            kafka, number, models, rejected.get(number, set()), wanted, replayed, logs
        )
        records = (
            partition_replay.replay_by_id(
                gone, (answered.get(number, 0), now_answered.get(number, log_scan.END))
            )
            if gone
            else partition_replay.replay()
        )
        for _ in records:
            done += 1
            if done % 500 == 0:
                progress(done, total)
    progress(total, total)
    return replayed


class _Models:
    """Loads bundles by their number, each once."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._loaded: dict[int, Bundle] = {}
        self.serving = store.load_current()

    def get(self, model_id: int) -> Bundle | None:
        """A bundle; None if it was pruned.

        Raises:
            BundleError: The bundle is damaged.
            LookupError: The home never had a bundle with this number.
        """
        if model_id not in self._loaded:
            try:
                self._loaded[model_id] = self._store.load(model_id)
            except BundleError:
                if model_id in self._store.on_disk():
                    raise
                if self._store.published(model_id) is None:
                    raise LookupError from None
                return None
        return self._loaded[model_id]


class _Run:
    """Consecutive messages whose predictions one model made, scored together."""

    def __init__(self, tp: TopicPartition, bundle: Bundle) -> None:
        self.bundle = bundle
        self.tp = tp
        self.rows: list[Row] = []
        self.request_ids: list[str] = []
        self.predictions: list[tuple[int, int, messages.Prediction]] = []

    def check(self) -> int:
        """Score the messages and compare; returns their number.

        Raises:
            Difference: A prediction is different.
        """
        matrix = self.bundle.features.transform_rows(self.rows)
        again = scoring.prediction_records(self.bundle, self.request_ids, self.bundle.score(matrix))
        for (_, value, _), (offset, prediction_offset, recorded) in zip(
            again, self.predictions, strict=True
        ):
            # Compared as JSON: the shortest text of a float determines all of its bits.
            if value != msgspec.json.encode(recorded):
                raise Difference(
                    _describe_difference(self.tp, offset, prediction_offset, recorded, value or b"")
                )
        return len(self.rows)


@dataclass(frozen=True)
class Pairing:
    """Which prediction belongs to which message, in one partition.

    Attributes:
        predictions: The offset of the prediction, by that of its message.
        no_message: The offset and the request_id of each prediction whose message is not there.
        answered: The first offset of the messages that have no prediction yet.
    """

    predictions: Mapping[int, int]
    no_message: Sequence[tuple[int, str]]
    answered: int


def pair_by_id(
    sent: Iterable[tuple[str, int]],
    answers: Iterable[tuple[str, int]],
    finished: tuple[int, int] = (0, log_scan.END),
) -> Pairing:
    """Pair messages and predictions by request_id; of several, the latest with the latest.

    What is gone is always older than what remains of the same request_id, whether it was
    compacted, expired or deleted.

    Args:
        sent: The request_id and the offset of each usable message, in the order of the log.
        answers: The same of each prediction.
        finished: The predictor has answered all messages before the first of these offsets,
            and none at or after the second, unless its newest prediction says otherwise.

    >>> pair_by_id([("a", 1), ("b", 2), ("a", 3), ("c", 4)], [("b", 6), ("a", 8)])
    Pairing(predictions={2: 6, 3: 8}, no_message=[], answered=4)
    """
    offsets: dict[str, list[int]] = {}
    newest = ""
    for newest, offset in answers:
        offsets.setdefault(newest, []).append(offset)
    by_id: dict[str, list[int]] = {}
    for request_id, offset in sent:
        by_id.setdefault(request_id, []).append(offset)
    # Predictions have the order of the messages, and the newest one is never compacted.
    of_newest = by_id.get(newest, [])
    last = max((n for n in of_newest if n < finished[1]), default=max(of_newest, default=-1))
    end = max(finished[0], last + 1)
    pairs: dict[int, int] = {}
    no_message: list[tuple[int, str]] = []
    for request_id, made in offsets.items():
        of_id = [offset for offset in by_id.get(request_id, ()) if offset < end]
        pairs |= zip(reversed(of_id), reversed(made), strict=False)
        no_message += ((offset, request_id) for offset in made[: max(0, len(made) - len(of_id))])
    return Pairing(pairs, sorted(no_message), end)


class _PairedPredictions:
    """Reads the predictions of messages that are asked for in about the order of the log.

    Args:
        records: The records of `predictions`.
        pairs: The offset of the prediction, by that of its message.
    """

    def __init__(self, records: Iterator[Record], pairs: Mapping[int, int]) -> None:
        paired = set(pairs.values())
        self._records = (record for record in records if record.offset in paired)
        self._pairs = pairs
        self._skipped: dict[int, messages.Prediction] = {}

    def take(self, offset: int) -> FoundPrediction | None:
        """The prediction of the message at an offset; None if there is none."""
        wanted = self._pairs.get(offset)
        while wanted is not None and wanted not in self._skipped:
            found = _next_prediction(self._records)
            if found is None:  # expired since
                return None
            self._skipped[found[0]] = found[1]
        return None if wanted is None else (wanted, self._skipped.pop(wanted))


class _Partition:
    """Replays one partition.

    Args:
        kafka: How to reach the cluster.
        number: The partition.
        models: The models that made the predictions.
        rejected: The offsets of the messages in `dead_letters`.
        wanted: The offsets of the messages to score again; those before are only paired.
        replayed: Gets the result.
        logs: The bounds of `app_messages` and of `predictions`, narrowed to the partition.
    """

    def __init__(
        self,
        kafka: Kafka,
        number: int,
        models: _Models,
        rejected: set[int],
        wanted: range,
        replayed: Replayed,
        logs: Mapping[str, log_scan.Bounds],
    ) -> None:
        self._kafka = kafka
        self._tp = TopicPartition(messages.APP_MESSAGES, number)
        self._models = models
        self._rejected = rejected
        self._wanted = wanted
        self._replayed = replayed
        self._logs = logs
        self._run: _Run | None = None
        self._previous_id = ""

    def replay(self) -> Iterator[None]:
        """Replay a complete log; yields after each message.

        Raises:
            Difference: See `replay`.
        """
        predictions = self._scan(messages.PREDICTIONS)
        prediction = _next_prediction(predictions)
        for record in self._messages():
            if self._take(record, prediction):
                prediction = _next_prediction(predictions)
            yield
        self._flush()
        if self._wanted.stop == log_scan.END and prediction is not None:
            raise Difference(self._describe_doubled(prediction[0], prediction[1].request_id))

    def replay_by_id(self, gone: Set[str], finished: tuple[int, int]) -> Iterator[None]:
        """Replay a log of which records are gone; yields after each message.

        Args:
            gone: The topics of which records are gone; of the other, none may be missing.
            finished: See `pair_by_id`.

        Raises:
            Difference: See `replay`.
        """
        pairing = pair_by_id(
            (
                (request_id, offset)
                for request_id, offset in self._named(self._tp.topic)
                if offset not in self._rejected
            ),
            self._named(messages.PREDICTIONS),
            finished,
        )
        predictions = _PairedPredictions(
            self._scan(messages.PREDICTIONS),
            {sent: made for sent, made in pairing.predictions.items() if sent in self._wanted},
        )
        for record in self._messages():
            if record.offset in self._wanted:
                prediction = predictions.take(record.offset)
                self._take_paired(record, prediction, pairing.answered, gone)
            yield
        self._flush()
        if self._wanted != range(log_scan.END):  # it is not known which were in the range
            return
        if pairing.no_message and self._tp.topic not in gone:
            raise Difference(self._describe_doubled(*pairing.no_message[0]))
        self._replayed.no_message += len(pairing.no_message)

    def _messages(self) -> Iterator[Record]:
        ended = self._wanted.stop
        return takewhile(lambda record: record.offset < ended, self._scan(self._tp.topic))

    def _scan(self, topic: str) -> Iterator[Record]:
        return log_scan.scan(self._kafka, topic, self._logs[topic])

    def _named(self, topic: str) -> Iterator[tuple[str, int]]:
        for record in self._scan(topic):
            request_id = request_id_of(record.value)
            if request_id is not None:
                yield request_id, record.offset

    def _take(self, record: Record, prediction: FoundPrediction | None) -> bool:
        """Pair a message; returns whether `prediction` belongs to it."""
        in_range = record.offset in self._wanted
        bundle = self._bundle_of(prediction)
        decoded = self._decode(record, bundle)
        if not decoded.rows:
            self._replayed.rejected += in_range
            return False
        if prediction is None:
            self._replayed.unanswered += in_range
            return False
        prediction_offset, recorded = prediction
        (request_id,) = decoded.request_ids
        if request_id != recorded.request_id:
            self._flush()  # reports an earlier difference first
            raise Difference(
                self._describe_mismatch(record.offset, request_id, prediction_offset, recorded)
            )
        self._previous_id = request_id
        if in_range:
            self._compare(record.offset, decoded, bundle, prediction)
        return True

    def _take_paired(
        self, record: Record, prediction: FoundPrediction | None, answered: int, gone: Set[str]
    ) -> None:
        """Count or compare a message whose prediction was found by its request_id, or not."""
        bundle = self._bundle_of(prediction)
        decoded = self._decode(record, bundle)
        if not decoded.rows:
            self._replayed.rejected += 1
            self._replayed.no_message += prediction is not None  # of an earlier message
        elif prediction is not None:
            self._compare(record.offset, decoded, bundle, prediction)
        elif record.offset >= answered:
            self._replayed.unanswered += 1
        elif messages.PREDICTIONS in gone:
            self._replayed.no_prediction += 1
        else:
            self._flush()
            raise Difference(
                f"{self._tp.topic}-{self._tp.partition}, offset {record.offset}: the message "
                f"{decoded.request_ids[0]!r} has no prediction: a prediction is missing"
            )

    def _decode(self, record: Record, bundle: Bundle | None) -> scoring.DecodedRecords:
        if record.offset in self._rejected:
            return scoring.DecodedRecords()
        return scoring.decode_messages([record], bundle or self._models.serving)

    def _compare(
        self,
        offset: int,
        decoded: scoring.DecodedRecords,
        bundle: Bundle | None,
        prediction: FoundPrediction,
    ) -> None:
        """Add a message and its prediction to those that are scored together."""
        if bundle is None:
            self._replayed.pruned[prediction[1].model_id] += 1
            return
        run = self._run_of(bundle)
        run.request_ids += decoded.request_ids
        run.rows += decoded.rows
        run.predictions.append((offset, *prediction))

    def _bundle_of(self, prediction: FoundPrediction | None) -> Bundle | None:
        if prediction is None:
            return None
        model_id = prediction[1].model_id
        try:
            return self._models.get(model_id)
        except LookupError:
            self._replayed.absent.add(model_id)
            return None

    def _run_of(self, bundle: Bundle) -> _Run:
        run = self._run
        if run is None or run.bundle is not bundle or len(run.rows) >= scoring.MAX_RECORDS:
            self._flush()
            run = self._run = _Run(self._tp, bundle)
        return run

    def _flush(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._replayed.reproduced[run.bundle.model_id] += run.check()

    def _describe_doubled(self, prediction_offset: int, request_id: str) -> str:
        return (
            f"{messages.PREDICTIONS}-{self._tp.partition}, offset {prediction_offset}: the "
            f"prediction for {request_id!r} has no message: a prediction is duplicated"
        )

    def _describe_mismatch(
        self, offset: int, request_id: str, prediction_offset: int, recorded: messages.Prediction
    ) -> str:
        number = self._tp.partition
        what = "duplicated" if recorded.request_id == self._previous_id else "missing or duplicated"
        return (
            f"{self._tp.topic}-{number}, offset {offset}: the message is {request_id!r}, but the "
            f"next prediction ({messages.PREDICTIONS}-{number}, offset {prediction_offset}) is for "
            f"{recorded.request_id!r}: a prediction is {what}"
        )


def _next_prediction(predictions: Iterator[Record]) -> FoundPrediction | None:
    record = next(predictions, None)
    if record is None:
        return None
    try:
        recorded = msgspec.json.decode(record.value or b"", type=messages.Prediction)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Difference(
            f"{record.topic}-{record.partition}, offset {record.offset}: not a prediction: {error}"
        ) from None
    return record.offset, recorded


def _describe_difference(
    tp: TopicPartition,
    offset: int,
    prediction_offset: int,
    recorded: messages.Prediction,
    value: bytes,
) -> str:
    again = msgspec.json.decode(value, type=messages.Prediction)
    both = [
        f"{name} {getattr(recorded, name)!r}, now {getattr(again, name)!r}"
        for name in ("probability", "prediction", "label")
        if msgspec.json.encode(getattr(recorded, name)) != msgspec.json.encode(getattr(again, name))
    ]
    return (
        f"{tp.topic}-{tp.partition}, offset {offset}, {recorded.request_id!r}: model "
        f"{recorded.model_id} gave ({messages.PREDICTIONS}-{tp.partition}, "
        f"offset {prediction_offset}) " + "; ".join(both)
    )


def _rejected_offsets(kafka: Kafka) -> dict[int, set[int]]:
    """The offsets of rejected messages by partition of `app_messages`."""
    rejected: dict[int, set[int]] = {}
    within = log_scan.bounds(kafka, messages.DEAD_LETTERS)
    for record in log_scan.scan(kafka, messages.DEAD_LETTERS, within):
        rejection = messages.Rejection.from_headers(record.headers)
        if rejection is None or rejection.outcome is not None:  # the message has its prediction
            continue
        if rejection.topic == messages.APP_MESSAGES:
            rejected.setdefault(rejection.partition, set()).add(rejection.offset)
    return rejected
