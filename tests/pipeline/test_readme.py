"""Runs or checks every command, link, variable and example of README.md, in a copy."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import certifi
import msgspec
import pytest

from tests.harness import write_adult
from utils import messages, settings
from utils.broker import Broker, free_port
from utils.settings import ROOT

README = (ROOT / "README.md").read_text("utf-8")
HTTP = (ROOT / "HTTP.md").read_text("utf-8")

NOT_COPIED = (
    *(".git", ".venv", "data", "models", "messages", "mlruns", "searches", "own"),
    *("__pycache__", ".*_cache", ".hypothesis"),
)


@dataclass(frozen=True)
class Step:
    """How the test runs a command of the README.

    Attributes:
        extra: Arguments that shorten the run.
        ready: For a command that runs until it is stopped: its output when it is ready.
        then: (command, output) of running commands to wait for before the next step.
        prints: Text that the output of the command has to contain.
    """

    extra: str = ""
    ready: str = ""
    then: tuple[tuple[str, str], ...] = ()
    prints: str = ""


PREDICTOR, TRAINER = "python predictor.py", "python trainer.py"
ROW_BY_HTTP = next(line for line in HTTP.splitlines() if line.startswith("curl "))

STEPS = {
    "python -m utils.broker": Step(ready="is ready at"),
    "python initialize.py": Step("--evals 1", prints="done; now start"),
    PREDICTOR: Step(ready="serves partitions [0]"),
    TRAINER: Step("--evals 1", ready="ready; 1 evaluations"),
    "python sample_app.py": Step(
        "--messages 26 --interval 0.05",
        then=((PREDICTOR, "RETRAIN REQUESTED: 25"), (TRAINER, "RETRAINING COMPLETED: model 2")),
        prints="sent 26, answered 26",
    ),
    "python sample_app.py --messages 500 --interval 0.1 --outcome-delay 10": Step(
        "--messages 9 --interval 0.05 --outcome-delay 0.1", prints="sent 9, answered 9"
    ),
    "python -m ops list": Step(prints="serving"),
    "python -m ops show 2": Step(prints='"model_id": 2'),
    "python -m ops why REQUEST_ID": Step(prints="REQUEST_ID"),
    "python -m ops replay": Step(),
    "python -m ops rebuild 2": Step(),
    "python -m ops rollback 1": Step(prints="bundle 1 serves"),
    "python -m serving": Step("--port PORT", ready="serves at"),
    ROW_BY_HTTP: Step(prints='"label":"<=50K"'),
    "python -m monitor": Step("--port 0", ready="shows the pipeline"),
    "python initialize.py --mlflow": Step("--evals 1", prints="model 1 logged"),
    "python -m ops retrain": Step(prints="retraining requested: manual-"),
    "python -m ops report": Step(prints="35 messages, 35 of them with an outcome"),
    "python -m ops backtest": Step(prints="the first model"),
    "python -m ops dead-letters list": Step(prints="no record was rejected"),
    "mkdir -p own/data": Step(),
    'python -c "from sklearn.datasets import load_iris; i = load_iris(as_frame=True); '
    "i.data.assign(species=i.target_names[i.target]).to_csv('own/data/iris.csv', "
    'index=False)"': Step(),
}


def blocks(language: str, page: str = README) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


#: Sections about packages that are not in requirements.txt.
OPTIONAL = {"Logging to MLflow", "Watching it"}


def sections() -> dict[str, list[str]]:
    """The commands of each section by its title, in the order of the README."""
    found = {}
    for section in README.split("\n## ")[1:]:
        found[section.splitlines()[0]] = commands_of(section)
    return found


def commands_of(page: str) -> list[str]:
    """The commands of a page, without their comments."""
    return [re.sub(r"\s+# .*", "", line) for line in "".join(blocks("sh", page)).splitlines()]


@dataclass
class Terminals:
    """Runs the README's commands in a copy of the project.

    Attributes:
        folder: The copy.
        environ: The environment with which each section begins.
        words: Words of the README and what replaces them here.
    """

    folder: Path
    environ: dict[str, str]
    words: dict[str, str]
    section: dict[str, str] = field(default_factory=dict)
    running: list[tuple[str, "subprocess.Popen[bytes]", Path]] = field(default_factory=list)

    def begin_section(self) -> None:
        self.section = dict(self.environ)

    def export(self, assignments: list[str]) -> None:
        for assignment in assignments:
            name, value = assignment.split("=", 1)
            self.section[name] = self.words.get(value, value)

    def run(self, command: str, step: Step) -> None:
        words = shlex.split(f"{command} {step.extra}")
        if words[0] == "python":
            words[0] = sys.executable
        words = [self.words.get(word, word) for word in words]
        if step.ready:
            self._start(command, words, step.ready)
        else:
            self._run(command, words, self.words.get(step.prints, step.prints))
        for name, text in step.then:
            self.wait_for(name, text)

    def _run(self, command: str, words: list[str], prints: str) -> None:
        done = subprocess.run(
            words, cwd=self.folder, env=self.section, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert prints in done.stdout, f"{command}: {done.stdout}"
        if found := re.search(r"for request id (\S+)", done.stdout):
            self.words.setdefault("REQUEST_ID", found[1])

    def _start(self, command: str, words: list[str], ready: str) -> None:
        output = self.folder / f"output-{len(self.running)}.txt"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                words, cwd=self.folder, env=self.section, stdout=stream, stderr=stream
            )
        self.running.append((command, process, output))
        self.wait_for(command, ready)

    def wait_for(self, command: str, text: str, seconds: float = 60.0) -> None:
        """Wait until the newest process of that command has printed the text."""
        _, process, output = [each for each in self.running if each[0] == command][-1]
        until = time.monotonic() + seconds
        while text not in (printed := output.read_text("utf-8")):
            assert process.poll() is None, f"{command} ended: {printed}"
            assert " failed" not in printed, f"{command}: {printed}"
            assert time.monotonic() < until, f"{command} did not print {text!r}: {printed}"
            time.sleep(0.05)

    def stop_all(self) -> None:
        """Stop the newest process first, so that brokers end after their clients."""
        while self.running:
            command, process, output = self.running.pop()
            process.send_signal(signal.SIGTERM)
            try:
                status = process.wait(30)
            finally:
                process.kill()
            printed = output.read_text("utf-8")
            ended_well = status == 0 and "Traceback" not in printed
            assert ended_well, f"{command} ended with status {status}: {printed}"

    def kill_all(self) -> None:
        for _, process, _ in self.running:
            process.kill()
            process.wait()


@pytest.fixture
def terminals(tmp_path: Path, adult_files: Path) -> Iterator[Terminals]:
    """A copy of the project with the first rows of its data set."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*NOT_COPIED))
    write_adult(clone, adult_files, train=3_000, test=3_000)
    ours = {"MAKEFLAGS", "MAKELEVEL", *(variable.name for variable in settings.VARIABLES)}
    environ = {
        **{name: value for name, value in os.environ.items() if name not in ours},
        "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{free_port()}",
    }
    port = str(free_port())
    words = {
        "localhost:9094": f"localhost:{free_port()}",
        "localhost:8080/invocations": f"localhost:{port}/invocations",
        "PORT": port,
    }
    opened = Terminals(clone, environ, words)
    yield opened
    opened.kill_all()


@pytest.fixture
def secured_cluster(tmp_path: Path, terminals: Terminals) -> Iterator[None]:
    """A cluster that requires a login, in place of the README's example."""
    (example,) = re.findall(r"^export KAFKA_BOOTSTRAP_SERVERS=(\S+example\S+)", README, re.M)
    port = free_port()
    terminals.words |= {
        example: f"127.0.0.1:{port}",
        "SASL_SSL": "SASL_PLAINTEXT",
        "/etc/ssl/certs/ca-certificates.crt": certifi.where(),
    }
    overrides = {
        "listeners": f"SASL_PLAINTEXT://127.0.0.1:{port}",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
    }
    users = {"pipeline": "secret"}
    with Broker(tmp_path / "secured", overrides=overrides, scram=users):
        yield


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("secured_cluster")
def test_every_command_of_the_readme_runs(terminals: Terminals) -> None:
    for title, commands in sections().items():
        if title not in OPTIONAL:
            run_section(terminals, commands)
    terminals.stop_all()
    missing = [name for name in named_files() if not (terminals.folder / name).exists()]
    assert all(name.startswith("mlruns/") for name in missing), f"missing files: {missing}"


@pytest.mark.timeout(150)
def test_the_five_commands_to_a_row_scored_over_http(terminals: Terminals) -> None:
    commands = commands_of(HTTP)
    assert len(commands) == 5
    run_section(terminals, commands)
    terminals.stop_all()
    (answer,) = blocks("json", HTTP)
    msgspec.json.decode(answer, type=messages.Prediction)


@pytest.mark.optional
@pytest.mark.timeout(300)
def test_every_command_for_optional_packages_runs(terminals: Terminals) -> None:
    run_section(terminals, ["python -m utils.broker"])
    for title in OPTIONAL:
        run_section(terminals, sections()[title])
    terminals.stop_all()
    files = [name for name in named_files() if name.startswith("mlruns/")]
    assert files and all((terminals.folder / name).exists() for name in files)


def run_section(terminals: Terminals, commands: list[str]) -> None:
    terminals.begin_section()
    for command in commands:
        kind, *rest = shlex.split(command)
        if kind == "make":
            for target in rest:
                terminals.run(f"make -n {target}", Step())
        elif command == "source .venv/bin/activate":
            assert "VENV := .venv/bin\n" in (ROOT / "Makefile").read_text()
        elif kind == "mlflow":  # starting its server is not part of the test
            assert (terminals.folder / rest[-1].removeprefix("sqlite:///")).exists()
        elif kind == "pip":  # the tests' environment has it
            assert (terminals.folder / rest[-1]).exists()
        elif kind == "export":
            terminals.export(rest)
        else:
            assert command in STEPS, f"no step for this command of the README: {command}"
            terminals.run(command, STEPS[command])
        if command == "mkdir -p own/data":
            (terminals.folder / "own" / "pipeline.toml").write_text(example_of_own_data())


def example_of_own_data() -> str:
    (example,) = blocks("toml")
    return example


def named_files() -> set[str]:
    """The project files that the README links to or names."""
    links = re.findall(r"\]\(([^):#]+)\)", README)
    prose = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    paths = re.findall(r"`((?:[\w-]+/)*(?:[\w-]+\.(?:py|toml|txt|json|md|ipynb)|[\w-]+/))`", prose)
    return {*links, *paths}


def test_every_tested_command_is_in_the_readme() -> None:
    documented = {command for commands in sections().values() for command in commands}
    documented.update(commands_of(HTTP))
    assert set(STEPS) <= documented


def test_readme_explains_every_variable() -> None:
    table = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
    assert not [v.name for v in settings.VARIABLES if f"`{v.name}`" not in table]


def test_example_records_of_the_readme_decode() -> None:
    request, prediction, outcome = "".join(blocks("json")).splitlines()
    data = json.loads(request)
    assert set(data) == {"request_id", "data"}
    assert set(data["data"]) <= set(settings.load({}).data.columns)
    answer = msgspec.json.decode(prediction, type=messages.Prediction)
    assert json.loads(msgspec.json.encode(answer)) == json.loads(prediction)
    known = msgspec.json.decode(outcome, type=messages.Outcome)
    assert data["request_id"] == answer.request_id == known.request_id


def test_example_configuration_of_the_readme_is_valid() -> None:
    example = tomllib.loads(example_of_own_data())
    settings.Settings.model_validate({"home": Path(), **example})


def test_readme_explains_every_topic() -> None:
    names = (*messages.CO_PARTITIONED, messages.RETRAIN_TOPIC, messages.DEAD_LETTERS)
    assert not [name for name in names if f"| `{name}` |" not in README]
