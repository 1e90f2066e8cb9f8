"""Creates the message store, and replaces one that can no longer be used.

Nothing is lost when a store is replaced, because its content comes from the log.
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

_LOCK = 0x6D657373  # PostgreSQL's advisory lock for writers

#: The meaning of SQLite's error codes, by the prefix of their names.
_REASONS = {
    "SQLITE_BUSY": "locked by another process",
    "SQLITE_LOCKED": "locked by another process",
    "SQLITE_FULL": "cannot be written: the disk is full",
    "SQLITE_IOERR": "cannot be read or written: the disk is full or fails",
    "SQLITE_READONLY": "cannot be written: it is read-only",
    "SQLITE_CANTOPEN": "cannot be opened",
}


class StoreReplaced(StoreError):
    """The store was damaged, missing or of a recreated topic; an empty one replaced it."""


class TopicRecreated(Exception):
    """A topic was recreated since the store read it; the text is its name."""


class StoreDatabase:
    """A database with the store's tables; replaced if damaged, missing or outdated.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://...`.
        tables: The store's tables.
        read_only: Whether nothing may be created, repaired or dropped.
        timeout: Seconds to wait for another process's lock or a silent server.
        report: Called with one line of text for the user when the store is recreated.

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
            with suppress(StoreReplaced):  # already reported, and nothing is lost
                self._prepare()
        except BaseException:
            self.close()
            raise

    @property
    def dialect(self) -> sa.Dialect:
        """The dialect of the database."""
        return self._engine.dialect

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Connection]:
        """A transaction, which sees one state of the database from start to end."""
        driver: Any = self._engine.dialect.dbapi  # the driver's module, which has no type
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(write=write)
                with connection.begin():
                    if write and connection.dialect.name == "postgresql":
                        # One writer at a time, as in SQLite, so that there are no deadlocks.
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                    yield connection
        except (SQLAlchemyError, driver.Error, Damaged, TopicRecreated) as error:
            # A failed connection may stay unusable; the next call opens a new one.
            self._engine.dispose()
            raise self._translate_error(error) from error

    def _prepare(self) -> None:
        """Create the tables; recreate them if they were created for other columns."""
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
                        f"{self._shown} was created for other columns; it is read again from "
                        "the log"
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
                    f"{self._shown} was created for other columns; "
                    "the trainer reads the log again when it starts"
                )

    def _layout_of(self, connection: Connection) -> str | None:
        return connection.execute(sa.select(self._tables.layouts.c.layout)).scalar()

    def _translate_error(self, error: Exception) -> StoreError:
        """Return the error to raise; replace the store first if it is damaged or missing."""
        if isinstance(error, TopicRecreated):
            return self._replace_outdated(str(error))
        cause = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlite_errorname", "")
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        if isinstance(error, Damaged) or code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return self._replace_damaged()
        missing = lines[0].startswith("no such table") or type(cause).__name__ == "UndefinedTable"
        if missing and not self._read_only:
            return self._replace("its tables are missing")
        for prefix, reason in _REASONS.items():
            if code.startswith(prefix):
                return StoreError(f"{self._shown}: {reason}")
        return StoreError(f"{self._shown}: {lines[0]}")

    def _replace(self, why: str) -> StoreError:
        line = f"{self._shown}: {why}; it is read again from the log"
        self._report(line)
        self._prepare()
        return StoreReplaced(line)

    def _replace_damaged(self) -> StoreError:
        """Move a damaged file aside and create an empty one; the log has all of its content."""
        path = Path(self._url.database or "")
        replaceable = database.is_sqlite_file(self._url) and not self._read_only
        # Checked again, because another process may have replaced the file meanwhile.
        if not (replaceable and database.is_damaged(path)):
            return StoreError(
                f"{self._shown}: damaged; start the trainer again, which replaces a damaged "
                "file, or move it away: it is read again from the log"
            )
        return self._replace_file(path, "damaged", "the file was damaged")

    def _replace_outdated(self, topic: str) -> StoreError:
        """Replace the store: its offsets are those of a topic that no longer exists."""
        why = f"{topic} was deleted and recreated"
        if database.is_sqlite_file(self._url):
            return self._replace_file(Path(str(self._url.database)), "before", why)
        with self.transaction(write=True) as connection:
            self._tables.drop(connection)
        return self._replace(why)

    def _replace_file(self, path: Path, what: str, why: str) -> StoreError:
        """Keep the file under another name, and create an empty one."""
        aside = database.free_name(path, what)
        try:
            for suffix in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
        except OSError as error:
            return StoreError(
                f"{self._shown}: {why}, and it cannot be moved away ({error.strerror}); "
                "move it away, then it is read again from the log"
            )
        return self._replace(f"{why}; the old file is now {aside.name}")
