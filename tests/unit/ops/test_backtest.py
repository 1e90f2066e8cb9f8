"""`python -m ops backtest`: rows whose labels are swapped midway, late labels, errors."""

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from ops import backtest_report, backtest_rivals, backtest_stream, line_chart
from ops.__main__ import main
from ops.backtest import LogicalLog, Plan
from ops.backtest_report import Figures
from train.retrain import train
from train.training_rows import Problem, base_rows
from utils import settings as settings_module
from utils.message_store import Snapshot
from utils.messages import APP_MESSAGES, OUTCOMES
from utils.settings import Settings

ROWS, SWAPPED_FROM, EVERY = 1_500, 700, 125


def made_rows(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"a": rng.normal(size=rows), "b": rng.normal(size=rows), "c": rng.choice(list("xyz"), rows)}
    ).round(4)
    signal = 6 * frame.a + 4 * frame.b * (frame.c == "x") + rng.logistic(size=rows)
    frame["y"] = np.where(signal > 0, "yes", "no")
    return frame


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a first model, and stream.csv."""
    home = tmp_path_factory.mktemp("backtest")
    (home / "data").mkdir()
    made_rows(600, 1).to_csv(home / "data" / "base.csv", index=False)
    stream = made_rows(ROWS, 2)
    after = stream.index >= SWAPPED_FROM
    stream["y"] = np.where(after, stream.y.map({"yes": "no", "no": "yes"}), stream.y)
    stream.loc[len(stream)] = [0.0, 0.0, "x", "perhaps"]
    stream.to_csv(home / "stream.csv", index=False)
    (home / "pipeline.toml").write_text('[data]\ntrain = "base.csv"\ntarget = "y"\n')
    settings = load(home)
    base = base_rows(Problem.of(settings, None))
    train(settings, snapshot=None, hyper="hyperopt", evals=2, base=base)
    return home


def load(home: Path) -> Settings:
    config = {"PIPELINE_HOME": str(home), "PIPELINE_CONFIG": str(home / "pipeline.toml")}
    return settings_module.load(config)


@pytest.fixture
def command(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command; returns the exit status."""
    monkeypatch.setenv("PIPELINE_HOME", str(home))
    monkeypatch.setenv("PIPELINE_CONFIG", str(home / "pipeline.toml"))
    return lambda *arguments: main(["backtest", *map(str, arguments)])


def files_of(home: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}


def test_swapped_labels_are_learnt_again(home: Path) -> None:
    settings, before = load(home), files_of(home)
    bundle = backtest_stream.serving_of(settings)
    stream = backtest_stream.read_file(settings, bundle, home / "stream.csv")
    assert (len(stream.labels), stream.left_out) == (ROWS, 1)
    plan = Plan(EVERY, first=backtest_stream.first_parameters(settings, bundle))
    found = backtest_report.run(settings, bundle, stream, plan)
    assert found.correct[-400:].mean() >= 0.75
    assert found.first_correct[-400:].mean() < 0.3
    assert found.trainings == ROWS // EVERY
    assert [policy for _, policy in found.changes] == ["recent"]
    assert found.changes[0][0] > SWAPPED_FROM
    assert not np.isnan(found.everything).any()
    contenders = backtest_report.contenders_of(settings, bundle, stream, plan, found)
    figures = backtest_report.figures_of(stream, plan, found, contenders)
    assert figures.served.accuracy == pytest.approx(found.correct.mean(), abs=1e-6)
    assert figures.standings[0].log_loss is not None
    picture = backtest_report.picture(found, contenders)
    # Log loss of all but the last known label, accuracy of all but everything.
    assert picture.count("<polyline") == 4 + 4 and "policy: recent" in picture
    assert files_of(home) == before


def test_frozen_never_trains_and_prints_json(
    home: Path, command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "loss.svg"
    arguments = ("--policy", "frozen", "--delay", 20, "--json", "--plot", plot)
    assert command(home / "stream.csv", *arguments) == 0
    figures = msgspec.json.decode(capsys.readouterr().out, type=Figures)
    assert (figures.trainings, figures.delay, figures.left_out) == (0, 20, 1)
    served, frozen, everything, majority, last = figures.contenders
    assert served.overall == frozen.overall and everything.rows == 0
    assert majority.overall.log_loss == pytest.approx(0.69, abs=0.02)
    assert last.overall.log_loss is None
    assert plot.read_text().startswith("<svg ")


def test_everything_never_changes_its_policy(
    home: Path, command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (home / "stream.csv").read_text().splitlines(keepends=True)
    (tmp_path / "part.csv").write_text("".join([lines[0], *lines[500:900]]))
    assert command(tmp_path / "part.csv", "--policy", "everything", "--every", 200) == 0
    printed = capsys.readouterr().out
    assert "2 trainings" in printed and "learnt from everything" in printed
    assert "from row" not in printed and "what each memory would have had" in printed


def test_comparison_prints_a_line_for_each_replay(
    home: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--policy", "frozen", "--every", 50, "--delay", 10, "--compare")
    assert command(home / "stream.csv", *arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("N ")]
    assert len(lines) == 5 and "log loss" in lines[0] and "0 trainings" in lines[0]


def test_outcomes_are_known_after_the_delay() -> None:
    labels = np.array(["yes", "no"] * 50, dtype=object)
    log = LogicalLog(made_rows(100, 3), labels, 30)
    log.predict(1, range(0, 30), np.full(30, 0.5))
    assert log.known == 0
    log.predict(2, range(30, 70), np.full(40, 0.25))
    assert log.known == len(log.snapshot().request_ids) == 40
    assert log.snapshot().offsets == {(APP_MESSAGES, 0): 70, (OUTCOMES, 0): 40}
    newer = log.predictions_since({(APP_MESSAGES, 0): 70, (OUTCOMES, 0): 29})
    assert newer["row-29"] == (1, 0.5) and newer["row-30"] == (2, 0.25) and len(newer) == 11
    snapshot = log.snapshot()
    known_before = np.searchsorted(snapshot.known_at, snapshot.sent_at, side="left")
    assert known_before[[0, 30, 31, 39]].tolist() == [0, 0, 1, 9]


@pytest.mark.parametrize("delay", [0, 3])
def test_delay_as_really_seen(delay: int) -> None:
    sent_at, none = np.arange(20) * 1000, np.empty(0, dtype=object)
    known_at = sent_at + delay * 1000 + (500 if delay else 0)
    snapshot = Snapshot(none, pd.DataFrame(), none, known_at, sent_at, {}, {})
    assert backtest_stream.seen_delay(snapshot) == delay


def test_rivals_learn_late() -> None:
    codes = np.array([1, 1, 0, 0, 1])
    assert backtest_rivals.last_label(codes, 0, 0).tolist() == [0, 1, 1, 0, 0]
    assert backtest_rivals.last_label(codes, 0, 2).tolist() == [0, 0, 0, 1, 1]
    base = np.array([0])
    shares = backtest_rivals.class_shares(codes, 2, base, 2)[:, 1]
    assert shares.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 4, 3 / 5])


def test_comparison_changes_one_thing_at_a_time() -> None:
    plans = backtest_report.other_plans(Plan(50, delay=10))
    assert [(plan.every, plan.delay) for plan in plans] == [(10, 10), (250, 10), (50, 0), (50, 50)]
    assert [plan.every for plan in backtest_report.other_plans(Plan(3))] == [15]


def test_line_chart_leaves_out_what_is_not_known() -> None:
    values = np.array([0.5, np.nan, 0.25, 0.75])
    drawn = line_chart.draw("a < b", "x", [line_chart.Panel("y", [line_chart.Line("one", values)])])
    assert drawn.count("<polyline") == 2 and "nan" not in drawn and "a &lt; b" in drawn


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "cannot read"),
        ("", "is not valid CSV"),
        ("a,b,c,y\n", "has no rows"),
        ("a,b,c\n1,2,x\n", "has no column 'y'"),
        ("a,b,y\n1,2,yes\n", "has no column 'c'"),
        ("a,b,c,y\n1,2,x,perhaps\n", "has no row of a class that the serving model knows"),
    ],
)
def test_errors_are_one_line(
    content: str | None,
    reason: str,
    command: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file.csv"
    if content is not None:
        file.write_text(content)
    assert command(file) == 1
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_without_model_or_messages(
    command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command() == 1
    assert "messages.db" in (error := capsys.readouterr().err) and error.count("\n") == 1
    monkeypatch.setitem(os.environ, "PIPELINE_HOME", str(tmp_path))
    assert command() == 1
    assert "run initialize.py" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_adaptive_random_forest_learns_late_and_from_the_base_data() -> None:
    delay, turn = 20, 100
    base, frame = made_rows(300, 1), made_rows(200, 2)
    codes = (frame.pop("y") == "yes").to_numpy().astype(np.int64)
    others = np.where(np.arange(len(codes)) < turn, codes, 1 - codes)
    first = (base[["a", "b", "c"]], (base.y == "yes").to_numpy().astype(np.int64))
    same, changed = (
        backtest_rivals.adaptive_random_forest(first, (frame, labels), 2, delay)
        for labels in (codes, others)
    )
    assert (same[: turn + delay + 1] == changed[: turn + delay + 1]).all()
    assert (same[turn + delay + 1 :] != changed[turn + delay + 1 :]).any()
    assert same.sum(axis=1) == pytest.approx(1.0)
    assert (same.argmax(axis=1) == codes)[: delay + 1].mean() > 0.7
