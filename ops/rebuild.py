"""Trains a model again with the trainer's functions, and compares the bytes.

Nothing is written into the home.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

from train.retrain import retrain_from_manifest
from train.training_rows import training_offsets
from utils import messages
from utils.errors import UserError
from utils.kafka_io import KafkaUnavailable, Record, TopicPartition, log_scan
from utils.message_store import Batch, MessageStore, Offsets, RawLog, Snapshot, StoreError
from utils.message_store.ingest import RecordDecoder, kafka_records
from utils.message_store.timestamps import Timestamps
from utils.model_store import (
    FEATURES,
    MODEL,
    Bundle,
    ModelStore,
    ModelStoreError,
)
from utils.model_store.bundle import disk_errors_as
from utils.settings import Kafka, Settings, sqlite_url

#: The topics that models are trained on, besides the data set's training file.
TRAINING_TOPICS = (messages.APP_MESSAGES, messages.OUTCOMES)


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
        raise ModelStoreError(store.describe_missing(model_id))
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
        reason = _not_in_log(read, within) or _compacted(settings.kafka, read)
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


def _compacted(kafka: Kafka, read: Offsets) -> str:
    """Which topic that the training read may have lost records since; empty if none."""
    topics = sorted({topic for (topic, _), end in read.items() if end})
    return "; ".join(
        f"{topic} is compacted" for topic in topics if log_scan.is_compacted(kafka, topic)
    )


def _rows_of(bundle: Bundle, batches: Iterable[Batch]) -> Snapshot:
    """Store batches in a temporary message store; a snapshot of it."""
    with tempfile.TemporaryDirectory() as folder:
        url = sqlite_url(Path(folder) / "messages.db")
        with MessageStore(url, bundle.features) as store:
            for batch in batches:
                store.ingest(batch)
            return store.snapshot()


def _from_log(kafka: Kafka, bundle: Bundle, read: Offsets) -> Iterator[Batch]:
    """Read Kafka up to the offsets."""
    decode = _decoder(bundle)
    for topic in TRAINING_TOPICS:
        within = {number: (0, end) for (name, number), end in read.items() if name == topic}
        for records in log_scan.in_chunks(log_scan.scan(kafka, topic, within)):
            yield decode(_by_partition(records))


def _by_partition(records: list[Record]) -> dict[TopicPartition, list[Record]]:
    by_partition: dict[TopicPartition, list[Record]] = {}
    for record in records:
        by_partition.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
    return by_partition


def _decoder(bundle: Bundle) -> Callable[[Mapping[TopicPartition, Sequence[Record]]], Batch]:
    """Decodes records as the trainer did, with the timestamps that counted then."""
    training = bundle.manifest.training
    decoder = RecordDecoder(bundle.features, training.outcomes_from)
    created = datetime.fromisoformat(bundle.manifest.created).timestamp() * 1000
    timestamps = Timestamps(now=created)
    return lambda records: decoder.batch(timestamps.correct(records).records)


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
    decode = _decoder(bundle)
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
            yield decode({TopicPartition(topic, chunk.partition): kafka_records(chunk)})


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
