"""Encodes and decodes Kafka's record batches (message format 2), a whole batch at a time.

kafka-python creates several objects and calls per record, which takes more time than a
model needs to score a row. Here a record costs little more than copying its bytes.
The format: https://kafka.apache.org/documentation/#recordbatch
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import msgspec
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.structs import TopicPartition

from utils.kafka_io import codecs

Headers = Sequence[tuple[str, bytes | None]]
#: A record to be written: key, value, headers.
Content = tuple[bytes | None, bytes | None, Headers | None]

_NO_HEADERS = b"\0"
_NULL = b"\1"  # a length of -1
#: The most bytes that a record takes besides its key, value and headers.
_NUMBERS = 22

#: The most bytes of a record of a compressed batch; of a larger one only so many are read.
LARGEST_COMPRESSED = 32 * 1024 * 1024
#: How many bytes of a partition may be returned at once, beside those of the last batch or piece
#: of it: what is compressed says nothing of what it will take.
TAKE_BYTES = 64 * 1024 * 1024


class Record(msgspec.Struct, frozen=True, gc=False):
    """A consumed record; `timestamp` is in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


#: Consecutive records, and how many bytes they were decoded from.
Decoded = tuple[list[Record], int]


def encode_batches(
    records: Iterable[Content], *, timestamp: int, largest: int, codec: int = 0
) -> list[MemoryRecordsBuilder]:
    """Encode records into as many batches as they need.

    Args:
        records: Key, value and headers of each.
        timestamp: The timestamp of all records, in milliseconds since 1970.
        largest: The most bytes of a batch before it is compressed; a larger record gets a batch
            of its own.
        codec: Kafka's number of the codec; 0 is none.
    """
    batches: list[MemoryRecordsBuilder] = []
    parts: list[bytes] = []
    place = size = 0
    for key, value, headers in records:
        tail = _headers(headers) if headers else _NO_HEADERS
        more = _NUMBERS + len(key or b"") + len(value or b"") + len(tail)
        size += more
        if place and size > largest:
            batches.append(_batch(parts, place, timestamp, largest, codec))
            parts, place, size = [], 0, more
        # No attributes, timestamp delta 0, the offset delta; then key, value and headers.
        record = b"\0\0%b%b%b%b%b%b" % (
            _varint(place),
            _NULL if key is None else _varint(len(key)),
            key or b"",
            _NULL if value is None else _varint(len(value)),
            value or b"",
            tail,
        )
        parts += (_varint(len(record)), record)
        place += 1
    if place:
        batches.append(_batch(parts, place, timestamp, largest, codec))
    return batches


def _batch(
    parts: list[bytes], count: int, timestamp: int, largest: int, codec: int
) -> MemoryRecordsBuilder:
    batch = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=largest)
    batch._next_offset = count
    inner = batch._builder
    inner._buffer += b"".join(parts)
    inner._first_timestamp = inner._max_timestamp = timestamp
    inner._num_records = count
    inner._last_offset = count - 1
    return batch


def _headers(headers: Headers) -> bytes:
    parts = [_varint(len(headers))]
    for name, value in headers:
        raw = name.encode()
        parts += (_varint(len(raw)), raw)
        parts += (_NULL,) if value is None else (_varint(len(value)), value)
    return b"".join(parts)


@lru_cache(maxsize=1 << 16)
def _varint(number: int) -> bytes:
    """Encode a non-negative number as Kafka's zigzag varint.

    >>> [_varint(number).hex() for number in (0, 63, 64, 300)]
    ['00', '7e', '8001', 'd804']
    """
    number <<= 1
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def decode_batch(batch: DefaultRecordBatch, tp: TopicPartition) -> Iterator[Decoded]:
    """Decode the records of a batch whose checksum has been verified.

    Yields:
        All records, or of a large compressed batch one part after the other. If a record of
        those is larger than `LARGEST_COMPRESSED`, it has no key, and its value is the beginning
        of its bytes.

    Raises:
        CorruptRecordError: The batch does not follow the format.
    """
    data, count = bytes(memoryview(batch._buffer)[batch._pos :]), batch.records_count
    try:
        if batch.compression_type:
            yield from _decode_pieces(batch, codecs.decompress(batch.compression_type, data), tp)
        else:
            yield _decode(batch, data, count, tp), len(data)
    except (ValueError, IndexError) as error:
        raise CorruptRecordError(f"{tp}, batch at {batch.base_offset}: {error!r}") from None


def _decode_pieces(
    batch: DefaultRecordBatch, pieces: Iterator[bytes], tp: TopicPartition
) -> Iterator[Decoded]:
    held, left = next(pieces, b""), batch.records_count
    for piece in pieces:
        count, end = _whole_records(held, left)
        if count:
            yield _decode(batch, held[:end], count, tp), end
            held, left = held[end:], left - count
        elif len(held) > LARGEST_COMPRESSED:
            size, begin = _number(held, 0)
            if begin + size > len(held) + len(piece):  # else the next piece completes it
                yield [_cut_off(batch, held, tp)], len(held)
                piece, held, left = _skip(begin + size - len(held), piece, pieces), b"", left - 1
        held += piece
    yield _decode(batch, held, left, tp), len(held)


def _whole_records(data: bytes, most: int) -> tuple[int, int]:
    """How many records the data holds as a whole, and where the last of them ends."""
    count = at = 0
    while count < most and at + 10 < len(data):
        size, begin = _number(data, at)
        if begin + size > len(data):
            break
        at, count = begin + size, count + 1
    return count, at


def _cut_off(batch: DefaultRecordBatch, data: bytes, tp: TopicPartition) -> Record:
    _, at = _number(data, 0)
    delta, at = _number(data, at + 1)
    offset, at = _number(data, at)
    timestamp = batch.first_timestamp + delta
    if batch.timestamp_type == batch.LOG_APPEND_TIME:
        timestamp = batch.max_timestamp
    return Record(tp.topic, tp.partition, batch.base_offset + offset, timestamp, None, data, ())


def _skip(count: int, piece: bytes, pieces: Iterator[bytes]) -> bytes:
    """What remains of the pieces' first one after so many bytes of them."""
    while count > len(piece):
        count -= len(piece)
        piece = next(pieces, None) or b""
        if not piece:
            raise ValueError("a record ends too early")
    return piece[count:]


def _decode(batch: DefaultRecordBatch, data: bytes, count: int, tp: TopicPartition) -> list[Record]:
    at = 0
    topic, partition = tp
    base_offset, first_timestamp = batch.base_offset, batch.first_timestamp
    appended = batch.max_timestamp if batch.timestamp_type == batch.LOG_APPEND_TIME else None
    found = []
    # Most varints are one or two bytes long: those are decoded inline, without a call.
    for _ in range(count):
        if (size := data[at]) < 128:
            at, size = at + 1, size >> 1
        elif (high := data[at + 1]) < 128:
            at, size = at + 2, (size & 127 | high << 7) >> 1
        else:
            size, at = _number(data, at)
        end = at + size
        at += 1  # the attributes: the format defines none yet
        if (delta := data[at]) < 128:
            at, delta = at + 1, (delta >> 1) ^ -(delta & 1)
        else:
            delta, at = _number(data, at)
        if (offset := data[at]) < 128:
            at, offset = at + 1, offset >> 1
        elif (high := data[at + 1]) < 128:
            at, offset = at + 2, (offset & 127 | high << 7) >> 1
        else:
            offset, at = _number(data, at)
        if (size := data[at]) < 128:
            at, size = at + 1, (size >> 1) ^ -(size & 1)
        else:
            size, at = _number(data, at)
        key = data[at : (at := at + size)] if size >= 0 else None
        if (size := data[at]) < 128:
            at, size = at + 1, (size >> 1) ^ -(size & 1)
        elif (high := data[at + 1]) < 128:
            at, size = at + 2, (size & 127 | high << 7) >> 1
        else:
            size, at = _number(data, at)
        value = data[at : (at := at + size)] if size >= 0 else None
        headers: Headers = ()
        if data[at]:
            headers, at = _decode_headers(data, at)
        else:
            at += 1
        if at != end:
            raise ValueError(f"a record ends at {at}, not at {end}")
        timestamp = first_timestamp + delta if appended is None else appended
        found.append(Record(topic, partition, base_offset + offset, timestamp, key, value, headers))
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes after the last record")
    return found


def _decode_headers(data: bytes, at: int) -> tuple[list[tuple[str, bytes | None]], int]:
    count, at = _number(data, at)
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        size, at = _number(data, at)
        name = data[at : at + size].decode("utf-8", "replace")
        size, at = _number(data, at + size)
        value = None
        if size >= 0:
            value = data[at : at + size]
            at += size
        headers.append((name, value))
    return headers, at


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Decode the zigzag varint at an index; returns it and the index after it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return (number >> 1) ^ -(number & 1), at
    raise ValueError("a varint of more than ten bytes")


class PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """One partition of a fetch response, as `Record`s.

    Attributes:
        is_full: Whether the last `take` has returned as many bytes as it may.
    """

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)
        self.is_full = False
        self._decoded: list[Record] = []

    def take(self, n: int | None = None) -> list[Record]:
        """The next records, at most `n`; fewer if they hold more than `TAKE_BYTES`."""
        self._maybe_raise_next_inline_exception()
        taken: list[Record] = []
        read, self.is_full = self.bytes_read, False
        try:
            while (n is None or len(taken) < n) and not self.is_full:
                if not self._decoded:
                    self._decoded = next(self.record_iterator, [])
                    if not self._decoded:  # that was all
                        break
                more = len(self._decoded) if n is None else n - len(taken)
                taken += self._decoded[:more]
                self._decoded = self._decoded[more:]
                self.next_fetch_offset = taken[-1].offset + 1
                self.is_full = self.bytes_read - read > TAKE_BYTES
        except Exception as error:
            if not taken:
                raise
            self._next_inline_exception = error  # raised by the next call
        return taken

    def _maybe_skip_record(self, records: list[Record]) -> bool:
        """Drop the records of the first batches that are before the one asked for."""
        while records and records[0].offset < self.fetch_offset:
            del records[0]
        return not records

    def _unpack_records(
        self, tp: TopicPartition, records: MemoryRecords, *deserialisers: object
    ) -> Iterator[list[Record]]:
        while (batch := records.next_batch()) is not None:
            if not batch.validate_crc():
                raise CorruptRecordError(f"{tp}, batch at {batch.base_offset}: wrong checksum")
            if batch.magic != 2:
                raise CorruptRecordError(f"{tp}: message format {batch.magic} is too old")
            self.leader_epoch = batch.leader_epoch
            if not self._is_hidden(batch):
                for decoded, size in decode_batch(batch, tp):
                    self.bytes_read += size
                    if decoded:
                        yield decoded
            # Skips compacted records and transaction markers.
            self.next_fetch_offset = batch.next_offset
        self.drain()

    def _is_hidden(self, batch: DefaultRecordBatch) -> bool:
        """Whether a batch is a transaction marker, or part of an aborted transaction."""
        committed_only = self.isolation_level == IsolationLevel.READ_COMMITTED
        if committed_only and batch.has_producer_id():
            # Aborted transactions that begin before this batch ends; a marker ends each.
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)
