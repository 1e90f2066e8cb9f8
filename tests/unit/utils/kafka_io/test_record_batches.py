"""Encoding and decoding of record batches, compared with kafka-python's own."""

from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka.errors import CorruptRecordError, UnsupportedCodecError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.structs import TopicPartition

from utils.kafka_io import codecs, record_batches
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


@given(records=records, largest=st.sampled_from([100, 10_000, 10**9]), codec=st.integers(0, 4))
@settings(deadline=None)
def test_kafka_python_reads_encoded_batches(records: list[Any], largest: int, codec: int) -> None:
    found = []
    encoded = record_batches.encode_batches(records, timestamp=1234, largest=largest, codec=codec)
    for batch in encoded:
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


@given(
    records=records,
    times=st.lists(st.integers(0, 2**41), min_size=150, max_size=150),
    codec=st.integers(0, 4),
)
@settings(deadline=None)
def test_batches_of_kafka_python_are_decoded(
    records: list[Any], times: list[int], codec: int
) -> None:
    written = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=10**9)
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


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_large_compressed_batch_is_read_in_parts(
    codec: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "PIECE_BYTES", 50_000)
    monkeypatch.setattr(record_batches, "LARGEST_COMPRESSED", 200_000)
    monkeypatch.setattr(record_batches, "TAKE_BYTES", 300_000)
    sizes = [5, 150_000, 400_000, 7, 1_000_000, 0, 199_990, 9, *[30_000] * 40, 900_000]
    written = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=10**9)
    for number, size in enumerate(sizes):
        written.append(1000 + number, b"%d" % number, b"x" * size, [("name", b"value")])
    part = PartitionRecords(0, TP, MemoryRecords(to_bytes(written)))
    found = []
    while part:
        some = part.take(10_000)
        assert sum(len(one.value or b"") for one in some) < 900_000
        assert not some or part.next_fetch_offset == some[-1].offset + 1 or not part
        found += some
    assert [one.offset for one in found] == list(range(len(sizes)))
    assert [one.timestamp for one in found] == list(range(1000, 1000 + len(sizes)))
    for one, size in zip(found, sizes, strict=True):
        if size < 200_000:
            assert (one.key, len(one.value or b"")) == (b"%d" % one.offset, size)
            assert one.headers == [("name", b"value")]
        else:  # the last one of a batch is decoded whole, as nothing more has to be held
            assert len(one.value or b"") > 200_000


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_damaged_compressed_batch_is_an_error(codec: int) -> None:
    written = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=10**9)
    for number in range(200):
        written.append(1, None, b"%d" % number * 50, [])
    raw = to_bytes(written)
    header = DefaultRecordBatch.HEADER_STRUCT.size
    for end in (header, header + 3, len(raw) // 2, len(raw) - 5):
        with pytest.raises(CorruptRecordError):
            list(record_batches.decode_batch(DefaultRecordBatch(raw[:end]), TP))
    random = Random(codec)
    for _ in range(300):
        broken = bytearray(raw)
        broken[random.randrange(header, len(raw))] ^= 1 << random.randrange(8)
        with suppress(CorruptRecordError):  # some changes cannot be noticed without the checksum
            list(record_batches.decode_batch(DefaultRecordBatch(bytes(broken)), TP))


def test_snappy_block_cannot_claim_more_than_it_can_hold() -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        list(codecs.decompress(2, b"\xff\xff\xff\xff\x0f" + b"x" * 100))


def test_unknown_codec_is_named() -> None:
    with pytest.raises(UnsupportedCodecError, match="7"):
        list(codecs.decompress(7, b""))
