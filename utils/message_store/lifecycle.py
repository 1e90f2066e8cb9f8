"""Creates the message store, and replaces one that can no longer be used.

Rows of other columns are dropped, and built again from the store's copy of the records. A file
that is replaced as a whole is kept beside the new one: the log may no longer reach back as far.
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
from utils.message_store.log_table import LOG, count_records
from utils.message_store.tables import LAYOUTS, Damaged, Tables

FROM_THE_LOG = "it is read again from the log"

_DIFFERENTLY = "for other columns or by another version"
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


class Outdated(Exception):
    """Neither rows nor copy can be continued from the log; the text is the reason."""


class StoreDatabase:
    """A database with the store's tables; replaced if damaged, missing or outdated.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://...`.
        tables: The store's tables of rows; None, with `read_only`, to read the copy alone.
        read_only: Whether nothing may be created, repaired or dropped.
        timeout: Seconds to wait for another process's lock or a silent server.
        report: Called with one line of text for the user when the store is recreated.

    Raises:
        StoreError: It cannot be opened.
    """

    def __init__(
        self,
        url: str,
        tables: Tables | None,
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
            with suppress(StoreReplaced):  # already reported
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
        except (SQLAlchemyError, driver.Error, Damaged, Outdated) as error:
            # A failed connection may stay unusable; the next call opens a new one.
            self._engine.dispose()
            raise self._translate_error(error) from error

    def _prepare(self, why: str = "") -> str:
        """Create the tables; recreate those of rows if they do not fit.

        Args:
            why: Why they may be missing, for the user.

        Returns:
            The line of text for the user; empty if there was nothing to do.
        """
        tables = self._tables
        if self._read_only or tables is None:
            self._check_layout()
            return ""
        with self.transaction(write=True) as connection:
            if connection.dialect.name == "sqlite" and not database.is_sound(connection):
                raise Damaged
            there = set(sa.inspect(connection).get_table_names())
            if LAYOUTS.name in there:
                if LOG.name not in there:
                    raise Outdated("it holds no copy of the records, as older versions made it")
                fits = _layout_of(connection) == tables.layout
                if fits and tables.names <= there:
                    return ""
                why = "its tables are missing" if fits else f"it was created {_DIFFERENTLY}"
                tables.drop(connection)
            elif "messages" in there:
                raise StoreError(
                    f"{self._shown}: its table `messages` is not the pipeline's; "
                    "use another database"
                )
            tables.create(connection)
            LOG.create(connection, checkfirst=True)
            kept = count_records(connection, {})
        source = f"its {kept:,} records are read again from its own copy"
        line = f"{self._shown}: {why}; {source if kept else FROM_THE_LOG}" if why else ""
        if line:
            self._report(line)
        return line

    def _check_layout(self) -> None:
        """Check that the tables to be read are there."""
        if database.is_sqlite_file(self._url) and not Path(str(self._url.database)).exists():
            raise StoreError(f"{self._shown}: the trainer has not made it yet")
        with self.transaction() as connection:
            there = sa.inspect(connection)
            if not there.has_table(LAYOUTS.name):
                raise StoreError(f"{self._shown}: the trainer has not made it yet")
            if self._tables is None and not there.has_table(LOG.name):
                raise StoreError(f"{self._shown}: it holds no copy of the records")
            self.check_columns(connection)

    def check_columns(self, connection: Connection) -> None:
        """Check that the rows still are of these columns; a trainer may build them again.

        Raises:
            StoreError: They are not.
        """
        if self._tables is not None and _layout_of(connection) != self._tables.layout:
            raise StoreError(
                f"{self._shown} was created {_DIFFERENTLY}; "
                "the trainer builds it again when it starts"
            )

    def _translate_error(self, error: Exception) -> StoreError:
        """Return the error to raise; replace the store first if it is damaged or missing."""
        if isinstance(error, Outdated):
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
        line = self._prepare(why)
        if not line:  # another process has created the tables meanwhile
            line = f"{self._shown}: {why}"
            self._report(line)
        return StoreReplaced(line)

    def _replace_damaged(self) -> StoreError:
        """Move a damaged file aside and create an empty one, to be filled from the log."""
        path = Path(self._url.database or "")
        replaceable = database.is_sqlite_file(self._url) and not self._read_only
        # Checked again, because another process may have replaced the file meanwhile.
        if not (replaceable and database.is_damaged(path)):
            return StoreError(
                f"{self._shown}: damaged; start the trainer again, which replaces a damaged "
                f"file, or move it away: {FROM_THE_LOG}"
            )
        return self._replace_file(path, "damaged", "the file was damaged")

    def _replace_outdated(self, why: str) -> StoreError:
        """Replace the store with its copy; the log is read again from its start."""
        if database.is_sqlite_file(self._url):
            return self._replace_file(Path(str(self._url.database)), "before", why)
        with self.transaction(write=True) as connection:
            if self._tables is not None:
                self._tables.drop(connection)
            LOG.drop(connection, checkfirst=True)
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
                f"move it away, then {FROM_THE_LOG}"
            )
        return self._replace(f"{why}; the old file is now {aside.name}")


def _layout_of(connection: Connection) -> str | None:
    return connection.execute(sa.select(LAYOUTS.c.layout)).scalar()
