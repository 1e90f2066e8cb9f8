"""`python -m ops --help`."""

from pathlib import Path

import pytest

from ops.__main__ import main


def test_help_explains_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "MESSAGES_URL" in capsys.readouterr().out


def test_output_is_text_whatever_the_scripts_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIPELINE_LOG_FORMAT", "json")
    monkeypatch.setenv("PIPELINE_CONFIG", str(tmp_path / "none"))
    assert main(["list"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert ": cannot read" in err and "{" not in err
