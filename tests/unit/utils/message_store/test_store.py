"""The message store: the same checks on SQLite and on a real PostgreSQL."""

import importlib.util
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import file_system
from train import evaluate, quality
from utils.feature_tools import FeatureTools
from utils.message_store import (
    Batch,
    MessageStore,
    Offsets,
    Snapshot,
    StoredMessage,
    StoreError,
    StoreReplaced,
)
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS

DEAD = "postgresql://me:secret@127.0.0.1:1/nowhere"


def make_features(**changes: Any) -> FeatureTools:
    wanted: dict[str, Any] = {
        "target": "income",
        "numerical": ["age"],
        "categorical": ["job"],
        "crosses": [],
        "classes": ["no", "yes"],
    }
    wanted |= changes
    columns = {name: [1.0, 2.0] for name in wanted["numerical"]}
    texts = {name: ["a", "b"] for name in wanted["categorical"]}
    return FeatureTools().fit(pd.DataFrame(columns | texts), **wanted)


FEATURES = make_features()


def message(
    name: str, partition: int, offset: int, outcome: str | None = None, *values: Any
) -> StoredMessage:
    return StoredMessage(name, partition, offset, 1000 + offset, values or (1.0, "a"), outcome)


# --- a PostgreSQL of the tests' own -------------------------------------------------------


def _postgres_programs() -> Path | None:
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server that lives as long as the tests."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (requirements-postgresql.txt)")
    # PostgreSQL refuses to run as root; Debian's package brings a user of its own.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        if user:
            shutil.chown(folder, user, user)
        as_user: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
        data, port = f"{folder}/data", _free_port()
        arguments = ["-D", data, "-U", "tests", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(
            [programs / "initdb", *arguments], check=True, capture_output=True, cwd="/", **as_user
        )
        options = {"listen_addresses": "127.0.0.1", "fsync": "off", "unix_socket_directories": ""}
        server = subprocess.Popen(
            [f"{programs}/postgres", "-D", data, "-p", str(port)]
            + [word for name, value in options.items() for word in ("-c", f"{name}={value}")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **as_user,
        )
        try:
            url = f"postgresql+psycopg://tests@127.0.0.1:{port}/postgres"
            _wait_for(url)
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            server.wait(20)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            execute(url, "SELECT 1")
            return
        except sa.exc.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def execute(url: str, sql: str) -> None:
    """Run one statement outside any transaction and outside the store."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(sql)
    finally:
        engine.dispose()


@dataclass(frozen=True)
class Database:
    """A place for stores: `fresh()` is the URL of an empty database."""

    fresh: Callable[[], str]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        numbers = iter(range(10_000))
        return Database(lambda: f"sqlite:///{tmp_path}/{next(numbers)}/messages.db")
    server = request.getfixturevalue("postgres")
    return Database(lambda: own_schema(server))


def own_schema(server: str) -> str:
    """The URL of an empty schema, which takes less to make than a database."""
    name = f"t{random.SystemRandom().getrandbits(60)}"
    execute(server, f"CREATE SCHEMA {name}")
    return f"{server}?options=-csearch_path%3D{name}"


@pytest.fixture
def url(database: Database) -> str:
    return database.fresh()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "messages.db"


# --- what it should hold, said once more and plainly --------------------------------------


@dataclass(frozen=True)
class Log:
    """Records by topic and partition; the offset of one is its place."""

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
                batch.outcomes.append((*record, partition, offset, 2000 + offset))
            else:
                batch.predictions.append((*record, partition, offset, 3000 + offset))
        return batch

    def expected(self) -> dict[str, Any]:
        """What a store holds that has read all of it."""
        newest: dict[str, dict[str, Any]] = {topic: {} for topic in (APP_MESSAGES, OUTCOMES)}
        for (topic, partition), records in sorted(self.records.items()):
            for offset, record in enumerate(records):
                if topic == PREDICTIONS or (
                    topic == OUTCOMES and record[1] not in FEATURES.classes
                ):
                    continue
                newest[topic][record[0]] = ((partition, offset), record)
        rows = []
        for place, (name, age, job, inside) in newest[APP_MESSAGES].values():
            outcome = newest[OUTCOMES].get(name, (None, (None, inside)))[1][1]
            if outcome in FEATURES.classes:
                rows.append((place, name, age, job, outcome))
        return {"rows": [row[1:] for row in sorted(rows)], "offsets": self.ends()}

    def ends(self) -> Offsets:
        return {place: len(records) for place, records in self.records.items()}


def contents(snapshot: Snapshot) -> dict[str, Any]:
    columns = [[None if pd.isna(v) else v for v in snapshot.frame[name]] for name in snapshot.frame]
    rows = zip(snapshot.request_ids, *columns, snapshot.outcomes, strict=True)
    return {"rows": list(rows), "offsets": snapshot.offsets}


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text and "\n" not in text and "secret" not in text
    return text


# --- the rules ----------------------------------------------------------------------------

RULES: dict[str, tuple[Batch, dict[str, str]]] = {
    "the outcome inside the message": (Batch([message("a", 0, 0, "yes")]), {"a": "yes"}),
    "no outcome yet": (Batch([message("a", 0, 0)]), {}),
    "the outcome later": (Batch([message("a", 0, 0)], [("a", "no", 0, 0, 1)]), {"a": "no"}),
    "the same outcome twice": (
        Batch([message("a", 0, 0)], [("a", "no", 0, 0, 1), ("a", "no", 0, 1, 2)]),
        {"a": "no"},
    ),
    "a corrected outcome: the last counts": (
        Batch([message("a", 0, 0)], [("a", "no", 0, 0, 9), ("a", "yes", 0, 1, 2)]),
        {"a": "yes"},
    ),
    "a record on outcomes beats the message's own": (
        Batch([message("a", 0, 0, "no"), message("a", 0, 1, "no")], [("a", "yes", 0, 0, 1)]),
        {"a": "yes"},
    ),
    "an outcome nobody asked for": (Batch([message("a", 0, 0)], [("b", "no", 0, 0, 1)]), {}),
    "an unknown class is refused, the outcome before it stays": (
        Batch([message("a", 0, 0, "huh")], [("a", "no", 0, 0, 1), ("a", "huh", 0, 1, 2)]),
        {"a": "no"},
    ),
    "of a request_id sent twice the newer": (
        Batch([message("a", 0, 0, "no"), message("a", 0, 1, "yes")]),
        {"a": "yes"},
    ),
    "the newer has no outcome: that of the older is not its own": (
        Batch([message("a", 0, 0, "no"), message("a", 0, 1)]),
        {},
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_kind_of_outcome_has_its_defined_result(database: Database, rule: str) -> None:
    whole, wanted = RULES[rule]
    one_by_one = [Batch(messages=[m]) for m in whole.messages]
    one_by_one += [Batch(outcomes=[o]) for o in whole.outcomes]
    outcomes_first = [Batch(outcomes=whole.outcomes), Batch(messages=whole.messages)]
    for batches in ([whole], one_by_one, outcomes_first, [whole, whole]):
        with MessageStore(database.fresh(), FEATURES) as store:
            for batch in batches:
                store.ingest(batch)
            snapshot = store.snapshot()
            assert dict(zip(snapshot.request_ids, snapshot.outcomes, strict=True)) == wanted


def test_what_was_unasked_or_refused_is_counted_once(url: str) -> None:
    batch = Batch(
        [message("a", 0, 0, "huh"), message("b", 0, 1, "yes")],
        [("c", "no", 0, 0, 1), ("b", "what", 0, 1, 1)],
        [("b", 1, 0.5, 0, 0, 1)],
        {(APP_MESSAGES, 0): 2, (OUTCOMES, 0): 2, (PREDICTIONS, 0): 1},
    )
    with MessageStore(url, FEATURES) as store:
        for _ in range(2):
            store.ingest(batch)
            counts = store.counts()
            assert (counts.messages, counts.known_outcomes, counts.predictions) == (2, 1, 1)
            assert (counts.unmatched_outcomes, counts.refused_outcomes) == (1, 2)


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
    """However the partitions come, cut into batches and sent again: the same store."""
    with MessageStore(url, FEATURES) as store:
        read = dict.fromkeys(log.ends(), 0)
        while waiting := [place for place, end in log.ends().items() if read[place] < end]:
            place = data.draw(st.sampled_from(waiting))
            first = data.draw(st.integers(0, read[place]))  # again from before what it has
            end = data.draw(st.integers(read[place] + 1, log.ends()[place]))
            store.ingest(log.batch(place, first, end))
            read[place] = end
        for place in log.ends():
            store.ingest(log.batch(place, 0, log.ends()[place]))
        assert contents(store.snapshot()) == log.expected()
        assert contents(store.newer_than({})) == log.expected()  # read row by row
        assert store.offsets() == log.ends()
        for name in {record[0] for records in log.records.values() for record in records}:
            check_request(store, log, name)


def check_request(store: MessageStore, log: Log, name: str) -> None:
    """What `request` says of the prediction is what the log says last."""
    made = [
        (*record[1:], partition, offset)
        for partition in (0, 1)
        for offset, record in enumerate(log.records[(PREDICTIONS, partition)])
        if record[0] == name
    ]
    keys = ("model_id", "probability", "prediction_partition", "prediction_offset")
    known = store.request(name) or dict.fromkeys(keys)
    assert tuple(known[key] for key in keys) == (made[-1] if made else (None,) * 4)


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
    check_any_interleaving(database.fresh(), log, data)


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
def test_values_come_back_bit_for_bit(url: str, values: tuple[Any, Any]) -> None:
    with MessageStore(url, FEATURES) as store:
        store.ingest(Batch([message("a", 0, 0, "no", *values)]))
        known = store.request("a")
        frame = store.snapshot().frame
    assert known is not None
    assert tuple(known["values"].values()) == values
    number = np.array([np.nan if values[0] is None else values[0]])
    assert frame["age"].to_numpy().tobytes() == number.tobytes()
    assert frame["job"].astype(object).where(frame["job"].notna(), None).tolist() == [values[1]]


def test_columns_may_be_called_anything(url: str) -> None:
    odd = ["Age", "age", "offset", "50% of:it", "select", "größe", "a;b--", "n" * 90, "n" * 91]
    features = make_features(numerical=odd, categorical=["job"])
    values = (*map(float, range(len(odd))), "a")
    with MessageStore(url, features) as store:
        store.ingest(Batch([message("a", 0, 0, "no", *values)]))
        assert store.snapshot().frame.to_dict("records") == [
            dict(zip(features.columns, values, strict=True))
        ]


def test_ids_of_any_length_keep_their_place(url: str) -> None:
    ids = ["x" * 400_000, "x" * 400_000 + "y", "ü" * 500, "\0" * 500, "'; DROP TABLE messages"]
    with MessageStore(url, FEATURES) as store:
        rows = [message(name, 0, place, "no", place, "a") for place, name in enumerate(ids)]
        store.ingest(Batch(rows))
        store.ingest(Batch(outcomes=[(name, "yes", 0, 0, 1) for name in ids]))
        snapshot = store.snapshot()
        assert snapshot.request_ids.tolist() == ids
        assert set(snapshot.outcomes) == {"yes"}
        assert all(store.request(name)["request_id"] == name for name in ids)  # type: ignore[index]


def test_an_empty_store_answers(url: str) -> None:
    with MessageStore(url, FEATURES) as store:
        store.ingest(Batch())
        snapshot = store.snapshot()
        assert contents(snapshot) == {"rows": [], "offsets": {}}
        assert list(snapshot.frame.columns) == ["age", "job"]
        assert store.quality_rows() == [] and store.request("a") is None
        assert len(store.judged(1).outcomes) == 0


def test_newer_than_looks_at_messages_and_outcomes(url: str) -> None:
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

        assert newer({}) == ["a", "b", "c", "d"]
        assert newer(log.ends()) == []
        # Trained on when c's outcome was not known, and partition 1 not there yet.
        trained = {(APP_MESSAGES, 0): 3, (OUTCOMES, 0): 1}
        assert newer(trained) == ["c", "d"]
        assert newer({**trained, (APP_MESSAGES, 1): 1}) == ["c"]
        assert newer({}, 2) == ["b", "c"]  # whose outcomes came last


def test_several_classes_keep_their_probabilities(url: str) -> None:
    features = make_features(classes=["a", "b", "c"])
    with MessageStore(url, features) as store:
        made: list[Any] = [
            ("r", 7, [0.1, 0.2, 0.7], 0, 0, 5),
            ("s", 7, 0.5, 0, 1, 6),
            ("t", 7, [1.0], 0, 2, 7),
        ]
        rows = [message(name, 0, place, "c") for place, name in enumerate("rst")]
        store.ingest(Batch(rows, predictions=made))
        assert store.request("r")["probability"] == [0.1, 0.2, 0.7]  # type: ignore[index]
        judged = store.judged(7)
        assert judged.probabilities.tolist() == [[0.1, 0.2, 0.7]]  # the others: of other classes
        assert judged.outcomes.tolist() == ["c"]


# --- kills, and readers beside the writer -------------------------------------------------


def kill_log(rows: int) -> Log:
    return Log(
        {
            (APP_MESSAGES, 0): [(f"r{i}", float(i), f"t{i % 7}", None) for i in range(rows)],
            (OUTCOMES, 0): [(f"r{i}", "yes" if i % 3 else "no") for i in range(rows)],
        }
    )


def ingest_all(url: str, rows: int, done: Any) -> None:
    """What the killed process does: read on from the store's own offsets."""
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


def test_kills_neither_lose_nor_double(url: str, processes: Any) -> None:
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


def test_a_snapshot_is_of_one_moment(url: str) -> None:
    """While rows arrive, rows and offsets of each snapshot belong together."""
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


# --- faults -------------------------------------------------------------------------------


@contextmanager
def holding_the_lock(url: str) -> Iterator[None]:
    """Another writer that does not come to an end."""
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            if url.startswith("sqlite"):
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield
                connection.exec_driver_sql("ROLLBACK")
            else:
                connection.exec_driver_sql("BEGIN; LOCK TABLE messages_offsets")
                yield
                connection.exec_driver_sql("ROLLBACK")
    finally:
        engine.dispose()


def test_a_locked_store_says_so_and_works_again(url: str) -> None:
    with MessageStore(url, FEATURES, timeout=0.2) as store:
        batch = Batch([message("a", 0, 0, "no", 1.0, "new")], offsets={(APP_MESSAGES, 0): 1})
        with holding_the_lock(url):
            for _ in range(2):
                with pytest.raises(StoreError, match="lock") as failure:
                    store.ingest(batch)
                one_line(failure.value)
        assert store.offsets() == {}
        store.ingest(batch)
        assert contents(store.snapshot())["rows"] == [("a", 1.0, "new", "no")]


def test_a_lost_connection_is_made_again(postgres: str) -> None:
    with MessageStore(own_schema(postgres), FEATURES) as store:
        store.ingest(Batch([message("a", 0, 0, "no")]))
        execute(
            postgres,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        with pytest.raises(StoreError) as failure:
            store.snapshot()
        one_line(failure.value)
        assert len(store.snapshot().request_ids) == 1


def test_an_unreachable_server_is_one_line_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match=r"me:\*\*\*@127") as failure:
        MessageStore(DEAD, FEATURES)
    assert "refused" in one_line(failure.value)


@pytest.mark.parametrize(
    "url", ["mysql://me:secret@h/d", "nonsense:secret", "sqlite+pysqlcipher://"]
)
def test_another_kind_of_url_is_one_line(url: str) -> None:
    with pytest.raises(StoreError) as failure:
        MessageStore(url, FEATURES)
    one_line(failure.value)


def filled(path: Path, rows: int = 3000) -> None:
    with MessageStore(f"sqlite:///{path}", FEATURES) as store:
        messages = [message(f"r{i}", 0, i, "no", float(i), f"t{i % 9}") for i in range(rows)]
        store.ingest(Batch(messages, offsets={(APP_MESSAGES, 0): rows}))


def overwrite(path: Path, first: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(first)
        file.write(random.Random(1).randbytes(length))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "not SQLite": lambda path: overwrite(path, 0, 4096),
    "pages of noise": lambda path: overwrite(path, 3 * 4096, 40 * 4096),
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "some text": lambda path: (path.write_text("hello, world\n" * 1000), None)[1],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_put_aside_and_made_anew(path: Path, damage: str) -> None:
    filled(path)
    DAMAGES[damage](path)
    lines: list[str] = []
    with MessageStore(f"sqlite:///{path}", FEATURES, report=lines.append) as store:
        assert store.offsets() == {}
        store.ingest(Batch([message("a", 0, 0, "no")]))
        assert store.snapshot().request_ids.tolist() == ["a"]
    assert len(lines) == 1 and "damaged" in lines[0] and "messages.db.damaged-1" in lines[0]
    assert (path.parent / "messages.db.damaged-1").exists()


def test_damage_under_a_running_trainer_is_mended(path: Path) -> None:
    filled(path)
    lines: list[str] = []
    rows = [message(f"r{i}", 0, i, "yes", 0.0, "t1") for i in range(3000)]
    with MessageStore(f"sqlite:///{path}", FEATURES, report=lines.append) as store:
        with MessageStore(f"sqlite:///{path}", FEATURES) as other:  # or the cache would do
            other.ingest(Batch([message("a", 1, 0, "no")]))
        overwrite(path, 4096, path.stat().st_size - 4096)
        with pytest.raises(StoreReplaced) as failure:
            store.ingest(Batch(rows, offsets={(APP_MESSAGES, 0): 3000}))
            store.ingest(Batch(outcomes=[(m.request_id, "no", 0, 0, 1) for m in rows]))
            store.snapshot()
        assert lines == [one_line(failure.value)]
        assert store.offsets() == {}
        store.ingest(Batch(rows, offsets={(APP_MESSAGES, 0): 3000}))
        assert len(store.snapshot().request_ids) == 3000
        assert set(store.snapshot().frame["job"]) == {"t1"}


def test_a_reader_leaves_a_damaged_file_alone(path: Path) -> None:
    filled(path)
    DAMAGES["not SQLite"](path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="damaged") as failure:
        MessageStore.open(f"sqlite:///{path}", FEATURES)
    one_line(failure.value)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.damaged*"))


def test_a_store_taken_away_is_made_anew(path: Path) -> None:
    filled(path)
    with MessageStore(f"sqlite:///{path}", FEATURES, report=lambda line: None) as store:
        with closing(sqlite3.connect(path)) as other:
            other.executescript("DROP TABLE messages; DROP TABLE messages_offsets;")
        with pytest.raises(StoreError) as failure:
            store.snapshot()
        one_line(failure.value)
        filled(path, rows=5)
        assert len(store.snapshot().request_ids) == 5


def test_a_full_disk_says_so_and_works_again(path: Path) -> None:
    rows = [message(f"r{i}", 0, i, "no", float(i), f"text {i}") for i in range(20_000)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MessageStore(f"sqlite:///{path}", FEATURES) as store:
        store.ingest(Batch(rows[:10], offsets={(APP_MESSAGES, 0): 10}))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
            for _ in range(2):
                with pytest.raises(StoreError, match="disk is full") as failure:
                    store.ingest(Batch(rows, offsets={(APP_MESSAGES, 0): 20_000}))
                one_line(failure.value)
            assert store.offsets() == {(APP_MESSAGES, 0): 10}
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        store.ingest(Batch(rows, offsets={(APP_MESSAGES, 0): 20_000}))
        assert len(store.snapshot().request_ids) == 20_000


def test_a_full_file_system_says_so_and_works_again(tmp_path: Path) -> None:
    rows = [message(f"r{i}", 0, i, "no", float(i), f"text {i}") for i in range(20_000)]
    with file_system(tmp_path, "1m") as there:
        if not there:
            pytest.skip("a file system of one's own needs root")
        with MessageStore(f"sqlite:///{tmp_path}/messages.db", FEATURES) as store:
            with pytest.raises(StoreError, match="disk is full"):
                store.ingest(Batch(rows))
            subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
            store.ingest(Batch(rows))
            assert len(store.snapshot().request_ids) == 20_000


def test_a_read_only_file_says_so(path: Path) -> None:
    filled(path)
    with MessageStore(f"sqlite:///file:{path}?mode=ro&uri=true", FEATURES) as store:
        with pytest.raises(StoreError, match="read-only") as failure:
            store.ingest(Batch([message("a", 1, 0, "no")]))
        one_line(failure.value)
    with MessageStore.open(f"sqlite:///file:{path}?mode=ro&uri=true", FEATURES) as store:
        assert len(store.snapshot().request_ids) == 3000


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as failure:
        MessageStore(f"sqlite:///{tmp_path}/file/messages.db", FEATURES)
    one_line(failure.value)


@pytest.mark.parametrize(
    "changes", [{"numerical": ["age", "hours"]}, {"classes": ["no", "yes", "maybe"]}]
)
def test_other_columns_have_it_read_again(url: str, changes: dict[str, Any]) -> None:
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


def test_a_topic_made_again_has_it_read_again(url: str) -> None:
    def batch(topic_id: str, offset: int) -> Batch:
        rows = [message(f"{topic_id}-{offset}", 0, offset, "no")]
        return Batch(rows, [], [], {(APP_MESSAGES, 0): offset + 1}, {APP_MESSAGES: topic_id})

    lines: list[str] = []
    with MessageStore(url, FEATURES, report=lines.append) as store:
        store.ingest(replace(batch("first", 0), topic_ids={}))  # of a broker without ids
        store.ingest(batch("first", 1))
        store.ingest(replace(batch("first", 2), topic_ids={}))
        assert store.snapshot().topic_ids == {APP_MESSAGES: "first"}
        assert store.offsets() == {(APP_MESSAGES, 0): 3}
        with pytest.raises(StoreReplaced, match="app_messages was deleted and made again"):
            store.ingest(batch("second", 5))
        assert len(lines) == 1 and store.offsets() == {}
        store.ingest(batch("second", 0))
        assert store.snapshot().request_ids.tolist() == ["second-0"]
        assert store.topic_ids() == {APP_MESSAGES: "second"}


def test_a_table_of_someone_else_is_not_touched(url: str) -> None:
    if url.startswith("sqlite"):
        Path(sa.make_url(url).database or "").parent.mkdir()
    execute(url, "CREATE TABLE messages (precious INTEGER)")
    with pytest.raises(StoreError, match="not the pipeline's") as failure:
        MessageStore(url, FEATURES)
    one_line(failure.value)
    execute(url, "SELECT precious FROM messages")


def test_a_reader_of_nothing_is_one_line(url: str) -> None:
    with pytest.raises(StoreError, match="not made it yet") as failure:
        MessageStore.open(url, FEATURES)
    one_line(failure.value)


# --- live quality -------------------------------------------------------------------------


def judged_batch(rows: int) -> Batch:
    """Predictions of models 1 and 2 by turns, newest last; each tenth without outcome."""
    draws = np.random.default_rng(1).random((rows, 2))
    batch = Batch()
    for place, (probability, chance) in enumerate(draws.tolist()):
        outcome = "yes" if chance < probability else "no"
        batch.messages.append(message(f"r{place}", 0, place, None if place % 10 == 0 else outcome))
        model = 1 + place % 2
        batch.predictions.append((f"r{place}", model, probability, 0, place, 1000 * place))
    batch.offsets = {(APP_MESSAGES, 0): rows, (PREDICTIONS, 0): rows}
    return batch


def test_live_quality_is_of_the_predictions_really_made(url: str) -> None:
    rows = 400
    batch = judged_batch(rows)
    with MessageStore(url, FEATURES) as store:
        store.ingest(batch)
        first, second = store.quality_rows()
        assert (first.model_id, second.model_id) == (1, 2)
        np.testing.assert_array_equal(store.judged(2).probabilities, second.probabilities)
    mine = [place for place in range(0, rows, 2) if place % 10]
    assert first.probabilities.tolist() == [batch.predictions[place][2] for place in mine]
    assert first.outcomes.tolist() == [batch.messages[place].outcome for place in mine]
    assert first.missing_since.tolist() == [1000 * place for place in range(0, rows, 10)]
    found = quality.measure_quality(first, FEATURES, last=50, now=rows * 1000.0)
    codes = FEATURES.encode_target(first.outcomes)
    assert found.overall == evaluate.metrics(first.probabilities, codes)
    assert found.last == evaluate.metrics(first.probabilities[-50:], codes[-50:])
    assert (found.known, found.missing, found.oldest) == (160, 40, 400.0)
    nothing_missing = quality.measure_quality(second, FEATURES, last=50, now=0.0)
    assert (nothing_missing.missing, nothing_missing.oldest, nothing_missing.median) == (
        0,
        None,
        None,
    )
