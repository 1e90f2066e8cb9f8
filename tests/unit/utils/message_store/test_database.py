"""The store's database: locks, lost connections, damaged files, full disks."""

import os
import random
import resource
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.harness import mount_tmpfs
from tests.unit.databases import execute, new_schema
from tests.unit.errors import one_line
from tests.unit.utils.message_store.samples import FEATURES, contents, message
from utils.message_store import (
    Batch,
    MessageStore,
    StoreError,
    StoreReplaced,
)
from utils.messages import APP_MESSAGES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "messages.db"


@contextmanager
def holding_the_lock(url: str) -> Iterator[None]:
    """Hold the lock of another writer."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            if url.startswith("sqlite"):
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield
                connection.exec_driver_sql("ROLLBACK")
            else:
                connection.exec_driver_sql("BEGIN; LOCK TABLE messages_offsets")
                yield
                connection.exec_driver_sql("ROLLBACK")
    finally:
        engine.dispose()


def test_locked_store_is_an_error_until_it_is_released(url: str) -> None:
    with MessageStore(url, FEATURES, timeout=0.2) as store:
        batch = Batch([message("a", 0, 0, "no", 1.0, "new")], offsets={(APP_MESSAGES, 0): 1})
        with holding_the_lock(url):
            for _ in range(2):
                with pytest.raises(StoreError, match="lock") as failure:
                    store.ingest(batch)
                one_line(failure.value)
        assert store.offsets() == {}
        store.ingest(batch)
        assert contents(store.snapshot())["rows"] == [("a", 1.0, "new", "no")]


def test_lost_connection_is_reopened(postgres: str) -> None:
    with MessageStore(new_schema(postgres), FEATURES) as store:
        store.ingest(Batch([message("a", 0, 0, "no")]))
        execute(
            postgres,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        with pytest.raises(StoreError) as failure:
            store.snapshot()
        one_line(failure.value)
        assert len(store.snapshot().request_ids) == 1


def test_unreachable_server_is_one_line_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match=r"me:\*\*\*@127") as failure:
        MessageStore(DEAD, FEATURES)
    assert "refused" in one_line(failure.value)


DEAD = "postgresql://me:secret@127.0.0.1:1/nowhere"


@pytest.mark.parametrize(
    "url", ["mysql://me:secret@h/d", "nonsense:secret", "sqlite+pysqlcipher://"]
)
def test_unsupported_url_is_one_line(url: str) -> None:
    with pytest.raises(StoreError) as failure:
        MessageStore(url, FEATURES)
    one_line(failure.value)


def fill_store(path: Path, rows: int = 3000) -> None:
    with MessageStore(f"sqlite:///{path}", FEATURES) as store:
        messages = [message(f"r{i}", 0, i, "no", float(i), f"t{i % 9}") for i in range(rows)]
        store.ingest(Batch(messages, offsets={(APP_MESSAGES, 0): rows}))


def overwrite(path: Path, first: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(first)
        file.write(random.Random(1).randbytes(length))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "not SQLite": lambda path: overwrite(path, 0, 4096),
    "pages of noise": lambda path: overwrite(path, 3 * 4096, 40 * 4096),
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "some text": lambda path: (path.write_text("hello, world\n" * 1000), None)[1],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_set_aside_and_recreated(path: Path, damage: str) -> None:
    fill_store(path)
    DAMAGES[damage](path)
    lines: list[str] = []
    with MessageStore(f"sqlite:///{path}", FEATURES, report=lines.append) as store:
        assert store.offsets() == {}
        store.ingest(Batch([message("a", 0, 0, "no")]))
        assert store.snapshot().request_ids.tolist() == ["a"]
    assert len(lines) == 1 and "damaged" in lines[0] and "messages.db.damaged-1" in lines[0]
    assert (path.parent / "messages.db.damaged-1").exists()


def test_file_damaged_while_open_is_recreated(path: Path) -> None:
    fill_store(path)
    lines: list[str] = []
    rows = [message(f"r{i}", 0, i, "yes", 0.0, "t1") for i in range(3000)]
    with MessageStore(f"sqlite:///{path}", FEATURES, report=lines.append) as store:
        with MessageStore(f"sqlite:///{path}", FEATURES) as other:  # invalidates the page cache
            other.ingest(Batch([message("a", 1, 0, "no")]))
        overwrite(path, 4096, path.stat().st_size - 4096)
        with pytest.raises(StoreReplaced) as failure:
            store.ingest(Batch(rows, offsets={(APP_MESSAGES, 0): 3000}))
            store.ingest(Batch(outcomes=[(m.request_id, "no", 0, 0, 1) for m in rows]))
            store.snapshot()
        assert lines == [one_line(failure.value)]
        assert store.offsets() == {}
        store.ingest(Batch(rows, offsets={(APP_MESSAGES, 0): 3000}))
        assert len(store.snapshot().request_ids) == 3000
        assert set(store.snapshot().frame["job"]) == {"t1"}


def test_reader_leaves_a_damaged_file_unchanged(path: Path) -> None:
    fill_store(path)
    DAMAGES["not SQLite"](path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="damaged") as failure:
        MessageStore.open(f"sqlite:///{path}", FEATURES)
    one_line(failure.value)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.damaged*"))


def test_dropped_tables_are_recreated(path: Path) -> None:
    fill_store(path)
    with MessageStore(f"sqlite:///{path}", FEATURES, report=lambda line: None) as store:
        with closing(sqlite3.connect(path)) as other:
            other.executescript("DROP TABLE messages; DROP TABLE messages_offsets;")
        with pytest.raises(StoreError) as failure:
            store.snapshot()
        one_line(failure.value)
        fill_store(path, rows=5)
        assert len(store.snapshot().request_ids) == 5


def test_store_works_again_after_a_file_size_limit(path: Path) -> None:
    rows = [message(f"r{i}", 0, i, "no", float(i), f"text {i}") for i in range(20_000)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MessageStore(f"sqlite:///{path}", FEATURES) as store:
        store.ingest(Batch(rows[:10], offsets={(APP_MESSAGES, 0): 10}))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
            for _ in range(2):
                with pytest.raises(StoreError, match="disk is full") as failure:
                    store.ingest(Batch(rows, offsets={(APP_MESSAGES, 0): 20_000}))
                one_line(failure.value)
            assert store.offsets() == {(APP_MESSAGES, 0): 10}
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        store.ingest(Batch(rows, offsets={(APP_MESSAGES, 0): 20_000}))
        assert len(store.snapshot().request_ids) == 20_000


def test_store_works_again_after_a_full_file_system(tmp_path: Path) -> None:
    rows = [message(f"r{i}", 0, i, "no", float(i), f"text {i}") for i in range(20_000)]
    with mount_tmpfs(tmp_path, "1m") as mounted:
        if not mounted:
            pytest.skip("mounting a file system needs root")
        with MessageStore(f"sqlite:///{tmp_path}/messages.db", FEATURES) as store:
            with pytest.raises(StoreError, match="disk is full"):
                store.ingest(Batch(rows))
            subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
            store.ingest(Batch(rows))
            assert len(store.snapshot().request_ids) == 20_000


def test_read_only_file_can_be_read_but_not_written(path: Path) -> None:
    fill_store(path)
    with MessageStore(f"sqlite:///file:{path}?mode=ro&uri=true", FEATURES) as store:
        with pytest.raises(StoreError, match="read-only") as failure:
            store.ingest(Batch([message("a", 1, 0, "no")]))
        one_line(failure.value)
    with MessageStore.open(f"sqlite:///file:{path}?mode=ro&uri=true", FEATURES) as store:
        assert len(store.snapshot().request_ids) == 3000


def test_impossible_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as failure:
        MessageStore(f"sqlite:///{tmp_path}/file/messages.db", FEATURES)
    one_line(failure.value)
