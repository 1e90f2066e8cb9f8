"""Which messages of the sample application have a line; with a terminal: test_terminals.py."""

import pytest

from sample_app import SHOW_EACH_ABOVE, line_every
from utils.settings import LogFormat
from utils.telemetry.reporter import Reporter

FAST, SLOW = SHOW_EACH_ABOVE / 2, SHOW_EACH_ABOVE


@pytest.mark.parametrize(
    ("verbose", "interval", "log_format", "every"),
    [
        (None, SLOW, "text", 1),
        (None, FAST, "text", 1000),
        (None, FAST, "json", 1),
        (True, FAST, "text", 1),
        (False, SLOW, "text", 0),
        (False, SLOW, "json", 0),
    ],
)
def test_messages_with_a_line(
    verbose: bool | None, interval: float, log_format: LogFormat, every: int
) -> None:
    assert line_every(verbose, interval, Reporter("sample_app", "", log_format)) == every
