"""What the project says of itself: packages, versions, and the folders it keeps its files in."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import initialize
import sample_app
import trainer
from cloud import __main__ as cloud_command
from monitor import __main__ as monitor_command
from ops import __main__ as ops_command
from utils.broker import __main__ as broker_command
from utils.model_store import BundleError, ModelStore
from utils.settings import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NAME_AND_VERSION = f"{PROJECT['name']} {PROJECT['version']}\n"

#: Of the makers of the project, or of an environment of its own; nobody installs them as extras.
TOOLS = {"bench", "dev", "fuzz", "http-rivals", "quix"}


def pins(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return sorted(line for line in lines if line)


def test_dependencies_are_those_of_requirements_txt() -> None:
    assert sorted(PROJECT["dependencies"]) == pins(ROOT / "requirements.txt")


def test_each_extra_is_its_requirements_file() -> None:
    files = {
        path.stem.removeprefix("requirements-"): path for path in ROOT.glob("requirements-*.txt")
    }
    expected = {name: pins(path) for name, path in files.items() if name not in TOOLS}
    extras = PROJECT["optional-dependencies"]
    assert {name: sorted(packages) for name, packages in extras.items()} == expected


def test_every_declared_python_runs_in_ci() -> None:
    prefix = "Programming Language :: Python :: "
    declared = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    (matrix,) = re.findall(r"python: \[(.*)\]", workflow)
    assert re.findall(r'"(.+?)"', matrix) == declared
    assert PROJECT["requires-python"] == f">={declared[0]}"


def test_predictor_prints_version() -> None:
    done = subprocess.run(
        [sys.executable, "predictor.py", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, NAME_AND_VERSION, "")


@pytest.mark.parametrize(
    "parse",
    [
        initialize.arguments,
        trainer.arguments,
        sample_app.arguments,
        ops_command.main,
        broker_command.main,
        monitor_command.arguments,
        cloud_command.main,
    ],
    ids=["initialize", "trainer", "sample_app", "ops", "broker", "monitor", "cloud"],
)
def test_command_prints_version(
    parse: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--version"])
    with pytest.raises(SystemExit) as ended:
        parse()
    assert ended.value.code == 0
    assert capsys.readouterr() == (NAME_AND_VERSION, "")


def test_broker_needs_no_settings_for_its_version() -> None:
    """They take longer to import than all the rest of its command."""
    code = (
        "import sys; from utils.broker.__main__ import main\n"
        "try: main(['--version'])\n"
        "finally: assert not {'pydantic', 'utils.process'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, NAME_AND_VERSION, "")


@pytest.mark.parametrize("folder", ["data", "models", "messages"])
def test_git_keeps_the_readme_of_a_folder_and_ignores_the_rest(folder: str) -> None:
    assert (ROOT / folder / "README.md").exists()
    rules = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    at = rules.index(f"/{folder}/*")
    assert rules[at + 1] == f"!/{folder}/README.md"


def test_readme_is_no_model(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "models" / "README.md", readme)
    store = ModelStore(tmp_path)
    with pytest.raises(BundleError, match=r"no models in .*: run initialize\.py first"):
        store.current_id()
    assert store.reconcile() == []
    assert store.on_disk() == []
    assert store.history() == []
    assert store.next_id() == 1
    assert readme.read_bytes() == (ROOT / "models" / "README.md").read_bytes()
