"""Finds where predictors left off, once the broker has forgotten their group's offsets.

It does so a week after the last member has left (`offsets.retention.minutes`, KIP-211). Reading
from the start of the log would answer every message twice, so what was done shows in the log:
an answered message has its prediction, a rejected record its dead letter, and a range of outcomes
its retrain request.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from utils import messages, scoring
from utils.kafka_io import Position, Record, TopicPartition, log_scan
from utils.message_decoder import request_id_of
from utils.messages import Rejection, RetrainRequest
from utils.model_store import Bundle, ModelStore
from utils.outcome_count import OutcomeCount
from utils.process import Report
from utils.settings import Settings

#: How many of the last offsets of `predictions` are read for the last prediction; the very last
#: ones are markers of transactions.
LAST = 1_000
#: Records that are decoded at once.
CHUNK = 1_000


def positions(
    settings: Settings, report: Report, starts: Mapping[TopicPartition, int]
) -> dict[TopicPartition, Position]:
    """The positions of partitions without a committed offset, from what the log says was done.

    Args:
        settings: The pipeline's settings.
        report: Called with one line of text for the user.
        starts: The first offset of each of the partitions.

    Returns:
        The positions of those partitions of which something was done.

    Raises:
        KafkaUnavailable: The log cannot be read.
    """
    answers = log_scan.bounds(settings.kafka, messages.PREDICTIONS)
    answered = {
        tp.partition: end
        for tp in starts
        if tp.topic == messages.APP_MESSAGES
        and len({*(within := answers.get(tp.partition, (0, 0)))}) > 1
        and (end := _after_last_answer(settings, tp, within))
    }
    if not answered:
        return {}
    bundle = ModelStore(settings.models_dir).load_current()
    rejected, requested = _after_last_rejection(settings), _after_last_request(settings)
    found = {}
    for tp in (tp for tp in starts if tp.partition in answered):
        first = max(starts[tp], requested.get(tp, 0))
        answered_end = answered[tp.partition] if tp.topic == messages.APP_MESSAGES else 0
        after = max(first, answered_end, rejected.get(tp, 0))
        _, end = log_scan.bounds(settings.kafka, tp.topic)[tp.partition]
        if after <= end:  # otherwise what was done is of a topic that was deleted
            count = _known(settings, bundle, tp, first, after)
            every = settings.training.retrain_every
            counted = OutcomeCount(tp.topic, tp.partition, every, first, count)
            found[tp] = Position(after, counted.metadata())
            report(
                f"{tp.topic}-{tp.partition} has no committed offset any more, but work was done "
                f"on it: it goes on at offset {after}"
            )
    return found


def _after_last_answer(
    settings: Settings, tp: TopicPartition, answers: tuple[int, int]
) -> int | None:
    """The offset after the last message that has a prediction; None if there is none.

    Args:
        settings: The pipeline's settings.
        tp: The partition of the messages.
        answers: The bounds of the same partition of `predictions`.
    """
    first, end = answers
    latest = [*_ids(settings, messages.PREDICTIONS, tp.partition, max(first, end - LAST), end)]
    if not latest:
        return None
    last_id, _ = latest[-1]
    _, messages_end = log_scan.bounds(settings.kafka, tp.topic)[tp.partition]
    sent = [
        offset
        for request_id, offset in _ids(settings, tp.topic, tp.partition, 0, messages_end)
        if request_id == last_id
    ]
    if len(sent) > 1:  # sent again, perhaps after its answer
        given = _ids(settings, messages.PREDICTIONS, tp.partition, first, end)
        sent = sent[: sum(request_id == last_id for request_id, _ in given)]
    return sent[-1] + 1 if sent else None


def _after_last_rejection(settings: Settings) -> dict[TopicPartition, int]:
    """The offset after the last rejected record, by partition."""
    found: dict[TopicPartition, int] = {}
    for letter in _records(settings, messages.DEAD_LETTERS):
        rejection = Rejection.from_headers(letter.headers)
        if rejection is not None:
            tp = TopicPartition(rejection.topic, rejection.partition)
            found[tp] = max(found.get(tp, 0), rejection.offset + 1)
    return found


def _after_last_request(settings: Settings) -> dict[TopicPartition, int]:
    """The offset after the last range of a retrain request, by partition."""
    found: dict[TopicPartition, int] = {}
    for record in _records(settings, messages.RETRAIN_TOPIC):
        with suppress(messages.BadRecord):
            event = messages.decode_event(record.value)
            if isinstance(event, RetrainRequest) and event.end is not None:
                place, end = event.end
                found[TopicPartition(*place)] = end
    return found


def _known(settings: Settings, bundle: Bundle, tp: TopicPartition, first: int, end: int) -> int:
    """How many known outcomes a range of a partition has."""
    decode = scoring.DECODERS[tp.topic]
    wanted = log_scan.narrow(tp.partition, log_scan.bounds(settings.kafka, tp.topic))
    wanted[tp.partition] = first, end
    records = log_scan.scan(settings.kafka, tp.topic, wanted)
    return sum(len(decode(chunk, bundle).known) for chunk in _chunks(records))


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    yield chunk


def _ids(
    settings: Settings, topic: str, partition: int, first: int, end: int
) -> Iterator[tuple[str, int]]:
    """The request_ids of a range of a partition, with their offsets."""
    wanted = log_scan.narrow(partition, log_scan.bounds(settings.kafka, topic))
    wanted[partition] = first, end
    for record in log_scan.scan(settings.kafka, topic, wanted):
        request_id = request_id_of(record.value)
        if request_id is not None:
            yield request_id, record.offset


def _records(settings: Settings, topic: str) -> Iterator[Record]:
    return log_scan.scan(settings.kafka, topic, log_scan.bounds(settings.kafka, topic))
