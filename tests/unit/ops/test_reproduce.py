"""What `rebuild` trains on, and the first difference of two files as it shows it."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ops import reproduce
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
    found, notes = reproduce._from_copy(settings, bundle(app_messages="one"), trained_on.offsets)
    assert (contents(found), notes) == (contents(trained_on), [])


def test_what_the_copy_lacks_is_named(url: str) -> None:
    settings: Any = SimpleNamespace(messages_url=url)
    read = {(APP_MESSAGES, 0): 10, (OUTCOMES, 0): 10}
    with MessageStore(url, FEATURES) as store:
        fill(store, 2, 8)
        with pytest.raises(StoreError, match="app_messages-0 ends at offset 8, but") as failure:
            reproduce._from_copy(settings, bundle(), read)
        one_line(failure.value)
        fill(store, 8, 10, size=2**20)
    with pytest.raises(StoreError, match="app_messages was deleted and recreated") as failure:
        reproduce._from_copy(settings, bundle(app_messages="other"), read)
    one_line(failure.value)
    snapshot, notes = reproduce._from_copy(settings, bundle(), read)
    assert len(snapshot.request_ids) == 6
    assert [note for note in notes if "app_messages-0 begins at 2" in note]
    assert [note for note in notes if "app_messages-0, offset 9: its 1048" in note]


def test_messages_and_predictions_are_paired_by_id() -> None:
    def pair(sent: str, answers: str, finished: int) -> tuple[dict[int, int], list[int], int]:
        """Names in the order of the log, at offsets 0, 1, ...; "-" stands for a deleted record."""
        sent_records, made_records = (
            [(name, offset) for offset, name in enumerate(names) if name != "-"]
            for names in (sent, answers)
        )
        found = reproduce.pair_by_id(sent_records, made_records, (finished, finished))
        return dict(found.predictions), [offset for offset, _ in found.no_message], found.answered

    assert pair("abc", "abc", 3) == ({0: 0, 1: 1, 2: 2}, [], 3)
    assert pair("--cab", "abc-", 3) == ({2: 2}, [0, 1], 3)  # expired messages, two unanswered
    assert pair("abcab", "---ab", 5) == ({3: 3, 4: 4}, [], 5)  # expired predictions
    assert pair("-bca", "abca", 4) == ({1: 1, 2: 2, 3: 3}, [0], 4)  # compacted messages
    assert pair("abca", "-bca", 4) == ({1: 1, 2: 2, 3: 3}, [], 4)  # compacted predictions
    assert pair("aba", "ab", 2) == ({0: 0, 1: 1}, [], 2)  # sent again, not answered yet
    assert pair("bab", "-ab", 3) == ({1: 1, 2: 2}, [], 3)  # the first prediction has expired
    assert pair("ab", "--", 1) == ({}, [], 1)  # no prediction is left
    assert pair("ab", "ab", 0) == ({0: 0, 1: 1}, [], 2)  # offsets committed in another cluster


def test_first_difference_names_line_and_content() -> None:
    assert reproduce._first_difference(b"a\nb\n", b"a\nc\n") == "line 2: 'b', now 'c'"
    assert reproduce._first_difference(b"a\n", b"a\nc\n") == "line 2: the end, now 'c'"
