"""Aggregates of the message store equal NumPy's on the same rows, on SQLite and PostgreSQL."""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.engine import Connection

from tests.unit.databases import Database
from tests.unit.utils.message_store.samples import FEATURES, make_features, message
from train.evaluate import row_losses
from train.quality import measure_quality
from utils.feature_tools import FeatureTools
from utils.message_store import (
    AGES_MS,
    Batch,
    GroupSummary,
    Losses,
    MessageStore,
    Outstanding,
    StoredMessage,
    StoreError,
    summaries,
)
from utils.message_store.lifecycle import StoreDatabase
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS
from utils.model_store import predicted_codes

NOW = 2_000_000_000_000
THREE = make_features(classes=["no", "yes", "maybe"])
CATEGORIES = ["a", "b", "a\0b", "\x1a1", "", None]
#: Ties, certainties and what is clipped, with two classes and with three.
SINGLE = [0.0, 1e-300, 0.25, 0.5, 0.5000000000000001, 0.75, 1.0, 1.5]
SEVERAL = [[0.5, 0.5, 0.0], [0.2, 0.4, 0.4], [1.0, 0.0, 0.0], [0.1, 0.2, 0.7], [1 / 3] * 3]


def make_batches(features: FeatureTools, rows: int, seed: int) -> list[Batch]:
    """What a log may hold: late, early, corrected, rejected and missing outcomes.

    Of each batch's requests, some are sent once more, some are predicted again by a later model,
    and some predictions are of a model with another number of classes.
    """
    draw = random.Random(seed)
    batches: list[Batch] = []
    late: list[tuple[str, str, int, int, int]] = []
    for first in range(0, rows, 50):
        batch = Batch(outcomes=late)
        late = []
        for place in range(first, first + 50):
            name = f"r{place}" if draw.random() < 0.95 else f"r{draw.randrange(place + 1)}"
            outcome = draw.choice([*features.classes, "of no class"])
            values = draw.choice([draw.randrange(9) / 2, 2.5, None]), draw.choice(CATEGORIES)
            inside = outcome if draw.random() < 0.4 else None
            batch.messages.append(
                StoredMessage(name, 0, place, NOW - 10**6 + place, values, inside)
            )
            one, many = draw.choice([*SINGLE, draw.random()]), draw.choice(SEVERAL)
            binary = (len(features.classes) == 2) != (draw.random() < 0.1)
            age = draw.choice([-5, 1, *AGES_MS, *(10 * age for age in AGES_MS)])
            model = 1 + place * 4 // rows
            batch.predictions.append(
                (name, model, one if binary else list(many), 0, place, NOW - age)
            )
            for _ in range(draw.choice([0, 1, 1, 2])):
                offset = draw.randrange(10**6)
                record = name, draw.choice([*features.classes, "of no class"]), 0, offset, NOW
                draw.choice([batch.outcomes, late]).append(record)
        batches.append(batch)
    batches.append(Batch(outcomes=late))
    return batches


@dataclass(frozen=True)
class Filled:
    """A store with rows, and the rows as the database has them."""

    store: MessageStore
    features: FeatureTools


@pytest.fixture(params=[FEATURES, THREE], ids=["two classes", "three classes"])
def filled(request: pytest.FixtureRequest, database: Database) -> Iterator[Filled]:
    """A store whose rows SQLite reads in several parts."""
    features, url = request.param, database.new_url()
    with MessageStore(url, features) as writer:
        for batch in make_batches(features, 1_000, seed=len(features.classes)):
            writer.ingest(batch)
    with MessageStore.open(url, features) as store:
        yield Filled(store, features)


def losses_of(probabilities: Any, codes: Any) -> Losses:
    """The sums as NumPy has them."""
    losses = row_losses(probabilities, codes)
    right = predicted_codes(probabilities) == codes
    return Losses(len(codes), int(right.sum()), float(losses.sum()), float((losses**2).sum()))


def same(found: Losses, expected: Losses) -> bool:
    assert (found.rows, found.right) == (expected.rows, expected.right)
    assert (found.total, found.squares) == pytest.approx((expected.total, expected.squares))
    return True


def test_figures_of_each_model_are_those_of_the_report(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "_READ_AT_ONCE", 130)
    found = filled.store.model_summaries(NOW)
    judged = filled.store.predictions_by_model()
    assert [one.model_id for one in found] == [one.model_id for one in judged] == [1, 2, 3, 4]
    for summary, one in zip(found, judged, strict=True):
        quality = measure_quality(one, filled.features, last=1, now=NOW)
        codes = filled.features.encode_target(one.outcomes)
        assert same(summary.losses, losses_of(one.probabilities, codes))
        assert summary.losses.log_loss == pytest.approx(quality.overall.log_loss)
        assert summary.losses.accuracy == pytest.approx(quality.overall.accuracy)
        spread = row_losses(one.probabilities, codes).std(ddof=1) / len(codes) ** 0.5
        assert summary.losses.standard_error == pytest.approx(spread)
        assert summary.outstanding.count == quality.missing > 0
        assert summary.outstanding.oldest == one.missing_since.min()
        assert summary.predictions == one.predictions
        assert summary.other_classes == one.predictions - quality.known - quality.missing > 0
        ages = NOW - one.missing_since
        counted = np.bincount(np.searchsorted(AGES_MS, ages, side="right"), minlength=8)
        assert summary.outstanding.by_age == tuple(counted)
        low, high = summary.outstanding.median_between or (0, 0)
        assert low <= np.sort(ages.clip(0))[(len(ages) - 1) // 2] < (high or np.inf)


def test_the_last_requests_of_all_are_all(filled: Filled) -> None:
    found = filled.store.recent(10**6, points=7, now=NOW)
    every = filled.store.model_summaries(NOW)
    for one, other in zip(found.models, every, strict=True):
        assert same(one.losses, other.losses)
        assert (one.other_classes, one.outstanding) == (other.other_classes, other.outstanding)
    judged = sum((one.losses for one in every), Losses())
    assert same(sum((block.losses for block in found.blocks), Losses()), judged)
    rows = [block.losses.rows for block in found.blocks]
    assert len(rows) == 7 and max(rows) - min(rows) <= 1
    times = [at for block in found.blocks for at in (block.first_at, block.last_at)]
    assert times == sorted(times)
    assert {model for block in found.blocks for model in block.model_ids} == {1, 2, 3, 4}


def group_table(groups: list[GroupSummary]) -> dict[Any, tuple[Any, ...]]:
    return {
        (group.kind, group.value, group.low, group.high): (
            group.rows,
            group.right,
            group.true_positive,
            group.false_positive,
            group.true_negative,
            group.false_negative,
        )
        for group in groups
    }


def test_groups_count_what_numpy_counts(filled: Filled) -> None:
    rows: dict[str, dict[Any, list[tuple[bool, bool, bool]]]] = {"job": {}, "age": {}}
    features, wanted = filled.features, 1 if filled.features is FEATURES else 3
    snapshot, predictions = filled.store.snapshot(), filled.store.predictions_since({})
    values = zip(snapshot.frame["age"], snapshot.frame["job"], strict=True)
    for name, outcome, row in zip(snapshot.request_ids, snapshot.outcomes, values, strict=True):
        _, given = predictions.get(name, (0, None))
        chances = given if isinstance(given, list) else [given]
        if given is None or len(chances) != wanted:
            continue
        code = features.classes.index(outcome)
        scores = np.array([chances] if wanted == 3 else chances)
        predicted = int(predicted_codes(scores)[0])
        for column, value in zip(("age", "job"), row, strict=True):
            key = None if value != value else value
            rows[column].setdefault(key, []).append((predicted == code, predicted == 1, code == 1))
    expected = {}
    for value, judged in rows["job"].items():
        right, positive, is_positive = np.array(judged).T
        table = [
            int(np.sum(positive & is_positive)),
            int(np.sum(positive & ~is_positive)),
            int(np.sum(~positive & ~is_positive)),
            int(np.sum(~positive & is_positive)),
        ]
        kind = "missing" if value is None else "category"
        counts = table if wanted == 1 else [None] * 4
        expected[kind, value, None, None] = (len(right), int(right.sum()), *counts)
    found = filled.store.slices("job", 10**6)
    assert group_table(found) == expected
    assert found[-1].kind == "missing" and len(found) == len(CATEGORIES)
    *ranges, missing = filled.store.slices("age", 10**6)
    assert missing.kind == "missing" and missing.rows == len(rows["age"].pop(None))
    assert len(ranges) <= summaries.MOST_RANGES
    for group, after in zip(ranges, [*ranges[1:], None], strict=True):
        assert after is None or (group.high or 0) < (after.low or 0)
        inside = [
            right
            for value, judged in rows["age"].items()
            if (group.low or 0) <= value <= (group.high or 0)
            for right, *_ in judged
        ]
        assert (group.rows, group.right) == (len(inside), sum(inside))
    assert sum(group.rows for group in ranges) == sum(map(len, rows["age"].values()))


def numbered(rows: int, **columns: Any) -> Batch:
    """Requests with outcomes and predictions: the last values of the columns come last."""
    batch = Batch(offsets={(APP_MESSAGES, 0): rows, (PREDICTIONS, 0): rows, (OUTCOMES, 0): 0})
    for place in range(rows):
        values = [columns.get(name, lambda _: None)(place) for name in ("age", "job")]
        batch.messages.append(message(f"r{place}", 0, place, "yes", *values))
        chance = 0.9 if place < rows // 2 else 0.2
        batch.predictions.append((f"r{place}", 1 + 2 * place // rows, chance, 0, place, place))
    return batch


def test_only_the_last_requests_count(url: str) -> None:
    with MessageStore(url, FEATURES) as store:
        assert store.model_summaries() == [] and store.recent(10).blocks == ()
        assert store.slices("job", 10) == []
        store.ingest(numbered(100, age=float, job=lambda place: f"j{place % 20}"))
        (last,) = store.recent(10, points=1).blocks
        assert (last.first_at, last.last_at, last.losses.rows) == (90, 99, 10)
        found = store.recent(60, points=4)
        assert [(one.model_id, one.losses.rows) for one in found.models] == [(1, 10), (2, 50)]
        assert [block.model_ids for block in found.blocks] == [(1, 2), (2,), (2,), (2,)]
        assert [block.losses.accuracy for block in found.blocks] == [10 / 15, 0, 0, 0]
        ages = [(group.low, group.high, group.label) for group in store.slices("age", 50)]
        assert ages == [
            (low, low + 9, f"{low:g} to {low + 9:g}") for low in (50.0, 60.0, 70.0, 80.0, 90.0)
        ]
        jobs = store.slices("job", 50)
        assert [group.rows for group in jobs] == [3] * 10 + [2] * 2 + [16]
        assert [group.kind for group in jobs] == ["category"] * 12 + ["other"]
        assert (jobs[-1].label, jobs[-1].predicted_positive) == ("(other)", 0)
        assert jobs[-1].false_negative == 16


def test_ranges_keep_equal_numbers_together(url: str) -> None:
    with MessageStore(url, FEATURES) as store:
        ages = [*[0.0] * 90, *map(float, range(1, 9)), None, float("nan")]
        store.ingest(numbered(100, age=ages.__getitem__))
        found = [(group.label, group.rows) for group in store.slices("age", 100)]
    assert found == [("0", 90), ("1 to 8", 8), ("(missing)", 2)]


def test_columns_that_cannot_be_grouped_are_one_clear_line(url: str, database: Database) -> None:
    with MessageStore(url, FEATURES) as store, pytest.raises(ValueError, match="no column 'x'"):
        store.slices("x", 10)
    many = make_features(numerical=[f"n{place}" for place in range(1_001)])
    with (
        MessageStore(database.new_url(), many) as store,
        pytest.raises(StoreError, match="more than 1,000 columns"),
    ):
        store.slices("n1", 10)


def test_model_ids_may_be_as_large_as_the_database_holds(url: str) -> None:
    huge = 2**62
    batch = numbered(10)
    batch.predictions = [
        (name, huge + place, chance, 0, place, place)
        for place, (name, _, chance, *_) in enumerate(batch.predictions)
    ]
    with MessageStore(url, FEATURES) as store:
        store.ingest(batch)
        found = store.model_summaries()
        assert [one.model_id for one in found] == [huge + n for n in range(10)]
        assert all(one.losses.rows == 1 and one.losses.standard_error is None for one in found)


def test_many_classes(url: str) -> None:
    classes = [f"c{place:03}" for place in range(250)]
    with MessageStore(url, make_features(classes=classes)) as store:
        batch = Batch([message(f"r{n}", 0, n, classes[n]) for n in range(250)])
        chances = [2 / 251 if place in (7, 120) else 1 / 251 for place in range(250)]
        batch.predictions = [(f"r{n}", 1, list(chances), 0, n, n) for n in range(250)]
        store.ingest(batch)
        (found,) = store.model_summaries()
        (group,) = store.slices("job", 1_000)
    assert same(found.losses, losses_of(np.array([chances] * 250), np.arange(250)))
    assert (group.label, group.rows, group.right) == ("a", 250, 1)
    assert group.predicted_positive is None


def test_sqlite_without_mathematical_functions_has_a_logarithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MessageStore(url := f"sqlite:///{tmp_path}/rows.db", FEATURES) as store:
        store.ingest(numbered(10))
        expected = store.model_summaries(NOW)
    connect = sqlite3.connect

    class Without(sqlite3.Connection):
        """A connection whose ln() is unknown until it is registered."""

        has_ln = False

        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            if "ln(" in sql and not self.has_ln:
                raise sqlite3.OperationalError("no such function: ln")
            return super().execute(sql, *rest)

        def create_function(self, *arguments: Any, **options: Any) -> None:
            super().create_function(*arguments, **options)
            self.has_ln = arguments[0] == "ln"

    made: list[Without] = []

    def without(*arguments: Any, **options: Any) -> sqlite3.Connection:
        made.append(connect(*arguments, factory=Without, **options))
        return made[-1]

    monkeypatch.setattr(sqlite3.dbapi2, "connect", without)
    with MessageStore.open(url, FEATURES) as store:
        found = store.model_summaries(NOW)
    assert made and all(one.has_ln for one in made)
    assert [one.outstanding for one in found] == [one.outstanding for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert same(one.losses, other.losses)


def test_the_writer_does_not_wait_and_the_journal_can_be_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a part is read, a batch is written; after it, nothing holds SQLite's WAL."""
    path, rows = tmp_path / "rows.db", 600
    monkeypatch.setattr(summaries, "_READ_AT_ONCE", 100)
    transaction = StoreDatabase.transaction
    busy: list[int] = []

    @contextmanager
    def watched(self: StoreDatabase, *, write: bool = False) -> Iterator[Connection]:
        with transaction(self, write=write) as connection:
            yield connection
            if not write:
                offset = rows + len(busy)
                writer.ingest(Batch([message(f"n{offset}", 0, offset, "yes")]))
        if not write:
            with closing(sqlite3.connect(path)) as other:
                busy.append(other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

    with MessageStore(f"sqlite:///{path}", FEATURES, timeout=0.5) as writer:
        writer.ingest(numbered(rows))
        with MessageStore.open(f"sqlite:///{path}", FEATURES) as store:
            monkeypatch.setattr(StoreDatabase, "transaction", watched)
            (*_, last) = store.model_summaries()
            monkeypatch.undo()
        written = writer.counts().messages - rows
    assert last.losses.rows == rows // 2
    assert busy == [0] * written and written > rows // 100


def test_sums_of_nothing() -> None:
    assert (Losses().log_loss, Losses().standard_error, Losses().accuracy) == (None, None, None)
    assert Losses(1, 1, 0.5, 0.25).standard_error is None
    assert Losses(3, 0, 0.9, 0.27 - 1e-12).standard_error == 0.0
    assert Outstanding().median_between is None
