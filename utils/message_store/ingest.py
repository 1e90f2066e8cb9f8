"""Copies the log into the message store; rows and offsets share one SQL transaction."""

from collections.abc import Iterable, Mapping, Sequence

from utils import messages
from utils.feature_tools import FeatureTools, MessageDecoder
from utils.kafka_io import LogReader, Record, TopicPartition
from utils.message_store.records import Batch, Offsets, StoredMessage
from utils.message_store.store import MessageStore
from utils.settings import Kafka

TOPICS = (messages.APP_MESSAGES, messages.PREDICTIONS, messages.OUTCOMES)


class Ingest:
    """Reads the log from the store's offsets on, and fills the store.

    Args:
        kafka: How to reach the cluster.
        store: The store to fill.
        features: The preprocessor, which knows a message's columns and their types.
    """

    def __init__(self, kafka: Kafka, store: MessageStore, features: FeatureTools) -> None:
        self.outcomes = 0
        self._kafka = kafka
        self._store = store
        self._classes = frozenset(features.classes)
        self._decoder = RecordDecoder(features)
        self._offsets: Offsets = {}
        self._reader: LogReader | None = None
        self._open_reader()

    def _open_reader(self) -> LogReader:
        """The reader; after an error a new one, which continues from the store's offsets."""
        if self._reader is None:
            self._offsets = self._store.offsets()
            self._reader = LogReader(self._kafka, TOPICS, self._offsets)
        return self._reader

    def step(self) -> int:
        """Store the records that have arrived; returns their number.

        Raises:
            StoreError: The store cannot be written; the records are read again later.
            KafkaUnavailable: The log cannot be read now.
        """
        reader = self._open_reader()
        polled = reader.poll(timeout_ms=0)
        if not polled:
            return 0
        batch = self._decoder.batch(polled)
        batch.topic_ids = reader.topic_ids()
        try:
            self._store.ingest(batch)
        except BaseException:
            self.close()
            raise
        self._offsets.update(batch.offsets)
        found = [outcome for _, outcome, *_ in batch.outcomes]
        found += [message.outcome for message in batch.messages if message.outcome is not None]
        self.outcomes += sum(outcome in self._classes for outcome in found)
        return sum(map(len, polled.values()))

    def has_read(self, requests: Iterable[messages.RetrainRequest]) -> bool:
        """Whether the store holds all records that the requests cover."""
        return all(
            self._offsets.get((request.topic, request.partition), 0) > request.last_offset
            for request in requests
        )

    def is_same_log(self, topic: str, topic_ids: Mapping[str, str]) -> bool:
        """Whether a topic still has the same id, and so was not deleted and recreated."""
        now = self._open_reader().topic_ids().get(topic)
        return now is None or topic_ids.get(topic, now) == now

    def close(self) -> None:
        """Release the connection."""
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
    """

    def __init__(self, features: FeatureTools) -> None:
        self._features = features
        self._message = MessageDecoder(features)
        self._outcome = messages.Decoder(messages.Outcome)
        self._prediction = messages.Decoder(messages.Prediction)

    def batch(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> Batch:
        """All usable records of a poll, without those that the predictor rejects."""
        batch = Batch(messages=[], outcomes=[], predictions=[], offsets={})
        for tp, records in polled.items():
            take = {
                messages.APP_MESSAGES: self._add_message,
                messages.OUTCOMES: self._add_outcome,
                messages.PREDICTIONS: self._add_prediction,
            }[tp.topic]
            for record in records:
                try:
                    take(record, batch)
                except messages.BadRecord:
                    continue
            batch.offsets[(tp.topic, tp.partition)] = records[-1].offset + 1
        return batch

    def _add_message(self, record: Record, batch: Batch) -> None:
        message = self._message(record.value)
        batch.messages.append(
            StoredMessage(
                message.request_id,
                record.partition,
                record.offset,
                record.timestamp,
                self._features.row_values(message.data),
                _text(message.data.outcome),
            )
        )

    def _add_outcome(self, record: Record, batch: Batch) -> None:
        outcome = self._outcome(record.value)
        where = (record.partition, record.offset, record.timestamp)
        batch.outcomes.append((outcome.request_id, messages.label_text(outcome.outcome), *where))

    def _add_prediction(self, record: Record, batch: Batch) -> None:
        made = self._prediction(record.value)
        where = (record.partition, record.offset, record.timestamp)
        batch.predictions.append((made.request_id, made.model_id, made.probability, *where))


def _text(label: messages.Label | None) -> str | None:
    return None if label is None else messages.label_text(label)
