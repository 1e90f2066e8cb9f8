"""Runs the whole pipeline for about a minute, with every process in one terminal.

    make demo        or        python -m ops demo [--messages 150] [--interval 0.2]

Starts a broker unless one answers already, then initialize, predictor, trainer and
sample_app, each as a user would. It ends by itself with a summary; its exit status is 0
only if nothing was lost and no process failed. Ctrl-C ends it early.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from rich.console import Console
from rich.text import Text

from utils import broker, kafka_io, messages, process
from utils.errors import UserError, one_line
from utils.kafka_io import LogReader
from utils.messages import ModelLoaded, RetrainRequest, TrainingCompleted
from utils.settings import ROOT, Settings

COLOURS = {"broker": "blue", "initialize": "yellow", "predictor": "cyan", "trainer": "magenta"}
#: Seconds from SIGTERM until a process is killed.
EXIT_TIMEOUT = 30.0
#: Seconds until the last retrain request must be answered.
ANSWER_TIMEOUT = 120.0


class Stopped(Exception):
    """The user pressed Ctrl-C: end all processes."""


@dataclass
class Demo:
    """The processes of one demonstration.

    Attributes:
        stop: Set by Ctrl-C.
        failures: One line of text for each failure.
    """

    stop: process.Stop
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        """Start a Python command and show its output under its name."""
        child = subprocess.Popen(
            [sys.executable, "-u", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "PYTHONIOENCODING": "utf-8",
                "PIPELINE_LOG_FORMAT": "text",
            },
            start_new_session=True,  # Ctrl-C reaches only us; `end` stops them in order
        )
        self.processes[name] = child
        assert child.stdout is not None
        threading.Thread(target=self._show, args=(name, child.stdout), daemon=True).start()
        return child

    def _show(self, name: str, output: IO[str]) -> None:
        for line in output:
            # The scripts print their name in each line; here the margin does.
            text = re.sub(rf"^(\d\d:\d\d:\d\d) {name}\s+", r"\1 ", line.rstrip("\n"))
            margin = Text(f"{name:<10} | ", style=COLOURS.get(name, "green"))
            self.console.print(margin + Text.from_ansi(text))

    def wait(self, name: str) -> None:
        """Wait until a process has ended by itself; a failure ends the demo."""
        while self.processes[name].poll() is None:
            self._check_running(but=name)
            if self.stop.wait(0.1):
                raise Stopped
        status = self.processes.pop(name).returncode
        if status:
            raise UserError(f"{name} ended with status {status}")

    def _check_running(self, but: str = "") -> None:
        for name, child in self.processes.items():
            if name != but and child.poll() is not None:
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
            if status:
                self.failures.append(f"{name} ended with status {status}")
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


def play(demo: Demo, settings: Settings, arguments: argparse.Namespace) -> None:
    """Run the demonstration."""
    say = partial(demo.console.print, style="bold", markup=False)
    servers = settings.kafka.bootstrap_servers
    if broker.is_answering(servers, timeout=1.0):
        say(f"using the broker at {servers}")
    else:
        say(f"starting a Kafka broker at {servers}")
        demo.start("broker", "-m", "utils.broker")
    demo.start("initialize", "initialize.py", "--wait", "300", "--evals", str(arguments.evals))
    demo.wait("initialize")
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
        )
        demo.wait("sample_app")
        say("every message has its prediction; waiting for the last retraining")
        _wait_for_trainer(demo, events)
        _summary(demo, events)


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


def _summary(demo: Demo, events: Events) -> None:
    verdicts = Counter(events.completed.values())
    demo.console.rule("summary")
    demo.console.print(
        f"retrainings requested: {len(events.requests)}, answered: {len(events.completed)} "
        f"(accepted {verdicts[True]}, refused {verdicts[False]})\n"
        f"models loaded while serving: {', '.join(map(str, events.loaded)) or 'none'}",
        markup=False,
    )


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the demonstration, and end all processes in any case."""
    demo = Demo(process.Stop().on_signals())
    try:
        play(demo, settings, arguments)
    except Stopped:
        demo.console.print("stopping")
        demo.end()
        return 130
    except (UserError, kafka_io.KafkaUnavailable, kafka_io.KafkaError) as error:
        demo.failures.append(one_line(error))
    finally:
        demo.end()
    for failure in demo.failures:
        demo.console.print(f"FAILED: {failure}", style="bold red", markup=False)
    if not demo.failures:
        demo.console.print("nothing lost, nothing twice", style="bold green")
    return 1 if demo.failures else 0
