"""Finds from where to read the partitions of a group, and which cannot be read yet."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from utils.kafka_io.clients import (
    METADATA_MAX_AGE_MS,
    NO_OFFSET_TIMEOUT_S,
    OPERATION_TIMEOUT_MS,
    committed_offsets,
    in_words,
    log_offsets,
)
from utils.kafka_io.naming import full_name
from utils.kafka_io.transactions import Position

#: How long to wait to learn of the topic that answers go to.
ANSWERS_TIMEOUT_MS = 1_000
#: How often the committed offsets of partitions that are held back are asked for.
LOOK_AGAIN_S = 0.2

#: Takes the first offsets of partitions without a committed offset, and returns the positions
#: of those of which something was done all the same.
Resume = Callable[[Mapping[TopicPartition, int]], Mapping[TopicPartition, Position]]


class Found(NamedTuple):
    """The positions of all partitions that can be read, and of those that had none committed."""

    positions: dict[TopicPartition, Position]
    beginnings: dict[TopicPartition, Position]


class Positions:
    """The positions of a group's partitions.

    Held back are partitions whose answers have no place to go to, and for a while those of
    which the broker's answer is in doubt. The others are read meanwhile.

    Args:
        consumer: A member of the group.
        answers: By topic, the one that answers go to, with the same partition number.
        resume: As `Resume`.
        report: Called with one line of text for the user.
    """

    def __init__(
        self,
        consumer: KafkaConsumer,
        answers: Mapping[str, str],
        resume: Resume,
        report: Callable[[str], None],
    ) -> None:
        self._consumer = consumer
        self._pipeline: str = consumer._client.pipeline
        self._answers = answers
        self._resume = resume
        self._report = report
        self._newest: dict[TopicPartition, int] = {}
        # When an answer in doubt is trusted (s, monotonic).
        self._doubtful: dict[TopicPartition, float] = {}
        self._unanswerable: set[TopicPartition] = set()
        self._reported = ""
        self._look_again_at = 0.0

    def find(self, assigned: Iterable[TopicPartition], producer: KafkaProducer) -> Found:
        """The positions of the assigned partitions, but for those that are held back.

        Args:
            assigned: The partitions.
            producer: The producer of the answers.

        Raises:
            KafkaError: The broker does not say.
        """
        partitions = set(assigned)
        self._doubtful = {tp: at for tp, at in self._doubtful.items() if tp in partitions}
        self._unanswerable = self._without_answer(partitions, producer)
        self._report_unanswerable()
        found = Found({}, {})
        for tp, (committed, start, end) in self._look_up(partitions - self._unanswerable).items():
            if self._is_in_doubt(tp, committed, end):
                continue
            self._doubtful.pop(tp, None)
            if committed is None:
                found.beginnings[tp] = Position(start)
            else:
                found.positions[tp] = self._position(tp, committed, start, end)
        if found.beginnings:
            found.beginnings.update(self._begin(found.beginnings))
            found.positions.update(found.beginnings)
        self._look_again_at = time.monotonic() + LOOK_AGAIN_S
        return found

    def may_find_more(self, producer: KafkaProducer) -> bool:
        """Whether a partition that was held back can be read by now; looked at now and then."""
        if not (self._doubtful or self._unanswerable) or time.monotonic() < self._look_again_at:
            return False
        soon = LOOK_AGAIN_S if self._doubtful else METADATA_MAX_AGE_MS / 1000
        self._look_again_at = time.monotonic() + soon
        if self._without_answer(self._unanswerable, producer) != self._unanswerable:
            return True
        found = self._look_up(self._doubtful)
        return any(not self._is_in_doubt(tp, found[tp][0], found[tp][2]) for tp in found)

    def note_committed(self, positions: Mapping[TopicPartition, Position]) -> None:
        """Remember what was committed: lower offsets are answers in doubt."""
        self._newest.update((tp, position.offset) for tp, position in positions.items())

    def _without_answer(
        self, partitions: Iterable[TopicPartition], producer: KafkaProducer
    ) -> set[TopicPartition]:
        """The partitions whose answers have no place to go to."""
        asking = {tp for tp in partitions if tp.topic in self._answers}
        there = {topic: _partitions_of(self._answers[topic], producer) for topic, _ in asking}
        return {tp for tp in asking if tp.partition not in there[tp.topic]}

    def _report_unanswerable(self) -> None:
        """Say once which partitions are not read because their answers have no place to go to."""
        pipeline = self._pipeline
        line = "; ".join(
            f"{full_name(pipeline, topic)} has partitions that "
            f"{full_name(pipeline, self._answers[topic])} lacks, so they are not served: "
            f"{in_words((tp for tp in self._unanswerable if tp.topic == topic), pipeline)} "
            "(initialize.py adds them)"
            for topic in sorted({tp.topic for tp in self._unanswerable})
        )
        if line and line != self._reported:
            self._report(line)
        self._reported = line

    def _look_up(
        self, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, tuple[OffsetAndMetadata | None, int, int]]:
        """The committed offset of each partition, and the first and last offset of its log."""
        wanted = sorted(partitions)
        committed = committed_offsets(self._consumer, wanted)
        starts = log_offsets(self._consumer.beginning_offsets, wanted, OPERATION_TIMEOUT_MS)
        ends = log_offsets(self._consumer.end_offsets, wanted, OPERATION_TIMEOUT_MS)
        return {tp: (committed.get(tp), starts[tp], ends[tp]) for tp in wanted}

    def _is_in_doubt(
        self, tp: TopicPartition, committed: OffsetAndMetadata | None, end: int
    ) -> bool:
        """Whether an answer is not trusted yet.

        A broker that has just restarted may report no offset, an old one, or a log that ends
        before the offset.
        """
        if committed is not None and self._newest.get(tp, -1) <= committed.offset <= end:
            return False
        now = time.monotonic()
        return now < self._doubtful.setdefault(tp, now + NO_OFFSET_TIMEOUT_S)

    def _position(
        self, tp: TopicPartition, committed: OffsetAndMetadata, start: int, end: int
    ) -> Position:
        metadata = committed.metadata or ""
        if start <= committed.offset <= end:
            self._newest[tp] = committed.offset
            return Position(committed.offset, metadata)
        self._newest.pop(tp, None)
        self._report(
            f"{in_words([tp], self._pipeline)}: offset {committed.offset} is not in the log any "
            f"more ({start} to {end}); continuing at {start}"
        )
        expired = committed.offset < start  # else the topic was deleted and recreated
        return Position(start, metadata if expired else "")

    def _begin(
        self, beginnings: Mapping[TopicPartition, Position]
    ) -> Mapping[TopicPartition, Position]:
        """The positions of those partitions of which something was done all the same."""
        done = self._resume({tp: position.offset for tp, position in beginnings.items()})
        if new := beginnings.keys() - done.keys():
            names = in_words(new, self._pipeline)
            self._report(f"no committed offset: reading from the start of {names}")
        return done


def _partitions_of(topic: str, producer: KafkaProducer) -> set[int]:
    try:
        found: set[int] = producer._wait_on_metadata(topic, ANSWERS_TIMEOUT_MS)
    except kafka_errors.KafkaTimeoutError:  # there is no such topic
        return set()
    return found
