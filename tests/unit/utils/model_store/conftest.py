"""An empty model store for each test."""

from pathlib import Path

import pytest

from utils.model_store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")
