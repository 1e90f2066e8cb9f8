"""The whole pipeline on a real broker: its guarantees, and the faults of the original."""

import itertools
import json
import signal
from collections import Counter
from typing import Any

import pytest

from predictor import MAX_REJECTED_LINES
from tests.conftest import MakePipeline
from tests.harness import Pipeline, until
from utils.kafka_io import Content
from utils.messages import APP_MESSAGES, DEAD_LETTERS, OUTCOMES, PREDICTIONS

Row = dict[str, Any]


def check_one_prediction_each(pipeline: Pipeline, request_ids: list[str]) -> None:
    found = [record["request_id"] for record in pipeline.values(PREDICTIONS)]
    assert Counter(found) == Counter(request_ids)


def check_requests(requests: list[Any], every: int, first: int = 0) -> None:
    """There is one request per N outcomes; a partition's ranges have no gap and no overlap."""
    by_partition: dict[tuple[str, int], list[Any]] = {}
    for request in requests:
        by_partition.setdefault((request["topic"], request["partition"]), []).append(request)
    for ranges in by_partition.values():
        assert ranges[0]["first_offset"] == first
        for one, next_one in itertools.pairwise(ranges):
            assert next_one["first_offset"] == one["last_offset"] + 1
        assert {request["count"] for request in ranges} == {every}
    assert len({request["batch_id"] for request in requests}) == len(requests)


def test_every_row_of_adult_test_gets_one_prediction_in_order(
    pipeline: Pipeline, adult: list[Row]
) -> None:
    predictor = pipeline.start("predictor.py")
    ids = pipeline.send_rows(adult)
    assert len(ids) == 16_281
    predictions = pipeline.wait_for(PREDICTIONS, len(ids))
    assert [p["request_id"] for p in predictions] == ids  # including rows with unseen categories
    requests = pipeline.events("retrain")
    assert len(requests) == len(ids) // 25
    check_requests(requests, 25)
    assert predictor.end() == 0
    right = sum(
        p["label"] == row["income_bracket"] for p, row in zip(predictions, adult, strict=True)
    )
    assert right / len(ids) > 0.855  # from a tenth of the training rows
    for prediction in predictions[:100]:
        assert set(prediction) == {"request_id", "prediction", "label", "probability", "model_id"}
        assert prediction["prediction"] == (prediction["probability"] > 0.5)
        assert prediction["label"] == ("<=50K", ">50K")[prediction["prediction"]]
    for record in pipeline.records(PREDICTIONS)[:10]:
        assert record.key == json.loads(record.value)["request_id"].encode()


def test_messages_sent_while_the_predictor_is_down_are_answered_later(
    pipeline: Pipeline, adult: list[Row]
) -> None:
    """The original had no consumer group: such messages were lost."""
    first = pipeline.start("predictor.py")
    ids = pipeline.send_rows(adult[:30], "before")
    pipeline.wait_for(PREDICTIONS, 30)
    first.kill()
    ids += pipeline.send_rows(adult[30:80], "down")
    pipeline.start("predictor.py")
    pipeline.wait_for(PREDICTIONS, 80)
    check_one_prediction_each(pipeline, ids)
    check_requests(pipeline.events("retrain"), 25)
    assert len(pipeline.events("retrain")) == 3  # the count survived the kill


def test_predictions_are_not_read_as_messages(pipeline: Pipeline, adult: list[Row]) -> None:
    """The original sent predictions to the topic that the predictor reads."""
    pipeline.start("predictor.py")
    ids = pipeline.send_rows(adult[:20])
    pipeline.wait_for(PREDICTIONS, 20)
    assert [v["request_id"] for v in pipeline.values(APP_MESSAGES)] == ids


BAD: list[tuple[str, bytes | None]] = [
    ("truncated", b"{"),
    ("utf-8", b'{"request_id": "\xff", "data": {"age": 1}}'),
    ("request_id is missing", b'{"data": {"age": 39}}'),
    ("request_id is empty", b'{"request_id": "", "data": {"age": 39}}'),
    ("request_id [7]", b'{"request_id": [7], "data": {"age": 39}}'),
    ("data is missing", b'{"request_id": "x"}'),
    ("data [] is no object", b'{"request_id": "x", "data": []}'),
    ("age: 'old' is no number", b'{"request_id": "x", "data": {"age": "old"}}'),
    (
        "age: {'years': 39} is nested; workclass: ['a'] is nested",
        b'{"request_id": "x", "data": {"age": {"years": 39}, "workclass": ["a"]}}',
    ),
    ("known columns", b'{"request_id": "x", "data": {}}'),
    ("which has 'colour'", b'{"request_id": "x", "data": {"colour": "red"}}'),
    ("array", b"[" * 50_000),
    ("tombstone", None),
]


def test_bad_records_go_to_dead_letters_unchanged(pipeline: Pipeline, adult: list[Row]) -> None:
    predictor = pipeline.start("predictor.py")
    good = pipeline.send_rows(adult[:5], "before")
    pipeline.send((APP_MESSAGES, b"key", value) for _, value in BAD)
    huge = json.dumps({"request_id": "huge", "data": "x" * 1_000_000}).encode()
    pipeline.send([(APP_MESSAGES, b"k", huge)])
    good += pipeline.send_rows(adult[5:10], "after")
    pipeline.wait_for(PREDICTIONS, 10)
    check_one_prediction_each(pipeline, good)
    letters = pipeline.records(DEAD_LETTERS)
    assert [letter.value for letter in letters] == [value for _, value in BAD] + [huge]
    for offset, (letter, (reason, _)) in enumerate(zip(letters, BAD, strict=False), 5):
        headers = {name: value.decode() for name, value in letter.headers}
        assert reason in headers["reason"], headers
        assert headers["topic"] == APP_MESSAGES
        assert (headers["partition"], headers["offset"]) == ("0", str(offset))
        # Whoever sent it can find it by its request_id, if that can be read.
        has_id = b'"request_id": "x"' in (letter.value or b"")
        assert letter.key == (b"x" if has_id else b"key")
        assert headers.get("key") == ("key" if has_id else None)
    assert predictor.process.poll() is None
    shown = pipeline.run("-m", "ops", "dead-letters", "list")
    assert shown.returncode == 0, shown.stderr
    assert "(tombstone)" in shown.stdout
    repaired = pipeline.home / "repaired.json"
    repaired.write_text('{"request_id": "repaired", "data": {"age": 39}}')
    again = pipeline.run("-m", "ops", "dead-letters", "resend", "0", "--value", str(repaired))
    assert again.returncode == 0, again.stderr
    pipeline.wait_for(PREDICTIONS, 11)
    check_one_prediction_each(pipeline, [*good, "repaired"])
    unknown = pipeline.run("-m", "ops", "dead-letters", "resend", "999")
    assert unknown.returncode == 1
    assert "has no record 999" in unknown.stderr


def test_missing_null_unseen_and_extra_values_are_scored(
    pipeline: Pipeline, adult: list[Row]
) -> None:
    """The original crashed on a missing column and on a category not seen in training."""
    pipeline.start("predictor.py")
    rows = [
        {"age": 39},
        {**adult[0], "workclass": None, "age": None},
        {**adult[0], "native_country": "Atlantis"},
        {**adult[0], "colour": {"deep": ["red"]}},
        dict.fromkeys(adult[0]),
    ]
    pipeline.send_rows(rows)
    predictions = pipeline.wait_for(PREDICTIONS, len(rows))
    assert all(0 < p["probability"] < 1 for p in predictions)
    assert not pipeline.records(DEAD_LETTERS)


def test_message_with_an_outcome_of_no_class_is_scored_and_the_outcome_rejected(
    make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    pipeline = make_pipeline(RETRAIN_EVERY="2")
    predictor = pipeline.start("predictor.py")
    labels = ["rich", " >50K.", None, "?", "<=50K."]
    pipeline.send_rows([{**adult[0], "income_bracket": label} for label in labels])
    predictions = pipeline.wait_for(PREDICTIONS, len(labels))
    assert len({p["probability"] for p in predictions}) == 1
    (letter,) = pipeline.wait_for_records(DEAD_LETTERS, 1)
    headers = {name: value.decode() for name, value in letter.headers}
    assert letter.key == b"r-0"
    assert "'rich' is none of the classes '<=50K', '>50K'" in headers["reason"]
    assert headers["outcome"] == '"rich"'
    (request,) = pipeline.wait_for_events("retrain", 1)
    assert (request["first_offset"], request["last_offset"], request["count"]) == (0, 4, 2)
    predictor.says("1 messages scored whose outcome is no known class")
    # Sent again, it is the outcome alone: the message has its prediction.
    assert pipeline.run("-m", "ops", "dead-letters", "resend", "0").stdout == "sent 1 again\n"
    (again,) = pipeline.wait_for(OUTCOMES, 1)
    assert again == {"request_id": "r-0", "outcome": "rich"}
    explained = pipeline.run("-m", "ops", "why", "r-0", "--log")
    assert "'rich', is no class" in explained.stdout, explained.stderr
    replayed = pipeline.run("-m", "ops", "replay")
    assert "5 predictions reproduced bit for bit" in replayed.stdout, replayed.stderr


def test_repeated_request_id_gets_two_predictions(pipeline: Pipeline, adult: list[Row]) -> None:
    pipeline.start("predictor.py")
    for row in adult[:2]:
        pipeline.send([(APP_MESSAGES, b"same", {"request_id": "same", "data": row})])
    predictions = pipeline.wait_for(PREDICTIONS, 2)
    assert [p["request_id"] for p in predictions] == ["same", "same"]
    assert predictions[0]["probability"] != predictions[1]["probability"]


def test_retrained_model_serves_without_a_restart(pipeline: Pipeline, adult: list[Row]) -> None:
    """The original's reload had no effect, and its predictor kept the old preprocessor."""
    predictor = pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py", "--evals", "1")
    trainer.says("ready")
    pipeline.send_rows(adult[:25], "a")
    (completed,) = pipeline.wait_for_events("training_completed", 1)
    (request,) = pipeline.events("retrain")
    assert completed["batch_id"] == request["batch_id"]
    assert completed["model_id"] == 2
    if completed["accepted"]:
        predictor.says("NEW MODEL RELOADED 2")
        assert pipeline.wait_for_events("model_loaded", 1)[0]["model_id"] == 2
    pipeline.send_rows(adult[25:30], "b")
    predictions = pipeline.wait_for(PREDICTIONS, 30)
    assert {p["model_id"] for p in predictions[25:]} == {2 if completed["accepted"] else 1}
    manifest = json.loads((pipeline.home / "models/2/manifest.json").read_text())
    assert manifest["training"]["offsets"]["app_messages"] == {"0": 25}
    assert manifest["parent_id"] == 1
    assert trainer.end(signal.SIGINT) == 0
    assert predictor.end(signal.SIGINT) == 0


def test_late_outcomes_request_one_retraining_per_n(
    make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    pipeline = make_pipeline()
    predictor = pipeline.start("predictor.py", "--log-format", "json")
    app = pipeline.run(
        *("sample_app.py", "--messages", "200", "--interval", "0.01", "--outcome-delay", "2"),
        *("--log-format", "json"),
    )
    assert app.returncode == 0, app.stdout + app.stderr
    assert app.stderr == ""
    check_sample_app_lines(json_lines(app.stdout, "sample_app"))
    until(lambda: len(pipeline.events("retrain")) >= 8, 20)
    requests = pipeline.events("retrain")
    assert len(requests) == 8
    assert {request["topic"] for request in requests} == {OUTCOMES}
    check_requests(requests, 25)
    check_headers_are_passed_on(pipeline)
    assert predictor.end() == 0
    check_predictor_lines(json_lines(predictor.text(), "predictor"), requests)


def json_lines(output: str, process: str) -> list[Any]:
    """The lines of a process, each of which is an object that begins with the same keys."""
    lines = [json.loads(line) for line in output.splitlines()]
    for line in lines:
        assert list(line)[:4] == ["time", "level", "process", "message"]
        assert line["process"] == process
    return lines


def check_sample_app_lines(lines: list[Any]) -> None:
    sent = [line["request_id"] for line in lines if "Sent message" in line["message"]]
    received = [line for line in lines if "Received prediction" in line["message"]]
    assert len(set(sent)) == 200
    assert sorted(line["request_id"] for line in received) == sorted(sent)
    assert {line["model_id"] for line in received} == {1}
    summary, quality = lines[-2:]
    assert (summary["sent"], summary["answered"], summary["rejected"]) == (200, 200, 0)
    assert summary["predictions_by_model"] == {"1": 200}
    assert 0 < quality["latency_p50_ms"] <= quality["latency_p99_ms"]


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01".encode())
HEADERS = [("null", None), ("twice", b"1"), ("twice", b"2"), ("raw", b"\xff\0"), TRACEPARENT]
REJECTED = 25


def check_headers_are_passed_on(pipeline: Pipeline) -> None:
    """All of a request to its prediction if they are not too large, the trace to a dead letter."""
    good = [json.dumps({"request_id": name, "data": {"age": 39}}).encode() for name in "abc"]
    headers = [None, HEADERS, [("large", b"x" * 70_000), TRACEPARENT]]
    contents: list[Content] = [(b"k", *each) for each in zip(good, headers, strict=True)]
    bad = b'{"request_id": "bad", "data": {"age": "old"}}'
    contents += [(b"k", bad, [("reason", b"mine"), TRACEPARENT])] * REJECTED
    pipeline.send_contents(APP_MESSAGES, contents)
    predictions = pipeline.wait_for_records(PREDICTIONS, 203)[-3:]
    assert [list(record.headers) for record in predictions] == [[], HEADERS, []]
    for letter in pipeline.wait_for_records(DEAD_LETTERS, REJECTED):
        names = [name for name, _ in letter.headers]
        assert names == ["reason", "topic", "partition", "offset", "key", "traceparent"]
        assert letter.headers[-1] == TRACEPARENT
        assert b"is no number" in letter.headers[0][1]


def check_predictor_lines(lines: list[Any], requests: list[Any]) -> None:
    shown = [line["request"]["batch_id"] for line in lines if "request" in line]
    assert shown == [request["batch_id"] for request in requests]
    each = [line for line in lines if "reason" in line]
    assert sum(line.get("rejected", 0) for line in lines) == REJECTED
    assert MAX_REJECTED_LINES <= len(each) <= REJECTED
    for offset, line in enumerate(each, each[0]["offset"]):
        assert line["level"] == "warning"
        assert line["reason"] == "age: 'old' is no number"
        assert (line["topic"], line["partition"], line["offset"]) == (APP_MESSAGES, 0, offset)
        assert (line["request_id"], line["trace_id"], line["span_id"]) == ("bad", TRACE, SPAN)
    assert sum(line.get("headers_left_out", 0) for line in lines if "predictions" not in line) == 1
    (stopped,) = (line for line in lines if "predictions" in line)
    assert (stopped["predictions"], stopped["headers_left_out"]) == (203, 1)


def test_several_predictors_share_the_partitions(
    make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    pipeline = make_pipeline(PARTITIONS="4", RETRAIN_EVERY="10")
    predictors = [pipeline.start("predictor.py") for _ in range(3)]
    until(lambda: sum("serves partitions" in p.text() for p in predictors) == 3, 30)
    ids: list[str] = []
    for partition in range(4):
        names = [f"p{partition}-{n}" for n in range(100)]
        pipeline.send(
            (
                (APP_MESSAGES, n.encode(), {"request_id": n, "data": row})
                for n, row in zip(names, adult, strict=False)
            ),
            partition,
        )
        ids += names
        if partition == 1:
            assert predictors[0].end() == 0  # the others take over its partitions
    pipeline.wait_for(PREDICTIONS, 400)
    records = pipeline.records(PREDICTIONS)
    assert [json.loads(r.value)["request_id"] for r in records] == ids  # in order, per partition
    assert len(pipeline.events("retrain")) == 40
    check_requests(pipeline.events("retrain"), 10)


def test_pending_requests_share_one_training_and_each_is_answered(
    make_pipeline: MakePipeline, adult: list[Row]
) -> None:
    pipeline = make_pipeline(RETRAIN_EVERY="2")
    pipeline.start("predictor.py")
    pipeline.send_rows(adult[:1400])
    pipeline.wait_for_events("retrain", 700)
    first = pipeline.start("trainer.py", "--evals", "1")
    completed = pipeline.wait_for_events("training_completed", 700)
    assert {(c["model_id"], c["requests"]) for c in completed} == {(2, 700)}
    assert [c["batch_id"] for c in completed] == [r["batch_id"] for r in pipeline.events("retrain")]
    assert first.end() == 0
    again = pipeline.start("trainer.py", "--evals", "1")
    again.says("ready")
    assert again.end() == 0
    assert len(pipeline.events("training_completed")) == 700  # redelivered requests train no model
    assert sorted(p.name for p in (pipeline.home / "models").glob("[0-9]*")) == ["1", "2"]


def test_killed_trainer_repeats_the_training(pipeline: Pipeline, adult: list[Row]) -> None:
    pipeline.start("predictor.py")
    trainer = pipeline.start("trainer.py", "--evals", "30")
    trainer.says("ready")
    pipeline.send_rows(adult[:25])
    trainer.says("RETRAINING STARTED")
    trainer.kill()
    trainer = pipeline.start("trainer.py", "--evals", "1")
    (completed,) = pipeline.wait_for_events("training_completed", 1)
    assert completed["batch_id"] == pipeline.events("retrain")[0]["batch_id"]
    assert trainer.end() == 0
    assert len(pipeline.events("training_completed")) == 1


def test_second_trainer_waits_until_the_first_ends(pipeline: Pipeline) -> None:
    first = pipeline.start("trainer.py")
    first.says("ready")
    second = pipeline.start("trainer.py")
    second.says("waiting for it to end")
    first.kill()
    second.says("ready")
    assert second.end() == 0


def test_sample_app_reports_missing_predictions(pipeline: Pipeline) -> None:
    app = pipeline.run(*("sample_app.py", "--messages", "3", "--interval", "0", "--timeout", "1"))
    assert app.returncode == 1
    assert "sent 3, answered 0" in app.stdout
    assert "WITHOUT A PREDICTION" in app.stdout


SCRIPTS = ["initialize.py", "predictor.py", "trainer.py", "sample_app.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_help_explains_the_environment(prepared_home: Any, script: str) -> None:
    done = Pipeline(prepared_home, "127.0.0.1:1").run(script, "--help")
    assert done.returncode == 0
    assert "KAFKA_BOOTSTRAP_SERVERS" in done.stdout
    assert "PIPELINE_HOME" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "environment",
    [
        {"RETRAIN_EVERY": "many"},
        {"PIPELINE_CONFIG": "/nowhere.toml"},
        {"KAFKA_BOOTSTRAP_SERVERS": "no port"},
        {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"},  # no broker
    ],
)
def test_user_error_is_one_line(
    prepared_home: Any, script: str, environment: dict[str, str]
) -> None:
    pipeline = Pipeline(prepared_home, "127.0.0.1:1")
    pipeline.env |= environment
    done = pipeline.run(script)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
