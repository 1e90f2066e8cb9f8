"""Runs the whole pipeline for about a minute, with every process in one terminal.

    make demo        or        python -m ops demo [--messages 150] [--interval 0.2]

Starts a broker unless one answers already, then initialize, predictor, trainer, sample_app
and the live page, each as a user would. It ends by itself with a summary; its exit status
is 0 only if nothing was lost and no process failed. Ctrl-C ends it early. With METRICS_PORT
the predictor serves its metrics there, trainer, sample_app and the page on the next three ports.
"""

import argparse
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO

from rich.console import Console

from ops.demo_screen import Screen
from utils import broker, kafka_io, messages, process
from utils.errors import UserError, one_line
from utils.kafka_io import LogReader
from utils.messages import ModelLoaded, RetrainRequest, TrainingCompleted
from utils.settings import ROOT, Settings
from utils.telemetry.live_line import EMBEDDED

#: Which port after METRICS_PORT each process serves its metrics at.
METRICS_PORTS = {"initialize": 0, "predictor": 0, "trainer": 1, "sample_app": 2, "monitor": 3}
#: The page's port, unless it is taken.
PAGE_PORT = 8600
#: What may fail without the pipeline failing.
OPTIONAL = frozenset({"monitor"})
#: Seconds from SIGTERM until a process is killed.
EXIT_TIMEOUT = 30.0
#: Seconds until the last retrain request must be answered.
ANSWER_TIMEOUT = 300.0


class Stopped(Exception):
    """The user pressed Ctrl-C: end all processes."""


class Demo:
    """The processes of one demonstration.

    Args:
        screen: Shows what they do.
        metrics_port: Where the first of them serves its metrics; None for nowhere.

    Attributes:
        stop: Set by Ctrl-C; a second one kills all processes.
        failures: One line of text for each failure.
    """

    def __init__(self, screen: Screen, metrics_port: int | None = None) -> None:
        self.screen = screen
        self.stop = process.Stop(self._kill)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.failures: list[str] = []
        self._metrics_port = metrics_port
        self._readers: dict[str, threading.Thread] = {}

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        """Start a Python command and show its output under its name."""
        child = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=self._environment(name),
            start_new_session=True,  # Ctrl-C reaches only us; `end` stops them in order
        )
        self.processes[name] = child
        self.screen.set_state(name, "runs", "starts")
        assert child.stdout is not None
        reader = threading.Thread(target=self._show, args=(name, child.stdout), daemon=True)
        self._readers[name] = reader
        reader.start()
        return child

    def _environment(self, name: str) -> dict[str, str]:
        found = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "PIPELINE_LOG_FORMAT": "text",
        }
        if self.screen.is_live:
            found[EMBEDDED] = "1"
        if self._metrics_port is not None and name in METRICS_PORTS:
            found["METRICS_PORT"] = str(self._metrics_port + METRICS_PORTS[name])
        return found

    def _show(self, name: str, output: IO[str]) -> None:
        for line in output:
            self.screen.take(name, line.rstrip("\n"))

    def _ended(self, name: str, status: int) -> str:
        """Show that a process has ended; returns that in words if it has failed."""
        self._readers.pop(name).join(EXIT_TIMEOUT)  # its last lines come before ours
        self.screen.set_state(name, "failed" if status else "done")
        return f"{name} ended with status {status}" if status else ""

    def _kill(self) -> None:
        for child in list(self.processes.values()):
            child.kill()

    def wait(self, name: str) -> None:
        """Wait until a process has ended by itself; a failure ends the demo."""
        while self.processes[name].poll() is None:
            self._check_running(but=name)
            if self.stop.wait(0.1):
                raise Stopped
        if failure := self._ended(name, self.processes.pop(name).returncode):
            raise UserError(failure)

    def _check_running(self, but: str = "") -> None:
        for name, child in self.processes.items():
            if name not in (but, *OPTIONAL) and child.poll() is not None:
                self.screen.set_state(name, "failed")
                raise UserError(f"{name} ended with status {child.returncode}")

    def end(self) -> None:
        """Stop the running processes, the newest first; kill those that do not end in time."""
        for name in reversed(list(self.processes)):
            child = self.processes[name]
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            try:
                status = child.wait(EXIT_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
            if failure := self._ended(name, status):
                if name in OPTIONAL:
                    self.screen.say(failure, "yellow")
                else:
                    self.failures.append(failure)
        self.processes.clear()


@dataclass
class Events:
    """The events on `retrain_topic` during the demo."""

    reader: LogReader
    requests: set[str] = field(default_factory=set)
    completed: dict[str, bool] = field(default_factory=dict)
    loaded: list[int] = field(default_factory=list)

    def read(self, timeout_ms: int) -> None:
        """Read the new events."""
        for records in self.reader.poll(timeout_ms).values():
            for record in records:
                match messages.decode_event(record.value):
                    case RetrainRequest(batch_id=batch_id):
                        self.requests.add(batch_id)
                    case TrainingCompleted(batch_id=str(batch_id), accepted=accepted):
                        self.completed[batch_id] = accepted
                    case ModelLoaded(model_id=model_id):
                        self.loaded.append(model_id)

    def all_done(self) -> bool:
        """Whether every request is answered."""
        return self.requests <= set(self.completed)


def play(demo: Demo, settings: Settings, arguments: argparse.Namespace) -> Events:
    """Run the demonstration; returns what was requested and answered."""
    say = demo.screen.say
    servers = settings.kafka.bootstrap_servers
    if broker.is_answering(servers, timeout=1.0):
        say(f"using the broker at {servers}")
        demo.screen.set_state("broker", "runs", f"was there already, at {servers}")
    else:
        say(f"starting a Kafka broker at {servers}")
        demo.start("broker", "-m", "utils.broker")
    demo.start("initialize", "initialize.py", "--wait", "300", "--evals", str(arguments.evals))
    demo.wait("initialize")
    _show_page(demo)
    with ExitStack() as resources:
        reader = LogReader(settings.kafka, [messages.RETRAIN_TOPIC], default="latest")
        events = Events(resources.enter_context(reader))
        demo.start("predictor", "predictor.py")
        demo.start("trainer", "trainer.py", "--evals", str(arguments.evals))
        demo.start(
            "sample_app",
            "sample_app.py",
            *("--messages", str(arguments.messages)),
            *("--interval", str(arguments.interval)),
            *("--outcome-delay", str(arguments.outcome_delay)),
            "--no-verbose",
        )
        demo.wait("sample_app")
        say("every message has its prediction; waiting for the last retraining")
        _wait_for_trainer(demo, events)
        return events


def _show_page(demo: Demo) -> None:
    """Start the live page, which prints its address, if its package is installed."""
    if importlib.util.find_spec("nicegui") is None:
        demo.screen.say("no live page without nicegui: pip install -r requirements-monitor.txt")
        demo.screen.set_state("monitor", "waits", "not installed")
        return
    with socket.socket() as probe:
        is_taken = probe.connect_ex(("127.0.0.1", PAGE_PORT)) == 0
    demo.start("monitor", "-m", "monitor", "--port", "0" if is_taken else str(PAGE_PORT))


def _wait_for_trainer(demo: Demo, events: Events) -> None:
    until = time.monotonic() + ANSWER_TIMEOUT
    quiet_since = time.monotonic()
    while time.monotonic() < until:
        before = len(events.requests)
        events.read(timeout_ms=200)
        if len(events.requests) > before or not events.all_done():
            quiet_since = time.monotonic()
        if time.monotonic() - quiet_since > 1.0:
            return
        if demo.stop():
            raise Stopped
    demo.failures.append(f"{len(events.requests - set(events.completed))} requests not answered")


def _summary(console: Console, events: Events) -> None:
    verdicts = Counter(events.completed.values())
    console.rule("summary")
    console.print(
        f"retrainings requested: {len(events.requests)}, answered: {len(events.completed)} "
        f"(accepted {verdicts[True]}, refused {verdicts[False]})\n"
        f"models loaded while serving: {', '.join(map(str, events.loaded)) or 'none'}",
        markup=False,
    )


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the demonstration, and end all processes in any case."""
    with Screen() as screen:
        demo = Demo(screen, settings.metrics.port)
        demo.stop.on_signals()
        events = None
        try:
            events = play(demo, settings, arguments)
        except Stopped:
            screen.say("stopping")
            demo.end()
            return 130
        except (UserError, kafka_io.KafkaUnavailable, kafka_io.KafkaError) as error:
            demo.failures.append(one_line(error))
        finally:
            demo.end()
    if events is not None:
        _summary(screen.console, events)
    for failure in demo.failures:
        screen.say(f"FAILED: {failure}", "bold red")
    if not demo.failures:
        screen.say("nothing lost, nothing twice", "bold green")
    return 1 if demo.failures else 0
