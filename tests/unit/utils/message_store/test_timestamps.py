"""Timestamps that make no sense."""

import pytest

from utils.kafka_io import Record, TopicPartition
from utils.message_store.timestamps import MAX_AHEAD_MS, Timestamps
from utils.messages import OLDEST_MS, OUTCOMES

NOW = 1_700_000_000_000
WRONG = [0, -1, -(2**63), NOW // 1000, NOW * 1000, NOW * 1_000_000, 2**63 - 1, OLDEST_MS - 1]
WRONG += [NOW + MAX_AHEAD_MS + 1]
RIGHT = [OLDEST_MS, NOW - 5, NOW, NOW + MAX_AHEAD_MS]


def dated_records(stamps: list[int], partition: int) -> list[Record]:
    return [
        Record(OUTCOMES, partition, offset, stamp, None, b"", ())
        for offset, stamp in enumerate(stamps)
    ]


def corrected(timestamps: Timestamps, stamps: list[int], partition: int = 0) -> list[int]:
    tp = TopicPartition(OUTCOMES, partition)
    records = dated_records(stamps, partition)
    dated = timestamps.correct({tp: records})
    found = dated.records[tp]
    assert [(r.offset, r.value) for r in found] == [(r.offset, r.value) for r in records]
    wrong = {n for n, stamp in enumerate(stamps) if stamp not in RIGHT}
    assert dated.misdated == ({(OUTCOMES, partition): wrong} if wrong else {})
    return [record.timestamp for record in found]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_timestamp_is_that_of_the_record_before(wrong: int) -> None:
    timestamps = Timestamps(now=NOW)
    assert corrected(timestamps, [wrong, wrong]) == [0, 0]
    assert corrected(timestamps, [wrong, NOW, wrong, NOW - 5]) == [0, NOW, NOW, NOW - 5]
    assert corrected(timestamps, [wrong]) == [NOW - 5]
    assert corrected(timestamps, [wrong], partition=1) == [0]
    restarted = Timestamps({(OUTCOMES, 0): NOW - 5}, NOW)
    assert corrected(restarted, [wrong, wrong]) == [NOW - 5, NOW - 5]
    assert corrected(Timestamps(now=NOW), RIGHT) == RIGHT


def test_one_by_one_is_as_together() -> None:
    tps = [TopicPartition(OUTCOMES, partition) for partition in (0, 1)]
    rows = {tp: dated_records([*WRONG, *RIGHT, *WRONG], tp.partition) for tp in tps}
    mixed = [record for pair in zip(*rows.values(), strict=True) for record in pair]
    streamed = list(Timestamps(now=NOW).stream(mixed))
    together = Timestamps(now=NOW).correct(rows).records
    assert [r for r in streamed if r.partition == 1] == together[tps[1]]
    assert streamed[::2] == together[tps[0]]
