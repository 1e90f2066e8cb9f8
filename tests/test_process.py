"""Names of processes: one for each that lives, and again for who comes after."""

import signal
import subprocess
import sys
from pathlib import Path

from utils import settings
from utils.process import slot
from utils.settings import ROOT

HOLDER = """
import signal, sys
from utils import process, settings
stop = process.Stop().on_signals()
with process.slot(settings.load(), "predictor") as name:
    print(name, flush=True)
    stop.wait(60)
"""


def holder(home: Path) -> tuple["subprocess.Popen[str]", str]:
    """A process that has taken a name, and the name."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=ROOT,
        env={"PIPELINE_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_the_name_of_one_that_was_killed_is_taken_first(tmp_path: Path) -> None:
    stopped, first = holder(tmp_path)
    killed, second = holder(tmp_path)
    assert len({first, second}) == 2
    stopped.send_signal(signal.SIGTERM)
    killed.kill()
    assert (stopped.wait(10), killed.wait(10)) == (0, -signal.SIGKILL)
    config = settings.load({"PIPELINE_HOME": str(tmp_path)})
    with slot(config, "predictor") as name, slot(config, "predictor") as another:
        assert (name, another) == (second, first)
    with slot(config, "predictor") as name:
        assert name == first  # all of them ended by themselves
