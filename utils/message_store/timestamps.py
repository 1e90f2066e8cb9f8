"""Timestamps that make no sense, and what counts instead.

Producers set the timestamps, and the timestamps decide which of two records is later. A record
of a producer that sends none, a wrong unit or a wrong year would always win or always lose.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from utils.kafka_io import Record, TopicPartition
from utils.messages import OLDEST_MS

#: Clocks differ; micro- and nanoseconds since 1970 are thousands of years ahead.
MAX_AHEAD_MS = 86_400_000


class Dated(NamedTuple):
    """Records with timestamps that make sense.

    Attributes:
        records: The records by partition.
        misdated: The offsets of those whose own timestamp makes no sense, by (topic, partition);
            without the partitions that have none.
    """

    records: Mapping[TopicPartition, Sequence[Record]]
    misdated: Mapping[tuple[str, int], frozenset[int]]


class Timestamps:
    """Gives a record without a sensible timestamp that of the record before it.

    A timestamp is sensible from the year 2000 on, up to a day after the record is read. Before
    the first sensible one of a partition, 0 counts.

    Args:
        last: The timestamp of the last record that was read, by (topic, partition).
        now: When the records are read, in milliseconds since 1970; None for the clock.
    """

    def __init__(
        self, last: Mapping[tuple[str, int], int] | None = None, now: float | None = None
    ) -> None:
        self._last = dict(last or {})
        self._now = now

    def correct(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> Dated:
        """Correct the next records of some partitions, each in offset order."""
        latest = (time.time() * 1000 if self._now is None else self._now) + MAX_AHEAD_MS
        dated, misdated = dict(polled), {}
        for tp, records in polled.items():
            stamps = [record.timestamp for record in records]
            if min(stamps) < OLDEST_MS or max(stamps) > latest:
                dated[tp], misdated[tp.topic, tp.partition] = self._replace(tp, records, latest)
            self._last[tp.topic, tp.partition] = dated[tp][-1].timestamp
        return Dated(dated, misdated)

    def _replace(
        self, tp: TopicPartition, records: Sequence[Record], latest: float
    ) -> tuple[list[Record], frozenset[int]]:
        last, found, wrong = self._last.get((tp.topic, tp.partition), 0), [], set()
        for record in records:
            if OLDEST_MS <= record.timestamp <= latest:
                last = record.timestamp
            else:
                wrong.add(record.offset)
                record = msgspec.structs.replace(record, timestamp=last)
            found.append(record)
        return found, frozenset(wrong)

    def stream(self, records: Iterable[Record]) -> Iterator[Record]:
        """Correct records one by one; those of each partition come in offset order."""
        for record in records:
            tp = TopicPartition(record.topic, record.partition)
            yield self.correct({tp: [record]}).records[tp][0]
