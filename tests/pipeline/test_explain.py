"""`why`, `replay` and `rebuild`, on a log that a real predictor has answered."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka.admin import ConfigResource

from ops import __main__ as ops_command
from tests.harness import Pipeline, delete_topics_and_groups
from tests.unit.utils.message_store.samples import FEATURES
from train import evaluate, fit, retrain
from train.training_rows import (
    Problem,
    fit_preprocessor,
    gather_rows,
    offsets_by_topic,
    training_matrix,
)
from utils import kafka_io, messages, preprocess_data
from utils.broker import Broker
from utils.kafka_io import TopicPartition
from utils.kafka_io.clients import open_admin
from utils.message_store import MessageStore, Snapshot
from utils.message_store.ingest import Ingest
from utils.metrics import BothMetrics, Comparison
from utils.model_store import ModelStore
from utils.model_store.bundle import Draft
from utils.model_store.manifest import MemoryRecord, TrainingRecord

PARAMETERS = {"num_leaves": 7, "learning_rate": 0.1, "num_boost_round": 8}
CONFIG = """
[data]
train = "train.csv"
target = "kind"
{positive}
cross = [["colour", "shape"]]
[training]
retrain_every = 1000
"""

Command = Callable[..., tuple[int, str, str]]


def make_rows(rows: int, classes: int, seed: int) -> list[dict[str, Any]]:
    """Random rows whose class mostly follows from their values."""
    random = np.random.default_rng(seed)
    made = []
    for size, age, colour, shape in zip(
        random.normal(size=rows),
        random.integers(1, 90, size=rows),
        random.choice(["red", "green", "blue"], size=rows),
        random.choice(["round", "square"], size=rows),
        strict=True,
    ):
        score = size + (colour == "red") + (shape == "round") + random.normal() / 3
        kind = int(np.digitize(score, np.linspace(0, 2, classes + 1)[1:-1]))
        row = {"size": float(size), "age": int(age), "colour": str(colour), "shape": str(shape)}
        made.append({**row, "kind": f"class {kind}"})
    return made


def remove_outcome(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "kind"}


def prepare(home: Path, bootstrap: str, classes: int, **environment: str) -> Pipeline:
    """Make a home with a small data set, and create the topics."""
    (home / "data").mkdir(parents=True)
    config = home / "pipeline.toml"
    config.write_text(CONFIG.format(positive='positive = "class 1"' if classes == 2 else ""))
    rows = make_rows(400, classes, seed=1)
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (home / "data" / "train.csv").write_text("\n".join(lines) + "\n")
    pipeline = Pipeline(home, bootstrap, PIPELINE_CONFIG=str(config), **environment)
    kafka_io.ensure_topics(pipeline.settings.kafka, messages.GROUPS)
    return pipeline


def publish(pipeline: Pipeline, snapshot: Snapshot | None, parent_id: int | None) -> int:
    """Train and publish a model with fixed parameters instead of a search."""
    settings = pipeline.settings
    problem = Problem.of(settings, None)
    rows = gather_rows(problem, snapshot)
    features = fit_preprocessor(rows, problem)
    matrix, codes = training_matrix(rows, features)
    parameters = dict(PARAMETERS)
    rounds = int(parameters.pop("num_boost_round"))
    booster = fit.fit(matrix, codes, features, parameters, rounds, threads=1, seed=1)
    golden = rows.frame[list(features.columns)].head(3)
    figures = evaluate.metrics(fit.predict(booster, matrix, 1), codes)
    return ModelStore(settings.models_dir).publish(
        Draft(
            parent_id=parent_id,
            model_text=fit.model_text(booster),
            features=features,
            hyperparameters=PARAMETERS,
            seed=1,
            training=TrainingRecord(
                rows=len(codes),
                base_data=settings.data.train,
                base_data_sha256=rows.base_sha256,
                offsets=offsets_by_topic(rows.offsets),
                memory=MemoryRecord(policy="everything"),
            ),
            metrics=BothMetrics(figures, figures if parent_id else None),
            gate=Comparison(mean_difference=-0.0125, worse=False) if parent_id else None,
            golden_rows=list(preprocess_data.records(golden, rows.types)),
        )
    )


def read_log(pipeline: Pipeline) -> Snapshot:
    """Read the log into the message store, as a trainer does; a snapshot of the store."""
    settings = pipeline.settings
    features = ModelStore(settings.models_dir).load_current().features
    with (
        MessageStore(settings.messages_url, features) as store,
        Ingest(settings.kafka, store, features) as ingest,
    ):
        ingest.mark_end()
        while not ingest.has_read([]):
            ingest.step()
        while ingest.step():
            pass
        return store.snapshot()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="module")
def used_home(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A home with two models, and a log that a predictor answered with both.

    Partition 0 has p-0 to p-19, a rejected message and `twice` two times, then, for model 2,
    q-0 to q-9. Partition 1 has a-0 to a-4.
    """
    home = tmp_path_factory.mktemp("used") / "home"
    delete_topics_and_groups(broker.bootstrap)  # of an earlier test of this module
    pipeline = prepare(home, broker.bootstrap, classes=2, PARTITIONS="4")
    try:
        _fill_log(pipeline)
        yield pipeline
    finally:
        pipeline.close()


def _fill_log(pipeline: Pipeline) -> None:
    assert publish(pipeline, None, None) == 1
    predictor = pipeline.start("predictor.py")
    rows = make_rows(60, 2, seed=2)
    pipeline.send_rows(rows[:10], "p")
    pipeline.send([(messages.APP_MESSAGES, b"bad", {"request_id": "bad", "data": {"size": "x"}})])
    for row in (rows[10], remove_outcome(rows[11])):
        pipeline.send([(messages.APP_MESSAGES, b"twice", {"request_id": "twice", "data": row})])
    late = [(f"p-{number}", rows[number]) for number in range(10, 20)]
    pipeline.send(
        (messages.APP_MESSAGES, name.encode(), {"request_id": name, "data": remove_outcome(row)})
        for name, row in late
    )
    pipeline.send(
        (messages.OUTCOMES, name.encode(), {"request_id": name, "outcome": row["kind"]})
        for name, row in late
    )
    names = [f"a-{number}" for number in range(5)]
    pipeline.send(
        [
            (messages.APP_MESSAGES, name.encode(), {"request_id": name, "data": {"size": None}})
            for name in names
        ],
        partition=1,
    )
    pipeline.wait_for(messages.PREDICTIONS, 27)
    assert publish(pipeline, read_log(pipeline), parent_id=1) == 2
    swap = messages.Rollback(model_id=2, from_model_id=1, reason="look at current.json")
    kafka_io.announce(pipeline.settings, swap)
    pipeline.wait_for_events("model_loaded", 1)
    pipeline.send_rows(rows[20:30], "q")
    pipeline.wait_for(messages.PREDICTIONS, 37)
    assert predictor.end() == 0


@pytest.fixture
def command(
    used_home: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs the command in this process: status, stdout, stderr."""

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        for name, value in {**used_home.env, **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["ops", *arguments])
        capsys.readouterr()
        status = ops_command.main()
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == (1 if status else 0), err
        return status, out, err

    return run


@pytest.fixture
def copied_home(used_home: Pipeline, tmp_path: Path) -> Path:
    """A copy of the home that a test may damage."""
    return Path(shutil.copytree(used_home.home, tmp_path / "copy"))


def run_command(pipeline: Pipeline, *arguments: str) -> subprocess.CompletedProcess[str]:
    return pipeline.run("-m", "ops", *arguments)


# why


def test_why_shows_message_outcome_model_and_contributions(
    used_home: Pipeline, command: Command
) -> None:
    shown = run_command(used_home, "why", "p-12")
    assert shown.returncode == 0, shown.stderr
    for words in ("message store", "colour x shape", "predictions-0 offset", "the same bits"):
        assert words in shown.stdout, shown.stdout

    status, out, _ = command("why", "p-12", "--json")
    report = json.loads(out)
    row = make_rows(60, 2, seed=2)[12]
    assert status == 0
    assert report["message"]["values"] == remove_outcome(row)
    assert report["message"]["partition"] == 0
    assert report["outcome"]["outcome"] == row["kind"]
    assert report["outcome"]["offset"] == 2  # on `outcomes`
    made = next(p for p in used_home.values(messages.PREDICTIONS) if p["request_id"] == "p-12")
    assert {name: report["answer"][name] for name in made if name != "request_id"} == {
        name: value for name, value in made.items() if name != "request_id"
    }
    model = report["model"]
    assert (model["model_id"], model["pruned"], model["parent_id"]) == (1, False, None)
    parts = report["contributions"]
    assert {part["name"] for part in parts["features"]} == {
        *("size", "age", "colour", "shape", "colour x shape")
    }
    sizes = [abs(part["contribution"]) for part in parts["features"]]
    assert sizes == sorted(sizes, reverse=True)
    total = parts["base_value"] + sum(part["contribution"] for part in parts["features"])
    assert 1 / (1 + np.exp(-total)) == pytest.approx(made["probability"], abs=1e-9)
    assert parts["adds_up"] and parts["of"] == "class 1"
    crossed = next(part for part in parts["features"] if part["name"] == "colour x shape")
    assert crossed["value"] == f"{row['colour']} x {row['shape']}"
    assert report["recomputed"] == {"probability": made["probability"], "same_bits": True}


def test_why_falls_back_to_the_log(command: Command) -> None:
    assert "app_messages-0 up to 23" in command("why", "q-3")[1]
    status, out, _ = command("why", "q-3", "--json")
    report = json.loads(out)
    assert (status, report["source"]) == (0, "the log")
    assert report["model"]["model_id"] == 2
    assert report["model"]["parent_id"] == 1
    assert report["model"]["offsets"]["app_messages"]["0"] == 23
    assert report["model"]["gate"]["mean_difference"] == -0.0125
    assert report["outcome"] == {
        "outcome": make_rows(60, 2, seed=2)[23]["kind"],
        **dict.fromkeys(("partition", "offset", "timestamp")),
    }
    assert report["recomputed"]["same_bits"] and report["contributions"]["adds_up"]


def test_why_shows_missing_values(command: Command) -> None:
    report = json.loads(command("why", "a-1", "--json")[1])
    assert set(report["message"]["values"].values()) == {None}
    assert report["recomputed"]["same_bits"] and report["outcome"] is None


def test_why_shows_the_newer_of_two_messages(command: Command) -> None:
    rows = make_rows(60, 2, seed=2)
    for arguments in (["--log"], []):
        report = json.loads(command("why", "twice", "--json", *arguments)[1])
        assert report["message"]["values"] == remove_outcome(rows[11])
        assert report["recomputed"]["same_bits"]
    report = json.loads(command("why", "twice", "--json", "--log")[1])
    assert (report["sent"], len(report["predictions"])) == (2, 2)
    assert report["answer"] == report["predictions"][1]
    assert "sent 2 times" in command("why", "twice", "--log")[1]


def test_outcome_is_corrected_by_timestamp_on_any_partition(
    used_home: Pipeline, command: Command, copied_home: Path
) -> None:
    """In the log and in the store alike, and whatever makes no sense."""
    used_home.accept_any_timestamp(messages.OUTCOMES)
    now = round(time.time() * 1000)
    steps = [(1, now, 0), (0, now + 1, 1), (1, now * 1000, 0), (1, now // 1000, 0)]
    for partition, timestamp, kind in steps:
        outcome = {"request_id": "a-4", "outcome": f"class {kind}"}
        used_home.send([(messages.OUTCOMES, b"a-4", outcome)], partition, timestamp)
    read_log(Pipeline(copied_home, **{**used_home.env, "PIPELINE_HOME": str(copied_home)}))
    home = {"PIPELINE_HOME": str(copied_home)}
    for arguments in (["--log"], []):
        report = json.loads(command("why", "a-4", "--json", *arguments, **home)[1])
        found = report["outcome"]
        assert (found["outcome"], found["partition"]) == ("class 1", 0)
        assert found["timestamp"] == now + 1
        assert report["source"].startswith("the log" if arguments else "the message store")
    assert "the latest of 4 records on outcomes" in command("why", "a-4", "--log")[1]
    shown = " ".join(command("report", **home)[1].split())
    assert "replaced by a later one: 1 messages, 3 outcomes; 2 records without" in shown, shown[
        shown.index("replaced by") :
    ][:150]


def test_why_explains_requests_without_a_prediction(command: Command) -> None:
    status, out, _ = command("why", "bad")
    assert status == 0
    assert "rejected: size: 'x' is no number" in out
    status, out, err = command("why", "nobody")
    assert (status, out) == (1, "")
    assert "no request 'nobody'" in err


def test_why_works_from_the_store_without_a_broker(command: Command) -> None:
    nowhere = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    assert command("why", "p-3", **nowhere)[0] == 0  # the store has it
    status, _, err = command("why", "q-3", **nowhere)
    assert status == 1
    assert "no Kafka broker answers" in err


def test_commands_say_when_a_model_was_pruned(command: Command, copied_home: Path) -> None:
    shutil.rmtree(copied_home / "models" / "1")
    home = {"PIPELINE_HOME": str(copied_home)}
    status, out, _ = command("why", "p-3", **home)
    assert status == 0
    assert "PRUNED" in out and "base value" not in out
    assert json.loads(command("why", "p-3", "--json", **home)[1])["model"]["rows"] > 250
    assert (
        json.loads(command("why", "p-3", "--json", **home)[1])["message"]["values"]
        == make_rows(60, 2, seed=2)[3]
    )
    status, out, _ = command("replay", **home)
    assert status == 0
    assert "10 predictions reproduced bit for bit: 10 by model 2" in out
    assert "27 cannot be replayed: model 1 was pruned" in out
    status, _, err = command("rebuild", "1", **home)
    assert (status, "model 1 was pruned; there is 2" in err) == (1, True)
    status, _, err = command("rebuild", "7", **home)
    assert (status, "model 7 never existed; there is 2" in err) == (1, True)


def test_contributions_explain_the_predicted_class_of_several(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The softmax of the sums of all classes gives the probability."""
    from ops import explain

    pipeline = prepare(tmp_path / "home", broker.bootstrap, classes=3)
    publish(pipeline, None, None)
    bundle = ModelStore(pipeline.settings.models_dir).load_current()
    for row in make_rows(20, 3, seed=5):
        sent = json.dumps({"request_id": "a", "data": remove_outcome(row)}).encode()
        decoded = bundle.decoder(sent).data
        recorded = bundle.score(bundle.features.transform_rows([decoded]))[0].tolist()
        found = explain.Explanation(request_id="a", source="", message=explain.Message(0, 0, 0))
        explain._read_message(found, sent, bundle)
        assert found.message is not None and found.message.values is not None
        parts, recomputed = explain._contributions(bundle, decoded, found.message.values, recorded)
        assert recomputed.same_bits
        assert parts.adds_up
        assert parts.of == bundle.features.classes[int(np.argmax(recorded))]
        assert parts.probability == pytest.approx(max(recorded), abs=1e-9)


# rebuild


def test_rebuild_gives_the_same_bytes(used_home: Pipeline, command: Command) -> None:
    done = run_command(used_home, "rebuild", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "are the same" in done.stdout
    assert command("rebuild", "1")[0] == 0  # trained on the data set alone


def test_rebuild_reproduces_a_real_training(
    used_home: Pipeline, command: Command, copied_home: Path
) -> None:
    settings = used_home.settings.model_copy(update={"home": copied_home})
    features = ModelStore(settings.models_dir).load_current().features
    with MessageStore.open(settings.messages_url, features) as store:
        snapshot = store.snapshot()
    result = retrain.train(settings, snapshot=snapshot, hyper="hyperopt", evals=1)
    assert (result.model_id, result.parent_id) == (3, 2)
    status, out, _ = command("rebuild", "3", PIPELINE_HOME=str(copied_home))
    assert status == 0
    assert "are the same" in out


def test_rebuild_names_what_differs(command: Command, copied_home: Path) -> None:
    config = copied_home / "other.toml"
    config.write_text(
        (copied_home / "pipeline.toml").read_text().replace("cross =", "cross = [] #")
    )
    home = {"PIPELINE_HOME": str(copied_home), "PIPELINE_CONFIG": str(config)}
    status, _, err = command("rebuild", "2", **home)
    assert status == 1
    assert "DIFFERENT: features.json, line" in err and "model.txt, line" in err

    with (copied_home / "data" / "train.csv").open("a") as file:
        file.write("1,1,red,round,class 1\n")
    status, _, err = command("rebuild", "2", PIPELINE_HOME=str(copied_home))
    assert status == 1
    assert "train.csv has changed since" in err


# replay


def test_replay_reproduces_every_bit(used_home: Pipeline, command: Command) -> None:
    done = run_command(used_home, "replay")
    assert (done.returncode, done.stderr) == (0, "")
    assert "37 predictions reproduced bit for bit: 27 by model 1, 10 by model 2" in done.stdout
    assert "1 messages were rejected" in done.stdout
    _, out, _ = command("replay", "--from", "5", "--to", "24", "--partition", "0")
    assert "19 predictions reproduced bit for bit: 17 by model 1, 2 by model 2" in out
    status, _, err = command("replay", "--partition", "9")
    assert (status, "no partition 9" in err) == (1, True)
    status, _, err = command("replay", "--from", str(2**70))
    assert (status, "app_messages ends before offset" in err) == (1, True)


def test_replay_finds_the_first_bit_that_differs(used_home: Pipeline, command: Command) -> None:
    """Partition 2, which no predictor reads, gets correct predictions but for one bit."""
    bundle = ModelStore(used_home.settings.models_dir).load(2)
    rows = [remove_outcome(row) for row in make_rows(60, 2, seed=2)[30:34]]
    decoded = [bundle.features.row_type(*row.values()) for row in rows]
    probabilities = bundle.score(bundle.features.transform_rows(decoded)).tolist()
    probabilities[2] = float(np.nextafter(probabilities[2], 1))
    records: list[tuple[str, bytes, Any]] = []
    for number, (row, probability) in enumerate(zip(rows, probabilities, strict=True)):
        name, code = f"z-{number}", int(probability > 0.5)
        message = {"request_id": name, "data": row}
        answer = {"request_id": name, "prediction": code, "label": f"class {code}"}
        answer |= {"probability": probability, "model_id": 2}
        records.append((messages.APP_MESSAGES, name.encode(), message))
        records.append((messages.PREDICTIONS, name.encode(), answer))
    used_home.send(records, partition=2)
    assert command("replay", "--partition", "2", "--to", "1")[0] == 0
    status, _, err = command("replay")
    assert status == 1
    assert "DIFFERENT: app_messages-2, offset 2, 'z-2'" in err
    assert repr(probabilities[2]) in err
    assert command("replay", "--partition", "0")[0] == 0
    assert json.loads(command("why", "z-2", "--json")[1])["recomputed"]["same_bits"] is False


def test_replay_finds_what_is_missing_or_doubled(used_home: Pipeline, command: Command) -> None:
    sent = [(messages.APP_MESSAGES, None, {"request_id": n, "data": {"age": 3}}) for n in "xy"]
    used_home.send(sent, partition=3)
    status, out, _ = command("replay", "--partition", "3")
    assert status == 0
    assert "2 messages at the end have no prediction yet" in out
    bundle = ModelStore(used_home.settings.models_dir).load(2)
    row = bundle.decoder(json.dumps(sent[0][2]).encode()).data
    probability = float(bundle.score(bundle.features.transform_rows([row]))[0])
    code = int(probability > 0.5)

    def answer(name: str) -> tuple[str, bytes, Any]:
        content = {"prediction": code, "label": f"class {code}", "probability": probability}
        return messages.PREDICTIONS, name.encode(), {"request_id": name, **content, "model_id": 2}

    used_home.send([answer("x"), answer("x")], partition=3)
    status, _, err = command("replay", "--partition", "3")
    assert status == 1
    assert "offset 1: the message is 'y'" in err and "a prediction is duplicated" in err
    used_home.send([(messages.APP_MESSAGES, None, sent[0][2])], partition=3)
    status, _, err = command("replay", "--partition", "3")
    assert (status, "is duplicated" in err) == (1, True)


# The test that deletes records comes last: they cannot be restored.


def test_replay_and_rebuild_name_expired_records(
    used_home: Pipeline, command: Command, copied_home: Path
) -> None:
    delete_records(used_home, messages.APP_MESSAGES, 6)
    status, out, _ = command("replay", "--partition", "0")
    assert status == 0
    assert "26 predictions reproduced" in out
    assert "6 cannot be replayed: its message is gone" in out
    cause = "the records of app_messages-0 before offset 6 have expired"
    assert f"its message is gone: {cause}" in command("why", "p-3", "--log")[1]
    assert cause in command("why", "nobody")[2]
    home = {"PIPELINE_HOME": str(copied_home)}
    url = used_home.settings.model_copy(update={"home": copied_home}).messages_url
    MessageStore(url, FEATURES).close()  # drops the rows, but not the copy of the records
    for environment in ({}, home):
        status, out, _ = command("rebuild", "2", **environment)
        assert (status, "are the same" in out) == (0, True)
    (copied_home / "messages" / "messages.db").unlink()
    status, _, err = command("rebuild", "2", **home)
    assert status == 1
    assert "records of app_messages-0 before offset 6 have expired" in err
    assert "has not made it yet" in err


def test_replay_and_why_name_missing_predictions(used_home: Pipeline, command: Command) -> None:
    """Runs after the test above, which has deleted the first six messages of partition 0."""
    (first,) = [
        record.offset
        for record in used_home.records(messages.PREDICTIONS)
        if json.loads(record.value)["request_id"] == "p-10"
    ]
    delete_records(used_home, messages.PREDICTIONS, first)
    row = remove_outcome(make_rows(60, 2, seed=3)[0])
    used_home.send([(messages.APP_MESSAGES, b"q-9", {"request_id": "q-9", "data": row})])
    status, out, _ = command("replay", "--partition", "0")
    assert status == 0
    assert out.splitlines() == [
        "20 predictions reproduced bit for bit: 10 by model 1, 10 by model 2",
        "1 messages were rejected and have no prediction",
        "1 messages at the end have no prediction yet",
        "6 cannot be replayed: its prediction is gone (compacted, expired or deleted)",
    ]
    cause = f"its prediction is gone: the records of predictions-0 before offset {first}"
    assert cause in command("why", "twice", "--log")[1]
    out = command("why", "q-9", "--log")[1]  # its older message has a prediction
    assert "none of them answers the latest message" in out and "gone" not in out

    answer = next(v for v in used_home.values(messages.PREDICTIONS) if v["request_id"] == "a-0")
    used_home.send([(messages.PREDICTIONS, b"a-0", answer)], partition=1)
    status, _, err = command("replay", "--partition", "1")
    assert (status, "DIFFERENT" in err) == (1, True)
    admin = open_admin(used_home.settings.kafka)
    policy = {"cleanup.policy": "compact"}
    admin.alter_configs([ConfigResource("topic", messages.APP_MESSAGES, policy)])
    admin.close()
    status, out, _ = command("replay", "--partition", "1")
    assert status == 0
    assert "5 predictions" in out and "1 cannot be replayed: its message is gone" in out


def delete_records(pipeline: Pipeline, topic: str, before: int) -> None:
    """Delete the records of partition 0 before an offset, as their expiry would."""
    admin = open_admin(pipeline.settings.kafka)
    admin.delete_records({TopicPartition(topic, 0): before})
    admin.close()
