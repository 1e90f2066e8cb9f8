"""Reads the store's copy of the records, whatever columns the store's rows have."""

from collections.abc import Iterator
from dataclasses import replace

from utils.message_store import log_table
from utils.message_store.lifecycle import StoreDatabase
from utils.message_store.records import LogBounds, Offsets, RawChunk, RawRecord
from utils.message_store.tables import decode_errors_as_damage


class RawLog:
    """The records of the three topics that the store has read, as they were sent.

    Args:
        database: The database of a store.
    """

    def __init__(self, database: StoreDatabase) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, *, timeout: float = 5.0) -> "RawLog":
        """Open the copy of any store for reading, also of one with another model's columns.

        Raises:
            StoreError: There is no store, or it holds no copy.
        """
        return cls(StoreDatabase(url, None, read_only=True, timeout=timeout, report=print))

    def close(self) -> None:
        """Release the connections."""
        self._database.close()

    def __enter__(self) -> "RawLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def record(self, topic: str, partition: int, offset: int) -> RawRecord | None:
        """One record; None if the copy does not hold it."""
        with self._database.transaction() as connection, decode_errors_as_damage():
            return log_table.read_record(connection, topic, partition, offset)

    def chunk(self, topic: str, partition: int, offset: int) -> RawChunk | None:
        """The next records of a partition at or after an offset; None if there are none.

        Args:
            topic: The topic.
            partition: The partition.
            offset: The lowest offset to return.

        Returns:
            At most about `CHUNK_RECORDS` records or `CHUNK_BYTES` bytes, but at least one record.
        """
        with self._database.transaction() as connection, decode_errors_as_damage():
            return log_table.read_chunk(connection, topic, partition, offset)

    def chunks(self, topic: str, wanted: LogBounds) -> Iterator[RawChunk]:
        """The records within bounds, each partition in offset order.

        Each chunk is read in a transaction of its own, so the caller may take its time.

        Args:
            topic: The topic.
            wanted: By partition, the first offset and the offset after the last.
        """
        for partition, (first, end) in sorted(wanted.items()):
            while first < end and (chunk := self.chunk(topic, partition, first)):
                inside = [record for record in chunk.records if record.offset < end]
                if not inside:
                    break
                yield replace(chunk, records=inside)
                first = chunk.records[-1].offset + 1

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """The first offset, and the offset after the last, by partition."""
        with self._database.transaction() as connection:
            return log_table.read_bounds(connection, topic)

    def ends(self) -> Offsets:
        """The offset after the last record of every partition in the copy."""
        with self._database.transaction() as connection:
            return log_table.read_ends(connection)

    def count(self, since: Offsets) -> int:
        """The number of records at or after the given offsets, to within one row of each."""
        with self._database.transaction() as connection:
            return log_table.count_records(connection, since)
