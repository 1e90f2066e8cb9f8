"""Helpers for tests that watch processes end."""

import time
from pathlib import Path


def gone_within(seconds: float, pid: int) -> bool:
    """Whether a process ends within this time; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False
