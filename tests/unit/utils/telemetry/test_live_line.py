"""The live line: on a terminal that can show it and nowhere else, and never too long."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing

import pytest

from tests.terminal import ESCAPES, HIDE_CURSOR, Terminal
from utils.settings import ROOT

SCRIPT = """
import sys, time
from utils.telemetry.live_line import LiveLine
from utils.telemetry.reporter import Reporter
report = Reporter("tester", "cyan", sys.argv[1], prefix=False)
numbers = iter(range(1000))
parts = lambda: [f"number {next(numbers)}", "\\u00b7" * 20, "end of the line"]
with LiveLine(report, parts) as line:
    time.sleep(0.6)
    report("a line [above]")
    Reporter("other", "blue", sys.argv[1], over_live_line=True)("of another process")
    time.sleep(0.4)
report(f"shown: {line.is_shown}")
"""


def run(
    columns: int = 100, log_format: str = "text", env: Mapping[str, str] | None = None
) -> Terminal:
    with closing(Terminal(env or {}, "-c", SCRIPT, log_format, columns=columns)) as terminal:
        assert terminal.end() == 0, terminal.text()
        return terminal


def visible(raw: str) -> str:
    """What is left on the screen: what an erased line held is gone."""
    lines = raw.replace("\r\n", "\n").split("\n")
    return "\n".join(ESCAPES.sub("", line.split("\r\x1b[2K")[-1]) for line in lines)


@pytest.mark.parametrize("columns", [100, 40])
def test_line_is_rewritten_below_what_is_reported(columns: int) -> None:
    terminal = run(columns)
    raw, text = terminal.raw(), terminal.text()
    assert "number 1" in text and ("end of the line" in text) == (columns == 100)
    assert max(map(len, terminal.live_lines())) < columns
    # Four times a second: what is asked for costs next to nothing.
    assert 3 <= int(re.findall(r"number (\d+)", text)[-1]) <= 8
    assert HIDE_CURSOR not in raw  # a process that is killed could not show it again
    # Nothing of it is left: the last thing before the next line is that it is erased.
    assert text.replace("\r", "\n").splitlines()[-1] == "shown: True"
    assert raw[: raw.index("shown: True")].endswith("\x1b[2K")
    assert re.search(r"^\d\d:\d\d:\d\d other     of another process$", visible(raw), re.M)
    assert "\na line [above]\n" in text.replace("\r", "\n")


def test_no_color_leaves_out_colours() -> None:
    codes = set(re.findall(r"\x1b\[([0-9;]*)m", run(env={"NO_COLOR": "1"}).raw()))
    assert codes <= {"", "0", "1"}  # bold is no colour


@pytest.mark.parametrize(
    ("log_format", "env"), [("text", {"TERM": "dumb"}), ("json", {})], ids=["dumb", "json"]
)
def test_terminal_without_a_live_line(log_format: str, env: dict[str, str]) -> None:
    text = run(log_format=log_format, env=env).raw()
    assert "a line [above]" in text and "shown: False" in text
    assert "number" not in text and not ESCAPES.search(text)


def test_redirected_output_has_no_live_line() -> None:
    env = {**os.environ, "FORCE_COLOR": "1", "PYTHONIOENCODING": "ascii", "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "text"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third = done.stdout.splitlines()
    assert (first, third) == ("a line [above]", "shown: False")
    assert "of another process" in second and "\x1b[2K" not in second


def test_terminal_of_ascii_gets_ascii() -> None:
    text = run(env={"PYTHONIOENCODING": "ascii"}).text()
    assert "number 1 | " in text and "·" not in text
