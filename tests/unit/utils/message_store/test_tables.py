"""The store's tables: any column name, other columns, another owner."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.unit.databases import execute
from tests.unit.errors import one_line
from tests.unit.utils.message_store.samples import (
    FEATURES,
    make_features,
    message,
)
from utils.message_store import (
    Batch,
    MessageStore,
    StoreError,
)
from utils.messages import APP_MESSAGES
from utils.value_counts import new_tally


def test_column_names_may_be_any_text(url: str) -> None:
    odd = ["Age", "age", "offset", "50% of:it", "select", "größe", "a;b--", "n" * 90, "n" * 91]
    features = make_features(numerical=odd, categorical=["job"])
    values = (*map(float, range(len(odd))), "a")
    with MessageStore(url, features) as store:
        store.ingest(Batch([message("a", 0, 0, "no", *values)]))
        assert store.snapshot().frame.to_dict("records") == [
            dict(zip(features.columns, values, strict=True))
        ]


def test_more_columns_than_a_table_takes(url: str) -> None:
    numerical, categorical = [f"n{n}" for n in range(1_900)], [f"c{n}" for n in range(700)]
    features = make_features(numerical=numerical, categorical=categorical)
    sent = {
        "full": (*map(float, range(1_900)), *(f"text\0 {n}" for n in range(700))),
        "empty": (None,) * 2_600,
    }
    batch = Batch([message(name, 0, n, "no", *sent[name]) for n, name in enumerate(sent)])
    with MessageStore(url, features) as store:
        store.ingest(batch)
        for name, values in sent.items():
            request = store.request(name)
            assert request is not None and request.values is not None
            assert list(request.values) == [*numerical, *categorical]
            assert tuple(request.values.values()) == values
        frame = store.snapshot().frame
        assert frame.shape == (2, 2_600)
        assert tuple(frame.iloc[0]) == sent["full"]
        assert frame.iloc[1].isna().all()


def test_request_ids_may_be_any_text(url: str) -> None:
    ids = ["x" * 400_000, "x" * 400_000 + "y", "ü" * 500, "\0" * 500, "'; DROP TABLE messages"]
    with MessageStore(url, FEATURES) as store:
        rows = [message(name, 0, place, "no", place, "a") for place, name in enumerate(ids)]
        store.ingest(Batch(rows))
        store.ingest(Batch(outcomes=[(name, "yes", 0, 0, 1) for name in ids]))
        snapshot = store.snapshot()
        assert snapshot.request_ids.tolist() == ids
        assert set(snapshot.outcomes) == {"yes"}
        known = [store.request(name) for name in ids]
        assert [request and request.request_id for request in known] == ids


@pytest.mark.parametrize(
    "changes", [{"numerical": ["age", "hours"]}, {"classes": ["no", "yes", "maybe"]}]
)
def test_changed_columns_empty_the_store(url: str, changes: dict[str, Any]) -> None:
    batch = Batch([message("a", 0, 0, "no")], offsets={(APP_MESSAGES, 0): 1})
    with MessageStore(url, FEATURES) as store:
        store.ingest(batch)
    other = make_features(**changes)
    with pytest.raises(StoreError, match="other columns"):
        MessageStore.open(url, other)
    lines: list[str] = []
    with MessageStore(url, other, report=lines.append) as store:
        assert store.offsets() == {} and len(store.snapshot().request_ids) == 0
    assert len(lines) == 1 and "other columns" in lines[0]
    with MessageStore(url, other, report=lines.append):
        assert len(lines) == 1


def test_reader_notices_that_the_columns_have_changed(url: str) -> None:
    """The other column has the same place, so its values could be taken for the old one's."""
    MessageStore(url, FEATURES).close()
    with MessageStore.open(url, FEATURES) as reader:
        assert len(reader.snapshot().request_ids) == 0
        other = make_features(numerical=["hours"])
        with MessageStore(url, other, report=lambda line: None) as store:
            batch = Batch([message("a", 0, 0, "no")], tally=new_tally(other) + 1)
            batch.offsets = {(APP_MESSAGES, 0): 1}
            store.ingest(batch)
        for read in (reader.snapshot, lambda: reader.newer_than({}), reader.value_shares):
            with pytest.raises(StoreError, match="other columns") as failure:
                read()
            one_line(failure.value)


def test_foreign_table_is_left_unchanged(url: str) -> None:
    if url.startswith("sqlite"):
        Path(sa.make_url(url).database or "").parent.mkdir()
    execute(url, "CREATE TABLE messages (precious INTEGER)")
    with pytest.raises(StoreError, match="not the pipeline's") as failure:
        MessageStore(url, FEATURES)
    one_line(failure.value)
    execute(url, "SELECT precious FROM messages")
