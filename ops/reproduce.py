"""Reproduces predictions and models, and compares the results with the recorded ones.

`replay` scores the log again with the predictor's functions; `rebuild` trains a model again
with the trainer's. Neither writes anything.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import msgspec

from train.retrain import fit_preprocessor, gather_rows, retrain_from_manifest, training_offsets
from utils import messages, scoring
from utils.errors import UserError
from utils.feature_tools import Row
from utils.kafka_io import KafkaUnavailable, Record, TopicPartition, log_scan
from utils.message_store import Batch, MessageStore, Offsets, Snapshot, StoreError
from utils.message_store.ingest import RecordDecoder
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

#: The topics that models are trained on, besides the base data.
LEARNT = (messages.APP_MESSAGES, messages.OUTCOMES)

#: Called with (records done, records in total).
Progress = Callable[[int, int], object]


class Difference(Exception):
    """The first result that differs; the text says where, on one line."""


@dataclass
class Replayed:
    """The result of a replay.

    Attributes:
        reproduced: Number of predictions that were reproduced, by model.
        pruned: Number of predictions whose model was deleted, by model.
        rejected: Number of messages without a prediction because they were rejected.
        unanswered: Number of messages at the end that have no prediction yet.
        notes: Further lines of text for the user.
    """

    reproduced: Counter[int] = field(default_factory=Counter)
    pruned: Counter[int] = field(default_factory=Counter)
    rejected: int = 0
    unanswered: int = 0
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The result as lines of text for the user."""
        models = ", ".join(f"{n} by model {m}" for m, n in sorted(self.reproduced.items()))
        count = self.reproduced.total()
        lines = [f"{count} predictions reproduced bit for bit" + (f": {models}" if models else "")]
        lines += [
            f"{number} cannot be replayed: model {model_id} was pruned"
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
    # Read in this order, so that the message of every prediction is within `found`.
    dead = _rejected_offsets(kafka)
    answers = log_scan.bounds(kafka, messages.PREDICTIONS)
    found = log_scan.bounds(kafka, messages.APP_MESSAGES)
    if partition is not None and partition not in found:
        raise UserError(f"{messages.APP_MESSAGES} has no partition {partition}")
    chosen = sorted(found) if partition is None else [partition]
    if last is not None:
        found = {p: (begin, max(begin, min(end, last + 1))) for p, (begin, end) in found.items()}
    replayed = Replayed()
    models = _Models(ModelStore(settings.models_dir))
    total, done = sum(found[p][1] - found[p][0] for p in chosen), 0
    for number in chosen:
        walk = _Partition(kafka, number, models, dead.get(number, set()), first, replayed)
        for _ in walk.replay(found, answers, whole=last is None):
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
            LookupError: There never was a bundle with this number.
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
    """Consecutive messages that one model answered, scored together."""

    def __init__(self, tp: TopicPartition, bundle: Bundle) -> None:
        self.bundle = bundle
        self.tp = tp
        self.rows: list[Row] = []
        self.request_ids: list[str] = []
        self.answers: list[tuple[int, int, messages.Prediction]] = []

    def check(self) -> int:
        """Score the messages and compare; returns their number.

        Raises:
            Difference: A prediction is different.
        """
        matrix = self.bundle.features.transform_rows(self.rows)
        again = scoring.prediction_records(self.bundle, self.request_ids, self.bundle.score(matrix))
        for (_, value, _), (offset, answered_at, recorded) in zip(again, self.answers, strict=True):
            # Compared as JSON: the shortest text of a float determines all of its bits.
            if value != msgspec.json.encode(recorded):
                raise Difference(
                    _describe_difference(self.tp, offset, answered_at, recorded, value or b"")
                )
        return len(self.rows)


class _Partition:
    """Replays one partition."""

    def __init__(
        self,
        kafka: Kafka,
        number: int,
        models: _Models,
        dead: set[int],
        first: int,
        replayed: Replayed,
    ) -> None:
        self._kafka = kafka
        self._tp = TopicPartition(messages.APP_MESSAGES, number)
        self._models = models
        self._dead = dead
        self._first = first
        self._replayed = replayed
        self._run: _Run | None = None
        self._before = ""

    def replay(
        self, found: log_scan.Bounds, answers: log_scan.Bounds, *, whole: bool
    ) -> Iterator[None]:
        """Replay the partition; yields after each message.

        Args:
            found: Bounds of `app_messages`.
            answers: Bounds of `predictions`.
            whole: Whether the messages are read to their end; then no prediction may be
                left over.

        Raises:
            Difference: See `replay`.
        """
        number = self._tp.partition
        found, answers = self._align(found, answers)
        predictions = log_scan.scan(
            self._kafka, messages.PREDICTIONS, log_scan.narrow(number, answers)
        )
        answer = _next_answer(predictions)
        for record in log_scan.scan(self._kafka, self._tp.topic, log_scan.narrow(number, found)):
            if self._take(record, answer):
                answer = _next_answer(predictions)
            yield
        self._flush()
        if whole and answer is not None:
            raise Difference(
                f"{messages.PREDICTIONS}-{number}, offset {answer[0]}: the prediction for "
                f"{answer[1].request_id!r} has no message: a prediction is doubled"
            )

    def _take(self, record: Record, answer: tuple[int, messages.Prediction] | None) -> bool:
        """Pair a message; returns whether `answer` is its prediction."""
        asked = record.offset >= self._first
        bundle = self._bundle_of(answer)
        decoded = scoring.DecodedRecords()
        if record.offset not in self._dead:
            decoded = scoring.decode_messages([record], bundle or self._models.serving)
        if not decoded.rows:
            self._replayed.rejected += asked
            return False
        if answer is None:
            self._replayed.unanswered += asked
            return False
        answered_at, recorded = answer
        (request_id,) = decoded.request_ids
        if request_id != recorded.request_id:
            self._flush()  # reports an earlier difference first
            raise Difference(
                self._describe_mismatch(record.offset, request_id, answered_at, recorded)
            )
        self._before = request_id
        if asked and bundle is None:
            self._replayed.pruned[recorded.model_id] += 1
        elif asked and bundle is not None:
            run = self._run_of(bundle)
            run.request_ids.append(request_id)
            run.rows += decoded.rows
            run.answers.append((record.offset, answered_at, recorded))
        return True

    def _bundle_of(self, answer: tuple[int, messages.Prediction] | None) -> Bundle | None:
        if answer is None:
            return None
        answered_at, recorded = answer
        try:
            return self._models.get(recorded.model_id)
        except LookupError:
            self._flush()
            raise Difference(
                f"{messages.PREDICTIONS}-{self._tp.partition}, offset {answered_at}: names model "
                f"{recorded.model_id}, which never existed"
            ) from None

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
        self, offset: int, request_id: str, answered_at: int, recorded: messages.Prediction
    ) -> str:
        number = self._tp.partition
        what = "doubled" if recorded.request_id == self._before else "missing or doubled"
        return (
            f"{self._tp.topic}-{number}, offset {offset}: the message is {request_id!r}, but the "
            f"next prediction ({messages.PREDICTIONS}-{number}, offset {answered_at}) is for "
            f"{recorded.request_id!r}: a prediction is {what}"
        )

    def _align(
        self, found: log_scan.Bounds, answers: log_scan.Bounds
    ) -> tuple[log_scan.Bounds, log_scan.Bounds]:
        """Begin both topics with the same request if records of either have expired."""
        number = self._tp.partition
        if answers.get(number, (0, 0))[0] == 0 and found[number][0] == 0:
            return found, answers

        def named(topic: str, within: log_scan.Bounds) -> Iterator[tuple[str, int]]:
            for record in log_scan.scan(self._kafka, topic, log_scan.narrow(number, within)):
                request_id = messages.request_id_of(record.value)
                if request_id is not None:
                    yield request_id, record.offset

        answered: dict[str, int] = {}
        for request_id, offset in named(messages.PREDICTIONS, answers):
            answered.setdefault(request_id, offset)
        pairs = (
            (offset, answered[request_id])
            for request_id, offset in named(self._tp.topic, found)
            if request_id in answered
        )
        ends = found[number][1], answers[number][1]
        begin, answered_from = next(pairs, ends)
        self._replayed.notes.append(
            f"records of partition {number} have expired: it was replayed from offset {begin} on"
        )
        return (
            {**found, number: (begin, ends[0])},
            {**answers, number: (answered_from, ends[1])},
        )


def _next_answer(predictions: Iterator[Record]) -> tuple[int, messages.Prediction] | None:
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
    tp: TopicPartition, offset: int, answered_at: int, recorded: messages.Prediction, value: bytes
) -> str:
    again = msgspec.json.decode(value, type=messages.Prediction)
    both = [
        f"{name} {getattr(recorded, name)!r}, now {getattr(again, name)!r}"
        for name in ("probability", "prediction", "label")
        if msgspec.json.encode(getattr(recorded, name)) != msgspec.json.encode(getattr(again, name))
    ]
    return (
        f"{tp.topic}-{tp.partition}, offset {offset}, {recorded.request_id!r}: model "
        f"{recorded.model_id} gave ({messages.PREDICTIONS}-{tp.partition}, offset {answered_at}) "
        + "; ".join(both)
    )


def _rejected_offsets(kafka: Kafka) -> dict[int, set[int]]:
    """The offsets of rejected messages by partition of `app_messages`."""
    dead: dict[int, set[int]] = {}
    within = log_scan.bounds(kafka, messages.DEAD_LETTERS)
    for record in log_scan.scan(kafka, messages.DEAD_LETTERS, within):
        rejection = messages.Rejection.from_headers(record.headers)
        if rejection is not None and rejection.topic == messages.APP_MESSAGES:
            dead.setdefault(rejection.partition, set()).add(rejection.offset)
    return dead


def rebuild(settings: Settings, model_id: int) -> list[str]:
    """Train a model again from its manifest and the log, and compare bytes.

    Returns:
        A line of text for each file that differs.

    Raises:
        ModelStoreError, UserError: The model cannot be rebuilt; the text says why.
    """
    store = ModelStore(settings.models_dir)
    if model_id not in store.on_disk():
        pruned = store.published(model_id) is not None
        why = "was pruned, and its parameters with it" if pruned else "never existed"
        raise ModelStoreError(f"model {model_id} {why}")
    bundle = store.load(model_id)
    _check_base(settings, bundle)
    snapshot = _training_snapshot(settings, bundle)
    try:
        # The rows are gathered twice, because the preprocessor is compared separately.
        features = fit_preprocessor(gather_rows(settings, snapshot), settings).to_json()
        text = retrain_from_manifest(settings, bundle.manifest, snapshot)
    except ValueError as error:
        raise UserError(f"model {model_id} cannot be rebuilt: {error}") from None
    folder = store.path / str(model_id)
    made = {FEATURES: features, MODEL: text.encode()}
    with disk_errors_as(f"cannot read bundle {model_id}"):
        differences = [
            f"{name}, {_first_difference((folder / name).read_bytes(), content)}"
            for name, content in made.items()
            if (folder / name).read_bytes() != content
        ]
    return differences + (_other_versions(bundle) if differences else [])


def _check_base(settings: Settings, bundle: Bundle) -> None:
    path = settings.data_dir / settings.data.train
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"model {bundle.model_id} cannot be rebuilt: {path}: {error.strerror}"
        ) from None
    wanted = bundle.manifest.training.base_data_sha256
    if found != wanted:
        raise UserError(
            f"model {bundle.model_id} cannot be rebuilt: {path} has changed since (its SHA-256 is "
            f"{found[:12]}..., the manifest's {str(wanted)[:12]}...)"
        )


def _training_snapshot(settings: Settings, bundle: Bundle) -> Snapshot | None:
    """The messages that a model was trained on; None if it was the base data alone."""
    read = {
        place: end
        for place, end in training_offsets(bundle.manifest.training).items()
        if place[0] in LEARNT
    }
    if not any(read.values()):
        return None
    try:
        within = {topic: log_scan.bounds(settings.kafka, topic) for topic in LEARNT}
        reason = _not_in_log(read, within)
        if not reason:
            return _from_log(settings.kafka, bundle, read)
    except KafkaUnavailable as error:
        reason = str(error)
    return _from_store(settings, bundle, read, reason)


def _not_in_log(read: Offsets, within: dict[str, dict[int, tuple[int, int]]]) -> str:
    """Why the log no longer holds what the training read; empty if it does."""
    for (topic, number), end in read.items():
        first, now = within[topic].get(number, (0, 0))
        if end and first:
            return f"the records of {topic}-{number} before offset {first} have expired"
        if end > now:
            return f"{topic}-{number} ends at offset {now}, but the training read up to {end}"
    return ""


def _from_log(kafka: Kafka, bundle: Bundle, read: Offsets) -> Snapshot:
    """Read the log up to the offsets into a temporary message store."""
    decoder = RecordDecoder(bundle.features)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'messages.db'}"
        with MessageStore(url, bundle.features) as store:
            for topic in LEARNT:
                within = {number: (0, end) for (name, number), end in read.items() if name == topic}
                for records in _in_chunks(log_scan.scan(kafka, topic, within)):
                    store.ingest(_batch(decoder, records))
            return store.snapshot()


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


def _from_store(settings: Settings, bundle: Bundle, read: Offsets, reason: str) -> Snapshot:
    """The trainer's store, if its offsets are exactly those of the training."""
    try:
        with MessageStore.open(settings.messages_url, bundle.features) as store:
            snapshot = store.snapshot()
    except StoreError as error:
        raise UserError(
            f"model {bundle.model_id} cannot be rebuilt: {reason}; and {error}"
        ) from None
    now = {place: end for place, end in snapshot.offsets.items() if place[0] in LEARNT and end}
    if now != {place: end for place, end in read.items() if end}:
        raise UserError(
            f"model {bundle.model_id} cannot be rebuilt: {reason}; and the message store has "
            "read other offsets than the training"
        )
    return snapshot


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
