"""Lines for people and for machines, in any locale and from any thread."""

import io
import json
import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from utils.settings import ROOT
from utils.telemetry.reporter import Reporter


def test_text_has_time_and_name_and_no_fields(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]ready[/] :+1: \\[x] \\"
    Reporter("trainer", "cyan")(text, style="red", rows=3)
    out, err = capsys.readouterr()
    assert re.fullmatch(r"\d\d:\d\d:\d\d trainer   " + re.escape(text) + "\n", out)
    assert err == ""


def test_text_without_prefix_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter("sample_app", "", prefix=False, stderr=True)("sent 1")
    assert capsys.readouterr() == ("", "sent 1\n")


def test_text_is_coloured_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for screen, codes in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stdout", screen)
        report = Reporter("trainer", "cyan")
        report("ready", style="red")
        assert ("\x1b[36m" in screen.getvalue(), "\x1b[31m" in screen.getvalue()) == (codes, codes)
        assert report.may_be_live == codes
        assert not Reporter("trainer", "cyan", "json").may_be_live


def test_json_line_has_time_level_process_message_and_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Reporter("predictor", "cyan", "json")
    report("ready")
    report("lost\nall \x1b[2J", level="error", loss=math.nan, ids={"a": [1, b"\xff"]}, process="x")
    ready, lost = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(ready) == ["time", "level", "process", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ready.pop("time"))
    assert ready == {"level": "info", "process": "predictor", "message": "ready"}
    del lost["time"]
    assert lost == {
        "level": "error",
        "process": "predictor",
        "message": "lost\nall \x1b[2J",
        "loss": None,
        "ids": {"a": [1, "\\xff"]},
    }


@pytest.mark.parametrize("encoding", ["ascii", "utf-16", "cp1252"])
def test_json_is_the_same_in_any_locale(encoding: str) -> None:
    code = (
        "from utils.telemetry.reporter import Reporter\n"
        'Reporter("trainer", "cyan", "json")("\\u20ac \\U0001f600 \\udcff", name="\\u2028")'
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONIOENCODING": encoding, "LC_ALL": "C"},
        capture_output=True,
        check=True,
    )
    line = json.loads(done.stdout.decode(encoding))
    assert (line["message"], line["name"]) == ("€ \U0001f600 \\udcff", "\u2028")


def test_threads_share_a_reporter(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter("sample_app", "", "json")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: report("x" * 5_000, number=number), range(200)))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line["number"] for line in lines) == list(range(200))
