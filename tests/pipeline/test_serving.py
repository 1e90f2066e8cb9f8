"""The model over HTTP: the same answers as by Kafka, whatever clients do."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import MakePipeline
from tests.harness import Pipeline, Script, until
from utils import messages
from utils.broker import free_port

Row = dict[str, Any]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
JSON = {"content-type": "application/json"}


def with_serving(pipeline: Pipeline, **serving: object) -> None:
    """Give the pipeline's serving other settings."""
    config = Path(pipeline.env["PIPELINE_CONFIG"])
    lines = config.read_text("utf-8").splitlines()
    for name, value in serving.items():
        place = next(n for n, line in enumerate(lines) if line.startswith(f"{name} = "))
        lines[place] = f"{name} = {value}"
    changed = pipeline.home / "pipeline.toml"
    changed.write_text("\n".join(lines) + "\n", "utf-8")
    pipeline.env["PIPELINE_CONFIG"] = str(changed)


def start_serving(pipeline: Pipeline, port: int) -> Script:
    script = pipeline.start("-m", "serving", "--port", str(port))
    script.says("model 1 serves at")
    return script


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def odd_rows(row: Row) -> list[Row]:
    """The row with values as other clients write them, and with missing and unknown ones."""
    as_text = {name: f" {value} " for name, value in row.items()}
    return [
        as_text,
        row | {"age": 39.0, "education": "?"},
        row | {"age": "", "workclass": None, "native_country": "Atlantis"},
        {"age": 12, "more": {"nested": [1]}},
        row | {"age": float("nan"), "capital_gain": float("inf")},
    ]


@contextmanager
def hammering(url: str, row: Row) -> Iterator[list[tuple[int, int]]]:
    """Send a row again and again in another thread; yields status and model of each answer."""
    seen: list[tuple[int, int]] = []
    stop = threading.Event()

    def send() -> None:
        with httpx.Client(base_url=url) as client:
            while not stop.is_set():
                answer = client.post("/invocations", json=row)
                seen.append((answer.status_code, answer.json().get("model_id", 0)))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@pytest.mark.timeout(150)
def test_http_answers_as_kafka_does(make_pipeline: MakePipeline, adult: list[Row]) -> None:
    pipeline, port = make_pipeline(), free_port()
    with_serving(pipeline, timeout=1.5, max_body=50_000, max_rows=200)
    pipeline.start("predictor.py").says("serves partitions [0]")
    serving = start_serving(pipeline, port)
    rows = [{k: v for k, v in row.items() if k != "income_bracket"} for row in adult[:60]]
    rows += odd_rows(rows[0])
    pipeline.send_rows(rows)
    by_kafka = pipeline.wait_for(messages.PREDICTIONS, len(rows))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        check_answers(client, rows, by_kafka)
        check_refusals(client, rows[0])
    slow = socket.create_connection(("127.0.0.1", port))
    slow.sendall(b"POST /invocations HTTP/1.1\r\nHost: ")  # and nothing more
    began = time.monotonic()

    # A new model is loaded while it serves, and no request fails.
    with hammering(f"http://127.0.0.1:{port}", rows[0]) as seen:
        forced = pipeline.run("initialize.py", "--force", "--evals", "1")
        assert forced.returncode == 0, forced.stderr
        serving.says("NEW MODEL RELOADED 2", 10)
        until(lambda: (200, 2) in seen, 10)
    assert {status for status, _ in seen} == {200}
    assert [model for _, model in seen] == sorted(model for _, model in seen)

    # A client that sends nothing more is cut off.
    slow.settimeout(20)
    assert b"".join(iter(lambda: slow.recv(65536), b"")).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 30

    # A request in hand is answered after SIGTERM.
    body = json.dumps(rows[0]).encode()
    head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port)) as late:
        late.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
        time.sleep(0.3)
        serving.process.terminate()
        time.sleep(0.3)
        late.sendall(body[10:])
        late.settimeout(10)
        answer = b"".join(iter(lambda: late.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200") and b'"model_id":2' in answer
    assert serving.process.wait(20) == 0
    assert "Traceback" not in serving.text()


def check_answers(client: httpx.Client, rows: list[Row], by_kafka: list[Any]) -> None:
    """Check that rows get the answers that they got by Kafka, in every type of body."""
    ping = client.get("/ping")
    assert ping.status_code == 200 and ping.json() == {"model_id": 1}
    sent = [
        {"request_id": one["request_id"], "data": row}
        for one, row in zip(by_kafka, rows, strict=True)
    ]
    single = client.post("/invocations", content=json.dumps(sent[0]), headers=JSON)
    assert single.json() == by_kafka[0]
    several = client.post(
        "/invocations", content=json.dumps({"instances": sent}), headers=JSON
    ).json()["predictions"]
    assert several == by_kafka  # floats too: JSON's digits give back the same bits
    as_lines = "\n".join(map(json.dumps, sent))
    kind = {"content-type": "application/jsonlines"}
    lines = client.post("/invocations", content=as_lines, headers=kind)
    assert lines.headers["content-type"] == "application/jsonlines"
    assert lines_of(lines.text) == by_kafka

    names = list(rows[0])
    regular = [(row, one) for row, one in zip(rows, by_kafka, strict=True) if list(row) == names]
    values = [[_cell(value) for value in row.values()] for row, _ in regular]
    without_names = "\r\n".join(map(",".join, values))
    probabilities = [one["probability"] for _, one in regular]
    for header, content in (
        ("absent", without_names),
        ("present", f"{','.join(names)}\n{without_names}"),
    ):
        kind = {"content-type": "text/csv", "accept": "application/jsonlines"}
        answer = client.post("/invocations", content=content.encode(), headers=kind)
        assert answer.headers["x-csv-header"] == header
        assert [one["probability"] for one in lines_of(answer.text)] == probabilities
    table = client.post(
        "/invocations", content=without_names.encode(), headers={"content-type": "text/csv"}
    )
    assert table.text.startswith("request_id,prediction,label,probability,model_id,error\n")
    assert [float(line.split(",")[3]) for line in table.text.splitlines()[1:]] == probabilities


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def check_refusals(client: httpx.Client, row: Row) -> None:
    """Check what is answered to rows and bodies that cannot be used."""

    def post(
        content: bytes | str, kind: str = "application/json", **headers: str
    ) -> httpx.Response:
        return client.post(
            "/invocations", content=content, headers={"content-type": kind, **headers}
        )

    mixed = post(json.dumps({"instances": [row, row | {"age": "old"}, 5, {"fnord": 1}]}))
    good, *bad = mixed.json()["predictions"]
    assert mixed.status_code == 200 and good["model_id"] == 1
    assert [one["error"] for one in bad] == [
        "age: 'old' is no number",
        "5 is no JSON object",
        "none of the known columns in data, which has 'fnord'",
    ]
    assert all(one["request_id"] and one["model_id"] == 1 for one in bad)
    broken = post('{"age": 1}\nx\n{"age": 2}', "application/jsonlines")
    assert [("error" in one) for one in lines_of(broken.text)] == [False, True, False]
    alone = post(json.dumps(row | {"age": "old"}))
    assert (alone.status_code, alone.json()["error"]) == (400, "age: 'old' is no number")
    for status, answer in (
        (400, post("{")),
        (400, post("")),
        (400, post("7")),
        (400, post('"a","b', "text/csv")),
        (415, post("a=1", "application/x-www-form-urlencoded")),
        (415, post("{}", **{"content-encoding": "gzip"})),
        (406, post(json.dumps(row), accept="image/png")),
        (413, post(b" " * 50_001)),
        (413, post(json.dumps([{"age": 1}] * 201))),
        (403, post(json.dumps(row), origin="http://elsewhere.example")),
        (404, client.get("/nothing")),
        (405, client.get("/invocations")),
    ):
        assert answer.status_code == status, answer.text
        assert answer.text and "Traceback" not in answer.text
    named = post(json.dumps(row), **{"idempotency-key": '"k-1"'})
    assert named.json()["request_id"] == "k-1"

    def slowly() -> Iterator[bytes]:
        yield b'{"age":'
        time.sleep(2.5)
        yield b"1}"

    late = post(slowly())  # type: ignore[arg-type]  # httpx takes iterators
    assert (late.status_code, late.json()["error"]) == (
        408,
        "the request did not arrive within 1.5 s",
    )


@pytest.mark.timeout(150)
def test_rows_go_through_kafka_once(make_pipeline: MakePipeline, adult: list[Row]) -> None:
    pipeline, port = make_pipeline(), free_port()
    with_serving(pipeline, log="true", timeout=3)
    predictor = pipeline.start("predictor.py")
    predictor.says("serves partitions [0]")
    serving = start_serving(pipeline, port)
    row = {k: v for k, v in adult[0].items() if k != "income_bracket"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

        def post(request_id: str, data: Row, **headers: str) -> httpx.Response:
            sent = {"request_id": request_id, "data": data}
            return client.post("/invocations", json=sent, headers=headers)

        first = post("a", row, traceparent=TRACE)
        assert first.status_code == 200
        assert post("a", row).json() == first.json()
        other = post("a", row | {"age": 1})
        assert other.status_code == 400 and "sent before, with another row" in other.json()["error"]
        # What was rejected may be sent again.
        assert post("b", row | {"age": "old"}).json()["error"] == "age: 'old' is no number"
        assert post("b", row).status_code == 200
        several = client.post("/invocations", json={"instances": [row] * 50}).json()["predictions"]
        assert len({one["request_id"] for one in several}) == 50
        assert {one["probability"] for one in several} == {first.json()["probability"]}
        ages = {"name": "age", "datatype": "INT64", "shape": [2], "data": [39, 40]}
        by_tensors = [
            client.post("/v2/models/model/infer", json={"id": "v", "inputs": [ages]}).json()
            for _ in range(2)
        ]
        assert by_tensors[0] == by_tensors[1]
        assert {one["name"]: one["data"] for one in by_tensors[0]["outputs"]}["request_id"] == [
            "v-0",
            "v-1",
        ]
        late = [{"request_id": "a", "outcome": "<=50K"}, {"request_id": "a", "outcome": "much"}]
        outcomes = client.post("/outcomes", json=late)
        assert outcomes.status_code == 202 and outcomes.json()["accepted"] == 1
        assert "none of the classes" in outcomes.json()["rejected"][0]["error"]

        # Killed and started again, it knows what was sent.
        serving.kill()
        serving = start_serving(pipeline, port)
        assert "requests read back" in serving.text()
        assert post("a", row).json() == first.json()

        # No predictor: the answer comes later, and a repeated request gets it.
        assert predictor.end() == 0
        unanswered = post("c", row)
        assert unanswered.status_code == 504 and unanswered.json()["request_ids"] == ["c"]
        new = [row, row | {"age": 60}]
        nameless = client.post("/invocations", json={"instances": new})
        assert nameless.status_code == 504
        ids = nameless.json()["request_ids"]
        named = [{"request_id": one, "data": data} for one, data in zip(ids, new, strict=True)]
        pipeline.start("predictor.py").says("serves partitions [0]")
        until(lambda: post("c", row).status_code == 200, 20)
        again = client.post("/invocations", json={"instances": named})
        assert [one["request_id"] for one in again.json()["predictions"]] == ids
        assert serving.end() == 0

    sent = pipeline.records(messages.APP_MESSAGES)
    assert [record.key for record in sent].count(b"a") == 1
    assert [record.key for record in sent].count(b"c") == 1
    assert len(sent) == 1 + 2 + 50 + 2 + 1 + 2
    predictions = pipeline.records(messages.PREDICTIONS)
    assert json.loads(predictions[0].value) == first.json()
    assert ("traceparent", TRACE.encode()) in predictions[0].headers
    assert pipeline.values(messages.OUTCOMES) == late[:1]
