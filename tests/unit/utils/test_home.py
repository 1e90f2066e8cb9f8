"""A home's identity: made once, copied with the home, never replaced when it is damaged."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.errors import one_line
from utils import home, settings
from utils.errors import UserError
from utils.settings import Settings


def settings_of(folder: Path) -> Settings:
    return settings.load({"PIPELINE_HOME": str(folder)})


def test_scripts_that_start_at_once_make_one_identity(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(home.identify, [settings_of(tmp_path / "home")] * 8))
    assert len(made) == 1
    assert home.identify(settings_of(tmp_path / "other")) not in made


def test_copied_home_is_the_same_home(tmp_path: Path) -> None:
    made = home.identify(settings_of(tmp_path / "home"))
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    assert home.identify(settings_of(tmp_path / "copy")) == made


@pytest.mark.parametrize("content", [b"", b'{"id": "x"}', b'{"id": "1', b"\xff"])
def test_damaged_identity_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data" / "home.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        home.identify(settings_of(tmp_path))
    assert str(path) in one_line(error.value)
    assert path.read_bytes() == content
