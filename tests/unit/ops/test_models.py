"""`python -m ops list`, `show` and `rollback`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops import __main__ as ops_command
from utils.metrics import BothMetrics, Metrics
from utils.model_store import Draft, ModelStore
from utils.model_store.manifest import RolledBack
from utils.settings import ROOT


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def command(home: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops", *arguments],
        cwd=ROOT,
        env={**os.environ, "PIPELINE_HOME": str(home), **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def run_main(home: Path, arguments: list[str]) -> None:
    os.environ["PIPELINE_HOME"] = str(home)
    sys.argv = ["ops", *arguments]
    sys.stdout, sys.stderr = (home / "out").open("w"), (home / "err").open("w")
    sys.exit(ops_command.main())


@pytest.fixture
def quick_command(processes: Any) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in a forked process, which need not import everything again."""

    def run(home: Path, *arguments: str) -> tuple[int, str, str]:
        process = processes.Process(target=run_main, args=(home, list(arguments)))
        process.start()
        process.join()
        return process.exitcode, (home / "out").read_text(), (home / "err").read_text()

    return run


def test_list_and_show_print_serving_pruned_and_refused_models(
    store: ModelStore, draft: Draft, quick_command: Any
) -> None:
    home = store.path.parent
    store.publish(draft)
    store.publish(
        replace(
            draft,
            parent_id=1,
            metrics=BothMetrics(Metrics(log_loss=0.2742), Metrics(log_loss=0.2751)),
        ),
    )
    store.prune(0)
    store.publish(replace(draft, parent_id=2), accepted=False)

    listed = command(home, "list")
    assert listed.returncode == 0, listed.stderr
    lines = [line.split() for line in listed.stdout.splitlines() if line[2:3].isspace()]
    rows = {cells[1]: cells for cells in lines if len(cells) > 3 and cells[1].isdigit()}
    assert set(rows) == {"1", "2", "3"}
    assert "pruned" in rows["1"]
    assert {"serving", "0.2742", "0.2751", "400"} <= set(rows["2"])
    assert "refused" in rows["3"]

    status, out, err = quick_command(home, "show", "2")
    assert (status, err) == (0, "")
    assert json.loads(out) == json.loads((store.path / "2" / "manifest.json").read_bytes())

    status, out, err = quick_command(home, "show", "1")
    assert status == 0
    assert json.loads(out)["model_id"] == 1
    assert "pruned" in err


def test_list_show_and_rollback_errors_are_one_line(
    store: ModelStore, draft: Draft, quick_command: Any
) -> None:
    store.publish(draft)
    (store.path / "1" / "model.txt").write_text("garbage")
    for arguments in (["show", "1"], ["show", "7"], ["rollback", "7"], ["rollback", "1"]):
        status, out, err = quick_command(store.path.parent, *arguments)
        assert (status, out) == (1, "")
        assert len(err.splitlines()) == 1, err
        assert arguments[1] in err
    store.publish(draft)
    store.prune(0)
    for number, what in (("1", "was pruned"), ("7", "never existed"), ("-1", "never existed")):
        status, out, err = quick_command(store.path.parent, "rollback", number)
        assert (status, out) == (1, "")
        assert f"model {number} {what}; there is 2" in err
    status, out, err = quick_command(store.path.parent, "--help")
    assert status == 0
    assert "rollback" in out
    assert "PIPELINE_HOME" in out


def test_rollback_in_an_empty_home_writes_nothing(store: ModelStore, quick_command: Any) -> None:
    status, _, err = quick_command(store.path.parent, "rollback", "1")
    assert (status, "run initialize.py first" in err) == (1, True)
    assert not store.path.exists()


def test_output_needs_no_unicode_locale(store: ModelStore, draft: Draft) -> None:
    home = store.path.parent
    store.publish(draft)
    store.publish(replace(draft, parent_id=1, batch_ids=["b\xfcro \u2603"]))
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for arguments in (["list"], ["show", "2"], ["--help"]):
        done = command(home, *arguments, **ascii_only, PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stderr) == (0, "")
    assert "b\xfcro \u2603" in command(home, "show", "2", **ascii_only).stdout


def test_rollback_without_a_broker_still_changes_the_model(store: ModelStore, draft: Draft) -> None:
    store.publish(draft)
    store.publish(draft)
    done = command(
        store.path.parent,
        *("rollback", "1", "--reason", "a test"),
        KAFKA_BOOTSTRAP_SERVERS="localhost:1",
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "running predictors could not be notified" in done.stderr
    assert store.load_current().model_id == 1
    last = store.history()[-1]
    assert isinstance(last, RolledBack) and last.reason == "a test"
