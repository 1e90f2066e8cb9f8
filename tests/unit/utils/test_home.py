"""A home's identity: made once, copied with the home, never replaced when it is damaged."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.errors import one_line
from utils import home, settings
from utils.errors import UserError
from utils.settings import Settings


def settings_of(folder: Path, name: str = "") -> Settings:
    return settings.load({"PIPELINE_HOME": str(folder), "PIPELINE_NAME": name})


def test_scripts_that_start_at_once_make_one_identity(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(home.identify, [settings_of(tmp_path / "home")] * 8))
    assert len(made) == 1
    assert home.identify(settings_of(tmp_path / "other")) not in made


def test_copied_home_is_the_same_home(tmp_path: Path) -> None:
    made = home.identify(settings_of(tmp_path / "home"))
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    assert home.identify(settings_of(tmp_path / "copy")) == made


def test_home_is_that_of_one_pipeline(tmp_path: Path) -> None:
    plain, eu, us = (settings_of(tmp_path, name) for name in ("", "eu", "us"))
    home.check_name(eu)  # nobody's yet
    made = home.identify(eu)
    home.check_name(eu)
    for other, words in ((us, ["PIPELINE_NAME is us", "set it to eu"]), (plain, ["is not set"])):
        with pytest.raises(UserError) as error:
            home.check_name(other)
        line = one_line(error.value)
        assert all(word in line for word in (str(tmp_path), "pipeline eu", "--take-over", *words))
    home.rename(plain)
    home.check_name(plain)
    assert home.identify(plain).id == made.id
    with pytest.raises(
        UserError, match="a pipeline without a name, but PIPELINE_NAME is eu: unset"
    ):
        home.check_name(eu)


def test_home_of_a_version_without_names_has_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "home.json").write_text('{"id": "' + "0" * 32 + '", "created": "x"}')
    home.check_name(settings_of(tmp_path))


@pytest.mark.parametrize("content", [b"", b'{"id": "x"}', b'{"id": "1', b"\xff"])
def test_damaged_identity_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data" / "home.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        home.identify(settings_of(tmp_path))
    assert str(path) in one_line(error.value)
    assert path.read_bytes() == content
