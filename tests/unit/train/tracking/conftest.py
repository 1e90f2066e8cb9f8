"""A home for the tests of tracking."""

import shutil
from pathlib import Path

import pytest

from tests.harness import Pipeline


@pytest.fixture
def home(prepared_home: Path, tmp_path: Path) -> Pipeline:
    """A home with a first model, without a broker."""
    shutil.copytree(prepared_home / "models", tmp_path / "models")
    return Pipeline(tmp_path, "127.0.0.1:1")
