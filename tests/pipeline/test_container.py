"""The model in containers: SageMaker's contract, the Dockerfile's steps, and compose.yaml."""

import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud import __main__ as cloud_command
from tests.harness import Script, until
from tests.unit.cloud.jobs import HEADER, rows, write_job
from utils import settings
from utils.broker.jars import VERSION
from utils.broker.server import PROPERTIES
from utils.model_store import ModelStore
from utils.settings import ROOT

#: The metric definitions of README.md.
METRICS = {
    "train:rows": r"train:rows=([0-9]+)",
    "search:log_loss": r"search:log_loss=([0-9.]+)",
    "validation:rows": r"validation:rows=([0-9]+)",
    "validation:log_loss": r"validation:log_loss=([0-9.]+)",
    "validation:accuracy": r"validation:accuracy=([0-9.]+)",
    "validation:auc": r"validation:auc=([0-9.]+)",
    "validation:calibration": r"validation:calibration=([0-9.]+)",
    "validation:unusable_rows": r"validation:unusable_rows=([0-9]+)",
}


def environment(base: Path) -> dict[str, str]:
    """The environment of a container: no broker, no home but the clone."""
    ours = {variable.name for variable in settings.VARIABLES}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {
        **kept,
        "SAGEMAKER_BASE_DIR": str(base),
        "SAGEMAKER_BIND_TO_PORT": "0",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    }


def train(base: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a training job."""
    return subprocess.run(
        words or [sys.executable, "-m", "cloud", "train"],
        cwd=ROOT,
        env=environment(base),
        capture_output=True,
        text=True,
        timeout=60,
    )


def figures(log: str) -> dict[str, float]:
    """The last value of each metric, as SageMaker finds it in a log."""
    found = {name: re.findall(regex, log) for name, regex in METRICS.items()}
    return {name: float(values[-1]) for name, values in found.items() if values}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def content_hash(folder: Path) -> str:
    parts = (path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


# Training


def test_training_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job with validation rows, one that fails after it, and one that needs no validation."""
    unusable = "001;many;north;yes\n002;3;north;maybe\n003;4;east;\n"
    base = write_job(
        tmp_path / "ml",
        {"1.csv": rows(250), "2.csv": rows(250, seed=2), "_SUCCESS": ""},
        rows(100, seed=3) + unusable,
        evals="2",
        seed="7",
        cross="code*region",
        sagemaker_program="x",
    )
    before = content_hash(base / "input")
    done = train(base)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files(base / "model") - {".lock"} == {
        *("1/model.txt", "1/features.json", "1/manifest.json"),
        *("current.json", "history.jsonl"),
    }
    assert not (base / "output").exists() and content_hash(base / "input") == before
    bundle = ModelStore(base / "model").load_current()
    assert (bundle.model_id, bundle.manifest.seed) == (1, 7)
    assert bundle.features.types == {"code": "category", "visits": "number", "region": "category"}
    assert bundle.features.classes == ("no", "yes")
    record = bundle.manifest.training
    joined = rows(250) + rows(250, seed=2).removeprefix(HEADER)
    assert record.base_data_sha256 == hashlib.sha256(joined.encode()).hexdigest()
    assert (record.evaluations, record.data["cross"]) == (2, [["code", "region"]])

    found = figures(done.stdout)
    assert set(found) == set(METRICS)
    assert (found["validation:rows"], found["validation:unusable_rows"]) == (100, 3)
    assert found["train:rows"] == record.rows
    assert found["search:log_loss"] == pytest.approx(min(t.loss or 9 for t in record.trials[:2]))
    assert 0.3 < found["validation:log_loss"] < 0.69 and 0.6 < found["validation:accuracy"] <= 1
    for line in (
        "bought is predicted; the data set is described by the hyperparameters alone",
        "hyperparameters of SageMaker itself are ignored: sagemaker_program",
        "channel train: 1.csv, 2.csv",
        "_SUCCESS skipped, empty or hidden",
        "candidate 2 of 2: metric search:log_loss=",
        "3 were unusable: visits: 'many' is no number (1); outcome 'maybe' is none of",
    ):
        assert line in done.stdout, line

    model = content_hash(base / "model" / "1")
    write_job(base, {}, depth="7")
    failed = train(base)
    line = (base / "output" / "failure").read_text()
    assert (failed.returncode, failed.stderr) == (1, f"cloud: {line}")
    assert line.startswith("hyperparameter 'depth' is unknown") and line.count("\n") == 1

    shutil.rmtree(base / "input/data/validation")
    write_job(base, {})
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    assert cloud_command.main(["train"]) == 0
    again = capsys.readouterr().out
    assert not (base / "output" / "failure").exists()
    store = ModelStore(base / "model")
    assert (store.current_id(), store.on_disk()) == (2, [1, 2])
    assert content_hash(base / "model" / "1") == model
    newer = store.load_current().manifest
    own = newer.metrics.challenger
    assert own is not None and own.rows == figures(again)["validation:rows"]
    held_out = (base / "output/data/train.held-out.csv").read_text().splitlines()
    assert held_out[0] == HEADER.strip() and 50 < len(held_out) - 1 < 150
    assert newer.training.rows == 500 - (len(held_out) - 1) - own.rows


def test_stopped_job_leaves_no_model(tmp_path: Path) -> None:
    base = write_job(tmp_path / "ml", {"rows.csv": rows(2_000)}, evals="100000")
    script = Script(tmp_path, environment(base), "-m", "cloud", "train")
    script.says("candidate 2 of 100000", timeout=30)
    assert script.end(signal.SIGTERM, timeout=10) == 143
    assert "stopped before the model was complete" in script.text()
    assert "Traceback" not in script.text()
    assert files(base / "model") <= {".lock"} and files(base / "output") <= {
        "data/rows.held-out.csv"
    }


# Serving


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that is done."""
    base = write_job(tmp_path_factory.mktemp("job") / "ml", {"rows.csv": rows(200)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGEMAKER_BASE_DIR", str(base))
        assert cloud_command.main(["train"]) == 0
    return base


def ask(address: str, path: str, body: str = "", kind: str = "application/json") -> tuple[int, str]:
    """Send a GET request, or a POST request with a body."""
    request = urllib.request.Request(
        address + path, body.encode() or None, {"Content-Type": kind} if body else {}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status, answer.read().decode()


def address_in(script: Script) -> str:
    """The address of a server, seen from this machine."""
    script.says("/invocations")
    found = re.search(r"http://0\.0\.0\.0:(\d+)/invocations", script.text())
    assert found is not None, script.text()
    return f"http://127.0.0.1:{found[1]}"


def check_answers(address: str, base: Path) -> None:
    """Ask for predictions in two formats; they are those of the bundle, bit for bit."""
    bundle = ModelStore(base / "model").load_current()
    message = b'{"request_id": "r", "data": {"code": "003", "visits": 12, "region": "north"}}'
    row = bundle.decoder(message).data
    (expected,) = bundle.score(bundle.features.transform_rows([row])).tolist()
    assert ask(address, "/ping")[0] == 200
    status, text = ask(address, "/invocations", '{"code": "003", "visits": 12, "region": "north"}')
    answer = json.loads(text)
    assert (status, answer["probability"], answer["model_id"]) == (
        *(200, expected),
        bundle.model_id,
    )
    status, text = ask(address, "/invocations", "003,12,north\n003,x,north\n", "text/csv")
    assert status == 200 and repr(expected) in text and "visits: 'x' is no number" in text


def test_endpoint(tmp_path: Path, model: Path) -> None:
    """An endpoint's folder cannot be written to; requests come from outside."""
    base = tmp_path / "ml"
    shutil.copytree(model / "model", base / "model")
    before = content_hash(base)
    script = Script(tmp_path, environment(base), "-m", "cloud", "serve")
    try:
        check_answers(address_in(script), model)
        assert script.end() == 0
    finally:
        script.kill()
    assert "stopped after 2 predictions" in script.text() and content_hash(base) == before


def test_endpoint_without_a_model_is_one_line(tmp_path: Path) -> None:
    done = train(tmp_path, sys.executable, "-m", "cloud", "serve")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"cloud: no model in {tmp_path}/model: it has to hold what `python -m cloud train` leaves\n"
    )


# The Dockerfile


@dataclass
class Stage:
    """A stage of the Dockerfile: what it is built from, and its instructions in order."""

    image: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    """The stages of the Dockerfile by name."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    found: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(image, name)
        elif word:
            stage.steps.append((word, " ".join(rest.split())))
    return found


def lineage(name: str) -> list[Stage]:
    """A stage and those it is built from, the first one first."""
    stage = stages()[name]
    return [*(lineage(stage.image) if stage.image in stages() else []), stage]


def value_of(name: str, instruction: str) -> str:
    """The last value of an instruction in an image."""
    steps = (step for stage in lineage(name) for step in stage.steps)
    return [rest for word, rest in steps if word == instruction][-1]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file of the root, or one in its folders, pass."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        if pattern.startswith("**/"):
            matches = any(fnmatch(part, pattern[3:]) for part in Path(path).parts)
        else:
            matches = fnmatch(Path(path).parts[0], pattern)
        if matches:
            sent = line.startswith("!")
    return sent


def not_sent(folder: str, names: list[str]) -> list[str]:
    """Those of a folder that is sent that are not, for shutil.copytree."""
    return [name for name in names if not is_sent(f"cloud/{name}")]


def test_images_are_pinned_and_end_as_they_should() -> None:
    built = stages()
    outside = {stage.image for stage in built.values()} - set(built)
    assert len(outside) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", outside.pop())
    *_, last = built
    assert last == "pipeline" and value_of(last, "USER") == "pipeline"
    assert "USER" not in dict(step for stage in lineage("sagemaker") for step in stage.steps)
    for name in ("sagemaker", "pipeline"):
        assert json.loads(value_of(name, "ENTRYPOINT")) == ["python", "-m", "cloud"]
        assert any("libgomp1" in rest for stage in lineage(name) for _, rest in stage.steps)


def test_only_what_is_needed_is_copied() -> None:
    """Everything that is committed and imported; nothing of a user's folders."""
    for name in ("data/adult.data", ".git/config", "models/1/model.txt", "tests/x.py", ".venv/x"):
        assert not is_sent(name)
    assert is_sent("cloud/__main__.py") and not is_sent("cloud/__pycache__/x.pyc")
    copied = " ".join(
        rest for stage in lineage("pipeline") for word, rest in stage.steps if word == "COPY"
    )
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= set(copied.split())
    scripts = {path.name for path in ROOT.glob("*.py")}
    assert scripts <= set(copied.split())


class Image:
    """Runs the steps of a stage of the Dockerfile in a folder that stands for the root.

    Paths of the image are taken to be in that folder; what needs Docker, apt or users is left out.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {"PATH": os.environ["PATH"], "HOME": str(root), "LC_ALL": "C.UTF-8"}
        self.workdir = root

    def build(self, name: str) -> None:
        """Run a stage, after those it is built from or copies from."""
        runs = {"COPY": self._copy, "RUN": self._run, "ENV": self._set, "WORKDIR": self._enter}
        for stage in lineage(name):
            for word, rest in stage.steps:
                if word in runs:
                    runs[word](rest)

    def _inside(self, text: str) -> str:
        return re.sub(r"(?<![\w./*])/(opt|build|var/lib/pipeline)\b", rf"{self.root}/\1", text)

    def _enter(self, rest: str) -> None:
        self.workdir = Path(self._inside(rest))
        self.workdir.mkdir(parents=True, exist_ok=True)

    def _set(self, rest: str) -> None:
        for word in shlex.split(rest):
            name, _, value = word.partition("=")
            if name == "PATH":  # the machine's own Python stands for the image's
                value = f"{value.split(':')[0]}:{os.environ['PATH']}"
            self.env[name] = self._inside(value)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        if sources[0].startswith("--from="):
            other = Image(self.root)  # of the same folder: a stage's files are there already
            other.build(sources[0].removeprefix("--from="))
            return
        for pattern in sources:
            found = [path for path in ROOT.glob(pattern) if is_sent(path.name)]
            assert found, pattern
            for path in found:
                place = self.workdir / target / ("" if path.is_dir() else path.name)
                if path.is_dir():
                    shutil.copytree(path, place, dirs_exist_ok=True, ignore=not_sent)
                else:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, place)

    def _run(self, rest: str) -> None:
        commands = [
            part for part in rest.split(" && ") if not re.match(r"apt-get|rm |useradd|chown", part)
        ]
        done = subprocess.run(
            self._inside(" && ".join(commands)) or "true",
            shell=True,
            cwd=self.workdir,
            env=self.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.optional
@pytest.mark.timeout(600)
def test_steps_of_the_dockerfile(tmp_path: Path) -> None:
    """The image's files and packages alone train a model and serve it."""
    image = Image(tmp_path / "root")
    image.root.mkdir()
    image.build("sagemaker")
    entry = json.loads(value_of("sagemaker", "ENTRYPOINT"))
    base = write_job(tmp_path / "ml", {"rows.csv": rows(200)})
    env = {**image.env, "SAGEMAKER_BASE_DIR": str(base), "SAGEMAKER_BIND_TO_PORT": "0"}
    python = str(image.root / "opt/venv/bin/python")
    assert shutil.which(entry[0], path=env["PATH"]) == python

    done = subprocess.run(
        [python, *entry[1:], "train"], cwd=image.workdir, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = tmp_path / "serve.out"
    with output.open("w") as file:
        process = subprocess.Popen(
            [python, *entry[1:], "serve"], cwd=image.workdir, env=env, stdout=file, stderr=file
        )
    try:
        until(lambda: "/invocations" in output.read_text(), 30, output.read_text)
        port = re.findall(r":(\d+)/invocations", output.read_text())[0]
        check_answers(f"http://127.0.0.1:{port}", base)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()

    image.build("pipeline")  # the same, and the page
    commands = [service["command"] for _, service in ours()]
    for command in (["-m", "pip", "check"], *([*command, "--help"] for command in commands)):
        shown = subprocess.run(
            [python, *command], cwd=image.workdir, env=env, capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stdout + shown.stderr


# compose.yaml: no Docker runs it here


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def ours() -> Iterator[tuple[str, dict[str, Any]]]:
    """The services that run the pipeline's image."""
    for name, service in compose()["services"].items():
        if name != "broker":
            yield name, service


def test_compose_runs_the_whole_pipeline() -> None:
    services = compose()["services"]
    assert set(services) == {
        *("broker", "initialize", "predictor", "trainer", "monitor", "serving", "sample-app")
    }
    graph = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert set.union(*graph.values()) <= set(services)
    order = list(TopologicalSorter(graph).static_order())  # raises for a circle
    assert order[:2] == ["broker", "initialize"]
    for service in services.values():
        for name, condition in service.get("depends_on", {}).items():
            waits = condition["condition"]
            if waits == "service_healthy":
                assert "healthcheck" in services[name]
            else:
                assert (waits, name) == ("service_completed_successfully", "initialize")


def test_compose_pins_its_images() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {name: service["image"] for name, service in compose()["services"].items()}
    assert images.pop("broker") == f"apache/kafka:{VERSION}"
    assert set(images.values()) == {f"kafka-learning-pipeline:{version}"}
    assert f"kafka-learning-pipeline:{version}" in (ROOT / "Dockerfile").read_text()


def test_compose_shares_one_home_and_listens_on_loopback() -> None:
    volumes = {tuple(service["volumes"]) for _, service in ours()}
    assert volumes == {(f"home:{value_of('pipeline', 'VOLUME')}",)}
    assert f"PIPELINE_HOME={value_of('pipeline', 'VOLUME')}" in value_of("pipeline", "ENV")
    assert set(compose()["volumes"]) == {"home", "log"}
    ports = [port for s in compose()["services"].values() for port in s.get("ports", ())]
    assert len(ports) == 3 and all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_sets_variables_that_there_are() -> None:
    known = {variable.name for variable in settings.VARIABLES}
    for _, service in ours():
        given = service["environment"]
        assert set(given) <= known
        values = {name: str(value) for name, value in given.items() if "$" not in str(value)}
        loaded = settings.load(values)
        assert loaded.kafka.bootstrap_servers == "broker:9092"
        if (check := service.get("healthcheck")) and "healthz" in check["test"][-1]:
            assert f":{loaded.metrics.port}/healthz" in check["test"][-1]


@pytest.mark.parametrize("name", [name for name, _ in ours()])
def test_compose_runs_commands_that_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = dict(ours())[name]["command"]
    assert dict(ours())[name]["entrypoint"] == ["python"]
    if command[0] == "-m":
        module, options = f"{command[1]}.__main__", command[2:]
    else:
        module, options = command[0].removesuffix(".py"), command[1:]
    monkeypatch.setattr(sys, "argv", [module, *options])
    parse = getattr(importlib.import_module(module), "arguments", None)
    assert parse or not options
    parsed = vars(parse()) if parse else {}
    for option, value in zip(options[::2], options[1::2], strict=True):
        assert str(parsed[option.removeprefix("--")]).startswith(value)


def test_broker_of_compose_is_set_up_as_the_one_of_the_tests() -> None:
    given = compose()["services"]["broker"]["environment"]
    found = {name.removeprefix("KAFKA_").lower().replace("_", "."): given[name] for name in given}
    addresses = {
        "controller.quorum.voters",
        "listeners",
        "advertised.listeners",
        "listener.security.protocol.map",
        "log.dirs",
    }
    assert addresses <= set(found)
    for name in set(found) - addresses:
        assert str(found[name]) == PROPERTIES[name], name
    protocols = dict(pair.split(":") for pair in found["listener.security.protocol.map"].split(","))
    listening = re.findall(r"(\w+)://", found["listeners"])
    assert set(listening) == set(protocols)
    advertised = re.findall(r"(\w+)://([\w.]+):(\d+)", found["advertised.listeners"])
    assert ("PLAINTEXT", "broker", "9092") in advertised
