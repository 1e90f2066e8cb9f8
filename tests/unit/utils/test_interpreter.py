"""What a script needs of the interpreter: assertions, standard streams, text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import settings
from utils.message_store.database import parse_url
from utils.settings import ROOT, SettingsError


@pytest.mark.parametrize(
    "script",
    ["initialize.py", "predictor.py", "trainer.py", "sample_app.py", "utils.broker", "ops"],
)
def test_scripts_refuse_to_run_without_assertions(script: str, tmp_path: Path) -> None:
    command = [script] if script.endswith(".py") else ["-m", script]
    done = subprocess.run(
        [sys.executable, "-O", *command, *(["list"] if script == "ops" else [])],
        cwd=ROOT,
        env={**os.environ, "PIPELINE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "run without -O" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


PRINTS = """
import os, subprocess, sys
from utils import interpreter
interpreter.prepare()
with open(os.devnull) as file:
    assert file.fileno() > 2
print("caf\\udce9 \\u2603", flush=True)
subprocess.run([sys.executable, "-c", "print(1)"], check=True)
"""


@pytest.mark.parametrize("closing", ["", "<&-", " >&-", "2>&-", "<&- >&- 2>&-"])
def test_any_text_can_be_printed_to_any_streams(closing: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closing}', sys.executable, PRINTS],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = "caf\\udce9 \\u2603\n1\n"
    assert done.stdout == ("" if " >&-" in closing else printed)


def test_unusable_homes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        os.fsdecode(bytes(tmp_path) + b"/caf\xe9"): "is not UTF-8",
        "~nosuchuser/home": "home directory",
        str(tmp_path / "loop"): "loop",
    }
    for home, reason in cases.items():
        with pytest.raises(SettingsError, match=reason) as failure:
            settings.load({"PIPELINE_HOME": home})
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["a b", "q'\"", "#1", "why?", "100%25", "caf\xe9", "a+b"])
def test_home_of_any_name_holds_the_message_store(name: str, tmp_path: Path) -> None:
    home = tmp_path / name
    url = settings.load({"PIPELINE_HOME": str(home)}).messages_url
    assert parse_url(url).database == str(home / "messages" / "messages.db")
