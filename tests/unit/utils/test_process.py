"""Instance ids, unique among running processes and reused later; and niceness."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils import settings
from utils.process import claim_instance_id
from utils.settings import ROOT

HOLDER = """
import signal, sys
from utils import process, settings
stop = process.Stop().on_signals()
with process.claim_instance_id(settings.load(), "predictor") as name:
    print(name, flush=True)
    stop.wait(60)
"""


def start_holder(home: Path) -> tuple["subprocess.Popen[str]", str]:
    """Start a process that claims an instance id; the process and its id."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=ROOT,
        env={"PIPELINE_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_instance_id_of_a_killed_process_is_reused_first(tmp_path: Path) -> None:
    stopped, first = start_holder(tmp_path)
    killed, second = start_holder(tmp_path)
    assert len({first, second}) == 2
    stopped.send_signal(signal.SIGTERM)
    killed.kill()
    assert (stopped.wait(10), killed.wait(10)) == (0, -signal.SIGKILL)
    config = settings.load({"PIPELINE_HOME": str(tmp_path)})
    with (
        claim_instance_id(config, "predictor") as name,
        claim_instance_id(config, "predictor") as another,
    ):
        assert (name, another) == (second, first)
    with claim_instance_id(config, "predictor") as name:
        assert name == first  # none of them was killed


BUSY = """
import os, sys, time
from utils import process
os.sched_setaffinity(0, {int(sys.argv[1])})
if int(sys.argv[2]):
    process.be_nice(int(sys.argv[2]))
print("busy", flush=True)
sys.stdin.readline()
until, started = time.monotonic() + 1.0, time.process_time()
while time.monotonic() < until:
    pass
print(time.process_time() - started)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits niceness to a session")
def test_nice_process_yields_the_processor_to_other_sessions() -> None:
    core = min(os.sched_getaffinity(0))
    both = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY, str(core), niceness],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=terminal,
        )
        for niceness, terminal in (("0", True), ("10", False))
    ]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "busy\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    seconds, nice_seconds = (float(process.communicate(timeout=30)[0]) for process in both)
    assert nice_seconds < 0.5 * seconds


WARNED = """
import warnings
from utils import process, settings
process.configure_logging(settings.load())
warnings.warn("a frame is fragmented")
"""


@pytest.mark.parametrize(("level", "shown"), [("critical", False), ("warning", True)])
def test_warnings_of_libraries_are_logged(tmp_path: Path, level: str, *, shown: bool) -> None:
    environment = {"PIPELINE_HOME": str(tmp_path), "PIPELINE_LOG": level}
    command = [sys.executable, "-c", WARNED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert ("a frame is fragmented" in done.stderr) == shown
    assert shown or done.stderr == ""


FAILING = """
import logging, sys, threading, warnings
from utils import process, settings
from utils.errors import UserError

def main(settings):
    logging.getLogger("kafka").warning("the password is %s", "s3cr\\u00e9t")
    warnings.warn("a frame is fragmented")
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start(); thread.join()
    if sys.argv[1] == "user":
        raise UserError("no \\u20ac")
    if sys.argv[1] == "os":
        open("/nowhere/\\u20ac")
    raise KeyError("s3cr\\u00e9t")

sys.exit(process.run(main, log_format=sys.argv[2] or None))
"""


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("user", "no €"),
        ("os", "cannot use /nowhere/€: No such file or directory"),
        ("bug", "'***'"),
    ],
)
def test_everything_on_stderr_is_json(tmp_path: Path, kind: str, last: str) -> None:
    environment = {
        "PIPELINE_HOME": str(tmp_path),
        "PIPELINE_LOG": "warning",
        "KAFKA_SASL_PASSWORD": "s3crét",
        "PYTHONIOENCODING": "ascii",
    }
    command = [sys.executable, "-c", FAILING, kind, "json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    logged, warned, thread, failed = map(json.loads, done.stderr.splitlines())
    assert (logged["logger"], logged["level"], logged["message"]) == (
        "kafka",
        "warning",
        "the password is ***",
    )
    assert "a frame is fragmented" in warned["message"]
    assert thread["message"] == "division by zero" and "Traceback" in thread["exception"]
    assert (failed["process"], failed["message"]) == ("-c", last)
    assert failed["level"] == ("critical" if kind == "bug" else "error")
    assert "s3cr" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "option", "is_json"),
    [
        ("json", "", True),
        ("JSON", "", True),
        ("json", "text", False),
        ("", "json", True),
        ("", "", False),
    ],
)
def test_option_overrides_the_variable(
    tmp_path: Path, variable: str, option: str, *, is_json: bool
) -> None:
    environment = {"PIPELINE_LOG_FORMAT": variable, "PIPELINE_CONFIG": str(tmp_path / "none")}
    command = [sys.executable, "-c", FAILING, "user", option]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("{") == is_json
    assert "cannot read" in (json.loads(line)["message"] if is_json else line)
