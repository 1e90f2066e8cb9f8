"""The store's copy of the records, on SQLite and on PostgreSQL."""

import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from tests.unit.databases import Database, execute
from tests.unit.errors import one_line
from tests.unit.utils.message_store.samples import FEATURES, make_features, message
from utils.message_store import (
    Batch,
    MessageStore,
    RawLog,
    RawRecord,
    StoreError,
    StoreReplaced,
    log_table,
)
from utils.messages import APP_MESSAGES, OUTCOMES

PLACE = (APP_MESSAGES, 0)


def raw_batch(records: list[RawRecord], topic_id: str | None = None) -> Batch:
    """Records of one partition, all of them rejected."""
    topic_ids = {APP_MESSAGES: topic_id} if topic_id else {}
    return Batch(offsets={PLACE: records[-1].offset + 1}, topic_ids=topic_ids, raw={PLACE: records})


def sent(first: int, end: int) -> list[RawRecord]:
    """Records with every kind of value."""
    values = [b'{"request_id": "a"}', None, b"", b"\0\xff no JSON", b"x" * 300]
    return [RawRecord(n, 10_000 - n, values[n % len(values)]) for n in range(first, end)]


def copied(log: RawLog, topic: str = APP_MESSAGES) -> list[RawRecord]:
    return [record for chunk in log.chunks(topic, log.bounds(topic)) for record in chunk.records]


def test_marks_of_replaced_timestamps_are_kept_and_older_rows_lack_them() -> None:
    records = [RawRecord(n, 1000, b"x", misdated=n % 2 == 1) for n in range(5)]
    assert log_table.unpack(log_table.pack(records)) == records
    older = msgspec.msgpack.encode([7, 1000, [0], [0], [b"x"], {}])
    assert log_table.unpack(zlib.compress(older)) == [RawRecord(7, 1000, b"x")]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_records_come_back_as_they_were_sent(url: str, size: int) -> None:
    records = [record for record in sent(5, 305) if record.offset % 11]  # as transactions leave it
    with MessageStore(url, FEATURES) as store:
        for first in range(0, len(records), size):
            store.ingest(raw_batch(records[first : first + size]))
        assert copied(store.raw_log) == records
        assert store.raw_log.bounds(APP_MESSAGES) == {0: (5, 305)}
        assert store.raw_log.ends() == {PLACE: 305}
        for record in records:
            assert store.raw_log.record(*PLACE, record.offset) == record
        for missing in (0, 11, 305):
            assert store.raw_log.record(*PLACE, missing) is None
        assert store.raw_log.record(OUTCOMES, 0, 6) is None
        inside = [r for chunk in store.raw_log.chunks(*_within(20, 30)) for r in chunk.records]
        assert inside == [record for record in records if 20 <= record.offset < 30]


def _within(first: int, end: int) -> tuple[str, dict[int, tuple[int, int]]]:
    return APP_MESSAGES, {0: (first, end), 1: (0, 5)}


def test_too_large_a_value_is_left_out_and_marked(url: str) -> None:
    large = b"x" * (log_table.MAX_VALUE + 1)
    records = [RawRecord(0, 1, large[1:]), RawRecord(1, 2, large), RawRecord(2, 3, b"y")]
    with MessageStore(url, FEATURES) as store:
        for record in records:
            store.ingest(raw_batch([record]))
        assert copied(store.raw_log) == [
            records[0], RawRecord(1, 2, None, len(large)), records[2]
        ]  # fmt: skip


def test_chunks_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_table, "CHUNK_RECORDS", 100)
    monkeypatch.setattr(log_table, "CHUNK_BYTES", 2_000)
    monkeypatch.setattr(log_table, "MERGE_BELOW", 1)
    records = sent(0, 500)
    with MessageStore(url, FEATURES) as store:
        store.ingest(raw_batch(records[:260]))
        for record in records[260:]:
            store.ingest(raw_batch([record]))
        sizes = [
            sum(len(record.value or b"") for record in chunk.records)
            for chunk in store.raw_log.chunks(APP_MESSAGES, {0: (0, 500)})
        ]
        assert max(sizes) <= 2_000 and min(sizes[:-1]) > 1_000
        assert copied(store.raw_log) == records


def test_records_that_were_read_already_are_not_copied_again(url: str) -> None:
    with MessageStore(url, FEATURES) as store:
        for first, end in ((0, 100), (0, 100), (50, 130), (90, 95)):
            store.ingest(raw_batch(sent(first, end)))
        assert copied(store.raw_log) == sent(0, 130)
        assert store.raw_log.count({}) == 130
        assert store.raw_log.count({PLACE: 130}) == 0


def test_copy_rows_and_offsets_share_a_transaction(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = raw_batch(sent(0, 10))
    batch.messages = [message("a", 0, 3, "no")]

    def append_and_fail(*arguments: Any) -> None:
        append(*arguments)
        raise RuntimeError("killed")

    append = log_table.append
    with MessageStore(url, FEATURES) as store:
        monkeypatch.setattr(log_table, "append", append_and_fail)
        with pytest.raises(RuntimeError):
            store.ingest(batch)
        assert (store.offsets(), store.counts().messages) == ({}, 0)
        assert copied(store.raw_log) == []
        monkeypatch.setattr(log_table, "append", append)
        store.ingest(batch)
        assert (store.offsets(), store.counts().messages) == ({PLACE: 10}, 1)
        assert copied(store.raw_log) == sent(0, 10)


def test_copy_can_be_read_whatever_the_columns(url: str) -> None:
    with pytest.raises(StoreError, match="not made it yet") as failure:
        RawLog.open(url)
    one_line(failure.value)
    with MessageStore(url, make_features(numerical=["hours"])) as store:
        store.ingest(raw_batch(sent(0, 10)))
        with RawLog.open(url) as log:
            assert copied(log) == sent(0, 10)
            assert log.record(*PLACE, 3) == sent(3, 4)[0]


def make_old(url: str) -> None:
    """Turn a store into one of the version that kept no copy."""
    execute(url, "DROP TABLE messages_log")
    execute(url, 'UPDATE messages_layout SET layout = \'[2,["age"],["job"],["no","yes"]]\'')


def test_store_without_a_copy_is_kept_beside_and_read_again(url: str) -> None:
    with MessageStore(url, FEATURES) as store:
        store.ingest(raw_batch(sent(0, 10)))
    make_old(url)
    with pytest.raises(StoreError, match="no copy") as failure:
        RawLog.open(url)
    one_line(failure.value)
    lines: list[str] = []
    for _ in range(2):
        with MessageStore(url, FEATURES, report=lines.append) as store:
            assert (store.offsets(), store.raw_log.ends()) == ({}, {})
    assert len(lines) == 1 and "no copy" in lines[0] and "read again from the log" in lines[0]
    if url.startswith("sqlite"):
        aside = Path(sa.make_url(url).database or "").with_name("messages.db.before-1")
        assert aside.name in lines[0]
        execute(f"sqlite:///{aside}", "SELECT next_offset FROM messages_offsets")


def test_copy_of_a_recreated_topic_goes_with_the_rows(database: Database) -> None:
    url = database.new_url()
    with MessageStore(url, FEATURES, report=lambda line: None) as store:
        store.ingest(raw_batch(sent(0, 10), "first"))
        with pytest.raises(StoreReplaced):
            store.ingest(raw_batch(sent(0, 3), "second"))
        assert store.raw_log.ends() == {}
        store.ingest(raw_batch(sent(0, 3), "second"))
        (chunk,) = store.raw_log.chunks(APP_MESSAGES, {0: (0, 9)})
        assert (chunk.topic_id, list(chunk.records)) == ("second", sent(0, 3))
    if url.startswith("sqlite"):
        path = Path(sa.make_url(url).database or "")
        with RawLog.open(f"sqlite:///{path.with_name('messages.db.before-1')}") as log:
            assert copied(log) == sent(0, 10)
