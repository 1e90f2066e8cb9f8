"""Stores messages, outcomes and predictions from the log in SQL.

The store is SQLite in `messages/` by default, or PostgreSQL by URL. It is a copy: the log
remains the source of truth. Each batch of rows is stored with its offsets in one SQL
transaction, and with a compressed copy of the records themselves (`raw_log`). A store that is
lost or damaged is read again from the log. Rows that were created for other columns are built
again from the copy.

The content depends only on the offsets up to which each partition was read:

- If two messages have the same request_id, the later one stays. Later is by the record's
  timestamp, on whatever partitions they lie; ties are broken by (partition, offset).
- A record on `outcomes` replaces an outcome inside the message. If there are several, the
  later one is valid, so an outcome can be corrected.
- Of several predictions for a request_id, the later one stays.
- An outcome or a prediction may come before its message. Without a message it is kept and
  counted, but not trained on.
- An outcome of an unknown class is rejected and counted.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

import msgspec
import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from utils.feature_tools import FeatureTools, IntegerCodes
from utils.message_store import log_table
from utils.message_store.lifecycle import Outdated, StoreDatabase
from utils.message_store.raw_log import RawLog
from utils.message_store.records import (
    Batch,
    Counts,
    KnownPredictions,
    LogPlace,
    ModelPredictions,
    Offsets,
    Snapshot,
    StoredMessage,
    StoredRequest,
)
from utils.message_store.summaries import GroupSummary, ModelSummary, Recent, Summaries
from utils.message_store.tables import (
    ESCAPE,
    LONG_ID,
    PARTITION,
    Part,
    RowDecoder,
    TableRow,
    Tables,
    TextIds,
    Upsert,
    chunks,
    decode_errors_as_damage,
    escape_text,
    insert_into,
    rows_of,
    unescape_text,
    unpack,
)
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS
from utils.metrics import ValueShares
from utils.value_counts import KINDS, new_tally, shares

R = TypeVar("R", bound=tuple)


class MessageStore:
    """The store at a URL; created if missing, its rows recreated if their columns differ.

    Attributes:
        raw_log: The copy of the records that the store has read.
        report: Called with one line of text for the user.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://...`.
        features: The preprocessor, which knows the columns and the classes.
        read_only: Whether nothing may be created, repaired or dropped.
        timeout: Seconds to wait for another process's lock or a silent server.
        report: Called with one line of text for the user when the store is recreated.

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
        self.report = report or (lambda line: print(line, file=sys.stderr))
        self._open_database: Callable[[Tables], StoreDatabase] = partial(
            StoreDatabase, url, read_only=read_only, timeout=timeout, report=self.report
        )
        self._written = () if read_only else (APP_MESSAGES, OUTCOMES, PREDICTIONS)
        self._set_features(features, tables := Tables(features))
        self._set_database(self._open_database(tables))

    def _set_features(self, features: FeatureTools, tables: Tables) -> None:
        self._features = features
        self._tables = tables

    def _set_database(self, database: StoreDatabase) -> None:
        self._database = database
        self.raw_log = RawLog(database)
        self._text_ids = TextIds()
        self._upserts = {
            topic: Upsert(database.dialect, self._tables, topic) for topic in self._written
        }

    @classmethod
    def open(cls, url: str, features: FeatureTools) -> "MessageStore":
        """Open the store for reading; only the trainer writes to it."""
        return cls(url, features, read_only=True)

    def use(self, features: FeatureTools) -> bool:
        """Go on with another preprocessor, as if the store had been opened with it.

        Returns:
            Whether its columns or classes differ. Then the store is empty but for the copy, and
            its offsets are those of an empty store.

        Raises:
            StoreError: Nothing has changed; the store goes on with the old preprocessor.
        """
        tables = Tables(features)
        differs = tables.layout != self._tables.layout
        opened = self._open_database(tables) if differs else None
        self._set_features(features, tables)
        if opened is not None:
            self._database.close()
            self._set_database(opened)
        return differs

    def close(self) -> None:
        """Release the connections."""
        self._database.close()

    def __enter__(self) -> "MessageStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def offsets(self) -> Offsets:
        """The next offset to read of every partition read so far."""
        with self._database.transaction() as connection:
            return self._read_offsets(connection)

    def last_timestamps(self) -> dict[tuple[str, int], int]:
        """The timestamp of the last record that was read, by (topic, partition)."""
        c = self._tables.offsets.c
        query = sa.select(c.topic, c.partition, c.last_timestamp)
        with self._database.transaction() as connection:
            rows = connection.execute(query.where(c.last_timestamp.is_not(None)))
            return {(topic, partition): timestamp for topic, partition, timestamp in rows}

    def topic_ids(self) -> dict[str, str]:
        """Kafka's ids of the topics read so far."""
        with self._database.transaction() as connection:
            return self._read_topic_ids(connection)

    def ingest(self, batch: Batch) -> None:
        """Store a batch and its offsets in one transaction.

        Records that the store already holds change nothing, so a batch may be stored
        twice. If a topic was deleted and recreated, its offsets start again at 0; then the
        store is replaced by an empty one.

        Raises:
            StoreError: Nothing was stored; continue from `offsets()`.
        """
        try:
            with self._database.transaction(write=True) as connection:
                self._write(connection, batch)
        except BaseException:
            self._text_ids.rollback()
            raise
        self._text_ids.commit()

    def _write(self, connection: Connection, batch: Batch) -> None:
        read = self._read_offsets(connection)
        self._check_topic_ids(connection, batch.topic_ids)
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
        stored = _by_partition(messages, APP_MESSAGES, 1)
        stored += _by_partition(outcomes, OUTCOMES, 2)
        stored += _by_partition(predictions, PREDICTIONS, 3)
        misdated = Counter(
            place
            for place, offsets in batch.misdated.items()
            for offset in offsets
            if offset >= read.get(place, 0)
        )
        rows = {
            APP_MESSAGES: self._message_rows(_keep_latest(messages, 1), classes),
            OUTCOMES: self._with_ids(_keep_latest(outcomes, 2)),
            PREDICTIONS: self._with_ids(map(_prediction_row, _keep_latest(predictions, 3))),
        }
        if self._text_ids.fresh:
            self._insert_texts(connection)
        for topic, upsert in self._upserts.items():
            upsert(connection, rows[topic])
        # A batch's tally cannot be split: one that is partly stored counts nothing.
        if messages and batch.tally is not None and len(messages) == len(batch.messages):
            self._count_values(connection, len(messages), batch.tally)
        self._write_offsets(
            connection, batch, read, {"refused": refused, "stored": stored, "misdated": misdated}
        )
        log_table.append(connection, batch.raw, batch.topic_ids)

    def check_log(self, topic_ids: Mapping[str, str]) -> None:
        """Check that the store is of these topics; if not, an empty one replaces it.

        Raises:
            StoreReplaced: It was of topics that were deleted and recreated.
            StoreError: It cannot be read.
        """
        with self._database.transaction() as connection:
            self._check_topic_ids(connection, topic_ids)

    def _check_topic_ids(self, connection: Connection, topic_ids: Mapping[str, str]) -> None:
        for topic, topic_id in self._read_topic_ids(connection).items():
            if topic_ids.get(topic, topic_id) != topic_id:
                raise Outdated(f"{topic} was deleted and recreated")

    def _message_rows(
        self, messages: Sequence[StoredMessage], classes: frozenset[str]
    ) -> list[TableRow]:
        """Rows in the order of the table's columns."""
        if not messages:
            return []
        ids, partitions, offsets, timestamps, values, outcomes = zip(*messages, strict=True)
        words = np.empty((len(messages), 1 + len(self._features.columns)), "<i8")
        words[:, 0] = np.multiply(partitions, PARTITION) + offsets
        columns = list(zip(*values, strict=True))
        for place, column in enumerate(columns):
            if place < self._tables.n_numbers:
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
                *(columns if self._tables.columns else ()),
                strict=True,
            )
        )

    def _with_ids(self, records: Iterable[TableRow]) -> list[TableRow]:
        return [(self._stored_id(str(record[0])), *record[1:]) for record in records]

    def _stored_id(self, request_id: str) -> str:
        """The key of a request: its id, or a substitute if the column cannot hold the id."""
        if len(request_id) > LONG_ID:
            return f"{ESCAPE}#{self._text_ids[request_id]}"
        return escape_text(request_id) or ""

    def _insert_texts(self, connection: Connection) -> None:
        table = self._tables.texts
        insert = insert_into(connection.dialect, table).on_conflict_do_nothing()
        connection.execute(
            insert,
            [{"name": n, "text": escape_text(text)} for n, text in self._text_ids.fresh.items()],
        )

    def _count_values(self, connection: Connection, rows: int, tally: IntegerCodes) -> None:
        table = self._tables.values
        insert = insert_into(connection.dialect, table)
        counts = [{"name": "", "kind": "rows", "count": rows}]
        counts += [
            {"name": escape_text(name), "kind": kind, "count": int(count)}
            for kind, line in zip(KINDS, tally, strict=True)
            for name, count in zip(self._features.columns, line, strict=True)
            if count
        ]
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[table.c.name, table.c.kind],
                set_={"count": table.c.count + insert.excluded.count},
            ),
            counts,
        )

    def value_shares(self) -> ValueShares:
        """The shares of values that training did not have as they are, of all messages.

        Raises:
            StoreError: The store cannot be read.
        """
        tally, rows = new_tally(self._features), 0
        place = {name: n for n, name in enumerate(self._features.columns)}
        with self._reading_rows() as connection:
            for name, kind, count in connection.execute(sa.select(self._tables.values)):
                if kind == "rows":
                    rows = count
                else:
                    tally[KINDS.index(kind), place[unescape_text(name)]] = count
        return shares(rows, tally, self._features.columns)

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
        counts: Mapping[str, Counter[tuple[str, int]]],
    ) -> None:
        """Write the offsets, and add to the counts: by column, then by topic and partition."""
        offsets = batch.offsets
        places = {*offsets, *(place for counted in counts.values() for place in counted)}
        moved = {place: max(offsets.get(place, 0), read.get(place, 0)) for place in places}
        if not moved:
            return
        table = self._tables.offsets
        insert = insert_into(connection.dialect, table)
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[table.c.topic, table.c.partition],
                set_={
                    "next_offset": insert.excluded.next_offset,
                    **{name: table.c[name] + insert.excluded[name] for name in counts},
                    **{
                        name: sa.func.coalesce(insert.excluded[name], table.c[name])
                        for name in ("last_timestamp", "topic_id")
                    },
                },
            ),
            [
                {
                    "topic": place[0],
                    "partition": place[1],
                    "next_offset": offset,
                    **{name: counted[place] for name, counted in counts.items()},
                    # A batch that was read before is no news of the last record.
                    "last_timestamp": batch.timestamps.get(place)
                    if offset > read.get(place, 0)
                    else None,
                    "topic_id": batch.topic_ids.get(place[0]),
                }
                for place, offset in moved.items()
            ],
        )

    def snapshot(self) -> Snapshot:
        """All messages with a known outcome, and the offsets up to which the log was read.

        Raises:
            StoreError: The store cannot be read.
        """
        with self._reading_rows() as connection:
            row_decoder = RowDecoder(connection, self._tables)
            parts = list(chunks(connection, self._tables, row_decoder))
            return self._assemble(parts, row_decoder, connection)

    @contextmanager
    def _reading_rows(self) -> Iterator[Connection]:
        """A transaction that reads what depends on the columns: `packed`, counts of values."""
        with self._database.transaction() as connection, decode_errors_as_damage():
            self._database.check_columns(connection)
            yield connection

    def newer_than(self, offsets: Offsets, limit: int | None = None) -> Snapshot:
        """Messages with an outcome, where either is at or after the given offsets.

        Args:
            offsets: Offsets by (topic, partition); a partition without one is all new.
            limit: The most rows to return: those whose outcome became known last.

        Raises:
            StoreError: The store cannot be read.
        """
        return self._latest(self._is_newer(offsets), limit)

    def older_than(self, offsets: Offsets, limit: int) -> Snapshot:
        """The messages with an outcome that `newer_than` leaves out.

        Args:
            offsets: As for `newer_than`.
            limit: The most rows to return: those whose outcome became known last.

        Raises:
            StoreError: The store cannot be read.
        """
        return self._latest(sa.not_(self._is_newer(offsets)), limit)

    def _latest(self, condition: sa.ColumnElement[bool], limit: int | None) -> Snapshot:
        """The rows with an outcome that became known last, of those that meet a condition."""
        query = (
            self._tables.known_rows()
            .where(condition)
            .order_by(*self._tables.last_known_first)
            .limit(limit)
        )
        with self._reading_rows() as connection:
            row_decoder = RowDecoder(connection, self._tables)
            parts = [rows_of(connection.execute(query).all(), row_decoder)]
            return self._assemble(parts, row_decoder, connection)

    def predictions_since(self, offsets: Offsets) -> dict[str, tuple[int, float | list[float]]]:
        """The predictions of the rows of `newer_than`, as they were made at the time.

        Args:
            offsets: As for `newer_than`.

        Returns:
            By request_id: the model_id, and the probability or the list of them. A row without
            a prediction is left out.

        Raises:
            StoreError: The store cannot be read.
        """
        c = self._tables.messages.c
        query = sa.select(c.request_id, c.model_id, c.probability, c.probabilities).where(
            self._tables.is_known, c.model_id.is_not(None), self._is_newer(offsets)
        )
        with self._reading_rows() as connection:
            request_id = RowDecoder(connection, self._tables).request_id
            return {
                str(request_id(key)): (model_id, _probability(single, several))
                for key, model_id, single, several in connection.execute(query)
            }

    def _is_newer(self, offsets: Offsets) -> sa.ColumnElement[bool]:
        """Whether a row's message or its record on `outcomes` is at or after the offsets."""
        c = self._tables.messages.c
        old = sa.and_(
            _before(offsets, APP_MESSAGES, c.partition, c.offset),
            sa.or_(
                c.outcome_offset.is_(None),
                _before(offsets, OUTCOMES, c.outcome_partition, c.outcome_offset),
            ),
        )
        return sa.not_(old)

    def _assemble(
        self, parts: Sequence["Part"], row_decoder: "RowDecoder", connection: Connection
    ) -> Snapshot:
        """Build a snapshot from its parts, in order."""
        import pandas as pd  # takes 0.25 s, which the trainer's loop can save

        parts = [row_decoder.part([], b"", "", [np.array([], np.int64)] * 3), *parts]
        words = np.concatenate([part.words for part in parts], axis=1)
        known_at, late, sent_at = np.concatenate([part.order for part in parts], axis=1)
        is_late = late >= 0
        # NumPy takes an array or a slice.
        order: Any = np.lexsort((np.where(is_late, late, words[0]), is_late, known_at))
        if bool((order[1:] > order[:-1]).all()):
            order = slice(None)  # already in order; a slice avoids a copy
        columns: dict[str, object] = {}
        for place, name in enumerate(self._features.columns):
            if place < self._tables.n_numbers:
                columns[name] = pd.Series(words[1 + place].view("<f8")[order], copy=False)
            else:
                columns[name] = row_decoder.texts(words[1 + place])[order]
        return Snapshot(
            np.concatenate([part.request_ids for part in parts])[order],
            pd.DataFrame(columns, copy=False),
            np.concatenate([part.outcomes for part in parts])[order],
            known_at[order],
            sent_at[order],
            self._read_offsets(connection),
            self._read_topic_ids(connection),
        )

    def request(self, request_id: str) -> StoredRequest | None:
        """Everything known about one request, or None."""
        table = self._tables.messages
        key = self._stored_id(request_id)
        with self._database.transaction() as connection:
            found = connection.execute(sa.select(table).where(table.c.request_id == key)).first()
            if found is None:
                return None
            row, values = found._mapping, None
            if row["packed"] is not None:
                stored = unpack(connection, self._tables, row["packed"])
                values = dict(zip(self._features.columns, stored, strict=True))
        return StoredRequest(
            request_id,
            values,
            _place(row, ""),
            row["outcome"] if row["outcome"] is not None else row["inline_outcome"],
            _place(row, "outcome_"),
            row["model_id"],
            _probability(row["probability"], row["probabilities"]),
            _place(row, "prediction_"),
        )

    def predictions_of(self, model_id: int) -> ModelPredictions:
        """The predictions of one model and their outcomes."""
        found = self._read_predictions(model_id)
        return found[0] if found else _model_predictions(model_id, [], self._features)

    def predictions_by_model(self) -> list[ModelPredictions]:
        """The predictions of every model and their outcomes, in the order of the model ids."""
        return self._read_predictions(None)

    def _read_predictions(self, model_id: int | None) -> list[ModelPredictions]:
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
        by_model: dict[int, list[sa.Row]] = {}
        with self._database.transaction() as connection:
            for row in connection.execute(query):
                by_model.setdefault(row[0], []).append(row)
        return [_model_predictions(model, rows, self._features) for model, rows in by_model.items()]

    def known_since(self, offsets: Offsets, limit: int) -> KnownPredictions:
        """Predictions with an outcome, where one of the three records is at or after the offsets.

        Args:
            offsets: Offsets by (topic, partition); a partition without one is all new.
            limit: The most predictions to return: those whose outcome became known last.

        Raises:
            StoreError: The store cannot be read.
        """
        return self._latest_predictions(self._is_newly_known(offsets), limit)

    def known_before(self, offsets: Offsets, limit: int) -> KnownPredictions:
        """The predictions with an outcome that `known_since` leaves out.

        Args:
            offsets: As for `known_since`.
            limit: The most predictions to return: those whose outcome became known last.

        Raises:
            StoreError: The store cannot be read.
        """
        return self._latest_predictions(sa.not_(self._is_newly_known(offsets)), limit)

    def _is_newly_known(self, offsets: Offsets) -> sa.ColumnElement[bool]:
        """Whether a row's message, outcome or prediction is at or after the offsets."""
        c = self._tables.messages.c
        place = c.prediction_partition, c.prediction_offset
        return sa.or_(self._is_newer(offsets), sa.not_(_before(offsets, PREDICTIONS, *place)))

    def _latest_predictions(
        self, condition: sa.ColumnElement[bool], limit: int
    ) -> KnownPredictions:
        c = self._tables.messages.c
        columns = c.model_id, c.timestamp, c.probability, c.probabilities
        query = (
            sa.select(*columns, self._tables.known_outcome)
            .where(self._tables.is_known, c.model_id.is_not(None), condition)
            .order_by(*self._tables.last_known_first)
            .limit(limit)
        )
        with self._database.transaction() as connection:
            rows = connection.execute(query).all()[::-1]
            read = self._read_offsets(connection), self._read_topic_ids(connection)
        found = _model_predictions(0, rows, self._features)
        return KnownPredictions(found.probabilities, found.outcomes, *read)

    def counts(self) -> Counts:
        """Count the rows of each kind."""
        c = self._tables.messages.c
        query = sa.select(
            sa.func.count(c.offset),
            sa.func.count().filter(self._tables.is_known),
            sa.func.count(c.model_id),
            sa.func.count().filter(c.offset.is_(None), c.outcome.is_not(None)),
            sa.func.count(c.outcome),
        )
        o = self._tables.offsets.c
        sums = [sa.func.sum(column) for column in (o.stored, o.refused, o.misdated)]
        with self._database.transaction() as connection:
            messages, known, predictions, unmatched, outcomes = connection.execute(query).one()
            by_topic = {
                topic: [int(number) for number in numbers]  # PostgreSQL returns decimals
                for topic, *numbers in connection.execute(
                    sa.select(o.topic, *sums).group_by(o.topic)
                )
            }
        stored = {topic: numbers[0] for topic, numbers in by_topic.items()}
        return Counts(
            messages,
            known,
            predictions,
            unmatched,
            rejected_outcomes=sum(numbers[1] for numbers in by_topic.values()),
            superseded_messages=stored.get(APP_MESSAGES, 0) - messages,
            superseded_outcomes=stored.get(OUTCOMES, 0) - outcomes,
            misdated_records=sum(numbers[2] for numbers in by_topic.values()),
        )

    def _summarise(self) -> Summaries:
        return Summaries(self._database, self._tables, self._features)

    def model_summaries(self, now: float | None = None) -> list[ModelSummary]:
        """What each model's predictions are worth; see `Summaries.models`."""
        return self._summarise().models(now)

    def recent(self, limit: int, points: int = 40, now: float | None = None) -> Recent:
        """What the predictions of the last requests are worth; see `Summaries.recent`."""
        return self._summarise().recent(limit, points, now)

    def slices(self, column: str, limit: int) -> list[GroupSummary]:
        """Predictions of the last requests by the value of a column; see `Summaries.slices`."""
        return self._summarise().slices(column, limit)


def _drop_already_read(records: Sequence[R], topic: str, place: int, read: Offsets) -> list[R]:
    """Records that the store has not read; `place` is the index of the partition."""
    return [r for r in records if r[place + 1] >= read.get((topic, r[place]), 0)]


def _by_partition(records: Sequence[R], topic: str, place: int) -> Counter[tuple[str, int]]:
    """Count records by topic and partition."""
    counted = Counter(map(itemgetter(place), records))
    return Counter({(topic, partition): number for partition, number in counted.items()})


def _keep_latest(records: Sequence[R], place: int) -> list[R]:
    """Keep the record with the highest (timestamp, partition, offset) of each request_id."""
    in_order = sorted(records, key=itemgetter(place + 2, place, place + 1))
    return list({record[0]: record for record in in_order}.values())


def _prediction_row(record: TableRow) -> TableRow:
    request_id, model_id, probability, *place = record
    if isinstance(probability, list):
        return request_id, model_id, None, msgspec.json.encode(probability).decode(), *place
    return request_id, model_id, probability, None, *place


def _probability(single: float, several: str | None) -> Any:
    """The probability or the list of them, as `_prediction_row` stored it."""
    return single if several is None else msgspec.json.decode(several)


def _place(row: sa.RowMapping, prefix: str) -> LogPlace | None:
    """A record's place in the log; None if there is no record."""
    if row[f"{prefix}offset"] is None:
        return None
    return row[f"{prefix}partition"], row[f"{prefix}offset"], row[f"{prefix}timestamp"]


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


def _model_predictions(
    model_id: int, rows: Sequence[sa.Row], features: FeatureTools
) -> ModelPredictions:
    """Build the predictions of a model from rows of `_read_predictions`."""
    wanted = 1 if len(features.classes) == 2 else len(features.classes)
    given: list[list[float]] = []
    outcomes: list[str] = []
    missing: list[int] = []
    for _, timestamp, probability, probabilities, outcome in rows:
        if outcome is None:
            missing.append(timestamp)
            continue
        shares = msgspec.json.decode(probabilities) if probabilities else [probability]
        if len(shares) == wanted and None not in shares:  # otherwise the model had other classes
            given.append(shares)
            outcomes.append(outcome)
    return ModelPredictions(
        model_id,
        np.array(given, dtype=np.float64).reshape((-1,) if wanted == 1 else (-1, wanted)),
        np.array(outcomes, dtype=object),
        np.array(missing, dtype=np.int64),
        len(rows),
    )
