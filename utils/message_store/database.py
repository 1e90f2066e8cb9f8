"""The database of the message store: its URL, its connections, its file."""

import sqlite3
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from utils.errors import UserError


class StoreError(UserError):
    """The store cannot be used just now; its text is one line, without any password.

    Nothing of the failed call is in the store. Go on from `offsets()`, which are those
    of an empty store where a damaged one was replaced.
    """


def parse_url(url: str) -> URL:
    """The URL with its driver.

    Raises:
        StoreError: It is not one of SQLite or PostgreSQL.
    """
    try:
        parsed = sa.make_url(url)
    except ArgumentError:  # its own text repeats the URL, password and all
        raise StoreError("MESSAGES_URL is not a database URL") from None
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_driver_name() not in ("pysqlite", "psycopg"):
        raise StoreError(
            f"MESSAGES_URL wants sqlite:///... or postgresql+psycopg://..., "
            f"not {parsed.drivername}://"
        )
    return parsed


def is_sqlite_file(url: URL) -> bool:
    """Whether the database is a file whose path the URL gives plainly."""
    plain = url.database not in (None, "", ":memory:") and "uri" not in url.query
    return url.get_backend_name() == "sqlite" and plain


def engine(url: URL, shown: str, timeout: float, read_only: bool) -> Engine:
    """What makes connections; none is made yet.

    Args:
        url: As `parse_url` gives it.
        shown: The same without the password.
        timeout: Seconds to wait for a lock or a server.
        read_only: Whether SQLite is to refuse writing.

    Raises:
        StoreError: The driver is not installed, or the file's folder cannot be made.
    """
    arguments: dict[str, object] = {}
    if url.get_backend_name() == "sqlite":
        if is_sqlite_file(url) and not read_only:
            try:
                Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{shown}: cannot make its folder: {error.strerror}") from None
        arguments = {"timeout": timeout}
    else:
        arguments = {"connect_timeout": max(2, round(timeout))}
    try:
        # Without the parameters: an error's text must not show people's data.
        made = sa.create_engine(url, connect_args=arguments, hide_parameters=True)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(f"{shown}: {error}; see requirements-postgresql.txt") from None
    if made.dialect.name == "sqlite":
        _own_transactions(made, read_only)
    else:
        _one_state(made, timeout)
    return made


def _own_transactions(engine: Engine, read_only: bool) -> None:
    """Have SQLite's transactions begin where SQLAlchemy's do.

    Left alone the driver begins one before the first write only, so that two SELECTs
    would see two states.
    """

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None
        # A snapshot reads every page: with 4096 bytes each it takes a fifth longer.
        connection.execute("PRAGMA page_size=16384")
        # The writer and its readers do not wait for each other.
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
        # Safe against kills. A power cut may cost the last transactions, whole ones with
        # their offsets; then they are read again from the log. FULL would wait for the
        # disk at each batch for nothing.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA cache_size=-65536")  # KiB: the index of a million ids
        if read_only:
            connection.execute("PRAGMA query_only=ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _one_state(engine: Engine, timeout: float) -> None:
    """Have each of PostgreSQL's reading transactions see one state, and none wait for ever."""

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("write"):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(timeout * 1000)}")


def is_sound(connection: Connection) -> bool:
    """Look a file through (a million rows: 1 s) before anything relies on it."""
    return bool(connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() == "ok")


def is_damaged(path: Path) -> bool:
    """Whether SQLite itself finds fault with a file; a locked one is not damaged."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",))
    except sqlite3.DatabaseError as error:
        return error.sqlite_errorname.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def free_name(path: Path, what: str) -> Path:
    """Where to move a file that is `what`."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{what}-{number}")).exists():
        number += 1
    return aside
