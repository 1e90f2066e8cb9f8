"""Copies the log into the message store; rows and offsets share one SQL transaction."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from utils import messages
from utils.feature_tools import FeatureTools
from utils.kafka_io import LogReader, Record, TopicPartition
from utils.message_decoder import MessageDecoder, OutcomeDecoder, class_name
from utils.message_store.lifecycle import StoreReplaced
from utils.message_store.records import (
    Batch,
    Offsets,
    RawChunk,
    RawRecord,
    SentRecord,
    StoredMessage,
)
from utils.message_store.store import MessageStore
from utils.message_store.timestamps import Dated, Timestamps
from utils.metrics import ValueShares
from utils.settings import Kafka
from utils.value_counts import ValueCounts, new_tally

TOPICS = (messages.APP_MESSAGES, messages.PREDICTIONS, messages.OUTCOMES)


class Ingest:
    """Reads the log from the store's offsets on, and fills the store.

    As long as the store's own copy has records at or after its offsets, the next ones come from
    there, then from Kafka. The copy is ahead of the offsets after the columns have changed.
    Timestamps that make no sense are replaced before anything uses them, see `Timestamps`.

    Args:
        kafka: How to reach the cluster.
        store: The store to fill.
        features: The preprocessor, which knows a message's columns and their types.
        outcomes_from: As for `RecordDecoder`.

    Attributes:
        outcomes: The number of known outcomes read from Kafka since the start.
        values: Counts the values of the messages read from Kafka since `use`.
    """

    def __init__(
        self,
        kafka: Kafka,
        store: MessageStore,
        features: FeatureTools,
        outcomes_from: Mapping[int, int] | None = None,
    ) -> None:
        self.outcomes = 0
        self._kafka = kafka
        self._store = store
        self._set_features(features, outcomes_from)
        self._offsets: Offsets = {}
        self._kept: Offsets = {}  # the end of the copy, where it is ahead of the offsets
        self._reread: int | None = None  # records read from the copy; None if it is not ahead
        self._timestamps = Timestamps()
        self._reader: LogReader | None = None
        self._ends: dict[TopicPartition, int] | None = {}  # None if they are to be asked for
        self._open_reader()

    def _set_features(
        self, features: FeatureTools, outcomes_from: Mapping[int, int] | None
    ) -> None:
        self._classes = frozenset(features.classes)
        self._decoder = RecordDecoder(features, outcomes_from)
        self.values = ValueCounts(features)

    def use(self, features: FeatureTools, outcomes_from: Mapping[int, int] | None = None) -> None:
        """Go on with another preprocessor; if its columns differ, rows are built again.

        The next steps then read the store's copy, and `has_read` is false meanwhile.

        Raises:
            StoreError: Nothing has changed; call again later.
        """
        if self._store.use(features):
            self.close()
        self._set_features(features, outcomes_from)

    @property
    def is_rereading(self) -> bool:
        """Whether rows may be missing that the copy holds; after an error it is not known."""
        return self._reader is None or bool(self._kept)

    def _open_reader(self) -> LogReader:
        """The reader; after an error a new one, which continues from the store's offsets."""
        if self._reader is None:
            offsets = self._store.offsets()
            ends = self._store.raw_log.ends()
            kept = {place: end for place, end in ends.items() if end > offsets.get(place, 0)}
            reader = LogReader(self._kafka, TOPICS, {**offsets, **kept})
            try:
                self._store.check_log(reader.topic_ids())
            except StoreReplaced:
                reader.close()
                return self._open_reader()
            except BaseException:
                reader.close()
                raise
            self._reader = reader
            self._offsets, self._kept = offsets, kept
            self._timestamps = Timestamps(self._store.last_timestamps())
            if not kept:
                self._reread = None
            elif self._reread is None:
                self._reread = 0
                waiting = self._store.raw_log.count(offsets)
                self._store.report(f"reading {waiting:,} records again from the store's own copy")
        return self._reader

    def step(self) -> int:
        """Store the next records, of those that have arrived; returns their number.

        Raises:
            StoreError: The store cannot be written; the records are read again later.
            KafkaUnavailable: The log cannot be read now.
        """
        reader = self._open_reader()
        if self._kept:
            return self._step_from_copy()
        polled = reader.poll(timeout_ms=0)
        if not polled:
            return 0
        dated = self._timestamps.correct(polled)
        batch = self._decoder.batch(dated.records)
        batch.topic_ids, batch.misdated = reader.topic_ids(), dated.misdated
        batch.raw = _raw(dated)
        self._ingest(batch)
        if batch.messages and batch.tally is not None:
            self.values.add(len(batch.messages), batch.tally)
        found = [outcome for _, outcome, *_ in batch.outcomes]
        found += [message.outcome for message in batch.messages if message.outcome is not None]
        self.outcomes += sum(outcome in self._classes for outcome in found)
        return sum(map(len, polled.values()))

    def _step_from_copy(self) -> int:
        """Store a chunk of the copy: of the partition that is the first to be behind."""
        place, end = next(iter(self._kept.items()))
        chunk = self._store.raw_log.chunk(*place, self._offsets.get(place, 0))
        count = len(chunk.records) if chunk else 0
        if chunk:
            dated = self._timestamps.correct({TopicPartition(*place): kafka_records(chunk)})
            batch = self._decoder.batch(dated.records)
            known = {record.offset for record in chunk.records if record.misdated}
            batch.misdated = {place: known | dated.misdated.get(place, frozenset())}
            batch.topic_ids = {place[0]: chunk.topic_id} if chunk.topic_id else {}
            self._ingest(batch)
        if chunk is None or self._offsets[place] >= end:
            del self._kept[place]
        self._reread = (self._reread or 0) + count
        if not self._kept:
            self._store.report(f"{self._reread:,} records were read again")
            self._reread = None
        return count

    def _ingest(self, batch: Batch) -> None:
        try:
            self._store.ingest(batch)
        except BaseException as error:
            if isinstance(error, StoreReplaced):
                self._ends = None  # the offsets of a recreated topic begin at 0 again
            self.close()
            raise
        self._offsets.update(batch.offsets)

    def mark_end(self) -> None:
        """Ask for the ends of the log; `has_read` is false until the store has read up to them.

        The predictions of a batch commit in the transaction of its retrain request, perhaps a
        moment later. So uncommitted predictions count too: they commit, or abort soon. A topic
        that was deleted and recreated shows here, before any training on the old log.

        Raises:
            KafkaError, KafkaUnavailable, StoreError: The next `has_read` asks again.
        """
        self._ends = None
        reader = self._open_reader()
        log = reader.ask(messages.PREDICTIONS)
        try:
            self._store.check_log(log.topic_ids)
        except StoreReplaced:
            self.close()  # the offsets of a recreated topic begin at 0 again
            raise
        self._ends = {**reader.ends(), **log.written_ends}

    def has_read(self, requests: Iterable[messages.RetrainRequest]) -> bool:
        """Whether the store holds all records that the requests cover, and those up to the mark.

        Records that came after `mark_end` are not waited for.

        Raises:
            KafkaError, KafkaUnavailable, StoreError: As for `mark_end`.
        """
        if self._ends is None:
            self.mark_end()
        ends = [request.end for request in requests if request.end is not None]
        return self._has_read_to_mark() and all(
            self._offsets.get(place, 0) >= end for place, end in ends
        )

    def _has_read_to_mark(self) -> bool:
        if self.is_rereading:
            return False
        # By position, not by the store's offsets: the last records may be transaction markers.
        position = self._open_reader().position
        return all(position(tp) >= end for tp, end in (self._ends or {}).items())

    def all_values(self) -> ValueShares:
        """The shares of values that training did not have as they are, of all messages."""
        return self._store.value_shares()

    def is_same_log(self, topic: str, topic_ids: Mapping[str, str]) -> bool:
        """Whether a topic still has the same id, and so was not deleted and recreated."""
        now = self._open_reader().topic_ids().get(topic)
        return now is None or topic_ids.get(topic, now) == now

    def close(self) -> None:
        """Release the connection."""
        self._offsets, self._kept = {}, {}
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> "Ingest":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class RecordDecoder:
    """Turns records into rows of the store, by the rules of the predictor.

    Outcomes of an unknown class are an exception: the store rejects and counts them.

    Args:
        features: The preprocessor, which knows a message's columns and their types.
        outcomes_from: By partition of `outcomes`, the first offset of the model's target;
            records before it are about another target.
    """

    def __init__(
        self, features: FeatureTools, outcomes_from: Mapping[int, int] | None = None
    ) -> None:
        self._features = features
        self._outcomes_from = outcomes_from or {}
        self._message = MessageDecoder(features)
        self._outcome = OutcomeDecoder(features)
        self._prediction = messages.Decoder(messages.Prediction)

    def batch(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> Batch:
        """All usable records of a poll, without those that the predictor rejects."""
        batch = Batch(messages=[], outcomes=[], predictions=[], offsets={})
        for tp, records in polled.items():
            if tp.topic == messages.APP_MESSAGES:
                self._add_messages(records, batch)
            else:
                is_outcome = tp.topic == messages.OUTCOMES
                take = self._add_outcome if is_outcome else self._add_prediction
                for record in records:
                    with suppress(messages.BadRecord):
                        take(record, batch)
            batch.offsets[(tp.topic, tp.partition)] = records[-1].offset + 1
            batch.timestamps[(tp.topic, tp.partition)] = records[-1].timestamp
        return batch

    def _add_messages(self, records: Sequence[Record], batch: Batch) -> None:
        features, rows = self._features, []
        tally = new_tally(features) if batch.tally is None else batch.tally
        lenient = [0] * len(features.columns)
        for record in records:
            try:
                message = self._message(record.value, lenient)
            except messages.BadRecord:
                continue
            rows.append(message.data)
            batch.messages.append(
                StoredMessage(
                    message.request_id,
                    record.partition,
                    record.offset,
                    record.timestamp,
                    features.row_values(message.data),
                    class_name(message.data.outcome, features),
                )
            )
        tally[2] += lenient
        features.transform_rows(rows, tally)
        batch.tally = tally

    def _add_outcome(self, record: Record, batch: Batch) -> None:
        if record.offset < self._outcomes_from.get(record.partition, 0):
            return
        request_id, outcome = self._outcome.read(record.value)
        name = class_name(outcome, self._features) or ""
        batch.outcomes.append((request_id, name, record.partition, record.offset, record.timestamp))

    def _add_prediction(self, record: Record, batch: Batch) -> None:
        made = self._prediction(record.value)
        where = (record.partition, record.offset, record.timestamp)
        batch.predictions.append((made.request_id, made.model_id, made.probability, *where))


def _raw(dated: Dated) -> dict[tuple[str, int], Sequence[SentRecord]]:
    """The records to be copied; those without a sensible timestamp are marked."""
    raw: dict[tuple[str, int], Sequence[SentRecord]] = {}
    for tp, records in dated.records.items():
        wrong = dated.misdated.get((tp.topic, tp.partition))
        raw[tp.topic, tp.partition] = (
            records
            if wrong is None
            else [
                RawRecord(r.offset, r.timestamp, r.value, misdated=r.offset in wrong)
                for r in records
            ]
        )
    return raw


def kafka_records(chunk: RawChunk) -> list[Record]:
    """The records of a chunk as Kafka returned them, but without keys and headers."""
    return [
        Record(chunk.topic, chunk.partition, raw.offset, raw.timestamp, None, raw.value, ())
        for raw in chunk.records
    ]
