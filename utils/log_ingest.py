"""Moves the log into the message store, offsets and rows in one SQL transaction."""

from collections.abc import Iterable
from typing import Any

from utils import messages
from utils.feature_tools import FeatureTools, message_type
from utils.kafka_io import LogReader, TopicPartition
from utils.message_store import Batch, MessageStore, StoredMessage
from utils.settings import Kafka

TOPICS = (messages.APP_MESSAGES, messages.PREDICTIONS, messages.OUTCOMES)


class Ingest:
    """Reads on where the store's own offsets say.

    Args:
        kafka: How to reach the cluster.
        store: What is filled.
        features: Says which columns a message has, and of which type.
    """

    def __init__(self, kafka: Kafka, store: MessageStore, features: FeatureTools) -> None:
        self.outcomes = 0
        self._kafka = kafka
        self._store = store
        self._decoding = Decoding(features)
        self._open()

    def _open(self) -> None:
        self._offsets = self._store.offsets()
        self._reader = LogReader(self._kafka, TOPICS, self._offsets)

    def step(self) -> int:
        """Store what has arrived; returns how many records that was.

        Raises:
            StoreError: The store cannot be written; the same records come again.
        """
        polled = self._reader.poll(timeout_ms=0)
        if not polled:
            return 0
        batch = self._decoding.batch(polled)
        try:
            self._store.ingest(batch)
        except BaseException:
            self._reader.close()
            self._open()  # back to what the store has
            raise
        self._offsets.update(batch.offsets)
        self.outcomes += len(batch.outcomes) + sum(m.outcome is not None for m in batch.messages)
        return sum(map(len, polled.values()))

    def has_read(self, requests: Iterable[messages.RetrainRequest]) -> bool:
        """Whether the store holds everything that the requests speak of."""
        return all(
            self._offsets.get((request.topic, request.partition), 0) > request.last_offset
            for request in requests
        )

    def close(self) -> None:
        """Release the connection."""
        self._reader.close()

    def __enter__(self) -> "Ingest":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Decoding:
    """Turns records into rows of the store, by the rules of the predictor.

    Args:
        features: Says which columns a message has, and of which type.
    """

    def __init__(self, features: FeatureTools) -> None:
        self._features = features
        self._message = messages.Decoder(message_type(features))
        self._outcome = messages.Decoder(messages.Outcome)
        self._prediction = messages.Decoder(messages.Prediction)

    def batch(self, polled: dict[TopicPartition, list[Any]]) -> Batch:
        """All usable records of a poll; those the predictor rejects are passed over."""
        batch = Batch(messages=[], outcomes=[], predictions=[], offsets={})
        for tp, records in polled.items():
            take = {
                messages.APP_MESSAGES: self._app_message,
                messages.OUTCOMES: self._late_outcome,
                messages.PREDICTIONS: self._prediction_made,
            }[tp.topic]
            for record in records:
                try:
                    take(record, batch)
                except messages.BadRecord:
                    continue
            batch.offsets[(tp.topic, tp.partition)] = records[-1].offset + 1
        return batch

    def _app_message(self, record: Any, batch: Batch) -> None:
        message = self._message(record.value)
        features = self._features
        if features.knows_nothing_of(message.data):
            return
        batch.messages.append(
            StoredMessage(
                message.request_id,
                record.partition,
                record.offset,
                record.timestamp,
                features.row_values(message.data),
                self._known(message.data.outcome),
            )
        )

    def _late_outcome(self, record: Any, batch: Batch) -> None:
        outcome = self._outcome(record.value)
        label = self._known(outcome.outcome)
        if label is not None:
            where = (record.partition, record.offset, record.timestamp)
            batch.outcomes.append((outcome.request_id, label, *where))

    def _prediction_made(self, record: Any, batch: Batch) -> None:
        made = self._prediction(record.value)
        where = (record.partition, record.offset, record.timestamp)
        batch.predictions.append((made.request_id, made.model_id, made.probability, *where))

    def _known(self, label: messages.Label | None) -> str | None:
        text = None if label is None else messages.label_text(label)
        return text if text in self._features.classes else None
