"""Reproduces predictions and models, and compares them with the recorded ones.

`replay` scores the log again with the predictor's functions; `rebuild` trains a model again
with the trainer's. Neither writes anything.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import msgspec

from train.retrain import retrain_from_manifest
from train.training_rows import training_offsets
from utils import messages, scoring
from utils.errors import UserError
from utils.feature_tools import Row
from utils.kafka_io import KafkaUnavailable, Record, TopicPartition, log_scan
from utils.message_decoder import request_id_of
from utils.message_store import Batch, MessageStore, Offsets, RawLog, Snapshot, StoreError
from utils.message_store.ingest import RecordDecoder, kafka_records
from utils.model_store import (
    FEATURES,
    MODEL,
    Bundle,
    BundleError,
    ModelStore,
    ModelStoreError,
)
from utils.model_store.bundle import disk_errors_as
from utils.settings import Kafka, Settings

#: The topics that models are trained on, besides the data set's training file.
TRAINING_TOPICS = (messages.APP_MESSAGES, messages.OUTCOMES)

#: Called with (records done, records in total).
Progress = Callable[[int, int], object]


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
        notes: Further lines of text for the user.
    """

    reproduced: Counter[int] = field(default_factory=Counter)
    pruned: Counter[int] = field(default_factory=Counter)
    absent: set[int] = field(default_factory=set)
    rejected: int = 0
    unanswered: int = 0
    notes: list[str] = field(default_factory=list)

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
        return lines + self.notes


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
    paired from the beginning of the partition, wherever the range begins.

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
    prediction_bounds = log_scan.bounds(kafka, messages.PREDICTIONS)
    message_bounds = log_scan.bounds(kafka, messages.APP_MESSAGES)
    if partition is not None and partition not in message_bounds:
        raise UserError(f"{messages.APP_MESSAGES} has no partition {partition}")
    chosen = sorted(message_bounds) if partition is None else [partition]
    if last is not None:
        message_bounds = {
            p: (begin, max(begin, min(end, last + 1))) for p, (begin, end) in message_bounds.items()
        }
    replayed = Replayed()
    models = _Models(ModelStore(settings.models_dir))
    total, done = sum(message_bounds[p][1] - message_bounds[p][0] for p in chosen), 0
    for number in chosen:
        partition_replay = _Partition(
            kafka, number, models, rejected.get(number, set()), first, replayed
        )
        for _ in partition_replay.replay(message_bounds, prediction_bounds, whole=last is None):
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


class _Partition:
    """Replays one partition."""

    def __init__(
        self,
        kafka: Kafka,
        number: int,
        models: _Models,
        rejected: set[int],
        first: int,
        replayed: Replayed,
    ) -> None:
        self._kafka = kafka
        self._tp = TopicPartition(messages.APP_MESSAGES, number)
        self._models = models
        self._rejected = rejected
        self._first = first
        self._replayed = replayed
        self._run: _Run | None = None
        self._previous_id = ""

    def replay(
        self, message_bounds: log_scan.Bounds, prediction_bounds: log_scan.Bounds, *, whole: bool
    ) -> Iterator[None]:
        """Replay the partition; yields after each message.

        Args:
            message_bounds: The first and last offsets of `app_messages`.
            prediction_bounds: The same of `predictions`.
            whole: Whether the messages are read to their end; then no prediction may be
                left over.

        Raises:
            Difference: See `replay`.
        """
        number = self._tp.partition
        message_bounds, prediction_bounds = self._align(message_bounds, prediction_bounds)
        predictions = log_scan.scan(
            self._kafka, messages.PREDICTIONS, log_scan.narrow(number, prediction_bounds)
        )
        prediction = _next_prediction(predictions)
        for record in log_scan.scan(
            self._kafka, self._tp.topic, log_scan.narrow(number, message_bounds)
        ):
            if self._take(record, prediction):
                prediction = _next_prediction(predictions)
            yield
        self._flush()
        if whole and prediction is not None:
            raise Difference(
                f"{messages.PREDICTIONS}-{number}, offset {prediction[0]}: the prediction for "
                f"{prediction[1].request_id!r} has no message: a prediction is duplicated"
            )

    def _take(self, record: Record, prediction: tuple[int, messages.Prediction] | None) -> bool:
        """Pair a message; returns whether `prediction` belongs to it."""
        in_range = record.offset >= self._first
        bundle = self._bundle_of(prediction)
        decoded = scoring.DecodedRecords()
        if record.offset not in self._rejected:
            decoded = scoring.decode_messages([record], bundle or self._models.serving)
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
        if in_range and bundle is None:
            self._replayed.pruned[recorded.model_id] += 1
        elif in_range and bundle is not None:
            run = self._run_of(bundle)
            run.request_ids.append(request_id)
            run.rows += decoded.rows
            run.predictions.append((record.offset, prediction_offset, recorded))
        return True

    def _bundle_of(self, prediction: tuple[int, messages.Prediction] | None) -> Bundle | None:
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

    def _align(
        self, message_bounds: log_scan.Bounds, prediction_bounds: log_scan.Bounds
    ) -> tuple[log_scan.Bounds, log_scan.Bounds]:
        """Begin both topics with the same request if records of either have expired."""
        number = self._tp.partition
        if prediction_bounds.get(number, (0, 0))[0] == 0 and message_bounds[number][0] == 0:
            return message_bounds, prediction_bounds

        def named(topic: str, within: log_scan.Bounds) -> Iterator[tuple[str, int]]:
            for record in log_scan.scan(self._kafka, topic, log_scan.narrow(number, within)):
                request_id = request_id_of(record.value)
                if request_id is not None:
                    yield request_id, record.offset

        first_offsets: dict[str, int] = {}
        for request_id, offset in named(messages.PREDICTIONS, prediction_bounds):
            first_offsets.setdefault(request_id, offset)
        pairs = (
            (offset, first_offsets[request_id])
            for request_id, offset in named(self._tp.topic, message_bounds)
            if request_id in first_offsets
        )
        ends = message_bounds[number][1], prediction_bounds[number][1]
        begin, predictions_from = next(pairs, ends)
        self._replayed.notes.append(
            f"records of partition {number} have expired: it was replayed from offset {begin} on"
        )
        return (
            {**message_bounds, number: (begin, ends[0])},
            {**prediction_bounds, number: (predictions_from, ends[1])},
        )


def _next_prediction(predictions: Iterator[Record]) -> tuple[int, messages.Prediction] | None:
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


def rebuild(settings: Settings, model_id: int) -> list[str]:
    """Train a model again from its manifest and the log, and compare bytes.

    The records come from Kafka, or from the message store's copy if Kafka no longer holds them.

    Returns:
        A line of text for each file that differs, then lines on possible causes.

    Raises:
        ModelStoreError, UserError: The model cannot be rebuilt; the text says why.
    """
    store = ModelStore(settings.models_dir)
    if model_id not in store.on_disk():
        pruned = store.published(model_id) is not None
        why = "was pruned, and its parameters with it" if pruned else store.why_gone(model_id)
        raise ModelStoreError(f"model {model_id} {why}")
    bundle = store.load(model_id)
    _check_base(settings, bundle)
    snapshot, notes = _training_snapshot(settings, bundle)
    try:
        features, text = retrain_from_manifest(settings, bundle, snapshot)
    except ValueError as error:
        raise UserError(f"model {model_id} cannot be rebuilt: {error}") from None
    folder = store.path / str(model_id)
    made = {FEATURES: features.to_json(), MODEL: text.encode()}
    with disk_errors_as(f"cannot read bundle {model_id}"):
        differences = [
            f"{name}, {_first_difference((folder / name).read_bytes(), content)}"
            for name, content in made.items()
            if (folder / name).read_bytes() != content
        ]
    return differences + ([*notes, *_other_versions(bundle)] if differences else [])


def _check_base(settings: Settings, bundle: Bundle) -> None:
    training = bundle.manifest.training
    path = settings.data_dir / training.problem(settings.data).train
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"model {bundle.model_id} cannot be rebuilt: {path}: {error.strerror}"
        ) from None
    wanted = training.base_data_sha256
    if found != wanted:
        raise UserError(
            f"model {bundle.model_id} cannot be rebuilt: {path} has changed since (its SHA-256 is "
            f"{found[:12]}..., the manifest's {str(wanted)[:12]}...)"
        )


def _training_snapshot(settings: Settings, bundle: Bundle) -> tuple[Snapshot | None, list[str]]:
    """The messages that a model was trained on; None if it was the data set's file alone.

    Returns:
        The messages, and lines of text on why they may not be the same as in the training.
    """
    read = {
        place: end
        for place, end in training_offsets(bundle.manifest.training).items()
        if place[0] in TRAINING_TOPICS
    }
    if not any(read.values()):
        return None, []
    try:
        within = {topic: log_scan.bounds(settings.kafka, topic) for topic in TRAINING_TOPICS}
        reason = _not_in_log(read, within)
        if not reason:
            return _rows_of(bundle, _from_log(settings.kafka, bundle, read)), []
    except KafkaUnavailable as error:
        reason = str(error)
    try:
        return _from_copy(settings, bundle, read)
    except StoreError as error:
        raise UserError(
            f"model {bundle.model_id} cannot be rebuilt: {reason}; and {error}"
        ) from None


def _not_in_log(read: Offsets, within: dict[str, dict[int, tuple[int, int]]]) -> str:
    """Why the log no longer holds what the training read; empty if it does."""
    for (topic, number), end in read.items():
        first, now = within[topic].get(number, (0, 0))
        if end and first:
            return f"the records of {topic}-{number} before offset {first} have expired"
        if end > now:
            return f"{topic}-{number} ends at offset {now}, but the training read up to {end}"
    return ""


def _rows_of(bundle: Bundle, batches: Iterable[Batch]) -> Snapshot:
    """Store batches in a temporary message store; a snapshot of it."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'messages.db'}"
        with MessageStore(url, bundle.features) as store:
            for batch in batches:
                store.ingest(batch)
            return store.snapshot()


def _from_log(kafka: Kafka, bundle: Bundle, read: Offsets) -> Iterator[Batch]:
    """Read Kafka up to the offsets."""
    decoder = RecordDecoder(bundle.features, bundle.manifest.training.outcomes_from)
    for topic in TRAINING_TOPICS:
        within = {number: (0, end) for (name, number), end in read.items() if name == topic}
        for records in _in_chunks(log_scan.scan(kafka, topic, within)):
            yield _batch(decoder, records)


def _in_chunks(records: Iterator[Record], size: int = 5_000) -> Iterator[list[Record]]:
    """Split records into lists of `size`."""
    chunk: list[Record] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _batch(decoder: RecordDecoder, records: list[Record]) -> Batch:
    by_partition: dict[TopicPartition, list[Record]] = {}
    for record in records:
        by_partition.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
    return decoder.batch(by_partition)


def _from_copy(settings: Settings, bundle: Bundle, read: Offsets) -> tuple[Snapshot, list[str]]:
    """Read the message store's copy of the log up to the offsets; see `_training_snapshot`.

    Raises:
        StoreError: There is no copy, or it does not reach so far.
    """
    with RawLog.open(settings.messages_url) as copy:
        within = {topic: copy.bounds(topic) for topic in TRAINING_TOPICS}
        notes: list[str] = []
        for (topic, number), end in read.items():
            first, now = within[topic].get(number, (0, 0))
            if end > now:
                raise StoreError(
                    f"the message store's copy of {topic}-{number} ends at offset {now}, but the "
                    f"training read up to {end}"
                )
            if end and first:
                notes.append(f"the message store's copy of {topic}-{number} begins at {first}")
        return _rows_of(bundle, _batches_of_copy(copy, bundle, read, notes)), notes


def _batches_of_copy(
    copy: RawLog, bundle: Bundle, read: Offsets, notes: list[str]
) -> Iterator[Batch]:
    decoder = RecordDecoder(bundle.features, bundle.manifest.training.outcomes_from)
    then = bundle.manifest.training.topic_ids
    for topic in TRAINING_TOPICS:
        within = {number: (0, end) for (name, number), end in read.items() if name == topic}
        for chunk in copy.chunks(topic, within):
            if chunk.topic_id is not None and then.get(topic, chunk.topic_id) != chunk.topic_id:
                raise StoreError(f"{topic} was deleted and recreated since")
            notes += [
                f"{topic}-{chunk.partition}, offset {record.offset}: its {record.omitted} bytes "
                "were too many for the message store's copy"
                for record in chunk.records
                if record.omitted
            ]
            yield decoder.batch({TopicPartition(topic, chunk.partition): kafka_records(chunk)})


def _first_difference(old: bytes, new: bytes) -> str:
    before, now = old.splitlines(), new.splitlines()
    number = next(
        (n for n, (a, b) in enumerate(zip(before, now, strict=False)) if a != b),
        min(len(before), len(now)),
    )

    def shown(lines: list[bytes]) -> str:
        return repr(lines[number].decode()[:80]) if number < len(lines) else "the end"

    return f"line {number + 1}: {shown(before)}, now {shown(now)}"


def _other_versions(bundle: Bundle) -> list[str]:
    notes = []
    for library, version in bundle.manifest.versions.items():
        try:
            now = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
        if now != version:
            notes.append(f"trained with {library} {version}, now {now}")
    return notes
