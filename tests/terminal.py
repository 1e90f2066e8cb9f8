"""Scripts in a pseudo-terminal, as a person sees them."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping

from tests.harness import until
from utils.settings import ROOT

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A process in a terminal of its own."""

    def __init__(self, env: Mapping[str, str], *command: str, columns: int = 100) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        # What pytest sets for its own processes, and what a developer may have set.
        unset = {name for name in ("NO_COLOR", "FORCE_COLOR") if env.get(name) == os.getenv(name)}
        unset |= {"COLUMNS", "LINES"}
        given = {**os.environ, "TERM": "xterm", **env}
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={name: value for name, value in given.items() if name not in unset},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._ours = ours
        self._output = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                found = os.read(self._ours, 65536)
            except OSError:  # the other side is closed
                return
            if not found:
                return
            self._output += found

    def raw(self) -> str:
        """The output so far, with its escape codes."""
        return self._output.decode("utf-8", "replace")

    def text(self) -> str:
        """The output so far without escape codes; a line that is rewritten is there each time."""
        return ESCAPES.sub("", self.raw()).replace("\r\n", "\n")

    def live_lines(self) -> list[str]:
        """The states of the live line: what the cursor returned from."""
        return [line.split("\n")[-1] for line in self.text().split("\r")]

    def says(self, pattern: str, timeout: float = 30.0) -> None:
        """Wait until the output contains the pattern."""
        until(
            lambda: re.search(pattern, self.text()) is not None,
            timeout,
            lambda: f"{pattern!r} in:\n{self.text()[-3000:]}",
        )

    def end(self, *signals: int, timeout: float = 40.0) -> int:
        """Send signals, wait for the end and return the exit status."""
        for number in signals:
            self.process.send_signal(number)
        status = self.process.wait(timeout)
        self._reader.join(5)
        return status

    def close(self) -> None:
        """Kill the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        os.close(self._ours)
