"""Databases for the message store: SQLite files and schemas of a real PostgreSQL."""

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from utils.broker import free_port


@dataclass(frozen=True)
class Database:
    """A place for message stores.

    Attributes:
        new_url: Makes an empty database; returns its URL.
    """

    new_url: Callable[[], str]


def execute(url: str, sql: str) -> None:
    """Run one statement outside any transaction and outside the store."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(sql)
    finally:
        engine.dispose()


def new_schema(server: str) -> str:
    """Make an empty schema, which is faster than a database; returns its URL."""
    name = f"t{random.SystemRandom().getrandbits(60)}"
    execute(server, f"CREATE SCHEMA {name}")
    return f"{server}?options=-csearch_path%3D{name}"


@contextmanager
def running_postgres() -> Iterator[str]:
    """A PostgreSQL server of its own on a free port; its URL."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (requirements-postgresql.txt)")
    # PostgreSQL refuses to run as root; Debian's package brings a user of its own.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        if user:
            shutil.chown(folder, user, user)
        as_user: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
        data, port = f"{folder}/data", free_port()
        arguments = ["-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(
            [programs / "initdb", *arguments], check=True, capture_output=True, cwd="/", **as_user
        )
        options = {"listen_addresses": "127.0.0.1", "fsync": "off", "unix_socket_directories": ""}
        server = subprocess.Popen(
            [f"{programs}/postgres", "-D", data, "-p", str(port)]
            + [word for name, value in options.items() for word in ("-c", f"{name}={value}")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **as_user,
        )
        try:
            url = f"postgresql+psycopg://tests@127.0.0.1:{port}/postgres"
            _wait_until_connectable(url)
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)  # stops at once: nothing of it is kept
            server.wait(20)


def _postgres_programs() -> Path | None:
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _wait_until_connectable(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            execute(url, "SELECT 1")
            return
        except sa.exc.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
