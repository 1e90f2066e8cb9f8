"""pipeline.toml and the data change under a running pipeline; other data than Adult."""

import csv
import io
import json
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, TopicPartition

from tests.harness import Pipeline, Script, until
from utils.broker import Broker
from utils.message_store import MessageStore
from utils.messages import APP_MESSAGES, DEAD_LETTERS, OUTCOMES, PREDICTIONS, RETRAIN_TOPIC
from utils.model_store import ModelStore

Row = dict[str, Any]

CONFIG = """
[data]
train = "plants.csv"
target = "{target}"
drop = {drop}
"""
COLUMNS = ("height", "soil", "planted", "extra", "kind", "healthy")


def make_rows(count: int, kinds: int, seed: int) -> list[Row]:
    """Rows with numbers, categories and dates, and two columns that may be the target."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        kind = int(random.integers(kinds))
        row: Row = {
            "height": round(float(random.normal(kind, 0.4)), 3),
            "soil": str(random.choice(["clay", "sand", "Löss"])),
            "planted": f"2023-0{1 + kind}-1{random.integers(10)}T0{random.integers(10)}:30:00Z",
            "extra": round(float(random.normal(-kind, 0.2)), 3),
            "kind": f"kind {kind}",
            "healthy": ["no", "yes"][int(random.random() < 0.2 + 0.3 * kind)],
        }
        rows.append(row)
    return rows


def write_data(pipeline: Pipeline, rows: list[Row], columns: tuple[str, ...] = COLUMNS) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    (pipeline.home / "data").mkdir(parents=True, exist_ok=True)
    (pipeline.home / "data" / "plants.csv").write_text(text.getvalue())


def write_config(pipeline: Pipeline, target: str = "kind", drop: tuple[str, ...] = ()) -> None:
    config = CONFIG.format(target=target, drop=json.dumps(drop))
    (pipeline.home / "pipeline.toml").write_text(config)


def initialize(pipeline: Pipeline, *arguments: str) -> str:
    done = pipeline.run("initialize.py", "--evals", "1", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def without(rows: list[Row], *columns: str) -> list[Row]:
    return [{name: row[name] for name in row if name not in columns} for row in rows]


@pytest.fixture
def plants(empty_broker: Broker, tmp_path: Any) -> Any:
    """A home that learns `kind` (two of them) without `extra` and `healthy`."""
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "pipeline.toml"
    path.write_text(CONFIG.format(target="kind", drop="[]"))
    pipeline = Pipeline(
        tmp_path / "home",
        empty_broker.bootstrap,
        PIPELINE_CONFIG=str(path),
        RETRAIN_EVERY="20",
        EXTRA_MODELS_TO_KEEP="9",
    )
    write_data(pipeline, make_rows(400, 2, seed=1), ("height", "soil", "planted", "kind"))
    yield pipeline
    pipeline.close()


@pytest.mark.timeout(240)
def test_running_pipeline_moves_to_other_columns_classes_and_targets(plants: Pipeline) -> None:
    said = initialize(plants)
    assert "plants.held-out.csv, which sample_app.py sends" in said
    predictor, trainer = plants.start("predictor.py"), plants.start("trainer.py", "--evals", "1")
    predictor.says("serves partitions")
    collect_rows(plants, predictor)
    expire_everything(plants)
    move_to_another_column_and_class(plants, predictor, trainer)
    explain_an_old_prediction(plants)
    move_to_another_target(plants, predictor, trainer)
    assert predictor.end() == trainer.end() == 0
    assert "Traceback" not in predictor.text() + trainer.text()
    name_what_has_changed(plants)


def collect_rows(plants: Pipeline, predictor: Script) -> None:
    """Messages hold more than the model knows; five outcomes are of a class it does not know."""
    rows = make_rows(30, 2, seed=2)
    new = [{**row, "kind": "kind 2"} for row in make_rows(30, 3, seed=3) if row["kind"] == "kind 2"]
    plants.send_rows([*rows, *new[:5]], "old")
    plants.wait_for(PREDICTIONS, 35)
    letters = plants.wait_for_records(DEAD_LETTERS, 5)
    assert {letter.key for letter in letters} == {b"old-%d" % n for n in range(30, 35)}
    (first,) = plants.wait_for_events("training_completed", 1)
    assert first["batch_id"] == "app_messages-0-0"
    assert first["values"]["rows"] >= 20 and first["values"]["missing"] == {}
    until(lambda: plants.stored_messages() == 35, 30)


def expire_everything(plants: Pipeline) -> None:
    """From here on the rows are in the message store alone."""
    with closing(
        KafkaAdminClient(bootstrap_servers=plants.env["KAFKA_BOOTSTRAP_SERVERS"])
    ) as admin:
        admin.delete_records(
            {TopicPartition(APP_MESSAGES, 0): 35, TopicPartition(PREDICTIONS, 0): -1}
        )


def move_to_another_column_and_class(plants: Pipeline, predictor: Script, trainer: Script) -> None:
    write_data(plants, make_rows(600, 3, seed=4))
    write_config(plants, drop=("soil", "healthy"))
    newest = max(ModelStore(plants.settings.models_dir).on_disk())
    said = initialize(plants)
    assert "[data] drop has changed from [] to ['soil', 'healthy']" in said
    assert "initialize.py --force" in said
    initialize(plants, "--force")
    predictor.says(f"NEW MODEL RELOADED {newest + 1}")
    trainer.says("reading", timeout=30)
    trainer.says("records were read again")
    bundle = ModelStore(plants.settings.models_dir).load_current()
    assert set(bundle.features.columns) == {"height", "planted", "extra"}
    with MessageStore.open(plants.settings.messages_url, bundle.features) as store:
        snapshot = store.snapshot()
    # All 35 rows, with the column and the class that the model of their time did not know.
    assert len(snapshot.request_ids) == 35
    assert not snapshot.frame["extra"].isna().any()
    assert sorted(set(snapshot.outcomes)) == ["kind 0", "kind 1", "kind 2"]
    plants.send_rows(without(make_rows(20, 3, seed=5), "soil"), "new")
    completed = plants.wait_for_events("training_completed", 3)[-1]
    assert completed["parent_id"] == newest + 1 and completed["gate"] is not None
    trained = ModelStore(plants.settings.models_dir).load(completed["model_id"]).manifest.training
    assert (trained.rows or 0) > (bundle.manifest.training.rows or 0)
    assert plants.run("-m", "ops", "rebuild", str(completed["model_id"])).returncode == 0


def explain_an_old_prediction(plants: Pipeline) -> None:
    done = plants.run("-m", "ops", "why", "old-3", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["answer"]["model_id"] in (1, 2)
    assert set(report["message"]["values"]) == {"height", "soil", "planted"}
    assert report["recomputed"]["same_bits"] and report["contributions"]["adds_up"]
    (planted,) = (each for each in report["message"]["details"] if each["column"] == "planted")
    assert planted["sent"] == planted["read"] and planted["kind"] == "known"
    shown = plants.run("-m", "ops", "report")
    assert shown.returncode == 0, shown.stderr
    assert "leniently read" in shown.stdout


def move_to_another_target(plants: Pipeline, predictor: Script, trainer: Script) -> None:
    """What came on `outcomes` before is about the other target, though it is valid here."""
    plants.send((OUTCOMES, b"x", {"request_id": f"new-{n}", "outcome": "yes"}) for n in range(9))
    plants.wait_for_records(DEAD_LETTERS, 5 + 9)  # none of the kinds
    write_config(plants, target="healthy", drop=("soil", "kind"))
    initialize(plants, "--force")
    newest = ModelStore(plants.settings.models_dir).current_id()
    predictor.says(f"NEW MODEL RELOADED {newest}")
    until(lambda: trainer.text().count("records were read again") == 2, 30)
    shown = plants.run("-m", "ops", "report")
    assert "model 1 is not judged: its" in shown.stdout, shown.stdout + shown.stderr
    features = ModelStore(plants.settings.models_dir).load_current().features
    with MessageStore.open(plants.settings.messages_url, features) as store:
        snapshot, counts = store.snapshot(), store.counts()
    assert counts.messages == len(snapshot.request_ids) == 55  # each says if it was healthy
    truth = [row["healthy"] for row in make_rows(20, 3, seed=5)]
    known = dict(zip(snapshot.request_ids, snapshot.outcomes, strict=True))
    assert [known[f"new-{n}"] for n in range(20)] == truth


def name_what_has_changed(plants: Pipeline) -> None:
    """Each script says in one line what differs from what the serving model was trained by."""
    write_config(plants, target="kind", drop=("soil",))
    with plants.settings.data_dir.joinpath("plants.csv").open() as file:
        lines = file.read().splitlines()
    lines[0] += ",colour"
    text = "\n".join([lines[0], *(f"{line},red" for line in lines[1:])]) + "\n"
    plants.settings.data_dir.joinpath("plants.csv").write_text(text)
    line = "[data] target has changed from 'healthy' to 'kind'; [data] drop has changed"
    gained = "plants.csv has gained the column 'colour'"
    scripts = [plants.start(*command) for command in (["predictor.py"], ["trainer.py"])]
    for script in scripts:
        script.says("serves partitions" if script is scripts[0] else "ready")
        (said,) = (each for each in script.text().splitlines() if "was trained" in each)
        assert line in said and gained in said and "initialize.py --force" in said
    app = plants.run("sample_app.py", "--messages", "3", "--interval", "0")
    assert line in app.stderr
    events = len(plants.records(RETRAIN_TOPIC))
    assert events
    for script in scripts:
        assert script.end() == 0
