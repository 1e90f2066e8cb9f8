"""What the project says of itself."""

import tomllib
from pathlib import Path

from utils.settings import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

#: Of the makers of the project, or of an environment of its own; nobody installs them as extras.
TOOLS = {"bench", "dev", "fuzz", "quix"}


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
