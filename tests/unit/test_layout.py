"""The layout of the project; `make check` checks the imports against pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

from utils.settings import ROOT

LIBRARIES = ("cloud", "monitor", "ops", "serving", "train", "utils")


def modules() -> list[Path]:
    return [file for name in LIBRARIES for file in sorted(ROOT.glob(f"{name}/**/*.py"))]


def test_no_library_module_is_a_command_line() -> None:
    for file in modules():
        if file.name != "__main__.py":
            assert "if __name__ ==" not in file.read_text("utf-8"), file


@pytest.mark.parametrize("gone", ["utils.model_store", "utils.message_store", "utils.dead_letters"])
def test_former_commands_are_gone(gone: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", gone, "list"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode and "No module named" in done.stderr
    texts = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile"))
    files = [*ROOT.glob("*.py"), *texts, *modules()]
    assert not [file for file in files if f"-m {gone}" in file.read_text("utf-8")]
