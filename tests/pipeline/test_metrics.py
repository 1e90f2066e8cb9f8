"""The metrics and the health of real processes; the dashboard and the alerts that use them."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakePipeline
from tests.harness import until
from tests.unit.utils.telemetry.test_exposition import get, scrape
from utils.broker import Broker
from utils.broker.ports import free_port
from utils.messages import APP_MESSAGES, OUTCOMES, PREDICTIONS
from utils.settings import ROOT
from utils.telemetry.latency import BOUNDS_MS

GRAFANA = ROOT / "monitor" / "grafana"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Prometheus) is missing")

#: So many that the live loss has an interval: 500 are compared with those before.
OUTCOMES_SENT = 700


def dashboard() -> Any:
    return json.loads((GRAFANA / "dashboard.json").read_text("utf-8"))


def queries(found: Any) -> list[str]:
    """Every query of a dashboard, wherever it stands."""
    if isinstance(found, dict):
        own = [found["expr"]] if "expr" in found else []
        return own + [query for value in found.values() for query in queries(value)]
    if isinstance(found, list):
        return [query for value in found for query in queries(value)]
    return []


def names(texts: list[str]) -> set[str]:
    return {name for text in texts for name in re.findall(r"\b(?:pipeline|process)_\w+", text)}


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, *arguments], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def healthy(*ports: int) -> bool:
    return all(get(port, "/healthz")[0] == 200 for port in ports)


@pytest.mark.timeout(200)
def test_processes_count_and_say_whether_they_serve(
    make_pipeline: MakePipeline, empty_broker: Broker, adult: list[dict[str, Any]]
) -> None:
    pipeline = make_pipeline(RETRAIN_EVERY=str(OUTCOMES_SENT))
    ports = serving, training, sending = free_port(), free_port(), free_port()
    trainer = pipeline.start("trainer.py", "--evals", "1", METRICS_PORT=str(training))
    predictor = pipeline.start("predictor.py", METRICS_PORT=str(serving))
    predictor.says("serves partitions", 60)
    trainer.says("ready", 60)
    until(lambda: healthy(serving, training), 30)
    app = pipeline.start(
        *("sample_app.py", "--messages", "1000", "--interval", "0.5", "--outcome-delay", "600"),
        METRICS_PORT=str(sending),
    )

    # What is sent, and what must be counted.
    unclassed = {**adult[0], "income_bracket": "a lot"}
    incomplete = {name: value for name, value in adult[1].items() if name != "age"}
    pipeline.send_rows(adult[:OUTCOMES_SENT])
    pipeline.send_rows([unclassed, incomplete], "odd")
    pipeline.send([(APP_MESSAGES, None, b"no JSON"), (OUTCOMES, None, b"no JSON either")])
    undated = {"request_id": "undated", "data": adult[2]}
    pipeline.send([(APP_MESSAGES, b"undated", undated)], timestamp=1)
    pipeline.wait_for_events("training_completed", 1, timeout=90)
    until(lambda: "pipeline_live_log_loss_high" in scrape(training), 30)
    until(lambda: scrape(sending).get("pipeline_messages_answered_total", 0) > 0, 30)
    app.end()

    found = scrape(serving)
    until(lambda: scrape(serving)["pipeline_consumer_lag_records 0 app_messages"] == 0, 10)
    sent = scored = len(pipeline.records(PREDICTIONS))
    until(lambda: scrape(serving)["pipeline_predictions_total"] == sent, 10)
    found = scrape(serving)
    of_app = scored - OUTCOMES_SENT - 3
    assert of_app > 0
    assert found["pipeline_prediction_latency_seconds_count"] == scored - 1
    assert found["pipeline_undated_predictions_total"] == 1
    # Nobody waits for hours, and no latency of an undated message is in it.
    assert 0 < found["pipeline_prediction_latency_seconds_sum"] < scored * 60
    assert found[f"pipeline_prediction_latency_seconds_bucket {BOUNDS_MS[-2] / 1000}"] == scored - 1
    assert found["pipeline_outcomes_total"] == OUTCOMES_SENT + 2
    assert found["pipeline_dead_letters_total record app_messages"] == 1
    assert found["pipeline_dead_letters_total record outcomes"] == 1
    assert found["pipeline_dead_letters_total outcome app_messages"] == 1
    assert found["pipeline_missing_values_total age"] == 1
    assert found["pipeline_retrain_requests_sent_total count"] == 1
    assert found["pipeline_assigned_partitions"] == 2

    learnt = scrape(training)
    accepted = learnt["pipeline_trainings_total true"]
    assert accepted + learnt["pipeline_trainings_total false"] == 1
    assert learnt["pipeline_model_id trainer"] == 1 + accepted
    until(lambda: scrape(serving)["pipeline_model_id predictor"] == 1 + accepted, 10)
    assert learnt["pipeline_training_seconds_count fitting"] == 1
    assert learnt["pipeline_training_seconds_sum fitting"] > 0
    assert learnt["pipeline_retrain_requests_total count"] == 1
    assert learnt["pipeline_requests_waiting"] == 0
    assert learnt["pipeline_gate_log_loss challenger"] > 0
    assert learnt["pipeline_live_log_loss_outcomes"] == 500
    low, high = learnt["pipeline_live_log_loss_low"], learnt["pipeline_live_log_loss_high"]
    assert 0 < low < learnt["pipeline_live_log_loss"] < high < 1

    # Every metric that the dashboard and the alerts name is there.
    there = {name.split()[0] for name in (*found, *learnt)}
    there |= {"pipeline_oldest_request_timestamp_seconds"}  # only while a request waits
    asked = queries(dashboard()), [(GRAFANA / "alerts.yml").read_text("utf-8")]
    for texts in asked:
        assert names(texts) and names(texts) <= there
    if PROMTOOL:
        for port in (serving, training):
            assert promtool("check", "metrics", text=get(port, "/metrics")[1]) == ""

    empty_broker.stop()
    until(lambda: not any(healthy(port) for port in ports[:2]), 30)
    for port in (serving, training):
        assert json.loads(get(port, "/healthz")[1])["reason"]
    empty_broker.start()
    until(lambda: healthy(serving, training), 60)
    before, after = found, scrape(serving)
    counters = [name for name in before if "_total" in name and name.startswith("pipeline")]
    assert counters and all(after[name] >= before[name] for name in counters)
    assert (predictor.end(), trainer.end()) == (0, 0)


def test_dashboard_names_its_data_source_by_the_variable() -> None:
    board = dashboard()
    (variable,) = board["templating"]["list"]
    assert (variable["name"], variable["type"]) == ("DS_PROMETHEUS", "datasource")
    shown = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in shown:
        assert panel["datasource"]["uid"] == "${DS_PROMETHEUS}", panel["title"]
        assert all(target["datasource"]["uid"] == "${DS_PROMETHEUS}" for target in panel["targets"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


@needs_promtool
def test_queries_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    asked = [query.replace("$__rate_interval", "1m") for query in queries(dashboard())]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(asked)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    assert f"{len(asked)} rules found" in promtool("check", "rules", path)


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool("check", "rules", GRAFANA / "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", GRAFANA / "alerts_test.yml")
    rules = (GRAFANA / "alerts.yml").read_text("utf-8")
    tested = (GRAFANA / "alerts_test.yml").read_text("utf-8")
    for alert in re.findall(r"- alert: (\w+)", rules):
        fires = rf"alertname: {alert}\n +exp_alerts:\n +- exp_labels"
        quiet = rf"\{{eval_time: \w+, alertname: {alert}\}}"
        assert re.search(fires, tested) and re.search(quiet, tested), alert
