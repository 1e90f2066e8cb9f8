"""What the trainer has read of the log: messages, outcomes and predictions, in SQL.

SQLite in `messages/` by default, PostgreSQL by URL. The log stays the memory that
matters: the store is a copy that one SQL transaction moves from one set of offsets to
the next, rows and offsets together, and that is read again from the log whenever it is
lost, damaged or made for other columns.

What it holds depends on nothing but how far each partition was read:

- of two messages with one request_id the one at the higher (partition, offset) stays;
- a record on `outcomes` beats an outcome inside the message, and of several the one at
  the higher (partition, offset) counts, so a corrected outcome replaces the first;
- an outcome or a prediction may come before its message, and waits for it; one whose
  message never comes is kept, counted and not trained on;
- an outcome of an unknown class is refused and counted.

The tables: `messages`, a row per request_id with a typed column per feature, the
outcome, the prediction and where each of them is in the log; `messages_offsets`;
`messages_layout`, what the columns were made for; and `messages_texts`. A retrain reads
every row, and reading millions of short texts one by one is what takes long. So a row
also has its place in the log and all its features in one blob (`packed`, 8 bytes each:
a number, or the name of a text in `messages_texts`), and the database hands over the
blobs of thousands of rows as one.

    python -m utils.message_store report [--last 500]
"""

import argparse
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Dialect, Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from utils import process
from utils.feature_tools import FeatureTools
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS
from utils.settings import Settings

#: The next offset to read, by (topic, partition).
Offsets = dict[tuple[str, int], int]

#: Of the tables; another number than the store's has it made anew from the log.
LAYOUT_VERSION = 1

_PARTITION = 2**48  # times the partition, plus the offset: the place in the log as one number
_CHUNK = 8000  # rows that the database hands over as one
_LONG_ID = 500  # characters: PostgreSQL's index takes 2,704 bytes
_MEMO = 100_000  # texts whose names are remembered
_LOCK = 0x6D657373  # PostgreSQL's advisory lock of whoever writes
_HIDDEN = "\x1a"  # begins what stands for a character or text the database cannot take

Record = tuple[Any, ...]

#: What SQLite's error codes mean, by how their names begin.
_REASONS = {
    "SQLITE_BUSY": "locked by another process",
    "SQLITE_LOCKED": "locked by another process",
    "SQLITE_FULL": "cannot be written: the disk is full",
    "SQLITE_IOERR": "cannot be read or written: the disk is full or fails",
    "SQLITE_READONLY": "cannot be written: it is read-only",
    "SQLITE_CANTOPEN": "cannot be opened",
}


class StoreError(Exception):
    """The store cannot be used just now; its text is one line, without any password.

    Nothing of the failed call is in the store. Go on from `offsets()`, which are those
    of an empty store where a damaged one was replaced.
    """


class StoreReplaced(StoreError):
    """The store was damaged or gone; an empty one is in its place."""


class _Damaged(Exception):
    """What the database gave cannot be what was put in."""


class StoredMessage(NamedTuple):
    """A message as `ingest` takes it.

    Attributes:
        request_id: Its name.
        partition: Of `app_messages`.
        offset: In that partition.
        timestamp: Milliseconds since 1970.
        values: As `FeatureTools.row_values` gives them.
        outcome: The class it carried, None without one.
    """

    request_id: str
    partition: int
    offset: int
    timestamp: int
    values: tuple[float | str | None, ...]
    outcome: str | None


@dataclass
class Batch:
    """Records of the three topics, and the offsets that follow them.

    Attributes:
        messages: Of `app_messages`.
        outcomes: (request_id, outcome, partition, offset, timestamp).
        predictions: (request_id, model_id, probability or list of them, partition,
            offset, timestamp).
        offsets: The next to read, of the partitions that were read.
    """

    messages: list[StoredMessage] = field(default_factory=list)
    outcomes: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    predictions: list[tuple[str, int, float | list[float], int, int, int]] = field(
        default_factory=list
    )
    offsets: Offsets = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Messages whose outcome is known, by (partition, offset), as of one moment.

    Attributes:
        request_ids: (rows,), str.
        frame: The raw feature columns: float64, or categories of str; NaN where missing.
        outcomes: (rows,), str: the classes by name.
        offsets: How far the log had been read.
    """

    request_ids: npt.NDArray[np.object_]
    frame: pd.DataFrame
    outcomes: npt.NDArray[np.object_]
    offsets: Offsets


@contextmanager
def _damage_told() -> Iterator[None]:
    """What cannot be decoded was damaged on the disk: SQLite has no checksums."""
    try:
        yield
    except (msgspec.MsgspecError, ValueError, LookupError) as error:
        raise _Damaged from error


@dataclass(frozen=True)
class Judged:
    """The predictions of one model, in the order they were made.

    Attributes:
        model_id: The model.
        probabilities: (rows,) or (rows, classes), of those whose outcome is known.
        outcomes: (rows,), str: their outcomes.
        missing_since: (predictions without an outcome,), when each was made,
            milliseconds since 1970, oldest first.
    """

    model_id: int
    probabilities: npt.NDArray[np.float64]
    outcomes: npt.NDArray[np.object_]
    missing_since: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """How much there is: of each kind, then outcomes without a message, and refused ones."""

    messages: int
    known_outcomes: int
    predictions: int
    unmatched_outcomes: int
    refused_outcomes: int


class MessageStore:
    """The store at a URL; made when it is not there, made anew when it does not fit.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://...`.
        features: Says which columns a message has and which classes there are.
        read_only: Only look: nothing is made, mended or dropped.
        patience: Seconds to wait for another process's lock or a silent server.
        report: Told in one line when the store is begun afresh.

    Raises:
        StoreError: It cannot be opened.
    """

    def __init__(
        self,
        url: str,
        features: FeatureTools,
        *,
        read_only: bool = False,
        patience: float = 5.0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._features = features
        self._read_only = read_only
        self._report = report or (lambda line: print(line, file=sys.stderr))
        self._url = _checked_url(url)
        self._shown = self._url.render_as_string(hide_password=True)
        self._tables = _Tables(features)
        self._names = _Names()
        self._engine = _engine(self._url, self._shown, patience, read_only)
        dialect = self._engine.dialect
        self._upserts = {
            topic: _Upsert(dialect, self._tables, topic)
            for topic in (APP_MESSAGES, OUTCOMES, PREDICTIONS)
        }
        with suppress(StoreReplaced):  # it was reported, and nothing is lost with it
            self._prepare()

    @classmethod
    def open(cls, url: str, features: FeatureTools) -> "MessageStore":
        """The store to read from, for whoever is not the trainer."""
        return cls(url, features, read_only=True)

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    def __enter__(self) -> "MessageStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def offsets(self) -> Offsets:
        """The next offset to read of every partition read so far."""
        with self._transaction() as connection:
            return self._read_offsets(connection)

    def ingest(self, batch: Batch) -> None:
        """Store a batch and its offsets in one transaction.

        Records that the store has read already change nothing, so it does no harm to
        come with a batch twice.

        Raises:
            StoreError: Nothing of it was stored; begin again at `offsets()`.
        """
        with self._transaction(write=True) as connection:
            self._write(connection, batch)
        self._names.stored()

    def _write(self, connection: Connection, batch: Batch) -> None:
        read = self._read_offsets(connection)
        classes = frozenset(self._features.classes)
        messages = _unread(batch.messages, APP_MESSAGES, 1, read)
        outcomes = _unread(batch.outcomes, OUTCOMES, 2, read)
        predictions = _unread(batch.predictions, PREDICTIONS, 3, read)
        refused = Counter((OUTCOMES, o[2]) for o in outcomes if o[1] not in classes)
        refused.update(
            (APP_MESSAGES, m.partition)
            for m in messages
            if m.outcome is not None and m.outcome not in classes
        )
        outcomes = [outcome for outcome in outcomes if outcome[1] in classes]
        rows = {
            APP_MESSAGES: self._message_rows(_newest(messages, 1), classes),
            OUTCOMES: self._with_ids(_newest(outcomes, 2)),
            PREDICTIONS: self._with_ids(map(_prediction_row, _newest(predictions, 3))),
        }
        if self._names.fresh:
            self._insert_texts(connection)
        for topic, upsert in self._upserts.items():
            upsert(connection, rows[topic])
        self._write_offsets(connection, batch.offsets, read, refused)

    def _message_rows(
        self, messages: Sequence[StoredMessage], classes: frozenset[str]
    ) -> list[Record]:
        """Rows in the order of the table's columns."""
        if not messages:
            return []
        ids, partitions, offsets, timestamps, values, outcomes = zip(*messages, strict=True)
        words = np.empty((len(messages), 1 + len(self._features.columns)), "<i8")
        words[:, 0] = np.multiply(partitions, _PARTITION) + offsets
        columns = list(zip(*values, strict=True))
        for place, column in enumerate(columns):
            if place < self._tables.numbers:
                words.view("<f8")[:, 1 + place] = column  # None becomes NaN
            else:
                words[:, 1 + place] = [self._names[value] for value in column]
                columns[place] = tuple(map(_storable, column))
        packed, width = words.tobytes(), 8 * words.shape[1]
        return list(
            zip(
                map(self._stored_id, ids),
                (packed[at : at + width] for at in range(0, len(packed), width)),
                partitions,
                offsets,
                timestamps,
                (outcome if outcome in classes else None for outcome in outcomes),
                *columns,
                strict=True,
            )
        )

    def _with_ids(self, records: Iterable[Record]) -> list[Record]:
        return [(self._stored_id(record[0]), *record[1:]) for record in records]

    def _stored_id(self, request_id: str) -> str:
        """The key of a request: its id, but for ids that a key column cannot hold."""
        if len(request_id) > _LONG_ID:
            return f"{_HIDDEN}#{self._names[request_id]}"
        return _storable(request_id) or ""

    def _insert_texts(self, connection: Connection) -> None:
        table = self._tables.texts
        insert = _insert(connection.dialect, table).on_conflict_do_nothing()
        connection.execute(
            insert,
            [{"name": n, "text": _storable(text)} for n, text in self._names.fresh.items()],
        )

    def _read_offsets(self, connection: Connection) -> Offsets:
        table = self._tables.offsets
        rows = connection.execute(sa.select(table.c.topic, table.c.partition, table.c.next_offset))
        return {(topic, partition): offset for topic, partition, offset in rows}

    def _write_offsets(
        self,
        connection: Connection,
        offsets: Offsets,
        read: Offsets,
        refused: Counter[tuple[str, int]],
    ) -> None:
        moved = {
            place: max(offsets.get(place, 0), read.get(place, 0)) for place in {*offsets, *refused}
        }
        if not moved:
            return
        table = self._tables.offsets
        insert = _insert(connection.dialect, table)
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[table.c.topic, table.c.partition],
                set_={
                    "next_offset": insert.excluded.next_offset,
                    "refused": table.c.refused + insert.excluded.refused,
                },
            ),
            [
                {
                    "topic": place[0],
                    "partition": place[1],
                    "next_offset": offset,
                    "refused": refused[place],
                }
                for place, offset in moved.items()
            ],
        )

    def snapshot(self) -> Snapshot:
        """Every message whose outcome is known, with the offsets they were read up to.

        Raises:
            StoreError: The store cannot be read.
        """
        with self._transaction() as connection, _damage_told():
            decoding = _Decoding(connection, self._tables)
            parts = list(_chunks(connection, self._tables, decoding))
            return self._assembled(parts, decoding, self._read_offsets(connection))

    def newer_than(self, offsets: Offsets, limit: int | None = None) -> Snapshot:
        """Messages with an outcome of which either came at or after these offsets.

        Args:
            offsets: By (topic, partition); all of a partition that is not in it is new.
            limit: The most rows: those whose outcome became known last.

        Raises:
            StoreError: The store cannot be read.
        """
        c = self._tables.messages.c
        old = sa.and_(
            _before(offsets, APP_MESSAGES, c.partition, c.offset),
            sa.or_(
                c.outcome_offset.is_(None),
                _before(offsets, OUTCOMES, c.outcome_partition, c.outcome_offset),
            ),
        )
        known_since = sa.func.coalesce(c.outcome_timestamp, c.timestamp)
        query = (
            self._tables.known_rows()
            .where(sa.not_(old))
            .order_by(known_since.desc(), c.partition.desc(), c.offset.desc())
            .limit(limit)
        )
        with self._transaction() as connection, _damage_told():
            decoding = _Decoding(connection, self._tables)
            parts = [_rows(connection.execute(query).all(), decoding)]
            return self._assembled(parts, decoding, self._read_offsets(connection))

    def _assembled(
        self, parts: Sequence["_Part"], decoding: "_Decoding", offsets: Offsets
    ) -> Snapshot:
        """One snapshot of what the database handed over, put in order."""
        parts = [decoding.part([], b"", ""), *parts]
        words = np.concatenate([part.words for part in parts], axis=1)
        order: Any = np.argsort(words[0])
        if bool((order[1:] > order[:-1]).all()):
            order = slice(None)  # as it is: spares a copy of everything
        columns: dict[str, Any] = {}
        for place, name in enumerate(self._features.columns):
            if place < self._tables.numbers:
                columns[name] = pd.Series(words[1 + place].view("<f8")[order], copy=False)
            else:
                columns[name] = decoding.texts(words[1 + place])[order]
        return Snapshot(
            np.concatenate([part.request_ids for part in parts])[order],
            pd.DataFrame(columns, copy=False),
            np.concatenate([part.outcomes for part in parts])[order],
            offsets,
        )

    def request(self, request_id: str) -> dict[str, Any] | None:
        """Everything known about one request.

        Returns:
            request_id; values (by column; None without a message), partition, offset,
            timestamp, inline_outcome; outcome (the one that counts), outcome_partition,
            outcome_offset, outcome_timestamp (of its record on `outcomes`); model_id,
            probability, prediction_partition, prediction_offset, prediction_timestamp.
            None where nothing of it was read.
        """
        table = self._tables.messages
        key = self._stored_id(request_id)
        with self._transaction() as connection:
            row = connection.execute(sa.select(table).where(table.c.request_id == key)).first()
        if row is None:
            return None
        known = dict(row._mapping)
        values = [known.pop(column.name) for column in self._tables.columns]
        packed, probabilities = known.pop("packed"), known.pop("probabilities")
        if probabilities is not None:
            known["probability"] = msgspec.json.decode(probabilities)
        if known["outcome"] is None:
            known["outcome"] = known["inline_outcome"]
        known["request_id"] = request_id
        known["values"] = None
        if packed is not None:
            originals = (_original(v) if isinstance(v, str) else v for v in values)
            known["values"] = dict(zip(self._features.columns, originals, strict=True))
        return known

    def judged(self, model_id: int) -> Judged:
        """The predictions of one model with what came of them."""
        found = self._judged(model_id)
        return found[0] if found else _judged(model_id, [], self._features)

    def quality_rows(self) -> list[Judged]:
        """The predictions of every model with what came of them, by model_id."""
        return self._judged(None)

    def _judged(self, model_id: int | None) -> list[Judged]:
        c = self._tables.messages.c
        query = sa.select(
            c.model_id,
            c.prediction_timestamp,
            c.probability,
            c.probabilities,
            self._tables.known_outcome,
        ).where(c.model_id.is_not(None) if model_id is None else c.model_id == model_id)
        query = query.order_by(
            c.model_id, c.prediction_timestamp, c.prediction_partition, c.prediction_offset
        )
        by_model: dict[int, list[Any]] = {}
        with self._transaction() as connection:
            for row in connection.execute(query):
                by_model.setdefault(row[0], []).append(row)
        return [_judged(model, rows, self._features) for model, rows in by_model.items()]

    def counts(self) -> Counts:
        """How many rows of each kind there are."""
        c = self._tables.messages.c
        query = sa.select(
            sa.func.count(c.offset),
            sa.func.count().filter(self._tables.is_known),
            sa.func.count(c.model_id),
            sa.func.count().filter(c.offset.is_(None), c.outcome.is_not(None)),
        )
        with self._transaction() as connection:
            found = connection.execute(query).one()
            refused = connection.execute(sa.select(sa.func.sum(self._tables.offsets.c.refused)))
            return Counts(*found, refused_outcomes=int(refused.scalar_one() or 0))

    def _prepare(self) -> None:
        """Make the tables, or make them anew for other columns."""
        if self._read_only:
            self._check_layout()
            return
        with self._transaction(write=True) as connection:
            if connection.dialect.name == "sqlite":
                _check_file(connection)
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
        if _is_sqlite_file(self._url) and not Path(str(self._url.database)).exists():
            raise StoreError(f"{self._shown}: the trainer has not made it yet")
        with self._transaction() as connection:
            if not sa.inspect(connection).has_table("messages_layout"):
                raise StoreError(f"{self._shown}: the trainer has not made it yet")
            if self._layout_of(connection) != self._tables.layout:
                raise StoreError(
                    f"{self._shown} was made for other columns; "
                    "the trainer reads it again from the log when it starts"
                )

    def _layout_of(self, connection: Connection) -> str | None:
        return connection.execute(sa.select(self._tables.layouts.c.layout)).scalar()

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Connection]:
        """One transaction, which sees one state of the database from start to end."""
        driver: Any = self._engine.dialect.dbapi
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(write=write)
                with connection.begin():
                    if write and connection.dialect.name == "postgresql":
                        # One writer at a time, as SQLite has it: no deadlocks.
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                    yield connection
        except (SQLAlchemyError, driver.Error, _Damaged) as error:
            # A connection that failed may stay unusable; the next call makes another.
            self._engine.dispose()
            self._names.forget()
            raise self._explained(error) from error
        except BaseException:
            self._names.forget()
            raise

    def _explained(self, error: Exception) -> StoreError:
        """The error to raise; a store that is damaged or gone is replaced on the way."""
        cause = getattr(error, "orig", None) or error
        code = getattr(cause, "sqlite_errorname", "")
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        if isinstance(error, _Damaged) or code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return self._damaged()
        gone = lines[0].startswith("no such table") or type(cause).__name__ == "UndefinedTable"
        if gone and not self._read_only:
            return self._replaced("its tables are gone")
        for prefix, reason in _REASONS.items():
            if code.startswith(prefix):
                return StoreError(f"{self._shown}: {reason}")
        return StoreError(f"{self._shown}: {lines[0]}")

    def _replaced(self, why: str) -> StoreError:
        line = f"{self._shown}: {why}; it is made anew from the log"
        self._report(line)
        self._prepare()
        return StoreReplaced(line)

    def _damaged(self) -> StoreError:
        """Move a damaged file out of the way: the log has everything that was in it."""
        path = Path(self._url.database or "")
        if self._read_only or not _is_sqlite_file(self._url):
            return StoreError(
                f"{self._shown}: damaged; the trainer replaces it when it starts and reads the "
                "log again"
            )
        if not _is_damaged(path):
            return StoreError(f"{self._shown}: the file was damaged, but no longer is")
        aside = _free_name(path)
        try:
            for suffix in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
        except OSError as error:
            return StoreError(
                f"{self._shown}: the file is damaged and cannot be moved away "
                f"({error.strerror}); move it away, then it is made anew from the log"
            )
        return self._replaced(f"the file was damaged and is now {aside.name}")


class _Tables:
    """The tables for one set of columns.

    Attributes:
        messages: A row per request_id.
        offsets: How far each partition was read, and the outcomes refused in it.
        texts: Texts by name.
        layouts: One row, what the columns of `messages` were made for.
        columns: The feature columns of `messages`, in the order of the features.
        numbers: How many of them are numbers; those come first.
        names: Of the tables.
        layout: What the columns are made for, as text.
        known_outcome: The outcome that counts.
        classes: What outcomes there are.
        code: Four hexadecimal digits, the place in `classes` of the outcome that counts.
        is_known: Whether a row has a message and an outcome.
    """

    def __init__(self, features: FeatureTools) -> None:
        metadata = sa.MetaData()
        big = sa.BigInteger
        self.numbers = len(features.numerical)
        self.columns = [
            sa.Column(name, sa.Double if place < self.numbers else sa.Text)
            for place, name in enumerate(_sql_names(features.columns))
        ]
        self.messages = sa.Table(
            "messages",
            metadata,
            sa.Column("request_id", sa.Text, primary_key=True),
            sa.Column("packed", sa.LargeBinary),
            sa.Column("partition", big),
            sa.Column("offset", big),
            sa.Column("timestamp", big),
            sa.Column("inline_outcome", sa.Text),
            sa.Column("outcome", sa.Text),
            *_place("outcome"),
            *self.columns,  # after what a snapshot reads: SQLite looks no further
            sa.Column("model_id", big),
            sa.Column("probability", sa.Double),
            sa.Column("probabilities", sa.Text),  # JSON, of several classes
            *_place("prediction"),
        )
        self.offsets = sa.Table(
            "messages_offsets",
            metadata,
            sa.Column("topic", sa.Text, primary_key=True),
            sa.Column("partition", big, primary_key=True, autoincrement=False),
            sa.Column("next_offset", big, nullable=False),
            sa.Column("refused", big, nullable=False),
        )
        self.texts = sa.Table(
            "messages_texts",
            metadata,
            sa.Column("name", big, primary_key=True, autoincrement=False),
            sa.Column("text", sa.Text, nullable=False),
        )
        self.layouts = sa.Table("messages_layout", metadata, sa.Column("layout", sa.Text))
        self._metadata = metadata
        self.names = frozenset(metadata.tables)
        self.layout = msgspec.json.encode(
            [LAYOUT_VERSION, features.numerical, features.categorical, sorted(features.classes)]
        ).decode()
        c = self.messages.c
        self.known_outcome = sa.func.coalesce(c.outcome, c.inline_outcome)
        self.classes = features.classes
        # Literal, because SQLite binds parameters anew for each row.
        self.code = sa.case(
            *((_literal(name), _literal(f"{n:04x}")) for n, name in enumerate(self.classes)),
            value=self.known_outcome,
        )
        self.is_known = sa.and_(c.offset.is_not(None), self.known_outcome.is_not(None))

    def known_rows(self) -> sa.Select[Any]:
        """What a snapshot is made of, row by row."""
        c = self.messages.c
        return sa.select(c.request_id, c.packed, self.code).where(self.is_known)

    def create(self, connection: Connection) -> None:
        """Make the tables."""
        self._metadata.create_all(connection)
        connection.execute(self.layouts.insert(), {"layout": self.layout})

    def drop(self, connection: Connection) -> None:
        """Drop them, whatever columns they have."""
        self._metadata.drop_all(connection)


def _literal(text: str) -> sa.BindParameter[str]:
    return sa.literal(text, literal_execute=True)


def _place(prefix: str) -> list[sa.Column[int]]:
    names = ("partition", "offset", "timestamp")
    return [sa.Column(f"{prefix}_{name}", sa.BigInteger) for name in names]


class _Upsert:
    """Puts the records of one topic into `messages`; the newer of two stays."""

    def __init__(self, dialect: Dialect, tables: _Tables, topic: str) -> None:
        table = tables.messages
        names, partition, offset = {
            APP_MESSAGES: (
                ["packed", "partition", "offset", "timestamp", "inline_outcome"]
                + [column.name for column in tables.columns],
                "partition",
                "offset",
            ),
            OUTCOMES: (
                ["outcome", *(column.name for column in _place("outcome"))],
                "outcome_partition",
                "outcome_offset",
            ),
            PREDICTIONS: (
                ["model_id", "probability", "probabilities"]
                + [column.name for column in _place("prediction")],
                "prediction_partition",
                "prediction_offset",
            ),
        }[topic]
        columns = ["request_id", *names]
        self._incoming = sa.Table(
            f"incoming_{topic}",
            sa.MetaData(),
            *(sa.Column(name, table.c[name].type) for name in columns),
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DELETE ROWS",
        )
        insert = _insert(dialect, table)
        if dialect.name == "postgresql":
            insert = insert.from_select(columns, sa.select(self._incoming))
        else:
            insert = insert.values({name: sa.bindparam(name) for name in columns})
        new = insert.excluded
        self._statement = insert.on_conflict_do_update(
            index_elements=[table.c.request_id],
            set_={name: new[name] for name in names},
            where=sa.or_(
                table.c[offset].is_(None),
                sa.tuple_(new[partition], new[offset])
                > sa.tuple_(table.c[partition], table.c[offset]),
            ),
        )
        self._sql = str(self._statement.compile(dialect=dialect))

    def __call__(self, connection: Connection, rows: Sequence[Record]) -> None:
        """Args: `rows`, of different request_ids, with values in the order of the columns."""
        if not rows:
            return
        if connection.dialect.name == "postgresql":
            # COPY takes 2.5 times the rows a second that single upserts do.
            self._copy(connection, rows)
            connection.execute(self._statement)
        else:
            # Tuples to the driver: a dictionary a row would halve the rows a second.
            connection.exec_driver_sql(self._sql, list(rows))

    def _copy(self, connection: Connection, rows: Sequence[Record]) -> None:
        connection.execute(CreateTable(self._incoming, if_not_exists=True))
        quote = connection.dialect.identifier_preparer.quote
        columns = ", ".join(quote(column.name) for column in self._incoming.columns)
        target = f"{quote(self._incoming.name)} ({columns})"
        driver_connection: Any = connection.connection.driver_connection
        with driver_connection.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)


class _Names(dict[str | None, int]):
    """Text to its name in `packed`: 64 bits of its BLAKE2b, 0 for a missing text.

    A name that follows from the text alone needs no counter that two writers would have
    to share and a rollback would have to take back.

    Attributes:
        fresh: Names that may not be in the database yet, with their texts.
    """

    def __init__(self) -> None:
        super().__init__({None: 0})
        self.fresh: dict[int, str] = {}

    def __missing__(self, text: str) -> int:
        digest = blake2b(text.encode(), digest_size=8).digest()
        name = int.from_bytes(digest, "little", signed=True) or 1
        self[text] = name
        self.fresh[name] = text
        return name

    def stored(self) -> None:
        """What is fresh was committed."""
        self.fresh.clear()
        if len(self) > _MEMO:
            self.forget()

    def forget(self) -> None:
        """What is fresh was not."""
        self.fresh.clear()
        self.clear()
        self[None] = 0


class _Part(NamedTuple):
    """Some rows of a snapshot: (rows,), (words of `packed`, rows) and (rows,)."""

    request_ids: npt.NDArray[np.object_]
    words: npt.NDArray[np.int64]
    outcomes: npt.NDArray[np.object_]


class _Decoding:
    """From what the database holds to what was put in."""

    def __init__(self, connection: Connection, tables: "_Tables") -> None:
        rows = connection.execute(sa.select(tables.texts.c.name, tables.texts.c.text))
        self._texts: dict[int, str | None] = {name: _original(text) for name, text in rows}
        self._texts[0] = None
        self._classes = np.array(tables.classes, dtype=object)
        self._width = 1 + len(tables.columns)

    def part(self, keys: Sequence[str], packed: bytes, codes: str, plain: bool = False) -> _Part:
        """Decode some rows.

        Args:
            keys: (rows,), the request_ids as stored.
            packed: The blobs of the rows one after the other.
            codes: Their `_Tables.code`, the same way.
            plain: Whether the keys are known to be the request_ids.
        """
        if not len(keys) == len(codes) / 4 == len(packed) / 8 / self._width:
            raise _Damaged
        ids = keys if plain else [self._request_id(key) for key in keys]
        words = np.frombuffer(packed, "<i8").reshape(-1, self._width).T.copy()
        places = np.frombuffer(bytes.fromhex(codes), ">u2")
        return _Part(np.array(ids, dtype=object), words, self._classes[places])

    def texts(self, names: npt.NDArray[np.int64]) -> pd.Categorical:
        """Names to texts, (rows,)."""
        places, different = pd.factorize(names)
        texts = [self._texts[name] for name in different.tolist()]
        # In an order of their own, not that in which the rows came.
        known = sorted(text for text in texts if text is not None)
        code: dict[str | None, int] = {text: place for place, text in enumerate(known)}
        table = np.array([code.get(text, -1) for text in texts])
        codes = table.astype(np.min_scalar_type(-1 - len(known)))[places]
        return pd.Categorical.from_codes(codes, categories=pd.Index(known, dtype=object))

    def _request_id(self, key: str) -> str | None:
        return self._texts[int(key[2:])] if key.startswith(_HIDDEN + "#") else _original(key)


def _chunks(connection: Connection, tables: _Tables, decoding: _Decoding) -> Iterator[_Part]:
    """Every row of a snapshot, in any order, in parts.

    The database glues thousands of rows together: an aggregate, decoded here in C, takes
    half the time of as many Python objects fetched row by row; and while one part is
    decoded the database works on the next.
    """
    if not _glues_blobs(connection):
        yield _rows(connection.execute(tables.known_rows()).all(), decoding)
        return
    decode = msgspec.json.Decoder(list[str]).decode
    for keys, packed, codes in _ahead(_glued(connection, tables)):
        if packed:
            plain = r"\u001a" not in keys  # as JSON writes _HIDDEN
            yield decoding.part(decode(keys), packed, codes, plain)


def _rows(rows: Sequence[Any], decoding: _Decoding) -> _Part:
    keys, packed, codes = zip(*rows, strict=True) if rows else ((), (), ())
    return decoding.part(keys, b"".join(packed), "".join(codes))


def _glues_blobs(connection: Connection) -> bool:
    """Whether the database's group_concat takes bytes as they are; some old SQLite's do not."""
    if connection.dialect.name == "postgresql":
        return True
    glued = connection.exec_driver_sql("SELECT CAST(group_concat(x'4100ff', '') AS BLOB)")
    return bool(glued.scalar() == b"A\0\xff")


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, the next of which another thread fetches meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def _glued(connection: Connection, tables: _Tables) -> Iterator[Any]:
    c, f = tables.messages.c, sa.func
    if connection.dialect.name == "postgresql":
        query = sa.select(
            sa.cast(f.json_agg(c.request_id), sa.Text),
            f.string_agg(c.packed, sa.text("''::bytea")),
            f.string_agg(tables.code, sa.text("''")),
        ).where(tables.is_known)
        yield from connection.execute(query.group_by(c.partition, c.offset.op("/")(_CHUNK)))
        return
    rowid: sa.ColumnElement[int] = sa.literal_column("rowid", sa.BigInteger)
    first, last = sa.bindparam("first", type_=sa.Integer), sa.bindparam("last", type_=sa.Integer)
    query = sa.select(
        f.json_group_array(c.request_id),
        sa.cast(f.group_concat(c.packed, sa.text("''")), sa.LargeBinary),
        f.group_concat(tables.code, sa.text("''")),
    ).where(tables.is_known, rowid.between(first, last))
    rows = connection.execute(sa.select(f.max(rowid)).select_from(tables.messages)).scalar() or 0
    for begin in range(1, rows + 1, _CHUNK):
        yield connection.execute(query, {"first": begin, "last": begin + _CHUNK - 1}).one()


def _unread(records: Sequence[Any], topic: str, place: int, read: Offsets) -> list[Any]:
    """Records the store has not read; their partition is at `place`, then the offset."""
    return [r for r in records if r[place + 1] >= read.get((topic, r[place]), 0)]


def _newest(records: Sequence[Any], place: int) -> list[Any]:
    """The record at the highest (partition, offset) of each request_id."""
    in_order = sorted(records, key=itemgetter(place, place + 1))
    return list({record[0]: record for record in in_order}.values())


def _prediction_row(record: Record) -> Record:
    request_id, model_id, probability, *place = record
    if isinstance(probability, list):
        return request_id, model_id, None, msgspec.json.encode(probability).decode(), *place
    return request_id, model_id, probability, None, *place


def _before(
    offsets: Offsets, topic: str, partition: sa.ColumnElement[int], offset: sa.ColumnElement[int]
) -> sa.ColumnElement[bool]:
    return sa.or_(
        sa.false(),
        *(
            sa.and_(partition == number, offset < end)
            for (name, number), end in offsets.items()
            if name == topic
        ),
    )


def _judged(model_id: int, rows: Sequence[Any], features: FeatureTools) -> Judged:
    """Args: `rows`: (model_id, timestamp, probability, probabilities, outcome or None)."""
    wanted = 1 if len(features.classes) == 2 else len(features.classes)
    given: list[list[float]] = []
    outcomes: list[str] = []
    missing: list[int] = []
    for _, timestamp, probability, probabilities, outcome in rows:
        if outcome is None:
            missing.append(timestamp)
            continue
        shares = msgspec.json.decode(probabilities) if probabilities else [probability]
        if len(shares) == wanted and None not in shares:  # else of a model with other classes
            given.append(shares)
            outcomes.append(outcome)
    return Judged(
        model_id,
        np.array(given, dtype=np.float64).reshape((-1,) if wanted == 1 else (-1, wanted)),
        np.array(outcomes, dtype=object),
        np.array(missing, dtype=np.int64),
    )


def _storable(text: str | None) -> Any:
    r"""A text without NUL, which PostgreSQL does not take.

    >>> _storable("a\0b"), _original(_storable("a\0\x1ab")) == "a\0\x1ab"
    ('a\x1a0b', True)
    """
    if text is None or ("\0" not in text and _HIDDEN not in text):
        return text
    return text.replace(_HIDDEN, _HIDDEN + "1").replace("\0", _HIDDEN + "0")


def _original(text: str) -> str:
    """`_storable` undone."""
    if _HIDDEN not in text:
        return text
    return text.replace(_HIDDEN + "0", "\0").replace(_HIDDEN + "1", _HIDDEN)


def _sql_names(columns: Sequence[str]) -> list[str]:
    """Different names that every database takes, whatever the data set calls its columns.

    >>> _sql_names(["age", "Age", "hours per week", "a" * 99])[:3]
    ['f_age', 'f_Age_1', 'f_hours_per_week']
    """
    names: list[str] = []
    for place, column in enumerate(columns):
        name = "f_" + re.sub(r"\W", "_", column, flags=re.ASCII)[:40]
        while name.lower() in (other.lower() for other in names):
            name += f"_{place}"
        names.append(name)
    return names


def _insert(dialect: Dialect, table: sa.Table) -> Any:
    return (postgresql if dialect.name == "postgresql" else sqlite).insert(table)


def _checked_url(url: str) -> URL:
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


def _is_sqlite_file(url: URL) -> bool:
    """Whether the database is a file whose path the URL gives plainly."""
    plain = url.database not in (None, "", ":memory:") and "uri" not in url.query
    return url.get_backend_name() == "sqlite" and plain


def _engine(url: URL, shown: str, patience: float, read_only: bool) -> Engine:
    arguments: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        if _is_sqlite_file(url) and not read_only:
            try:
                Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{shown}: cannot make its folder: {error.strerror}") from None
        arguments = {"timeout": patience, "check_same_thread": False}  # see _ahead
    else:
        arguments = {"connect_timeout": max(2, round(patience))}
    try:
        # Without the parameters: an error's text must not show people's data.
        engine = sa.create_engine(url, connect_args=arguments, hide_parameters=True)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(f"{shown}: {error}; see requirements-postgresql.txt") from None
    if engine.dialect.name == "sqlite":
        _own_transactions(engine, read_only)
    else:
        _one_state(engine, patience)
    return engine


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


def _one_state(engine: Engine, patience: float) -> None:
    """Have each of PostgreSQL's reading transactions see one state, and none wait for ever."""

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.get_execution_options().get("write"):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(patience * 1000)}")


def _check_file(connection: Connection) -> None:
    """Look a file through (a million rows: 1 s) before anything relies on it."""
    if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() != "ok":
        raise _Damaged


def _is_damaged(path: Path) -> bool:
    """Whether SQLite itself finds fault with a file; a locked one is not damaged."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",))
    except sqlite3.DatabaseError as error:
        return error.sqlite_errorname.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside


def _report(settings: Settings, arguments: argparse.Namespace) -> None:
    """How good the predictions that were really made turned out to be, by model."""
    from rich.console import Console

    from train import quality  # only this command needs it; nothing else here knows `train`
    from utils.model_store import ModelStore

    models = ModelStore(settings.models_dir)
    features = models.load(models.current_id()).features
    with MessageStore(settings.messages_url, features, read_only=True) as store:
        judged, counts = store.quality_rows(), store.counts()
    now = time.time() * 1000
    figures = [quality.quality(one, features, last=arguments.last, now=now) for one in judged]
    console = Console()
    if not console.is_terminal:
        console.width = 160  # whole lines for grep
    console.print(quality.table(figures, arguments.last))
    console.print(quality.totals(counts), highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = process.parser("The trainer's store: what came of the predictions.")
    parser.prog = "python -m utils.message_store"
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("report", help=_report.__doc__, description=_report.__doc__)
    command.add_argument(
        "--last",
        type=process.at_least(1),
        default=500,
        metavar="K",
        help="judge each model by its last K outcomes too (%(default)s)",
    )
    command.set_defaults(run=_report)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from utils.bundles import ModelStoreError

    arguments = _parser().parse_args(argv)
    return process.run(
        lambda settings: arguments.run(settings, arguments), errors=[StoreError, ModelStoreError]
    )


if __name__ == "__main__":
    # Run as a script this file is another module than the one that others import, with
    # exceptions of its own; so the imported one does the work.
    from utils.message_store import main as imported_main

    sys.exit(imported_main())
