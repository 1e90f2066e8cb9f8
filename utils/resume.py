"""Finds where predictors left off, once the broker has forgotten their group's offsets.

It does so a week after the last member has left (`offsets.retention.minutes`, KIP-211). Reading
from the start of the log would answer every message twice, so what was done shows in the log:
an answered message has its prediction, a rejected record its dead letter, and a range of outcomes
its retrain request.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from utils import messages, scoring
from utils.kafka_io import KafkaUnavailable, Position, Record, TopicPartition, log_scan
from utils.message_decoder import request_id_of
from utils.messages import Rejection, RetrainRequest
from utils.model_store import Bundle, ModelStore
from utils.outcome_count import OutcomeCount
from utils.process import Report
from utils.scoring import Limits
from utils.settings import Kafka, Settings

#: How many of the last offsets of `predictions` are read for the last prediction; the very last
#: ones are markers of transactions.
LAST = 1_000


def positions(
    settings: Settings,
    limits: Limits,
    report: Report,
    stop: Callable[[], bool],
    starts: Mapping[TopicPartition, int],
) -> dict[TopicPartition, Position]:
    """The positions of partitions without a committed offset, from what the log says was done.

    Args:
        settings: The pipeline's settings.
        limits: Those of the predictor.
        report: Called with one line of text for the user.
        stop: Whether to give up.
        starts: The first offset of each of the partitions.

    Returns:
        The positions of those partitions of which something was done.

    Raises:
        KafkaUnavailable: The log cannot be read, or `stop` says so.
    """
    log = _Log(settings.kafka, stop)
    answers = log_scan.bounds(settings.kafka, messages.PREDICTIONS)
    answered = {
        tp.partition: end
        for tp in starts
        if tp.topic == messages.APP_MESSAGES
        and len({*(within := answers.get(tp.partition, (0, 0)))}) > 1
        and (end := _after_last_answer(log, tp, within))
    }
    if not answered:
        return {}
    bundle = ModelStore(settings.models_dir).load_current()
    rejected, requested = _after_last_rejection(log), _after_last_request(log)
    found = {}
    for tp in (tp for tp in starts if tp.partition in answered):
        first = max(starts[tp], requested.get(tp, 0))
        answered_end = answered[tp.partition] if tp.topic == messages.APP_MESSAGES else 0
        after = max(first, answered_end, rejected.get(tp, 0))
        if after <= log.end(tp):  # otherwise what was done is of a topic that was deleted
            count = _known(log, bundle, limits, tp, first, after)
            every = settings.training.retrain_every
            counted = OutcomeCount(tp.topic, tp.partition, every, first, count)
            found[tp] = Position(after, counted.metadata())
            report(
                f"{tp.topic}-{tp.partition} has no committed offset any more, but work was done "
                f"on it: it goes on at offset {after}"
            )
    return found


@dataclass(frozen=True)
class _Log:
    """Reads the log until it is to give up."""

    kafka: Kafka
    stop: Callable[[], bool]

    def end(self, tp: TopicPartition) -> int:
        """The offset after the last record of a partition."""
        return log_scan.bounds(self.kafka, tp.topic)[tp.partition][1]

    def records(
        self, topic: str, partition: int = 0, first: int = 0, end: int | None = None
    ) -> Iterator[Record]:
        """The records of a range of a partition."""
        within = log_scan.narrow(partition, log_scan.bounds(self.kafka, topic))
        wanted = max(first, within[partition][0]), within[partition][1] if end is None else end
        for record in log_scan.scan(self.kafka, topic, {**within, partition: wanted}):
            if self.stop():
                raise KafkaUnavailable("stopped while looking for what was done")
            yield record

    def ids(
        self, topic: str, partition: int, first: int = 0, end: int | None = None
    ) -> Iterator[tuple[str, int]]:
        """The request_ids of a range of a partition, with their offsets."""
        for record in self.records(topic, partition, first, end):
            request_id = request_id_of(record.value)
            if request_id is not None:
                yield request_id, record.offset


def _after_last_answer(log: _Log, tp: TopicPartition, answers: tuple[int, int]) -> int | None:
    """The offset after the last message that has a prediction; None if there is none.

    Args:
        log: The log.
        tp: The partition of the messages.
        answers: The bounds of the same partition of `predictions`.
    """
    first, end = answers
    latest = [*log.ids(messages.PREDICTIONS, tp.partition, max(first, end - LAST))]
    if not latest:
        return None
    last_id, _ = latest[-1]
    ids = log.ids(tp.topic, tp.partition)
    sent = [offset for request_id, offset in ids if request_id == last_id]
    if len(sent) > 1:  # sent again, perhaps after its answer
        given = log.ids(messages.PREDICTIONS, tp.partition)
        sent = sent[: sum(request_id == last_id for request_id, _ in given)]
    return sent[-1] + 1 if sent else None


def _after_last_rejection(log: _Log) -> dict[TopicPartition, int]:
    """The offset after the last rejected record, by partition."""
    found: dict[TopicPartition, int] = {}
    for letter in log.records(messages.DEAD_LETTERS):
        rejection = Rejection.from_headers(letter.headers)
        if rejection is not None:
            tp = TopicPartition(rejection.topic, rejection.partition)
            found[tp] = max(found.get(tp, 0), rejection.offset + 1)
    return found


def _after_last_request(log: _Log) -> dict[TopicPartition, int]:
    """The offset after the last range of a retrain request, by partition."""
    found: dict[TopicPartition, int] = {}
    for record in log.records(messages.RETRAIN_TOPIC):
        with suppress(messages.BadRecord):
            event = messages.decode_event(record.value)
            if isinstance(event, RetrainRequest) and event.end is not None:
                place, end = event.end
                found[TopicPartition(*place)] = end
    return found


def _known(
    log: _Log, bundle: Bundle, limits: Limits, tp: TopicPartition, first: int, end: int
) -> int:
    """How many known outcomes a range of a partition has."""
    decode = scoring.DECODERS[tp.topic]
    records = log.records(tp.topic, tp.partition, first, end)
    chunks = log_scan.in_chunks(records)
    return sum(len(decode(chunk, bundle, limits=limits).known) for chunk in chunks)
