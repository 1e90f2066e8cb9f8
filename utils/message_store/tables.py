"""The tables of the message store, with fast writes and reads.

`messages` has a row per request_id: the outcome, the prediction, the place of each in the log,
and a typed column per feature for those who query it, unless there are more than `MOST_COLUMNS`.
`messages_offsets` has the offsets, `messages_layout` the columns that the tables were created
for, and `messages_texts` texts by id. A retraining
reads every row, and reading millions of short texts one by one is slow. So a row also has
its place in the log and all of its features in one blob (`packed`, 8 bytes each: a number,
or the id of a text in `messages_texts`), and the database returns the blobs of thousands of
rows as one. They can all be built again from `messages_log` (see `log_table`).
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.schema import CreateTable

from utils.feature_tools import FeatureTools
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS

if TYPE_CHECKING:
    import pandas as pd

#: The version of the tables of rows; those of another version are built again.
LAYOUT_VERSION = 4

PARTITION = 2**48  # times the partition, plus the offset: a place in the log as one number
#: A table of SQLite has at most 2,000 columns, one of PostgreSQL 1,600.
MOST_COLUMNS = 1000
_CHUNK = 8000  # rows that the database returns as one, unless they are too long
_CHUNK_BYTES = 2**27  # a value of SQLite has at most 10**9
LONG_ID = 500  # characters: PostgreSQL's index holds 2,704 bytes at most
_MAX_CACHED_TEXTS = 100_000  # texts whose ids are cached
ESCAPE = "\x1a"  # replaces a character or text that a database cannot store


#: One row: the layout that the tables of rows were created with.
LAYOUTS = sa.Table("messages_layout", sa.MetaData(), sa.Column("layout", sa.Text))

#: A row's request_id, `packed`, `Tables.code` and `Tables.order`.
KnownRow = sa.Row[str, bytes, str, int, int, int]
#: Those of many rows concatenated.
ManyRows = sa.Row[str, bytes, str, str, str, str]
TableRow = tuple[object, ...]
L = TypeVar("L", str, int, float)


class Damaged(Exception):
    """The database returned something that was never stored."""


@contextmanager
def decode_errors_as_damage() -> Iterator[None]:
    """Turn decoding errors into `Damaged`: SQLite has no checksums against disk errors."""
    try:
        yield
    except (msgspec.MsgspecError, zlib.error, ValueError, LookupError) as error:
        raise Damaged from error


class Tables:
    """The tables for one set of columns.

    Attributes:
        messages: A row per request_id.
        offsets: Of each partition, the next offset, the last record's timestamp, and how many of
            its records were outcomes of no class (`refused`), were stored in a row, perhaps
            until a later one replaced them (`stored`), or had a timestamp that made no sense
            (`misdated`).
        texts: Texts by id.
        values: How many values of each column are missing, unknown or leniently read (`kind`).
            The number of messages is that of the column "" and the kind "rows".
        columns: The feature columns of `messages`, in the order of the features; none if
            there are more than `MOST_COLUMNS`.
        n_features: The number of features.
        n_numbers: How many of them are no categories, and so hold numbers; those come first.
        chunk: How many rows the database returns as one.
        names: The names of the tables.
        layout: The columns, the classes and the rules by which both are read, as text.
        known_outcome: The valid outcome of a row.
        classes: The classes of outcomes.
        code: The index of the valid outcome in `classes`, as four hexadecimal digits.
        is_known: Whether a row has a message and an outcome.
        known_at: The timestamp of the record that made the outcome known.
        order: `known_at`, the place of the valid record on `outcomes` as one number (-1 without
            one), and the message's timestamp.
        last_known_first: The order of a snapshot, backwards.
    """

    def __init__(self, features: FeatureTools) -> None:
        metadata = sa.MetaData()
        big = sa.BigInteger
        self.n_features = len(features.columns)
        self.n_numbers = self.n_features - len(features.categorical)
        self.chunk = min(_CHUNK, max(1, _CHUNK_BYTES // (8 * (1 + self.n_features))))
        named = features.columns if self.n_features <= MOST_COLUMNS else ()
        self.columns = [
            sa.Column(name, sa.Double if place < self.n_numbers else sa.Text)
            for place, name in enumerate(sql_names(named))
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
            *self.columns,  # after a snapshot's columns: SQLite reads a row no further than needed
            sa.Column("model_id", big),
            sa.Column("probability", sa.Double),
            sa.Column("probabilities", sa.Text),  # JSON, with more than two classes
            *_place("prediction"),
        )
        self.offsets = sa.Table(
            "messages_offsets",
            metadata,
            sa.Column("topic", sa.Text, primary_key=True),
            sa.Column("partition", big, primary_key=True, autoincrement=False),
            sa.Column("next_offset", big, nullable=False),
            sa.Column("refused", big, nullable=False),
            sa.Column("stored", big, nullable=False),
            sa.Column("misdated", big, nullable=False),
            sa.Column("last_timestamp", big),
            sa.Column("topic_id", sa.Text),
        )
        self.texts = sa.Table(
            "messages_texts",
            metadata,
            sa.Column("name", big, primary_key=True, autoincrement=False),
            sa.Column("text", sa.Text, nullable=False),
        )
        self.values = sa.Table(
            "messages_values",
            metadata,
            sa.Column("name", sa.Text, primary_key=True),
            sa.Column("kind", sa.Text, primary_key=True),
            sa.Column("count", big, nullable=False),
        )
        LAYOUTS.to_metadata(metadata)
        self._metadata = metadata
        self.names = frozenset(metadata.tables)
        self.layout = msgspec.json.encode(
            [
                LAYOUT_VERSION,
                features.columns[: self.n_numbers],
                features.columns[self.n_numbers :],
                sorted(features.classes),
                features.target,
                features.reading_rules,
            ]
        ).decode()
        c = self.messages.c
        self.known_outcome = sa.func.coalesce(c.outcome, c.inline_outcome)
        self.classes = features.classes
        # Literal, because SQLite binds parameters again for each row.
        self.code = sa.case(
            *((literal(name), literal(f"{n:04x}")) for n, name in enumerate(self.classes)),
            value=self.known_outcome,
        )
        self.is_known = sa.and_(c.offset.is_not(None), self.known_outcome.is_not(None))
        self.known_at = sa.func.coalesce(c.outcome_timestamp, c.timestamp)
        place = c.outcome_partition * literal(PARTITION) + c.outcome_offset
        self.order = (self.known_at, sa.func.coalesce(place, literal(-1)), c.timestamp)
        self.last_known_first = [
            sa.desc(part)
            for part in (
                self.known_at,
                c.outcome_offset.is_not(None),
                sa.func.coalesce(c.outcome_partition, c.partition),
                sa.func.coalesce(c.outcome_offset, c.offset),
            )
        ]

    def known_rows(self) -> sa.Select[str, bytes, str, int, int, int]:
        """The query for the rows of a snapshot."""
        c = self.messages.c
        return sa.select(c.request_id, c.packed, self.code, *self.order).where(self.is_known)

    def create(self, connection: Connection) -> None:
        """Create the tables."""
        self._metadata.create_all(connection)
        connection.execute(LAYOUTS.insert(), {"layout": self.layout})

    def drop(self, connection: Connection) -> None:
        """Drop the tables, whatever columns they have."""
        self._metadata.drop_all(connection)


def literal(value: L) -> sa.BindParameter[L]:
    """A constant that is part of the SQL text."""
    return sa.literal(value, literal_execute=True)


def _place(prefix: str) -> list[sa.Column[int]]:
    names = ("partition", "offset", "timestamp")
    return [sa.Column(f"{prefix}_{name}", sa.BigInteger) for name in names]


class Upsert:
    """Upserts the records of one topic into `messages`; a later record replaces an earlier one.

    Later is by timestamp, then by (partition, offset).
    """

    def __init__(self, dialect: Dialect, tables: Tables, topic: str) -> None:
        table = tables.messages
        names, prefix = {
            APP_MESSAGES: (
                ["packed", "partition", "offset", "timestamp", "inline_outcome"]
                + [column.name for column in tables.columns],
                "",
            ),
            OUTCOMES: (
                ["outcome", *(column.name for column in _place("outcome"))],
                "outcome_",
            ),
            PREDICTIONS: (
                ["model_id", "probability", "probabilities"]
                + [column.name for column in _place("prediction")],
                "prediction_",
            ),
        }[topic]
        timestamp, partition, offset = (
            f"{prefix}{name}" for name in ("timestamp", "partition", "offset")
        )
        columns = ["request_id", *names]
        self._incoming = sa.Table(
            f"incoming_{topic}",
            sa.MetaData(),
            *(sa.Column(name, table.c[name].type) for name in columns),
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DELETE ROWS",
        )
        insert = insert_into(dialect, table)
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
                sa.tuple_(new[timestamp], new[partition], new[offset])
                > sa.tuple_(table.c[timestamp], table.c[partition], table.c[offset]),
            ),
        )
        self._sql = str(self._statement.compile(dialect=dialect))

    def __call__(self, connection: Connection, rows: Sequence[TableRow]) -> None:
        """Upsert rows of distinct request_ids, with values in the order of the columns."""
        if not rows:
            return
        if connection.dialect.name == "postgresql":
            # COPY writes 2.5 times as many rows per second as single upserts.
            self._copy(connection, rows)
            connection.execute(self._statement)
        else:
            # The driver gets tuples; dictionaries would halve the rows per second.
            connection.exec_driver_sql(self._sql, list(rows))

    def _copy(self, connection: Connection, rows: Sequence[TableRow]) -> None:
        connection.execute(CreateTable(self._incoming, if_not_exists=True))
        quote = connection.dialect.identifier_preparer.quote
        columns = ", ".join(quote(column.name) for column in self._incoming.columns)
        target = f"{quote(self._incoming.name)} ({columns})"
        # Any, because SQLAlchemy does not type psycopg's connection.
        driver_connection: Any = connection.connection.driver_connection
        with driver_connection.cursor() as cursor, cursor.copy(f"COPY {target} FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)


class TextIds(dict[str | None, int]):
    """Maps a text to its id in `packed`: 64 bits of its BLAKE2b, 0 for a missing text.

    The id depends only on the text, so writers need no shared counter, and a rollback has
    none to reset.

    Attributes:
        fresh: Ids that may not be in the database yet, with their texts.
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

    def commit(self) -> None:
        """Forget the fresh texts, which were committed."""
        self.fresh.clear()
        if len(self) > _MAX_CACHED_TEXTS:
            self.rollback()

    def rollback(self) -> None:
        """Forget all texts, because the fresh ones were not committed."""
        self.fresh.clear()
        self.clear()
        self[None] = 0


class Part(NamedTuple):
    """Some rows of a snapshot: (rows,), (words of `packed`, rows), (rows,) and (3, rows)."""

    request_ids: npt.NDArray[np.object_]
    words: npt.NDArray[np.int64]
    outcomes: npt.NDArray[np.object_]
    order: npt.NDArray[np.int64]


class RowDecoder:
    """Decodes rows of the database into rows of a snapshot."""

    def __init__(self, connection: Connection, tables: "Tables") -> None:
        rows = connection.execute(sa.select(tables.texts.c.name, tables.texts.c.text))
        self._texts: dict[int, str | None] = {name: unescape_text(text) for name, text in rows}
        self._texts[0] = None
        self._classes = np.array(tables.classes, dtype=object)
        self._width = 1 + tables.n_features

    def part(
        self,
        keys: Sequence[str],
        packed: bytes,
        codes: str,
        order: Sequence[npt.NDArray[np.int64]],
        plain: bool = False,
    ) -> Part:
        """Decode some rows.

        Args:
            keys: (rows,), the request_ids as stored.
            packed: The blobs of the rows one after the other.
            codes: Their `Tables.code` one after the other.
            order: Their `Tables.order`, each (rows,).
            plain: Whether all keys are known to be the request_ids themselves.
        """
        lengths = {len(codes) / 4, len(packed) / 8 / self._width, *map(len, order)}
        if lengths != {len(keys)}:
            raise Damaged
        ids = keys if plain else [self.request_id(key) for key in keys]
        words = np.frombuffer(packed, "<i8").reshape(-1, self._width).T.copy()
        places = np.frombuffer(bytes.fromhex(codes), ">u2")
        return Part(np.array(ids, dtype=object), words, self._classes[places], np.stack(order))

    def texts(self, names: npt.NDArray[np.int64]) -> "pd.Categorical":
        """Convert ids to texts, (rows,)."""
        import pandas as pd

        places, different = pd.factorize(names)
        texts = [self._texts[name] for name in different.tolist()]
        # Sorted, so that the codes do not depend on the order of the rows.
        known = sorted(text for text in texts if text is not None)
        code: dict[str | None, int] = {text: place for place, text in enumerate(known)}
        table = np.array([code.get(text, -1) for text in texts])
        codes = table.astype(np.min_scalar_type(-1 - len(known)))[places]
        return pd.Categorical.from_codes(codes, categories=pd.Index(known, dtype=object))

    def request_id(self, key: str) -> str | None:
        """Convert a request_id as stored to the one that was sent."""
        return self._texts[int(key[2:])] if key.startswith(ESCAPE + "#") else unescape_text(key)


def chunks(connection: Connection, tables: Tables, row_decoder: RowDecoder) -> Iterator[Part]:
    """All rows of a snapshot in parts, in any order.

    The database concatenates thousands of rows into one value, which is decoded in C. That
    takes a third of the time of fetching the rows one by one.
    """
    if not _concatenates_blobs(connection):
        yield rows_of(connection.execute(tables.known_rows()).all(), row_decoder)
        return
    decode = msgspec.json.Decoder(list[str]).decode
    for keys, packed, codes, *order in _concatenated_rows(connection, tables):
        if packed:
            plain = r"\u001a" not in keys  # as JSON writes ESCAPE
            # Parses three times as fast as a list of int, which then has to be copied.
            numbers = [np.fromstring(text, np.int64, sep=",") for text in order]
            yield row_decoder.part(decode(keys), packed, codes, numbers, plain)


def rows_of(rows: Sequence[KnownRow], row_decoder: RowDecoder) -> Part:
    """Decode rows of `Tables.known_rows` as one part."""
    keys = [row[0] for row in rows]
    packed, codes = b"".join(row[1] for row in rows), "".join(row[2] for row in rows)
    order = [np.array([row[place] for row in rows], np.int64) for place in (3, 4, 5)]
    return row_decoder.part(keys, packed, codes, order)


def _concatenates_blobs(connection: Connection) -> bool:
    """Whether group_concat keeps bytes unchanged; some old versions of SQLite do not."""
    if connection.dialect.name == "postgresql":
        return True
    joined = connection.exec_driver_sql("SELECT CAST(group_concat(x'4100ff', '') AS BLOB)")
    return bool(joined.scalar() == b"A\0\xff")


def _concatenated_rows(connection: Connection, tables: Tables) -> Iterator[ManyRows]:
    c, f = tables.messages.c, sa.func
    if connection.dialect.name == "postgresql":
        query = sa.select(
            sa.cast(f.json_agg(c.request_id), sa.Text),
            f.string_agg(c.packed, sa.text("''::bytea")),
            f.string_agg(tables.code, sa.text("''")),
            *(f.string_agg(sa.cast(number, sa.Text), sa.text("','")) for number in tables.order),
        ).where(tables.is_known)
        yield from connection.execute(query.group_by(c.partition, c.offset.op("/")(tables.chunk)))
        return
    rowid: sa.ColumnElement[int] = sa.literal_column("rowid", sa.BigInteger)
    first, last = sa.bindparam("first", type_=sa.Integer), sa.bindparam("last", type_=sa.Integer)
    query = sa.select(
        f.json_group_array(c.request_id),
        sa.cast(f.group_concat(c.packed, sa.text("''")), sa.LargeBinary),
        f.group_concat(tables.code, sa.text("''")),
        *map(f.group_concat, tables.order),  # with commas
    ).where(tables.is_known, rowid.between(first, last))
    rows = connection.execute(sa.select(f.max(rowid)).select_from(tables.messages)).scalar() or 0
    for begin in range(1, rows + 1, tables.chunk):
        yield connection.execute(query, {"first": begin, "last": begin + tables.chunk - 1}).one()


def unpack(connection: Connection, tables: Tables, packed: bytes) -> list[float | str | None]:
    """The features of one row, None where missing."""
    words = np.frombuffer(packed, "<i8")[1:]
    numbers = words[: tables.n_numbers].view("<f8").tolist()
    names, c = words[tables.n_numbers :].tolist(), tables.texts.c
    texts: dict[int, str | None] = {0: None}
    for begin in range(0, len(names), _CHUNK):  # a statement has at most 32,766 variables
        some = c.name.in_(names[begin : begin + _CHUNK])
        rows = connection.execute(sa.select(c.name, c.text).where(some))
        texts.update((name, unescape_text(text)) for name, text in rows)
    # NaN is the only value that differs from itself.
    known = (number if number == number else None for number in numbers)
    return [*known, *(texts[name] for name in names)]


def escape_text(text: str | None) -> str | None:
    r"""Replace NUL, which PostgreSQL cannot store.

    >>> escape_text("a\0b"), unescape_text(escape_text("a\0\x1ab")) == "a\0\x1ab"
    ('a\x1a0b', True)
    """
    if text is None or ("\0" not in text and ESCAPE not in text):
        return text
    return text.replace(ESCAPE, ESCAPE + "1").replace("\0", ESCAPE + "0")


def unescape_text(text: str) -> str:
    """Undo `escape_text`."""
    if ESCAPE not in text:
        return text
    return text.replace(ESCAPE + "0", "\0").replace(ESCAPE + "1", ESCAPE)


def sql_names(columns: Sequence[str]) -> list[str]:
    """Distinct names that every database accepts, whatever the data set calls its columns.

    >>> sql_names(["age", "Age", "hours per week", "a" * 99])[:3]
    ['f_age', 'f_Age_1', 'f_hours_per_week']
    """
    names: list[str] = []
    for place, column in enumerate(columns):
        name = "f_" + re.sub(r"\W", "_", column, flags=re.ASCII)[:40]
        while name.lower() in (other.lower() for other in names):
            name += f"_{place}"
        names.append(name)
    return names


def insert_into(dialect: Dialect, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    """The dialect's own INSERT, which supports ON CONFLICT."""
    return postgresql.insert(table) if dialect.name == "postgresql" else sqlite.insert(table)
