"""A training job that fails leaves one line, and nothing of a model."""

import json
import os
import signal
from pathlib import Path

import pytest

from cloud import train
from cloud.__main__ import main
from tests.unit.cloud.jobs import HEADER, rows, write_job


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a job of 60 rows."""
    base = write_job(tmp_path / "ml", {"rows.csv": rows(60)})
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    return base


def failure(base: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a job that fails, which is the same on stderr."""
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert main(["train"]) == 1
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    line = (base / "output" / "failure").read_text()
    assert capsys.readouterr().err.endswith(line) and line.count("\n") == 1
    assert not list((base / "model").glob("[0-9]*"))
    return line.strip()


def set_hyperparameters(base: Path, **sent: str) -> None:
    (base / "input/config/hyperparameters.json").write_text(json.dumps(sent))


def test_unknown_hyperparameter(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_hyperparameters(base, target="bought", depth="7")
    assert "hyperparameter 'depth' is unknown; known are target," in failure(base, capsys)


def test_column_that_is_not_there(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_hyperparameters(base, target="bought", separator=";", drop="age")
    line = failure(base, capsys)
    assert line == "rows.csv has no column 'age', which the hyperparameters name"


def test_data_set_of_pipeline_toml(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_hyperparameters(base)
    line = failure(base, capsys)
    assert line == (
        "rows.csv is not valid CSV: its lines have fewer fields than [data] columns has names "
        "(pipeline.toml describes the data set: no hyperparameter names a target)"
    )


def test_too_few_rows(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(base, {"rows.csv": HEADER + "001;2;east;yes\n002;3;west;no\n"})
    assert failure(base, capsys) == "2 rows are too few for 3 folds"


def test_missing_channel(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / "input/data/train/rows.csv").unlink()
    assert "channel train has no files with rows" in failure(base, capsys)


def test_validation_rows_without_a_column(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(base, {}, "code;visits;bought\n001;3;yes\n")
    assert "validation.csv has no column 'region'" in failure(base, capsys)


def test_setting_that_is_wrong(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS_PORT", "x")
    assert "METRICS_PORT: Input should be a valid integer" in failure(base, capsys)


def test_model_folder_that_cannot_be_written(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "model").write_text("")
    assert "cannot lock" in failure(base, capsys)


def test_fault_of_the_program(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.first_model.read_data_set", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train"])
    line = (base / "output" / "failure").read_text()
    assert line == "ZeroDivisionError: division by zero\n"


def test_failure_that_cannot_be_written(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_hyperparameters(base, depth="7")
    (base / "output").write_text("")
    assert main(["train"]) == 1
    said = capsys.readouterr().err
    assert "cannot write" in said and "hyperparameter 'depth' is unknown" in said


def test_long_failure_is_cut(base: Path) -> None:
    train.on_error("two\nlines " + "x" * 2_000)
    text = (base / "output" / "failure").read_text()
    assert text.startswith("two lines xxx") and len(text) == 1025


def test_signal_ends_the_job_until_the_model_is_published() -> None:
    stop = train._Stop()
    with stop.on_signals():
        with pytest.raises(train._Stopped) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.status == 143
    stop = train._Stop()
    with stop.on_signals():
        stop.completes()
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked
