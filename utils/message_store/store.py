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
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from utils.feature_tools import FeatureTools
from utils.message_store import database
from utils.message_store.database import StoreError
from utils.message_store.tables import (
    HIDDEN,
    LONG_ID,
    PARTITION,
    Damaged,
    Part,
    Record,
    RowDecoder,
    Tables,
    TextIds,
    Upsert,
    chunks,
    damage_told,
    escape_text,
    insert_into,
    rows_of,
    unescape_text,
)
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS

if TYPE_CHECKING:
    import pandas as pd

#: The next offset to read, by (topic, partition).
Offsets = dict[tuple[str, int], int]

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


class _OtherLog(Exception):
    """A topic, by name, is not the one that the store has read."""


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
        topic_ids: What Kafka calls the topics; one that is made again has another id.
    """

    messages: list[StoredMessage] = field(default_factory=list)
    outcomes: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    predictions: list[tuple[str, int, float | list[float], int, int, int]] = field(
        default_factory=list
    )
    offsets: Offsets = field(default_factory=dict)
    topic_ids: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Messages whose outcome is known, by (partition, offset), as of one moment.

    Attributes:
        request_ids: (rows,), str.
        frame: The raw feature columns: float64, or categories of str; NaN where missing.
        outcomes: (rows,), str: the classes by name.
        offsets: How far the log had been read.
        topic_ids: Whose offsets those are.
    """

    request_ids: npt.NDArray[np.object_]
    frame: "pd.DataFrame"
    outcomes: npt.NDArray[np.object_]
    offsets: Offsets
    topic_ids: dict[str, str]


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
        timeout: Seconds to wait for another process's lock or a silent server.
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
        timeout: float = 5.0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._features = features
        self._read_only = read_only
        self._report = report or (lambda line: print(line, file=sys.stderr))
        self._url = database.parse_url(url)
        # Without parameters such as ?password=...
        self._shown = self._url.set(query={}).render_as_string(hide_password=True)
        self._tables = Tables(features)
        self._text_ids = TextIds()
        self._engine = database.engine(self._url, self._shown, timeout, read_only)
        dialect = self._engine.dialect
        written = () if read_only else (APP_MESSAGES, OUTCOMES, PREDICTIONS)
        self._upserts = {topic: Upsert(dialect, self._tables, topic) for topic in written}
        try:
            with suppress(StoreReplaced):  # it was reported, and nothing is lost with it
                self._prepare()
        except BaseException:
            self.close()
            raise

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

    def topic_ids(self) -> dict[str, str]:
        """What Kafka calls the topics read so far."""
        with self._transaction() as connection:
            return self._read_topic_ids(connection)

    def ingest(self, batch: Batch) -> None:
        """Store a batch and its offsets in one transaction.

        Records that the store has read already change nothing, so it does no harm to
        come with a batch twice. The offsets of a topic that was deleted and made again
        begin anew; then so does the store.

        Raises:
            StoreError: Nothing of it was stored; begin again at `offsets()`.
        """
        with self._transaction(write=True) as connection:
            self._write(connection, batch)
        self._text_ids.stored()

    def _write(self, connection: Connection, batch: Batch) -> None:
        read = self._read_offsets(connection)
        for topic, topic_id in self._read_topic_ids(connection).items():
            if batch.topic_ids.get(topic, topic_id) != topic_id:
                raise _OtherLog(topic)
        classes = frozenset(self._features.classes)
        messages = _drop_already_read(batch.messages, APP_MESSAGES, 1, read)
        outcomes = _drop_already_read(batch.outcomes, OUTCOMES, 2, read)
        predictions = _drop_already_read(batch.predictions, PREDICTIONS, 3, read)
        refused = Counter((OUTCOMES, o[2]) for o in outcomes if o[1] not in classes)
        refused.update(
            (APP_MESSAGES, m.partition)
            for m in messages
            if m.outcome is not None and m.outcome not in classes
        )
        outcomes = [outcome for outcome in outcomes if outcome[1] in classes]
        rows = {
            APP_MESSAGES: self._message_rows(_keep_newest(messages, 1), classes),
            OUTCOMES: self._with_ids(_keep_newest(outcomes, 2)),
            PREDICTIONS: self._with_ids(map(_prediction_row, _keep_newest(predictions, 3))),
        }
        if self._text_ids.fresh:
            self._insert_texts(connection)
        for topic, upsert in self._upserts.items():
            upsert(connection, rows[topic])
        self._write_offsets(connection, batch, read, refused)

    def _message_rows(
        self, messages: Sequence[StoredMessage], classes: frozenset[str]
    ) -> list[Record]:
        """Rows in the order of the table's columns."""
        if not messages:
            return []
        ids, partitions, offsets, timestamps, values, outcomes = zip(*messages, strict=True)
        words = np.empty((len(messages), 1 + len(self._features.columns)), "<i8")
        words[:, 0] = np.multiply(partitions, PARTITION) + offsets
        columns = list(zip(*values, strict=True))
        for place, column in enumerate(columns):
            if place < self._tables.numbers:
                words.view("<f8")[:, 1 + place] = column  # None becomes NaN
            else:
                words[:, 1 + place] = [self._text_ids[value] for value in column]
                columns[place] = tuple(map(escape_text, column))
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
        if len(request_id) > LONG_ID:
            return f"{HIDDEN}#{self._text_ids[request_id]}"
        return escape_text(request_id) or ""

    def _insert_texts(self, connection: Connection) -> None:
        table = self._tables.texts
        insert = insert_into(connection.dialect, table).on_conflict_do_nothing()
        connection.execute(
            insert,
            [{"name": n, "text": escape_text(text)} for n, text in self._text_ids.fresh.items()],
        )

    def _read_offsets(self, connection: Connection) -> Offsets:
        table = self._tables.offsets
        rows = connection.execute(sa.select(table.c.topic, table.c.partition, table.c.next_offset))
        return {(topic, partition): offset for topic, partition, offset in rows}

    def _read_topic_ids(self, connection: Connection) -> dict[str, str]:
        c = self._tables.offsets.c
        rows = connection.execute(sa.select(c.topic, c.topic_id).where(c.topic_id.is_not(None)))
        return {row.topic: row.topic_id for row in rows}

    def _write_offsets(
        self,
        connection: Connection,
        batch: Batch,
        read: Offsets,
        refused: Counter[tuple[str, int]],
    ) -> None:
        offsets = batch.offsets
        moved = {
            place: max(offsets.get(place, 0), read.get(place, 0)) for place in {*offsets, *refused}
        }
        if not moved:
            return
        table = self._tables.offsets
        insert = insert_into(connection.dialect, table)
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[table.c.topic, table.c.partition],
                set_={
                    "next_offset": insert.excluded.next_offset,
                    "refused": table.c.refused + insert.excluded.refused,
                    "topic_id": sa.func.coalesce(insert.excluded.topic_id, table.c.topic_id),
                },
            ),
            [
                {
                    "topic": place[0],
                    "partition": place[1],
                    "next_offset": offset,
                    "refused": refused[place],
                    "topic_id": batch.topic_ids.get(place[0]),
                }
                for place, offset in moved.items()
            ],
        )

    def snapshot(self) -> Snapshot:
        """Every message whose outcome is known, with the offsets they were read up to.

        Raises:
            StoreError: The store cannot be read.
        """
        with self._transaction() as connection, damage_told():
            row_decoder = RowDecoder(connection, self._tables)
            parts = list(chunks(connection, self._tables, row_decoder))
            return self._assemble(parts, row_decoder, connection)

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
        with self._transaction() as connection, damage_told():
            row_decoder = RowDecoder(connection, self._tables)
            parts = [rows_of(connection.execute(query).all(), row_decoder)]
            return self._assemble(parts, row_decoder, connection)

    def _assemble(
        self, parts: Sequence["Part"], row_decoder: "RowDecoder", connection: Connection
    ) -> Snapshot:
        """One snapshot of what the database handed over, put in order."""
        import pandas as pd  # a quarter of a second that the trainer's loop need not spend

        parts = [row_decoder.part([], b"", ""), *parts]
        words = np.concatenate([part.words for part in parts], axis=1)
        order: Any = np.argsort(words[0])
        if bool((order[1:] > order[:-1]).all()):
            order = slice(None)  # as it is: spares a copy of everything
        columns: dict[str, Any] = {}
        for place, name in enumerate(self._features.columns):
            if place < self._tables.numbers:
                columns[name] = pd.Series(words[1 + place].view("<f8")[order], copy=False)
            else:
                columns[name] = row_decoder.texts(words[1 + place])[order]
        return Snapshot(
            np.concatenate([part.request_ids for part in parts])[order],
            pd.DataFrame(columns, copy=False),
            np.concatenate([part.outcomes for part in parts])[order],
            self._read_offsets(connection),
            self._read_topic_ids(connection),
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
            texts = (unescape_text(v) if isinstance(v, str) else v for v in values)
            known["values"] = dict(zip(self._features.columns, texts, strict=True))
        return known

    def judged(self, model_id: int) -> Judged:
        """The predictions of one model with what came of them."""
        found = self._read_judged(model_id)
        return found[0] if found else _judged_rows(model_id, [], self._features)

    def quality_rows(self) -> list[Judged]:
        """The predictions of every model with what came of them, by model_id."""
        return self._read_judged(None)

    def _read_judged(self, model_id: int | None) -> list[Judged]:
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
        return [_judged_rows(model, rows, self._features) for model, rows in by_model.items()]

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
        except (SQLAlchemyError, driver.Error, Damaged, _OtherLog) as error:
            # A connection that failed may stay unusable; the next call makes another.
            self._engine.dispose()
            self._text_ids.forget()
            raise self._translate_error(error) from error
        except BaseException:
            self._text_ids.forget()
            raise

    def _translate_error(self, error: Exception) -> StoreError:
        """The error to raise; a store that is damaged or gone is replaced on the way."""
        if isinstance(error, _OtherLog):
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
        with self._transaction(write=True) as connection:
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


def _drop_already_read(records: Sequence[Any], topic: str, place: int, read: Offsets) -> list[Any]:
    """Records the store has not read; their partition is at `place`, then the offset."""
    return [r for r in records if r[place + 1] >= read.get((topic, r[place]), 0)]


def _keep_newest(records: Sequence[Any], place: int) -> list[Any]:
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


def _judged_rows(model_id: int, rows: Sequence[Any], features: FeatureTools) -> Judged:
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
