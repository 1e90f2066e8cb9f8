"""Aggregates of the message store for a page that shows live figures.

The database counts and sums; only a row per model, block or group comes back. The rules are
those of `train.evaluate` and `utils.model_store.predicted_codes`, written in SQL.

Which requests are the last ones is found without a further index, which each stored record would
have to pay for. In SQLite they are the last row ids; the cost depends on their number alone.
PostgreSQL moves a row at each update, so the place of a row does not say when it came. There the
table is scanned for the last offsets, which is cheap but grows with the table.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import attrgetter
from typing import Literal, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from utils.feature_tools import FeatureTools
from utils.message_store.database import StoreError
from utils.message_store.lifecycle import StoreDatabase
from utils.message_store.tables import MOST_COLUMNS, Tables, literal, unescape_text
from utils.messages import APP_MESSAGES

#: The smallest probability that a loss counts with, as in `train.evaluate.row_losses`.
SMALLEST = 1e-15
#: Outstanding outcomes are counted by age: below each of these, in milliseconds, and above all.
AGES_MS = (10_000, 60_000, 600_000, 3_600_000, 21_600_000, 86_400_000, 604_800_000)
#: The most groups of a slice, apart from the missing values and the groups that are summed up.
MOST_GROUPS = 12
#: How many ranges numbers are grouped into, at most.
MOST_RANGES = 5
#: Rows of SQLite that one transaction reads.
_READ_AT_ONCE = 20_000
#: PostgreSQL looks for the last requests among this many times as many offsets of each
#: partition, because transaction markers and rejected messages have offsets, too.
_OFFSETS_PER_REQUEST = 4
_JUDGED = -1  # instead of the place of an age, with an outcome
_AGES = 16  # more than there are places, and `_JUDGED`
_KEYS = ("model_id", "age")
T = TypeVar("T")


@dataclass(frozen=True)
class Losses:
    """Sums over judged predictions: those with a known outcome and of the store's classes.

    Attributes:
        rows: How many there are.
        right: For how many the most likely class was the true one.
        total: The sum of their log losses in nats.
        squares: The sum of the squares of those.
    """

    rows: int = 0
    right: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(
            self.rows + other.rows,
            self.right + other.right,
            self.total + other.total,
            self.squares + other.squares,
        )

    @property
    def log_loss(self) -> float | None:
        """The mean log loss in nats; None without rows."""
        return self.total / self.rows if self.rows else None

    @property
    def standard_error(self) -> float | None:
        """The standard error of the mean log loss; None with fewer than two rows."""
        if self.rows < 2:
            return None
        spread = max(self.squares - self.total**2 / self.rows, 0.0)  # rounding may go below 0
        return math.sqrt(spread / (self.rows - 1) / self.rows)

    @property
    def accuracy(self) -> float | None:
        """The share of rows whose most likely class is the true one; None without rows."""
        return self.right / self.rows if self.rows else None


@dataclass(frozen=True)
class Outstanding:
    """Predictions whose outcome is not known.

    Attributes:
        count: How many there are.
        oldest: The timestamp of the oldest prediction, in milliseconds since 1970; or None.
        by_age: How many are younger than each of `AGES_MS` and no younger than the one before;
            at the end, how many are older than all.
    """

    count: int = 0
    oldest: int | None = None
    by_age: tuple[int, ...] = (0,) * (len(AGES_MS) + 1)

    def __add__(self, other: "Outstanding") -> "Outstanding":
        times = [one.oldest for one in (self, other) if one.oldest is not None]
        return Outstanding(
            self.count + other.count,
            min(times, default=None),
            tuple(map(sum, zip(self.by_age, other.by_age, strict=True))),
        )

    @property
    def median_between(self) -> tuple[int, int | None] | None:
        """The ages in milliseconds that the median age lies between, None being no limit.

        An exact one would sort them all. None if nothing is outstanding.

        >>> Outstanding(3, 0, (0, 1, 2, 0, 0, 0, 0, 0)).median_between
        (60000, 600000)
        """
        counted = 0
        for low, high, count in zip((0, *AGES_MS), (*AGES_MS, None), self.by_age, strict=True):
            counted += count
            if count and 2 * counted >= self.count:
                return low, high
        return None


@dataclass(frozen=True)
class ModelSummary:
    """The predictions of one model, each request_id once.

    Attributes:
        model_id: The model.
        losses: Of its judged predictions.
        other_classes: How many have an outcome, but as many probabilities as other classes have:
            the model predicted another target. They are not judged.
        outstanding: Those without an outcome.
    """

    model_id: int
    losses: Losses = field(default_factory=Losses)
    other_classes: int = 0
    outstanding: Outstanding = field(default_factory=Outstanding)

    @property
    def predictions(self) -> int:
        """How many predictions there are."""
        return self.losses.rows + self.other_classes + self.outstanding.count

    def __add__(self, other: "ModelSummary") -> "ModelSummary":
        return ModelSummary(
            self.model_id,
            self.losses + other.losses,
            self.other_classes + other.other_classes,
            self.outstanding + other.outstanding,
        )


@dataclass(frozen=True)
class Block:
    """Consecutive judged predictions: a point of a chart.

    Attributes:
        first_at: The timestamp of the first of them, in milliseconds since 1970.
        last_at: That of the last.
        model_ids: The models that made them, in ascending order.
        losses: Their sums.
    """

    first_at: int
    last_at: int
    model_ids: tuple[int, ...]
    losses: Losses

    def __add__(self, other: "Block") -> "Block":
        return Block(
            min(self.first_at, other.first_at),
            max(self.last_at, other.last_at),
            tuple(sorted({*self.model_ids, *other.model_ids})),
            self.losses + other.losses,
        )


@dataclass(frozen=True)
class Recent:
    """The last requests.

    Attributes:
        models: What their predictions are worth, in the order of the model ids.
        blocks: The judged ones in the order in which they were predicted, cut into blocks of
            equal numbers (but for one).
    """

    models: tuple[ModelSummary, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class GroupSummary:
    """The judged predictions of a group of requests.

    Attributes:
        kind: Whether the group has one value of a category, numbers of a range, no value, or
            all values that have no group of their own.
        value: The category; None for other kinds.
        low: The lowest number of a range; None for other kinds.
        high: The highest; it is in the group.
        rows: How many predictions there are.
        right: For how many the most likely class was the true one.
        true_positive: How many were predicted positive and are. Here and below None with more
            than two classes.
        false_positive: How many were predicted positive and are not.
        true_negative: How many were not predicted positive and are not.
        false_negative: How many were not predicted positive and are.
    """

    kind: Literal["category", "range", "missing", "other"]
    value: str | None
    low: float | None
    high: float | None
    rows: int
    right: int
    true_positive: int | None
    false_positive: int | None
    true_negative: int | None
    false_negative: int | None

    @property
    def predicted_positive(self) -> int | None:
        """How many were predicted positive; None with more than two classes."""
        return _plus(self.true_positive, self.false_positive)

    @property
    def label(self) -> str:
        """The group's name for display."""
        if self.kind == "category":
            return str(self.value)
        if self.kind == "range":
            return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        return f"({self.kind})"

    def merge(self, other: "GroupSummary") -> "GroupSummary":
        """Both groups as one, of this one's kind, without a range."""
        return GroupSummary(
            self.kind,
            self.value,
            None,
            None,
            self.rows + other.rows,
            self.right + other.right,
            _plus(self.true_positive, other.true_positive),
            _plus(self.false_positive, other.false_positive),
            _plus(self.true_negative, other.true_negative),
            _plus(self.false_negative, other.false_negative),
        )


class Summaries:
    """Asks a store's database for aggregates.

    The store does not know of which target a model is. One of another target with as many classes
    is judged, too; leave it out by the history of models.

    Args:
        database: The store's database.
        tables: The store's tables.
        features: The preprocessor, which knows the columns and the classes.
    """

    def __init__(self, database: StoreDatabase, tables: Tables, features: FeatureTools) -> None:
        self._database = database
        self._tables = tables
        self._features = features
        self._is_sqlite = database.dialect.name == "sqlite"
        self._is_binary = len(features.classes) == 2
        self._judgement = Judgement(tables, is_sqlite=self._is_sqlite)

    def models(self, now: float | None = None) -> list[ModelSummary]:
        """What each model's predictions are worth, in the order of the model ids.

        Reads the whole table. A million rows take SQLite 1.1 to 1.6 s of processor time (0.7 s more
        if the file is not cached; three classes about twice as much), and 200,000 take PostgreSQL
        0.35 s. An index that covers the query would not save any: most of the time is
        arithmetic. So ask again only when `MessageStore.offsets` have changed.

        SQLite is read in parts, each in a transaction of its own, so that the WAL can be emptied
        between them. A row that changes meanwhile counts as it was or as it is.

        Args:
            now: Milliseconds since 1970; None for the clock.

        Raises:
            StoreError: The store cannot be read.
        """
        found: dict[int, ModelSummary] = {}
        for rows in self._all_rows(now):
            _add(found, map(_summary, rows), ModelSummary.__add__)
        return sorted(found.values(), key=attrgetter("model_id"))

    def _all_rows(self, now: float | None) -> Iterator[Sequence["_Sums"]]:
        """The sums of all rows, perhaps several of the same model and age."""
        if not self._is_sqlite:
            with self._database.transaction() as connection:
                self._database.check_columns(connection)
                rows = self._judgement.rows(sa.true(), now)
                sums = _read_sums(connection, rows, rows.c.model_id, rows.c.age)
            yield sums
            return
        with self._database.transaction() as connection:
            last = self._last_rowid(connection)
        for first in range(1, last + 1, _READ_AT_ONCE):
            part = self._judgement.rows(_rowid().between(first, first + _READ_AT_ONCE - 1), now)
            with self._database.transaction() as connection:
                self._database.check_columns(connection)
                sums = _read_sums_by_number(connection, part)
            yield sums

    def recent(self, limit: int, points: int = 40, now: float | None = None) -> Recent:
        """What the predictions of the last requests are worth, and a series for a chart.

        Takes 10 ms of processor time for 2,000 requests, and 65 ms for 20,000, in SQLite of any
        size. PostgreSQL scans the table: 0.1 s and 0.3 s with 200,000 rows.

        Requests are in the order in which SQLite's store got the first record of each. With
        PostgreSQL they are the messages with the latest timestamps.

        Args:
            limit: How many requests.
            points: The most blocks to return.
            now: Milliseconds since 1970; None for the clock.

        Raises:
            StoreError: The store cannot be read.
        """
        with self._database.transaction() as connection:
            self._database.check_columns(connection)
            c = self._tables.messages.c
            place = [c.prediction_partition, c.prediction_offset]
            rows = self._last(connection, limit, now, place)
            is_judged = rows.c.loss.is_not(None)
            tile = sa.func.ntile(points).over(
                partition_by=is_judged, order_by=[rows.c.at, *rows.c[-2:]]
            )
            block = sa.case((is_judged, tile), else_=literal(0))
            ranked = sa.select(*rows.c, block.label("block")).subquery()
            sums = _read_sums(connection, ranked, *(ranked.c[key] for key in _KEYS), ranked.c.block)
        models: dict[int, ModelSummary] = {}
        blocks: dict[int, Block] = {}
        _add(models, map(_summary, sums), ModelSummary.__add__)
        judged = [(one.block, _block(one)) for one in sums if one.judged]
        _add(blocks, judged, Block.__add__)
        return Recent(
            tuple(models[model] for model in sorted(models)),
            tuple(blocks[number] for number in sorted(blocks)),
        )

    def slices(self, column: str, limit: int) -> list[GroupSummary]:
        """Judged predictions of the last requests by the value of a column.

        Takes as long as `recent`; for a column of numbers half as long again.

        Args:
            column: The column, as the data set names it.
            limit: How many requests, with or without an outcome.

        Returns:
            For a categorical column, the largest groups in descending order, at most
            `MOST_GROUPS`; then one of kind "other", if there are more. For numbers, at most
            `MOST_RANGES` ranges of about equal numbers of rows, in ascending order. At the end
            one of kind "missing", if there are any.

        Raises:
            ValueError: There is no such column.
            StoreError: The store has too many columns to keep each, or it cannot be read.
        """
        if column not in self._features.columns:
            raise ValueError(f"there is no column {column!r}")
        if not self._tables.columns:
            raise StoreError(
                f"no groups by {column!r}: with more than {MOST_COLUMNS:,} columns the message "
                "store keeps them as one"
            )
        place = self._features.columns.index(column)
        stored: sa.ColumnElement[float | str | None] = self._tables.columns[place]
        name, is_number = stored.label("value"), place < self._tables.n_numbers
        f = sa.func
        with self._database.transaction() as connection:
            self._database.check_columns(connection)
            rows = self._last(connection, limit, None, [name])
            c = rows.c
            by = self._range(c.value) if is_number else c.value
            judged = sa.select(*c, by.label("by")).where(c.loss.is_not(None)).subquery()
            counts = [f.count(), f.count().filter(judged.c.right)]
            if self._is_binary:
                positive, right = judged.c.positive, judged.c.right
                counts += [
                    f.count().filter(is_right, is_positive)
                    for is_positive in (positive, sa.not_(positive))
                    for is_right in (right, sa.not_(right))
                ]
            ends = f.min(judged.c.value), f.max(judged.c.value)
            query = sa.select(*ends, *counts).group_by(judged.c.by)
            groups = [self._group(row, is_number) for row in connection.execute(query)]
        known = [group for group in groups if group.kind != "missing"]
        missing = [group for group in groups if group.kind == "missing"]
        return (sorted(known, key=_by_low) if is_number else _largest(known)) + missing

    def _range(self, value: sa.ColumnElement[float]) -> sa.ColumnElement[int]:
        """The place of a number's range, by how many numbers there are below it; or NULL.

        Equal numbers are of one range: that in which the middle of them is.
        """
        is_known: sa.ColumnElement[bool] = value.is_not(None)
        if not self._is_sqlite:  # which keeps NaN
            is_known = sa.and_(is_known, value != sa.cast(sa.literal("NaN"), sa.Double))
        f = sa.func
        below = f.rank().over(partition_by=is_known, order_by=value) - literal(1)
        up_to = f.count().over(partition_by=is_known, order_by=value)
        total = f.count().over(partition_by=is_known)
        place = (literal(MOST_RANGES) * (below + up_to)) // (literal(2) * total)
        return sa.case((is_known, place))

    def _group(self, row: sa.Row, is_number: bool) -> GroupSummary:
        low, high, *counts = row
        counts += () if self._is_binary else (None,) * 4
        if low is None or low != low:  # NaN
            return GroupSummary("missing", None, None, None, *counts)
        if is_number:
            return GroupSummary("range", None, low, high, *counts)
        return GroupSummary("category", unescape_text(low), None, None, *counts)

    def _last(
        self,
        connection: Connection,
        limit: int,
        now: float | None,
        more: Sequence[sa.ColumnElement],
    ) -> sa.Subquery:
        """The rows of the last requests, with further columns at the end."""
        if self._is_sqlite:
            first = self._last_rowid(connection) - limit
            return self._judgement.rows(_rowid() > first, now, more)
        o, c = self._tables.offsets.c, self._tables.messages.c
        ends = connection.execute(
            sa.select(o.partition, o.next_offset).where(o.topic == APP_MESSAGES)
        ).all()
        latest = [
            sa.and_(c.partition == partition, c.offset >= end - _OFFSETS_PER_REQUEST * limit)
            for partition, end in ends
        ]
        ids = (
            sa.select(c.request_id)
            .where(sa.or_(sa.false(), *latest))
            .order_by(c.timestamp.desc(), c.partition.desc(), c.offset.desc())
            .limit(limit)
        )
        return self._judgement.rows(c.request_id.in_(ids), now, more)

    def _last_rowid(self, connection: Connection) -> int:
        query = sa.select(sa.func.max(_rowid())).select_from(self._tables.messages)
        return connection.execute(query).scalar() or 0


class Judgement:
    """How a prediction is judged, in SQL.

    Args:
        tables: The store's tables.
        is_sqlite: Whether the database is SQLite; otherwise PostgreSQL.
    """

    def __init__(self, tables: Tables, *, is_sqlite: bool) -> None:
        self._tables = tables
        self._is_sqlite = is_sqlite

    def rows(
        self,
        condition: sa.ColumnElement[bool],
        now: float | None,
        more: Sequence[sa.ColumnElement] = (),
    ) -> sa.Subquery:
        """The predictions that meet a condition.

        Returns:
            The columns model_id, at (the prediction's timestamp), age (-1 with an outcome,
            otherwise the place of the age in `AGES_MS`), loss (nats; NULL if it is not judged),
            right (NULL if it is not judged), positive (with two classes), and those of `more`.
        """
        c, known = self._tables.messages.c, self._tables.known_outcome
        until = round(time.time() * 1000 if now is None else now)
        age = sa.case(
            (known.is_not(None), literal(_JUDGED)),
            *(
                (c.prediction_timestamp > literal(until - age), literal(place))
                for place, age in enumerate(AGES_MS)
            ),
            else_=literal(len(AGES_MS)),
        )
        columns = c.model_id, c.prediction_timestamp.label("at"), age.label("age")
        is_wanted = sa.and_(c.model_id.is_not(None), condition)
        if len(self._tables.classes) == 2:
            negative, positive = map(literal, self._tables.classes)
            one = c.probability
            own = sa.case((negative, literal(1.0) - one), (positive, one), value=known)
            is_positive = one > literal(0.5)
            right = sa.case((negative, sa.not_(is_positive)), (positive, is_positive), value=known)
            judged = self._loss(own), right.label("right"), is_positive.label("positive")
            return self._apart(sa.select(*columns, *judged, *more).where(is_wanted))
        read = self._apart(sa.select(*columns, *self._chances(), *more).where(is_wanted)).c
        each = [(read[f"p{code}"], literal(code)) for code in range(len(self._tables.classes))]
        fits = read.length == literal(len(each))
        own = sa.case(*((code, chance) for chance, code in each), value=read.code)
        # The first of equally likely ones.
        predicted = sa.case(*each, value=self._greatest([chance for chance, _ in each]))
        return self._apart(
            sa.select(
                *(read[column.name] for column in columns),
                self._loss(sa.case((fits, own))),
                sa.case((fits, predicted == read.code)).label("right"),
                *(read[column.name] for column in more),
            )
        )

    def _chances(self) -> list[sa.ColumnElement]:
        """The outcome's code, the probability of each class, and how many there are."""
        classes = self._tables.classes
        code = sa.case(
            *((literal(name), literal(code)) for code, name in enumerate(classes)),
            value=self._tables.known_outcome,
        )
        chances = [self._of_class(code).label(f"p{code}") for code in range(len(classes))]
        return [code.label("code"), *chances, self._length().label("length")]

    def _loss(self, own: sa.ColumnElement[float]) -> sa.Label[float]:
        """The log loss by the probability of the true class, NULL if that is NULL."""
        f = sa.func
        least, greatest = (f.min, f.max) if self._is_sqlite else (f.least, f.greatest)
        loss = -f.ln(greatest(literal(SMALLEST), least(own, literal(1.0))), type_=sa.Double)
        # PostgreSQL's least() leaves NULL out; SQLite's is NULL then.
        return (loss if self._is_sqlite else sa.case((own.is_not(None), loss))).label("loss")

    def _apart(self, query: sa.Select) -> sa.Subquery:
        """A subquery whose expressions are computed once for each row.

        SQLite would put them wherever they are used, unless there is a limit.
        """
        return (query.limit(-1) if self._is_sqlite else query).subquery()

    def _greatest(self, values: Sequence[sa.ColumnElement[float]]) -> sa.ColumnElement[float]:
        if not self._is_sqlite:
            return sa.func.greatest(*values)
        while len(values) > 1:  # a function of SQLite has at most 127 arguments
            values = [
                part[0] if len(part) == 1 else sa.func.max(*part)
                for part in (values[at : at + 100] for at in range(0, len(values), 100))
            ]
        return values[0]

    def _of_class(self, code: int) -> sa.ColumnElement[float]:
        """The probability of a class, of those in a JSON list."""
        several = self._tables.messages.c.probabilities
        if self._is_sqlite:
            return sa.func.json_extract(several, literal(f"$[{code}]"), type_=sa.Double)
        return sa.cast(sa.cast(several, sa.JSON).op("->>")(literal(code)), sa.Double)

    def _length(self) -> sa.ColumnElement[int]:
        """How many probabilities there are."""
        several: sa.ColumnElement = self._tables.messages.c.probabilities
        text = several if self._is_sqlite else sa.cast(several, sa.JSON)
        return sa.func.json_array_length(text, type_=sa.Integer)


def _rowid() -> sa.ColumnElement[int]:
    return sa.literal_column("messages.rowid", sa.BigInteger)


def _add(found: dict[int, T], more: Iterable[tuple[int, T]], plus: Callable[[T, T], T]) -> None:
    """Add values to those of the same key."""
    for key, value in more:
        found[key] = plus(found[key], value) if key in found else value


class _Sums(NamedTuple):
    """Sums of rows of `Judgement.rows` of the same model, age and block (0 without blocks)."""

    model_id: int
    age: int
    block: int
    rows: int
    judged: int
    right: int
    total: float
    squares: float
    first_at: int
    last_at: int


def _read_sums(
    connection: Connection, rows: sa.Subquery, *by: sa.ColumnElement[int]
) -> list[_Sums]:
    """The sums by model, age and perhaps block."""
    found = connection.execute(sa.select(*by, *_sums(rows)).group_by(*by))
    return [_Sums(*row[:2], *(row[2:] if len(by) > 2 else (0, *row[2:]))) for row in found]


def _read_sums_by_number(connection: Connection, rows: sa.Subquery) -> list[_Sums]:
    """The sums by model and age, grouped by both as one number.

    SQLite sorts by one integer much faster: a million rows take 1.05 s instead of 1.4 s.
    """
    number = (rows.c.model_id * literal(_AGES) + rows.c.age - literal(_JUDGED)).label("number")
    found = connection.execute(sa.select(number, *_sums(rows)).group_by(number)).all()
    if any(isinstance(row.number, float) for row in found):  # too large for an integer
        return _read_sums(connection, rows, rows.c.model_id, rows.c.age)
    keys = ((row.number // _AGES, row.number % _AGES + _JUDGED) for row in found)
    return [_Sums(*key, 0, *row[1:]) for key, row in zip(keys, found, strict=True)]


def _sums(rows: sa.Subquery) -> list[sa.ColumnElement]:
    c, f = rows.c, sa.func
    return [
        f.count(),
        f.count(c.loss),
        f.count().filter(c.right),
        f.coalesce(f.sum(c.loss), literal(0.0)),
        f.coalesce(f.sum(c.loss * c.loss), literal(0.0)),
        f.min(c.at),
        f.max(c.at),
    ]


def _summary(sums: _Sums) -> tuple[int, ModelSummary]:
    """The model and what some of its predictions are worth."""
    if sums.age == _JUDGED:
        summary = ModelSummary(sums.model_id, _losses(sums), sums.rows - sums.judged)
    else:
        by_age = tuple(sums.rows if place == sums.age else 0 for place in range(len(AGES_MS) + 1))
        outstanding = Outstanding(sums.rows, sums.first_at, by_age)
        summary = ModelSummary(sums.model_id, outstanding=outstanding)
    return sums.model_id, summary


def _losses(sums: _Sums) -> Losses:
    return Losses(sums.judged, sums.right, sums.total, sums.squares)


def _block(sums: _Sums) -> Block:
    return Block(sums.first_at, sums.last_at, (sums.model_id,), _losses(sums))


def _by_low(group: GroupSummary) -> float:
    return group.low or 0.0


def _largest(groups: Sequence[GroupSummary]) -> list[GroupSummary]:
    """The largest groups, and the others as one."""
    in_order = sorted(groups, key=lambda group: (-group.rows, group.value or ""))
    others = [replace(group, kind="other", value=None) for group in in_order[MOST_GROUPS:]]
    return in_order[:MOST_GROUPS] + ([reduce(GroupSummary.merge, others)] if others else [])


def _plus(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
