"""The message store: the same checks on SQLite and on a real PostgreSQL."""

import json
import multiprocessing
import random
import signal
import threading
import time
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.databases import Database
from tests.unit.errors import one_line
from tests.unit.utils.message_store.samples import (
    FEATURES,
    contents,
    judged_batch,
    make_features,
    message,
)
from utils.feature_tools import FeatureTools
from utils.kafka_io import Record, TopicPartition
from utils.message_store import (
    Batch,
    MessageStore,
    Offsets,
    StoreError,
    StoreReplaced,
)
from utils.message_store.ingest import RecordDecoder
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS
from utils.metrics import ValueShares
from utils.values import Rules

# A simple model of what the store should hold


@dataclass(frozen=True)
class Log:
    """Records by topic and partition; a record's offset is its index.

    Timestamps of messages rise with the offset and those of outcomes fall; some are equal to
    others, on the other partition too.
    """

    records: dict[tuple[str, int], list[Any]]

    def batch(self, place: tuple[str, int], first: int, end: int) -> Batch:
        """The records of a partition from `first` up to `end`."""
        topic, partition = place
        batch = Batch(offsets={place: end})
        for offset in range(first, end):
            record = self.records[place][offset]
            if topic == APP_MESSAGES:
                name, age, job, outcome = record
                batch.messages.append(message(name, partition, offset, outcome, age, job))
            elif topic == OUTCOMES:
                batch.outcomes.append((*record, partition, offset, self.outcome_time(offset)))
            else:
                time = self.later((topic, partition), offset)[0]
                batch.predictions.append((*record, partition, offset, time))
        return batch

    def outcome_time(self, offset: int) -> int:
        return 1002 - offset // 2

    def later(self, place: tuple[str, int], offset: int) -> tuple[int, int, int]:
        """What decides which record is later: its timestamp, its partition and its offset."""
        topic, partition = place
        times = {APP_MESSAGES: 1000 + offset, OUTCOMES: self.outcome_time(offset)}
        return times.get(topic, 3000 + offset), partition, offset

    def expected(self) -> dict[str, Any]:
        """The contents of a store that has read the whole log."""
        latest = {topic: self.latest(topic) for topic in (APP_MESSAGES, OUTCOMES)}
        rows: list[Any] = []
        for (sent_at, *place), (name, age, job, inside) in latest[APP_MESSAGES].values():
            known = (sent_at, APP_MESSAGES, tuple(place))
            late, (_, outcome) = latest[OUTCOMES].get(name, (None, (name, inside)))
            if late is not None:
                known = (late[0], OUTCOMES, late[1:])
            if outcome in FEATURES.classes:
                rows.append((known, ((name, age, job, outcome), (known[0], sent_at))))
        in_order = [row for _, row in sorted(rows, key=itemgetter(0))]
        return {
            "rows": [row for row, _ in in_order],
            "times": [times for _, times in in_order],
            "offsets": self.ends(),
        }

    def usable(self, topic: str) -> list[tuple[tuple[int, int, int], Any]]:
        """The usable records of a topic in order, each with what decides it."""
        return sorted(
            (self.later(place, offset), record)
            for place, records in self.records.items()
            for offset, record in enumerate(records)
            if place[0] == topic and (topic != OUTCOMES or record[1] in FEATURES.classes)
        )

    def latest(self, topic: str) -> dict[str, tuple[tuple[int, int, int], Any]]:
        """The latest usable record of each request_id, with what decides it."""
        return {record[0]: (decisive, record) for decisive, record in self.usable(topic)}

    def ends(self) -> Offsets:
        return {place: len(records) for place, records in self.records.items()}


# Rules for outcomes

RULES: dict[str, tuple[Batch, dict[str, str]]] = {
    "the outcome inside the message": (Batch([message("a", 0, 0, "yes")]), {"a": "yes"}),
    "no outcome yet": (Batch([message("a", 0, 0)]), {}),
    "the outcome later": (Batch([message("a", 0, 0)], [("a", "no", 0, 0, 1)]), {"a": "no"}),
    "the same outcome twice": (
        Batch([message("a", 0, 0)], [("a", "no", 0, 0, 1), ("a", "no", 0, 1, 2)]),
        {"a": "no"},
    ),
    "a corrected outcome: the later one counts": (
        Batch([message("a", 0, 0)], [("a", "no", 0, 0, 2), ("a", "yes", 0, 1, 9)]),
        {"a": "yes"},
    ),
    "later is by the timestamp, not by the offset": (
        Batch([message("a", 0, 0)], [("a", "yes", 0, 0, 9), ("a", "no", 0, 1, 2)]),
        {"a": "yes"},
    ),
    "a correction counts on whatever partition it lies": (
        Batch([message("a", 1, 0)], [("a", "no", 1, 5, 2), ("a", "yes", 0, 0, 9)]),
        {"a": "yes"},
    ),
    "at the same time the higher (partition, offset) counts": (
        Batch([message("a", 0, 0)], [("a", "yes", 1, 0, 9), ("a", "no", 0, 5, 9)]),
        {"a": "yes"},
    ),
    "the later message of a request_id sent on two partitions counts": (
        Batch([message("a", 1, 0, "no"), message("a", 0, 1, "yes")]),
        {"a": "yes"},
    ),
    "a record on outcomes beats the message's own": (
        Batch([message("a", 0, 0, "no"), message("a", 0, 1, "no")], [("a", "yes", 0, 0, 1)]),
        {"a": "yes"},
    ),
    "an outcome without a message": (Batch([message("a", 0, 0)], [("b", "no", 0, 0, 1)]), {}),
    "an unknown class is rejected, the earlier outcome is kept": (
        Batch([message("a", 0, 0, "huh")], [("a", "no", 0, 0, 1), ("a", "huh", 0, 1, 2)]),
        {"a": "no"},
    ),
    "the newer message of a repeated request_id counts": (
        Batch([message("a", 0, 0, "no"), message("a", 0, 1, "yes")]),
        {"a": "yes"},
    ),
    "the outcome of an older message does not count for the newer": (
        Batch([message("a", 0, 0, "no"), message("a", 0, 1)]),
        {},
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_store_applies_the_outcome_rules(database: Database, rule: str) -> None:
    whole, wanted = RULES[rule]
    one_by_one = [Batch(messages=[m]) for m in whole.messages]
    one_by_one += [Batch(outcomes=[o]) for o in whole.outcomes]
    outcomes_first = [Batch(outcomes=whole.outcomes), Batch(messages=whole.messages)]
    for batches in ([whole], one_by_one, outcomes_first, [whole, whole]):
        with MessageStore(database.new_url(), FEATURES) as store:
            for batch in batches:
                store.ingest(batch)
            snapshot = store.snapshot()
            assert dict(zip(snapshot.request_ids, snapshot.outcomes, strict=True)) == wanted


def test_unmatched_and_refused_outcomes_are_counted_once(url: str) -> None:
    batch = Batch(
        [message("a", 0, 0, "huh"), message("b", 0, 1, "yes")],
        [("c", "no", 0, 0, 1), ("b", "what", 0, 1, 1)],
        [("b", 1, 0.5, 0, 0, 1)],
        offsets={(APP_MESSAGES, 0): 2, (OUTCOMES, 0): 2, (PREDICTIONS, 0): 1},
    )
    with MessageStore(url, FEATURES) as store:
        for _ in range(2):
            store.ingest(batch)
            counts = store.counts()
            assert (counts.messages, counts.known_outcomes, counts.predictions) == (2, 1, 1)
            assert (counts.unmatched_outcomes, counts.rejected_outcomes) == (1, 2)


names = st.sampled_from(["a", "b", "c", "d", "\0", "\x1a0", "l" * 3000])
records = {
    APP_MESSAGES: st.tuples(
        names,
        st.none() | st.floats(allow_nan=False),
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
        st.sampled_from([None, None, "no", "yes", "huh"]),
    ),
    OUTCOMES: st.tuples(names, st.sampled_from(["no", "yes", "huh"])),
    PREDICTIONS: st.tuples(names, st.integers(1, 3), st.floats(0, 1)),
}
logs = st.fixed_dictionaries(
    {
        (topic, partition): st.lists(record, max_size=6)
        for topic, record in records.items()
        for partition in (0, 1)
    }
).map(Log)


def check_any_interleaving(url: str, log: Log, data: st.DataObject) -> None:
    """Any order of partitions, split into any batches and repeated, gives the same store."""
    with MessageStore(url, FEATURES) as store:
        read = dict.fromkeys(log.ends(), 0)
        while waiting := [place for place, end in log.ends().items() if read[place] < end]:
            place = data.draw(st.sampled_from(waiting))
            first = data.draw(st.integers(0, read[place]))  # may repeat records
            end = data.draw(st.integers(read[place] + 1, log.ends()[place]))
            store.ingest(log.batch(place, first, end))
            read[place] = end
        for place in log.ends():
            store.ingest(log.batch(place, 0, log.ends()[place]))
        assert contents(store.snapshot()) == log.expected()
        assert contents(store.newer_than({})) == log.expected()  # reads row by row
        assert store.offsets() == log.ends()
        counts = store.counts()
        superseded = counts.superseded_messages, counts.superseded_outcomes
        assert superseded == tuple(
            len(log.usable(topic)) - len(log.latest(topic)) for topic in (APP_MESSAGES, OUTCOMES)
        )
        check_newer(store, data.draw(st.fixed_dictionaries(dict.fromkeys(read, st.integers(0, 6)))))
        for name in {record[0] for records in log.records.values() for record in records}:
            check_request(store, log, name)


def check_newer(store: MessageStore, offsets: Offsets) -> None:
    """The newer rows are in the order of all, and their predictions are those of `request`."""
    newer = store.newer_than(offsets).request_ids.tolist()
    assert newer == [name for name in store.snapshot().request_ids if name in newer]
    assert store.newer_than(offsets, 2).request_ids.tolist() == newer[-2:]
    requests = [known for name in newer if (known := store.request(name)) is not None]
    assert store.predictions_since(offsets) == {
        known.request_id: (known.model_id, known.probability)
        for known in requests
        if known.prediction is not None
    }


def check_request(store: MessageStore, log: Log, name: str) -> None:
    """The prediction in `request` is the latest one of the log."""
    made = log.latest(PREDICTIONS).get(name)
    known = store.request(name)
    found = None
    if known is not None and known.prediction is not None:
        found = (known.model_id, known.probability, *known.prediction[:2])
    assert found == (made and (*made[1][1:], *made[0][1:]))


quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=60, deadline=None, suppress_health_check=quiet)
@given(log=logs, data=st.data())
def test_any_interleaving_gives_the_same_store_in_memory(log: Log, data: st.DataObject) -> None:
    check_any_interleaving("sqlite://", log, data)


@settings(max_examples=12, deadline=None, suppress_health_check=quiet)
@given(log=logs, data=st.data())
def test_any_interleaving_gives_the_same_store(
    database: Database, log: Log, data: st.DataObject
) -> None:
    check_any_interleaving(database.new_url(), log, data)


@pytest.mark.parametrize(
    "values",
    [
        (None, None),
        (float("inf"), ""),
        (-0.0, "\0"),
        (5e-324, "\x1a0\x1a"),
        (0.1 + 0.2, "ü€😀\\\n\t"),
    ],
)
def test_values_are_stored_bit_for_bit(url: str, values: tuple[Any, Any]) -> None:
    with MessageStore(url, FEATURES) as store:
        store.ingest(Batch([message("a", 0, 0, "no", *values)]))
        known = store.request("a")
        frame = store.snapshot().frame
    assert known is not None
    assert known.values is not None and tuple(known.values.values()) == values
    number = np.array([np.nan if values[0] is None else values[0]])
    assert frame["age"].to_numpy().tobytes() == number.tobytes()
    assert frame["job"].astype(object).where(frame["job"].notna(), None).tolist() == [values[1]]


def sent_records(first: int, *data: dict[str, Any]) -> list[Record]:
    """Messages on partition 0 of `app_messages`, from an offset on."""
    return [
        Record(APP_MESSAGES, 0, offset, 1000 + offset, None, json.dumps(value).encode(), ())
        for offset, row in enumerate(data, first)
        for value in [{"request_id": f"r{offset}", "data": row}]
    ]


def decoded(features: FeatureTools, records: list[Record]) -> Batch:
    """The batch of records, which it also holds themselves."""
    batch = RecordDecoder(features).batch({TopicPartition(APP_MESSAGES, 0): records})
    batch.raw = {(APP_MESSAGES, 0): records}
    return batch


def test_values_of_stored_messages_are_counted_once(url: str) -> None:
    """What is missing, unknown or leniently read."""
    rejected: dict[str, Any] = {"age": "5", "job": [1]}  # its age is read before its job
    data: list[dict[str, Any]]
    data = [{"age": 1, "job": "a"}, {"age": "2", "job": " b"}, {"age": None}, {"job": "huh"}]
    sent = [
        sent_records(0, rejected),
        sent_records(1, *data),
        sent_records(5, {"age": 3.5, "job": "c"}, {"income": "no"}),
    ]
    batches = [decoded(FEATURES, records) for records in sent]
    with MessageStore(url, FEATURES) as store:
        assert store.value_shares() == ValueShares()
        for batch in (batches[0], batches[0]):
            store.ingest(batch)
            assert store.value_shares() == ValueShares()
        for batch in batches[1:] + batches:
            store.ingest(batch)
        wanted = ValueShares(
            rows=5,
            missing={"age": 0.4, "job": 0.2},
            unknown={"job": 0.4},
            lenient={"age": 0.2, "job": 0.2},
        )
        assert store.value_shares() == wanted
        # A batch that is partly stored is not counted, because its tally cannot be split.
        store.ingest(decoded(FEATURES, sent[-1] + sent_records(7, {"age": "7"})))
        assert store.value_shares() == wanted and store.counts().messages == 6
    with MessageStore.open(url, FEATURES) as store:
        assert store.value_shares() == wanted


def test_rules_by_which_values_are_read_are_part_of_the_layout(url: str) -> None:
    ruled = make_features(rules=Rules(missing=("", "a")))
    data = [{"age": 1, "job": job, "income": "no"} for job in ("a", "b")]
    batches = {f: decoded(f, sent_records(0, *data)) for f in (FEATURES, ruled)}
    end = {(APP_MESSAGES, 0): 2}
    lines: list[str] = []
    with MessageStore(url, FEATURES, report=lines.append) as store:
        store.ingest(batches[FEATURES])
        assert [row[2] for row in contents(store.snapshot())["rows"]] == ["a", "b"]
        assert store.value_shares() == ValueShares(rows=2) and not lines
    with pytest.raises(StoreError, match="other columns"):
        MessageStore.open(url, ruled)
    with MessageStore(url, ruled, report=lines.append) as store:
        assert len(lines) == 1 and "its 2 records are read again from its own copy" in lines[0]
        assert (store.offsets(), store.raw_log.ends()) == ({}, end)
        assert store.value_shares() == ValueShares()
        store.ingest(batches[ruled])
        assert [row[2] for row in contents(store.snapshot())["rows"]] == [None, "b"]
        assert store.value_shares() == ValueShares(rows=2, missing={"job": 0.5})
        assert not store.use(make_features(rules=ruled.rules)) and store.offsets() == end
        assert store.use(FEATURES) and store.offsets() == {}


def test_empty_store_gives_empty_results(url: str) -> None:
    with MessageStore(url, FEATURES) as store:
        store.ingest(Batch())
        snapshot = store.snapshot()
        assert contents(snapshot) == {"rows": [], "times": [], "offsets": {}}
        assert snapshot.known_at.dtype == snapshot.sent_at.dtype == np.int64
        assert store.predictions_since({}) == {}
        assert list(snapshot.frame.columns) == ["age", "job"]
        assert store.predictions_by_model() == [] and store.request("a") is None
        assert len(store.predictions_of(1).outcomes) == 0


def test_newer_than_considers_messages_and_outcomes(url: str) -> None:
    log = Log(
        {
            (APP_MESSAGES, 0): [("a", 1, "x", "no"), ("b", 2, "x", None), ("c", 3, "x", None)],
            (APP_MESSAGES, 1): [("d", 4, "x", "yes"), ("e", 5, "x", None)],
            (OUTCOMES, 0): [("b", "no"), ("c", "yes")],
        }
    )
    with MessageStore(url, FEATURES) as store:
        for place, end in log.ends().items():
            store.ingest(log.batch(place, 0, end))

        def newer(offsets: Offsets, limit: int | None = None) -> list[str]:
            return list(store.newer_than(offsets, limit).request_ids)

        assert newer({}) == ["a", "d", "b", "c"]
        assert newer(log.ends()) == []
        # Trained when c's outcome was not known and partition 1 did not exist.
        trained = {(APP_MESSAGES, 0): 3, (OUTCOMES, 0): 1}
        assert newer(trained) == ["d", "c"]
        assert newer({**trained, (APP_MESSAGES, 1): 1}) == ["c"]
        assert newer({}, 2) == ["b", "c"]  # whose outcomes came last

        def older(offsets: Offsets, limit: int) -> list[str]:
            return list(store.older_than(offsets, limit).request_ids)

        assert older({}, 9) == [] and older(log.ends(), 9) == ["a", "d", "b", "c"]
        assert older(trained, 9) == ["a", "b"] and older(trained, 1) == ["b"]


def test_known_before_is_what_known_since_leaves_out(url: str) -> None:
    with MessageStore(url, FEATURES) as store:
        store.ingest(judged_batch(40))
        offsets = {(APP_MESSAGES, 0): 30, (PREDICTIONS, 0): 25}
        since, before = store.known_since(offsets, 99), store.known_before(offsets, 99)
        together = np.concatenate([before.probabilities, since.probabilities])
        assert (len(before.outcomes), len(since.outcomes)) == (22, 14)
        everything = store.known_since({}, 99)
        assert together.tolist() == everything.probabilities.tolist()
        latest = store.known_before(offsets, 5)
        assert latest.probabilities.tolist() == before.probabilities[-5:].tolist()
        assert latest.outcomes.tolist() == before.outcomes[-5:].tolist()


ORDER = {  # (message's timestamp, inline outcome, outcomes as (partition, offset, timestamp))
    "no timestamp": (-1, "yes", []),
    "inline": (1_700_000_000_000, "no", []),
    "inline, replaced": (5, "no", [(0, 5, 1_700_000_000_000)]),
    "late, same time": (1_700_000_000_000, None, [(0, 2**40, 1_700_000_000_000)]),
    "late, higher partition": (6, None, [(1, 3, 1_700_000_000_000)]),
    "corrected": (7, None, [(1, 2, 9), (1, 4, 1_700_000_000_000)]),
    "late, other time": (8, None, [(0, 1, 1_700_000_000_001)]),
    "far future": (9, None, [(0, 0, 2**62)]),
}


def test_rows_are_in_the_order_in_which_outcomes_became_known(database: Database) -> None:
    messages = [
        message(name, 1, 9 - place, inside, 1.0, "a")._replace(timestamp=sent_at)
        for place, (name, (sent_at, inside, _)) in enumerate(ORDER.items())
    ]
    late = [(name, "no", *where) for name, (*_, places) in ORDER.items() for where in places]
    chances = {name: (place + 1) / 10 for place, name in enumerate(ORDER)}
    made: list[Any] = [(name, 1, chance, 0, 0, 1) for name, chance in chances.items()]
    shuffle = random.Random(1).shuffle
    for _ in range(5):
        shuffle(messages)
        shuffle(late)
        with MessageStore(database.new_url(), FEATURES) as store:
            for row in messages[:4]:
                store.ingest(Batch([row]))
            for outcome in late:
                store.ingest(Batch(outcomes=[outcome]))
            store.ingest(Batch(messages[4:], predictions=made))
            for snapshot in (store.snapshot(), store.newer_than({})):
                assert snapshot.request_ids.tolist() == list(ORDER)
                assert snapshot.sent_at.tolist() == [sent_at for sent_at, *_ in ORDER.values()]
                assert snapshot.known_at.tolist() == [
                    places[-1][2] if places else sent_at for sent_at, _, places in ORDER.values()
                ]
            assert store.newer_than({}, 3).request_ids.tolist() == list(ORDER)[-3:]
            assert store.known_since({}, 3).probabilities.tolist() == list(chances.values())[-3:]


def test_predictions_since_are_those_of_newer_rows(url: str) -> None:
    features = make_features(classes=["a", "b", "c"])
    rows = [message(name, 0, place, inside) for place, (name, inside) in enumerate(
        [("old", "a"), ("late", None), ("unknown", None), ("new", "b"), ("l" * 3000, "c"),
         ("silent", "c")]
    )]  # fmt: skip
    made: list[Any] = [("old", 1, 0.5), ("late", 1, [0.1, 0.2, 0.7]), ("unknown", 1, 0.5)]
    made += [("new", 1, 0.25), ("new", 2, 0.75), ("l" * 3000, 2, [1.0, 0.0, 0.0])]
    predictions = [(*record, 0, offset, 1) for offset, record in enumerate(made)]
    with MessageStore(url, features) as store:
        store.ingest(Batch(rows, [("late", "b", 0, 7, 1)], predictions))
        offsets = {(APP_MESSAGES, 0): 3, (OUTCOMES, 0): 7}
        assert store.predictions_since(offsets) == {
            "late": (1, [0.1, 0.2, 0.7]),
            "new": (2, 0.75),
            "l" * 3000: (2, [1.0, 0.0, 0.0]),
        }
        assert store.predictions_since({(APP_MESSAGES, 0): 9, (OUTCOMES, 0): 9}) == {}


def test_probabilities_of_several_classes_are_kept(url: str) -> None:
    features = make_features(classes=["a", "b", "c"])
    with MessageStore(url, features) as store:
        made: list[Any] = [
            ("r", 7, [0.1, 0.2, 0.7], 0, 0, 5),
            ("s", 7, 0.5, 0, 1, 6),
            ("t", 7, [1.0], 0, 2, 7),
        ]
        rows = [message(name, 0, place, "c") for place, name in enumerate("rst")]
        store.ingest(Batch(rows, predictions=made))
        request = store.request("r")
        assert request is not None and request.probability == [0.1, 0.2, 0.7]
        judged = store.predictions_of(7)
        assert judged.probabilities.tolist() == [
            [0.1, 0.2, 0.7]
        ]  # the others have another number of classes
        assert judged.outcomes.tolist() == ["c"]


def test_quality_rows_are_the_judged_predictions_of_each_model(url: str) -> None:
    rows = 400
    batch = judged_batch(rows)
    with MessageStore(url, FEATURES) as store:
        store.ingest(batch)
        first, second = store.predictions_by_model()
        assert (first.model_id, second.model_id) == (1, 2)
        np.testing.assert_array_equal(store.predictions_of(2).probabilities, second.probabilities)
    mine = [place for place in range(0, rows, 2) if place % 10]
    assert first.probabilities.tolist() == [batch.predictions[place][2] for place in mine]
    assert first.outcomes.tolist() == [batch.messages[place].outcome for place in mine]
    assert first.missing_since.tolist() == [1000 * place for place in range(0, rows, 10)]


# Killed writers and concurrent readers


def kill_log(rows: int) -> Log:
    return Log(
        {
            (APP_MESSAGES, 0): [(f"r{i}", float(i), f"t{i % 7}", None) for i in range(rows)],
            (OUTCOMES, 0): [(f"r{i}", "yes" if i % 3 else "no") for i in range(rows)],
        }
    )


def ingest_all(url: str, rows: int, done: Any) -> None:
    """The process that is killed: continues from the store's own offsets."""
    log = kill_log(rows)
    with MessageStore(url, FEATURES) as store:
        read = store.offsets()
        for first in range(0, rows, 50):
            for place, end in log.ends().items():
                if read.get(place, 0) <= first:
                    store.ingest(log.batch(place, first, min(first + 50, end)))
                    done.value += 1


@pytest.fixture(scope="session")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils.message_store", __name__])
    return context


def test_kills_neither_lose_nor_duplicate_rows(url: str, processes: Any) -> None:
    rows, moments = 2000, random.Random(1)
    for kill in (True,) * 6 + (False,):
        done = processes.Value("i", 0, lock=False)
        process = processes.Process(target=ingest_all, args=(url, rows, done))
        process.start()
        if kill:
            batches = moments.randrange(8)
            while done.value < batches and process.is_alive():
                time.sleep(0.0005)
            time.sleep(moments.uniform(0, 0.01))
            process.kill()
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if kill else 0)
    with MessageStore(url, FEATURES) as store:
        assert contents(store.snapshot()) == kill_log(rows).expected()


def test_snapshot_is_consistent_while_rows_arrive(url: str) -> None:
    """The offsets of each snapshot match its rows."""
    stop = threading.Event()

    def write() -> None:
        with MessageStore(url, FEATURES) as store:
            offset = 0
            while not stop.is_set():
                rows = [message(f"r{i}", 0, i, "no") for i in range(offset, offset + 20)]
                offset += 20
                store.ingest(Batch(rows, offsets={(APP_MESSAGES, 0): offset}))

    MessageStore(url, FEATURES).close()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen: set[int] = set()
        deadline = time.monotonic() + 20
        with MessageStore.open(url, FEATURES) as store:
            while len(seen) < 10 and time.monotonic() < deadline:
                snapshot = store.snapshot()
                assert len(snapshot.request_ids) == snapshot.offsets.get((APP_MESSAGES, 0), 0)
                seen.add(len(snapshot.request_ids))
        assert len(seen) == 10
    finally:
        stop.set()
        writer.join()


def test_recreated_topic_empties_the_store(url: str) -> None:
    def batch(topic_id: str, offset: int) -> Batch:
        rows = [message(f"{topic_id}-{offset}", 0, offset, "no")]
        ends = {(APP_MESSAGES, 0): offset + 1}
        return Batch(rows, offsets=ends, topic_ids={APP_MESSAGES: topic_id})

    lines: list[str] = []
    with MessageStore(url, FEATURES, report=lines.append) as store:
        store.ingest(replace(batch("first", 0), topic_ids={}))  # of a broker without ids
        store.ingest(batch("first", 1))
        store.ingest(replace(batch("first", 2), topic_ids={}))
        assert store.snapshot().topic_ids == {APP_MESSAGES: "first"}
        assert store.offsets() == {(APP_MESSAGES, 0): 3}
        with pytest.raises(StoreReplaced, match="app_messages was deleted and recreated"):
            store.ingest(batch("second", 5))
        assert len(lines) == 1 and store.offsets() == {}
        store.ingest(batch("second", 0))
        assert store.snapshot().request_ids.tolist() == ["second-0"]
        assert store.topic_ids() == {APP_MESSAGES: "second"}


def test_reader_of_a_missing_store_is_one_line(url: str) -> None:
    with pytest.raises(StoreError, match="not made it yet") as failure:
        MessageStore.open(url, FEATURES)
    one_line(failure.value)
