"""/metrics and /healthz of one process."""

import json
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from utils.broker.ports import free_port
from utils.errors import UserError
from utils.metrics import LiveLoss
from utils.settings import ROOT, Metrics
from utils.telemetry import exposition
from utils.telemetry.counts import (
    AppCounts,
    Counts,
    InitializeCounts,
    PredictorCounts,
    TrainerCounts,
)
from utils.telemetry.latency import BOUNDS_MS

NOW = 1_700_000_000_000.0


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def scrape(port: int) -> dict[str, float]:
    """The samples by name and labels, as they are written."""
    status, text = get(port, "/metrics")
    assert status == 200
    return {
        sample.name + "".join(f" {v}" for _, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def port() -> int:
    return free_port()


def test_healthz_says_whether_it_serves(port: int) -> None:
    counts = PredictorCounts(model_id=3)
    with exposition.serve(Metrics(port=port), counts):
        assert get(port, "/healthz") == (503, '{"ready": false, "reason": "starting"}\n')
        assert scrape(port)["pipeline_ready predictor"] == 0
        counts.assign([("app_messages", 0), ("outcomes", 0)])
        counts.stepped(member=True)
        status, text = get(port, "/healthz")
        assert (status, json.loads(text)["ready"]) == (200, True)
        assert scrape(port)["pipeline_ready predictor"] == 1
        counts.failed("no broker answers: \N{BULLET}")
        status, text = get(port, "/healthz")
        assert (status, json.loads(text)["reason"]) == (503, "no broker answers: \N{BULLET}")
        assert get(port, "/")[0] == get(port, "/metrics/")[0] == 404
    with pytest.raises(urllib.error.URLError):
        get(port, "/healthz")
    with exposition.serve(Metrics(port=port), counts):  # the port is free again
        assert get(port, "/healthz")[0] == 503


def test_predictor_exposes_its_counts(port: int) -> None:
    counts = PredictorCounts(model_id=3, predictions=7, lag={("app_messages", 1): 12})
    counts.latencies.observe([int(NOW) - 2, int(NOW) - 40, int(NOW) + 5], NOW)
    tally = np.arange(8).reshape(4, 2)
    counts.values.add(("age", "race"), tally)
    counts.add_outcomes(4, NOW - 5, NOW)
    counts.rejected["outcomes"] += 2
    counts.unknown_outcomes = 1
    with exposition.serve(Metrics(port=port), counts):
        found = scrape(port)
    assert found["pipeline_model_id predictor"] == 3
    assert found["pipeline_predictions_total"] == 7
    assert found["pipeline_consumer_lag_records 1 app_messages"] == 12
    assert found["pipeline_prediction_latency_seconds_count"] == 2
    assert found["pipeline_prediction_latency_seconds_sum"] == pytest.approx(0.042)
    assert found["pipeline_prediction_latency_seconds_bucket 0.0015"] == 0
    assert found["pipeline_prediction_latency_seconds_bucket 0.002"] == 1
    assert found["pipeline_prediction_latency_seconds_bucket +Inf"] == 2
    assert found["pipeline_undated_predictions_total"] == 1
    assert found["pipeline_missing_values_total race"] == 1
    assert found["pipeline_unknown_values_total age"] == 2
    assert found["pipeline_lenient_values_total race"] == 5
    assert found["pipeline_other_values_total age"] == 6
    assert found["pipeline_outcomes_total"] == 4
    assert found["pipeline_last_outcome_timestamp_seconds"] == (NOW - 5) / 1000
    assert found["pipeline_dead_letters_total record outcomes"] == 2
    assert found["pipeline_dead_letters_total outcome app_messages"] == 1
    assert found["process_resident_memory_bytes"] > 0
    bounds = [name.split()[1] for name in found if name.startswith("pipeline_pred") and " " in name]
    assert [float(bound) * 1000 for bound in bounds] == pytest.approx([*BOUNDS_MS, np.inf])


def test_trainer_exposes_its_counts(port: int) -> None:
    counts = TrainerCounts(model_id=4, failures=1, waiting=2, waiting_since=12.0)
    counts.add_training(False, {"fitting": 2.5})
    counts.received["manual"] += 1
    counts.deployments[False] += 1
    counts.challenger_log_loss = 0.25
    counts.live = LiveLoss(log_loss=0.3, standard_error=0.01, outcomes=500)
    with exposition.serve(Metrics(port=port), counts):
        found = scrape(port)
        assert "pipeline_live_log_loss_high" not in found  # it is not known
        assert "pipeline_deployed_model_id" not in found
        counts.deployed_id = 4
        counts.live = LiveLoss(
            log_loss=0.3, standard_error=0.01, outcomes=500, expected=0.29, low=0.25, high=0.33
        )
        later = scrape(port)
    assert found["pipeline_trainings_total false"] == 1
    assert found["pipeline_trainings_total true"] == 0
    assert found["pipeline_training_seconds_sum fitting"] == 2.5
    assert found["pipeline_training_seconds_count fitting"] == 1
    assert found["pipeline_training_failures_total"] == 1
    assert found["pipeline_requests_waiting"] == 2
    assert found["pipeline_deployments_total false"] == 1
    assert found["pipeline_deployments_total true"] == 0
    assert later["pipeline_deployed_model_id"] == 4
    assert found["pipeline_oldest_request_timestamp_seconds"] == 12
    assert found["pipeline_retrain_requests_total manual"] == 1
    assert found["pipeline_gate_log_loss challenger"] == 0.25
    assert found["pipeline_live_log_loss"] == 0.3
    assert later["pipeline_live_log_loss_low"] == 0.25
    assert later["pipeline_live_log_loss_high"] == 0.33


def test_application_and_initialize_expose_their_counts(port: int) -> None:
    app = AppCounts(sent=5, answered=3, rejected=1)
    app.latencies.add([20.0, 10.0])
    with exposition.serve(Metrics(port=port), app):
        found = scrape(port)
    assert found["pipeline_messages_sent_total"] == 5
    assert found["pipeline_messages_answered_total"] == 3
    assert found["pipeline_messages_waiting"] == 1
    assert found["pipeline_answer_latency_seconds_sum"] == pytest.approx(0.03)
    with exposition.serve(Metrics(port=port), InitializeCounts(2, 0.3)):
        found = scrape(port)
    assert found["pipeline_search_evaluations"] == 2
    assert found["pipeline_search_log_loss"] == 0.3
    assert found["pipeline_ready initialize"] == 0


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
def test_host_may_be_of_either_family(family: str, port: int) -> None:
    try:
        with exposition.serve(Metrics(port=port, host=family), AppCounts()):
            host = f"[{family}]" if ":" in family else family
            with urllib.request.urlopen(f"http://{host}:{port}/metrics") as answer:
                assert answer.status == 200
    except UserError as error:
        if "::1" in str(error):
            pytest.skip("this machine has no IPv6")
        raise


def test_port_in_use_is_one_clear_line(port: int) -> None:
    with exposition.serve(Metrics(port=port), AppCounts()):
        done = subprocess.run(
            [sys.executable, "predictor.py"],
            cwd=ROOT,
            env={"METRICS_PORT": str(port), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"},
            capture_output=True,
            text=True,
        )
    expected = f"predictor.py: cannot serve metrics at 127.0.0.1:{port}: Address already in use\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "\N{BULLET}" * 70, "192.0.2.1"])
def test_host_that_is_none_is_one_clear_line(host: str, port: int) -> None:
    with (
        pytest.raises(UserError, match=f"^cannot serve metrics at .*:{port}: [^\n]+$"),
        exposition.serve(Metrics(port=port, host=host), AppCounts()),
    ):
        pass


EMPTY = [PredictorCounts(), TrainerCounts(), AppCounts(), InitializeCounts()]


@pytest.mark.parametrize("counts", EMPTY, ids=lambda counts: str(counts.process))
def test_process_that_counted_nothing_can_be_scraped(counts: Counts, port: int) -> None:
    with exposition.serve(Metrics(port=port), counts):
        assert f"pipeline_ready {counts.process}" in scrape(port)


def test_client_library_is_not_imported_without_a_port() -> None:
    code = (
        "import sys, initialize, predictor, trainer, sample_app\n"
        "from utils.settings import Metrics\n"
        "from utils.telemetry import exposition\n"
        "with exposition.serve(Metrics(), predictor.PredictorCounts()):\n"
        "    assert not {'prometheus_client', 'wsgiref'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
