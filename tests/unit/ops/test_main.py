"""`python -m ops --help`."""

import pytest

from ops.__main__ import main


def test_help_explains_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "MESSAGES_URL" in capsys.readouterr().out
