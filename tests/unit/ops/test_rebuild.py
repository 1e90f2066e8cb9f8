"""What `rebuild` trains on, and the first difference of two files as it shows it."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ops import rebuild
from tests.unit.errors import one_line
from tests.unit.utils.message_store.samples import FEATURES, contents, make_features
from utils.kafka_io import Record, TopicPartition
from utils.message_store import MessageStore, StoreError
from utils.message_store.ingest import RecordDecoder
from utils.messages import APP_MESSAGES, OUTCOMES

SENT_AT = 1_700_000_000_000  # milliseconds since 1970


def fill(store: MessageStore, first: int, end: int, size: int = 0) -> None:
    """Store messages as read from the log; `size` pads them."""
    decoder = RecordDecoder(FEATURES)
    for topic in (APP_MESSAGES, OUTCOMES):
        records = []
        for n in range(first, end):
            value = {"request_id": f"r{n}", "data": {"age": n, "pad": "x" * size}, "outcome": "no"}
            records.append(Record(topic, 0, n, SENT_AT + n, None, msgspec.json.encode(value), ()))
        batch = decoder.batch({TopicPartition(topic, 0): records})
        batch.raw, batch.topic_ids = {(topic, 0): records}, {topic: "one"}
        store.ingest(batch)


def bundle(**topic_ids: str) -> Any:
    training = SimpleNamespace(topic_ids=topic_ids, outcomes_from={})
    manifest = SimpleNamespace(created="2026-01-01T00:00:00+00:00", training=training)
    return SimpleNamespace(features=FEATURES, manifest=manifest)


def test_copy_gives_the_rows_of_any_earlier_training(url: str) -> None:
    settings: Any = SimpleNamespace(messages_url=url)
    with MessageStore(url, FEATURES) as store:
        fill(store, 0, 10)
        trained_on = store.snapshot()
        fill(store, 10, 30)
    MessageStore(url, make_features(numerical=["hours"]), report=lambda line: None).close()
    found, notes = rebuild._from_copy(settings, bundle(app_messages="one"), trained_on.offsets)
    assert (contents(found), notes) == (contents(trained_on), [])


def test_what_the_copy_lacks_is_named(url: str) -> None:
    settings: Any = SimpleNamespace(messages_url=url)
    read = {(APP_MESSAGES, 0): 10, (OUTCOMES, 0): 10}
    with MessageStore(url, FEATURES) as store:
        fill(store, 2, 8)
        with pytest.raises(StoreError, match="app_messages-0 ends at offset 8, but") as failure:
            rebuild._from_copy(settings, bundle(), read)
        one_line(failure.value)
        fill(store, 8, 10, size=2**20)
    with pytest.raises(StoreError, match="app_messages was deleted and recreated") as failure:
        rebuild._from_copy(settings, bundle(app_messages="other"), read)
    one_line(failure.value)
    snapshot, notes = rebuild._from_copy(settings, bundle(), read)
    assert len(snapshot.request_ids) == 6
    assert [note for note in notes if "app_messages-0 begins at 2" in note]
    assert [note for note in notes if "app_messages-0, offset 9: its 1048" in note]


def test_first_difference_names_line_and_content() -> None:
    assert rebuild._first_difference(b"a\nb\n", b"a\nc\n") == "line 2: 'b', now 'c'"
    assert rebuild._first_difference(b"a\n", b"a\nc\n") == "line 2: the end, now 'c'"
