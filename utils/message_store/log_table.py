"""The table `messages_log`: a compressed copy of the records that the store has read.

The tables of rows hold what one model's columns need. When the columns change, rows are built
again from this copy, because Kafka may no longer retain the records. It also holds records
that were rejected: they may be valid by other rules. Keys and headers are left out, because no
rule uses them.

A row of the table holds consecutive records of one partition. Reading messages never touches it.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from utils.message_store.records import Offsets, RawChunk, RawRecord, SentRecord

#: The largest value that is kept, in bytes. Kafka refuses larger records unless the topic allows
#: them, and a store should not grow by a sender's mistake.
MAX_VALUE = 2**20
#: The most records and bytes of values that are read, or stored in one row, at once.
CHUNK_RECORDS = 5_000
CHUNK_BYTES = 2**22
#: A last row of fewer records is merged with the next ones. Records that come one at a time
#: would compress badly otherwise.
MERGE_BELOW = 64
#: zlib's level. 6 takes three times as long for a quarter fewer bytes.
_LEVEL = 1

LOG = sa.Table(
    "messages_log",
    sa.MetaData(),
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.BigInteger, primary_key=True, autoincrement=False),
    # The last offset, because the row that holds an offset is the first with one no lower.
    sa.Column("last_offset", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("first_offset", sa.BigInteger, nullable=False),
    sa.Column("n_records", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),  # bytes of all values
    sa.Column("topic_id", sa.Text),
    sa.Column("records", sa.LargeBinary, nullable=False),  # last: the others are read without it
)


class _Packed(msgspec.Struct, array_like=True, gc=False):
    """The records of a row: a list for each attribute, which is faster than a list of records.

    Attributes:
        offsets: The offsets, less the first one.
        timestamps: The timestamps, less the first one.
        values: The values; None for a tombstone or an omitted value.
        omitted: The sizes of the omitted values, by their index.
        misdated: The indexes of the records whose own timestamps made no sense; older rows
            lack it.
    """

    first_offset: int
    first_timestamp: int
    offsets: list[int]
    timestamps: list[int]
    values: list[bytes | None]
    omitted: dict[int, int]
    misdated: list[int] = []


_HERE = sa.and_(LOG.c.topic == sa.bindparam("topic"), LOG.c.partition == sa.bindparam("partition"))
#: The last row of a partition; its records only if the next ones are merged with them.
_LAST_ROW = (
    sa.select(
        LOG.c.last_offset,
        LOG.c.topic_id,
        sa.case((LOG.c.n_records < MERGE_BELOW, LOG.c.records)).label("records"),
    )
    .where(_HERE)
    .order_by(LOG.c.last_offset.desc())
    .limit(1)
)
_DELETE = LOG.delete().where(_HERE, LOG.c.last_offset == sa.bindparam("last_offset"))
_INSERT = LOG.insert()

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packed).decode


def pack(records: Sequence[SentRecord]) -> bytes:
    """Pack the records of a row; values that are too large are left out."""
    offset, timestamp = records[0].offset, records[0].timestamp
    values = [record.value for record in records]
    omitted = {n: size for n, record in enumerate(records) if (size := _omitted_size(record))}
    for place in omitted:
        values[place] = None
    misdated = [n for n, r in enumerate(records) if isinstance(r, RawRecord) and r.misdated]
    packed = _Packed(
        offset,
        timestamp,
        [record.offset - offset for record in records],
        [record.timestamp - timestamp for record in records],
        values,
        omitted,
        misdated,
    )
    return zlib.compress(_encode(packed), _LEVEL)


def _omitted_size(record: SentRecord) -> int:
    """The size of a record's value if that is too large to be kept, or was so before; else 0."""
    if (value := record.value) is None:
        return record.omitted if isinstance(record, RawRecord) else 0
    return len(value) if len(value) > MAX_VALUE else 0


def unpack(packed: bytes) -> list[RawRecord]:
    """The records of a row."""
    row = _decode(zlib.decompress(packed))
    misdated = frozenset(row.misdated)
    return [
        RawRecord(
            row.first_offset + offset,
            row.first_timestamp + after,
            value,
            row.omitted.get(place, 0),
            place in misdated,
        )
        for place, (offset, after, value) in enumerate(
            zip(row.offsets, row.timestamps, row.values, strict=True)
        )
    ]


def append(
    connection: Connection,
    raw: Mapping[tuple[str, int], Sequence[SentRecord]],
    topic_ids: Mapping[str, str],
) -> None:
    """Add records to the copy, except for those that it holds."""
    rows: list[dict[str, object]] = []
    for (topic, partition), records in raw.items():
        key = {"topic": topic, "partition": partition, "topic_id": topic_ids.get(topic)}
        last = connection.execute(_LAST_ROW, key).first()
        if last is not None:
            records = [r for r in records if r.offset > last.last_offset]
            if records and last.records is not None and last.topic_id == key["topic_id"]:
                connection.execute(_DELETE, {**key, "last_offset": last.last_offset})
                records = [*unpack(last.records), *records]
        rows += [{**key, **_columns(part)} for part in _parts(records)]
    if rows:
        connection.execute(_INSERT, rows)


def _parts(records: Sequence[SentRecord]) -> Iterator[Sequence[SentRecord]]:
    """Split records so that none of the parts is too large for one row."""
    first = size = 0
    for place, record in enumerate(records):
        more = len(record.value or b"")
        if place > first and (size + more > CHUNK_BYTES or place - first == CHUNK_RECORDS):
            yield records[first:place]
            first, size = place, 0
        size += more
    if first < len(records):
        yield records[first:]


def _columns(records: Sequence[SentRecord]) -> dict[str, object]:
    return {
        "first_offset": records[0].offset,
        "last_offset": records[-1].offset,
        "n_records": len(records),
        "size": sum(len(record.value or b"") for record in records),
        "records": pack(records),
    }


def read_record(
    connection: Connection, topic: str, partition: int, offset: int
) -> RawRecord | None:
    """One record, or None if the copy does not hold it."""
    c = LOG.c
    query = sa.select(c.records).where(_of(topic, partition), c.last_offset >= offset)
    packed = connection.execute(query.order_by(c.last_offset).limit(1)).scalar()
    if packed is None:
        return None
    return next((record for record in unpack(packed) if record.offset == offset), None)


def read_chunk(connection: Connection, topic: str, partition: int, offset: int) -> RawChunk | None:
    """The next records at or after an offset, not too many at once; None if there are none."""
    c = LOG.c
    here = sa.and_(_of(topic, partition), c.last_offset >= offset)
    last_offset = _chunk_end(connection, here)
    if last_offset is None:
        return None
    query = sa.select(c.records, c.topic_id).where(here, c.last_offset <= last_offset)
    rows = connection.execute(query.order_by(c.last_offset)).all()
    records = [record for row in rows for record in unpack(row.records) if record.offset >= offset]
    return RawChunk(topic, partition, records, rows[-1].topic_id)


def _chunk_end(connection: Connection, here: sa.ColumnElement[bool]) -> int | None:
    """The last offset of the rows that make up the next chunk."""
    c, end, records, size = LOG.c, None, 0, 0
    query = sa.select(c.last_offset, c.n_records, c.size).where(here)
    for row in connection.execute(query.order_by(c.last_offset).limit(CHUNK_RECORDS)).all():
        records, size = records + row.n_records, size + row.size
        if end is not None and (records > CHUNK_RECORDS or size > CHUNK_BYTES):
            break
        end = int(row.last_offset)
    return end


def read_bounds(connection: Connection, topic: str) -> dict[int, tuple[int, int]]:
    """The first offset, and the offset after the last, by partition."""
    c = LOG.c
    query = sa.select(c.partition, sa.func.min(c.first_offset), sa.func.max(c.last_offset) + 1)
    rows = connection.execute(query.where(c.topic == topic).group_by(c.partition))
    return {partition: (first, end) for partition, first, end in rows}


def read_ends(connection: Connection) -> Offsets:
    """The offset after the last record of each partition."""
    c = LOG.c
    query = sa.select(c.topic, c.partition, sa.func.max(c.last_offset) + 1)
    rows = connection.execute(query.group_by(c.topic, c.partition))
    return {(topic, partition): end for topic, partition, end in rows}


def count_records(connection: Connection, since: Offsets) -> int:
    """The number of records, without the rows that lie before the given offsets.

    A row that lies partly before them counts in full.
    """
    c = LOG.c
    before = [sa.and_(_of(*place), c.last_offset < offset) for place, offset in since.items()]
    query = sa.select(sa.func.coalesce(sa.func.sum(c.n_records), 0))
    return int(connection.execute(query.where(~sa.or_(sa.false(), *before))).scalar_one())


def _of(topic: str, partition: int) -> sa.ColumnElement[bool]:
    return sa.and_(LOG.c.topic == topic, LOG.c.partition == partition)
