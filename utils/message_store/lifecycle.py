"""How the message store begins, and begins again when it cannot be used any more.

Nothing is lost with a store that is replaced: the log has all that was in it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from utils.message_store import database
from utils.message_store.database import StoreError
from utils.message_store.tables import Damaged, Tables

_LOCK = 0x6D657373  # PostgreSQL's advisory lock of whoever writes

#: What SQLite's error codes mean, by how their names begin.
_REASONS = {
    "SQLITE_BUSY": "locked by another process",
    "SQLITE_LOCKED": "locked by another process",
    "SQLITE_FULL": "cannot be written: the disk is full",
    "SQLITE_IOERR": "cannot be read or written: the disk is full or fails",
    "SQLITE_READONLY": "cannot be written: it is read-only",
    "SQLITE_CANTOPEN": "cannot be opened",
}


class StoreReplaced(StoreError):
    """The store was damaged, gone or of another log; an empty one is in its place."""


class OtherLog(Exception):
    """A topic, by name, is not the one that the store has read."""


class StoreDatabase:
    """A database with the store's tables; replaced when damaged, gone or of another log.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://...`.
        tables: What it holds.
        read_only: Only look: nothing is made, mended or dropped.
        timeout: Seconds to wait for another process's lock or a silent server.
        report: Called with one line of text for the user when the store is begun afresh.

    Raises:
        StoreError: It cannot be opened.
    """

    def __init__(
        self,
        url: str,
        tables: Tables,
        *,
        read_only: bool,
        timeout: float,
        report: Callable[[str], None],
    ) -> None:
        self._tables = tables
        self._read_only = read_only
        self._report = report
        self._url = database.parse_url(url)
        # Without parameters such as ?password=...
        self._shown = self._url.set(query={}).render_as_string(hide_password=True)
        self._engine = database.engine(self._url, self._shown, timeout, read_only)
        try:
            with suppress(StoreReplaced):  # it was reported, and nothing is lost with it
                self._prepare()
        except BaseException:
            self.close()
            raise

    @property
    def dialect(self) -> sa.Dialect:
        """SQLite's or PostgreSQL's."""
        return self._engine.dialect

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Connection]:
        """One transaction, which sees one state of the database from start to end."""
        driver: Any = self._engine.dialect.dbapi  # a module of the driver's
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(write=write)
                with connection.begin():
                    if write and connection.dialect.name == "postgresql":
                        # One writer at a time, as SQLite has it: no deadlocks.
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                    yield connection
        except (SQLAlchemyError, driver.Error, Damaged, OtherLog) as error:
            # A connection that failed may stay unusable; the next call makes another.
            self._engine.dispose()
            raise self._translate_error(error) from error

    def _prepare(self) -> None:
        """Create the tables; recreate them when they were made for other columns."""
        if self._read_only:
            self._check_layout()
            return
        with self.transaction(write=True) as connection:
            if connection.dialect.name == "sqlite" and not database.is_sound(connection):
                raise Damaged
            there = sa.inspect(connection).get_table_names()
            if "messages_layout" in there:
                if self._layout_of(connection) != self._tables.layout:
                    self._report(
                        f"{self._shown} was made for other columns; it is made anew from the log"
                    )
                elif self._tables.names <= set(there):
                    return
                self._tables.drop(connection)
            elif "messages" in there:
                raise StoreError(
                    f"{self._shown}: its table `messages` is not the pipeline's; "
                    "use another database"
                )
            self._tables.create(connection)

    def _check_layout(self) -> None:
        if database.is_sqlite_file(self._url) and not Path(str(self._url.database)).exists():
            raise StoreError(f"{self._shown}: the trainer has not made it yet")
        with self.transaction() as connection:
            if not sa.inspect(connection).has_table("messages_layout"):
                raise StoreError(f"{self._shown}: the trainer has not made it yet")
            if self._layout_of(connection) != self._tables.layout:
                raise StoreError(
                    f"{self._shown} was made for other columns; "
                    "the trainer reads it again from the log when it starts"
                )

    def _layout_of(self, connection: Connection) -> str | None:
        return connection.execute(sa.select(self._tables.layouts.c.layout)).scalar()

    def _translate_error(self, error: Exception) -> StoreError:
        """The error to raise; a store that is damaged or gone is replaced on the way."""
        if isinstance(error, OtherLog):
            return self._replace_other_log(str(error))
        cause = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlite_errorname", "")
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        if isinstance(error, Damaged) or code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return self._replace_damaged()
        gone = lines[0].startswith("no such table") or type(cause).__name__ == "UndefinedTable"
        if gone and not self._read_only:
            return self._replace("its tables are gone")
        for prefix, reason in _REASONS.items():
            if code.startswith(prefix):
                return StoreError(f"{self._shown}: {reason}")
        return StoreError(f"{self._shown}: {lines[0]}")

    def _replace(self, why: str) -> StoreError:
        line = f"{self._shown}: {why}; it is made anew from the log"
        self._report(line)
        self._prepare()
        return StoreReplaced(line)

    def _replace_damaged(self) -> StoreError:
        """Move a damaged file out of the way: the log has everything that was in it."""
        path = Path(self._url.database or "")
        ours = database.is_sqlite_file(self._url) and not self._read_only
        # Looked at once more: another process may have put a sound file there meanwhile.
        if not (ours and database.is_damaged(path)):
            return StoreError(
                f"{self._shown}: damaged; start the trainer again, which replaces a damaged "
                "file, or move it away: it is made anew from the log"
            )
        return self._replace_file(path, "damaged", "the file was damaged")

    def _replace_other_log(self, topic: str) -> StoreError:
        """Begin anew: what the store says of a topic's offsets is of one that is gone."""
        why = f"{topic} was deleted and made again"
        if database.is_sqlite_file(self._url):
            return self._replace_file(Path(str(self._url.database)), "before", why)
        with self.transaction(write=True) as connection:
            self._tables.drop(connection)
        return self._replace(why)

    def _replace_file(self, path: Path, what: str, why: str) -> StoreError:
        """Keep the file under another name, and begin another."""
        aside = database.free_name(path, what)
        try:
            for suffix in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
        except OSError as error:
            return StoreError(
                f"{self._shown}: {why}, and it cannot be moved away ({error.strerror}); "
                "move it away, then it is made anew from the log"
            )
        return self._replace(f"{why}; what there was is now {aside.name}")
