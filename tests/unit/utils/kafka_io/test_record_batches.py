"""Encoding and decoding of record batches, compared with kafka-python's own."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.structs import TopicPartition

from utils.kafka_io import record_batches
from utils.kafka_io.record_batches import PartitionRecords

TP = TopicPartition("topic", 3)

# Lengths around those at which a varint grows by a byte.
content = st.none() | st.one_of(
    st.binary(max_size=3), st.sampled_from([63, 64, 127, 128, 8191, 8192]).map(bytes)
)
records = st.lists(
    st.tuples(content, content, st.none() | st.lists(st.tuples(st.text(max_size=3), content))),
    min_size=1,
    max_size=150,
)


def to_bytes(batch: MemoryRecordsBuilder) -> bytes:
    batch.close()
    return bytes(batch.buffer())


def to_tuple(record: Any) -> tuple[Any, ...]:
    headers = [(name, value) for name, value in record.headers]
    return record.offset, record.timestamp, record.key, record.value, headers


@given(records=records, largest=st.sampled_from([100, 10_000, 10**9]))
@settings(deadline=None)
def test_kafka_python_reads_encoded_batches(records: list[Any], largest: int) -> None:
    found = []
    for batch in record_batches.encode_batches(records, timestamp=1234, largest=largest):
        count = batch.next_offset()
        raw = to_bytes(batch)
        assert count == 1 or len(raw) <= largest + DefaultRecordBatch.HEADER_STRUCT.size
        read = DefaultRecordBatch(raw)
        assert read.validate_crc()
        theirs = list(read)
        assert [record.offset for record in theirs] == list(range(count))
        assert {record.timestamp for record in theirs} == {1234}
        found += [(record.key, record.value, record.headers) for record in theirs]
    assert found == [(key, value, headers or []) for key, value, headers in records]


@given(records=records, times=st.lists(st.integers(0, 2**41), min_size=150, max_size=150))
@settings(deadline=None)
def test_batches_of_kafka_python_are_decoded(records: list[Any], times: list[int]) -> None:
    written = MemoryRecordsBuilder(magic=2, compression_type=0, batch_size=10**9)
    for (key, value, headers), time in zip(records, times, strict=False):
        written.append(time, key, value, headers)
        written.skip(len(value or b"") % 3)  # leaves gaps, as compaction does
    raw = to_bytes(written)
    ((ours, _),) = record_batches.decode_batch(DefaultRecordBatch(raw), TP)
    assert [to_tuple(record) for record in ours] == [to_tuple(r) for r in DefaultRecordBatch(raw)]
    assert {(record.topic, record.partition) for record in ours} == {tuple(TP)}


def test_damaged_batch_is_an_error() -> None:
    (batch,) = record_batches.encode_batches(
        [(b"k", b"v" * 100, None)] * 3, timestamp=1, largest=10**6
    )
    raw = bytearray(to_bytes(batch))
    raw[-20] ^= 1
    with pytest.raises(CorruptRecordError, match="checksum"):
        PartitionRecords(0, TP, MemoryRecords(bytes(raw))).take(10)
    for length in (1, 5, 120):  # truncated batches, whose checksum is not compared here
        with pytest.raises(CorruptRecordError):
            list(record_batches.decode_batch(DefaultRecordBatch(bytes(raw[:-length])), TP))


def test_reading_can_begin_inside_a_batch() -> None:
    (batch,) = record_batches.encode_batches(
        [(None, b"%d" % n, None) for n in range(5)], timestamp=1, largest=10**6
    )
    part = PartitionRecords(3, TP, MemoryRecords(to_bytes(batch)))
    assert [record.value for record in part.take(1)] == [b"3"]
    assert part.next_fetch_offset == 4
    assert [record.value for record in part.take(9)] == [b"4"]
    assert part.next_fetch_offset == 5
    assert not part
