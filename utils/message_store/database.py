"""The database of the message store: its URL, its connections, its file."""

import math
import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from utils.errors import UserError


class StoreError(UserError):
    """The store cannot be used now; the text is one line, without any password.

    The failed call has stored nothing. Continue from `offsets()`, which are empty if a
    damaged store was replaced.
    """


def parse_url(url: str) -> URL:
    """Parse a database URL and add its driver.

    Raises:
        StoreError: It is not a URL of SQLite or PostgreSQL.
    """
    try:
        parsed = sa.make_url(url)
    except ArgumentError:  # its text contains the URL with the password
        raise StoreError("MESSAGES_URL is not a database URL") from None
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_driver_name() not in ("pysqlite", "psycopg"):
        raise StoreError(
            f"MESSAGES_URL has to be sqlite:///... or postgresql+psycopg://..., "
            f"not {parsed.drivername}://"
        )
    return parsed


def is_sqlite_file(url: URL) -> bool:
    """Whether the database is a file at the path in the URL."""
    plain = url.database not in (None, "", ":memory:") and "uri" not in url.query
    return url.get_backend_name() == "sqlite" and plain


def engine(url: URL, shown: str, timeout: float, read_only: bool) -> Engine:
    """Create the engine; it does not connect yet.

    Args:
        url: As `parse_url` returns it.
        shown: The URL without the password, for error messages.
        timeout: Seconds to wait for a lock or a server.
        read_only: Whether SQLite refuses writes.

    Raises:
        StoreError: The driver is not installed, or the file's folder cannot be created.
    """
    arguments: dict[str, object] = {}
    if url.get_backend_name() == "sqlite":
        if is_sqlite_file(url) and not read_only:
            try:
                Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{shown}: cannot create its folder: {error.strerror}") from None
        arguments = {"timeout": timeout}
    else:
        arguments = {"connect_timeout": max(2, round(timeout))}
    try:
        # Parameters are hidden, because error messages must not show personal data.
        made = sa.create_engine(url, connect_args=arguments, hide_parameters=True)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(f"{shown}: {error}; see requirements-postgresql.txt") from None
    if made.dialect.name == "sqlite":
        _begin_explicitly(made, read_only)
    else:
        _isolate_reads(made, timeout)
    return made


def _begin_explicitly(engine: Engine, read_only: bool) -> None:
    """Make SQLite's transactions begin when SQLAlchemy's do.

    By default the driver begins one only before the first write, and two SELECTs may see
    different states.
    """

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None
        # A snapshot reads every page. With the default of 4096 bytes it takes 20 % longer.
        connection.execute("PRAGMA page_size=16384")
        # In WAL mode the writer and the readers do not wait for each other.
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
        # Safe if the process is killed. A power cut may lose the last transactions, each
        # with its offsets, and then they are read again from the log. FULL would wait for
        # the disk at every batch, without need.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA cache_size=-65536")  # KiB: the index of a million ids
        if read_only:
            connection.execute("PRAGMA query_only=ON")
        try:
            connection.execute("SELECT ln(1.0)")
        except sqlite3.OperationalError:  # built without SQLITE_ENABLE_MATH_FUNCTIONS
            connection.create_function("ln", 1, _ln, deterministic=True)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _ln(number: float | None) -> float | None:
    return None if number is None else math.log(number)


def _isolate_reads(engine: Engine, timeout: float) -> None:
    """Make PostgreSQL's reading transactions see one state, and limit waits for locks."""

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("write"):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(timeout * 1000)}")


def is_sound(connection: Connection) -> bool:
    """Whether a quick check finds SQLite's file intact (1 s for a million rows)."""
    return bool(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() == "ok")


def is_damaged(path: Path) -> bool:
    """Whether a full check by SQLite finds a file damaged; a locked one is not damaged."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",))
    except sqlite3.DatabaseError as error:
        return error.sqlite_errorname.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def free_name(path: Path, what: str) -> Path:
    """A free name for a file to be moved aside; `what` is a part of it."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{what}-{number}")).exists():
        number += 1
    return aside
