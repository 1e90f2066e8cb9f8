"""Rows per second and latency over HTTP: `python -m serving`, `mlflow models serve` and BentoML.

The same LightGBM model, one process each, on one machine with the client. The rivals get rows that
are encoded already, as numbers; `serving` gets the raw values by name, and encodes them itself.
Before anything is measured, the probabilities of all are compared: they have to be the same bits.
All servers run all the time and are measured in turn. Then models are swapped under load.
"""

import argparse
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from benchmarks.common import Section, Table, Workshop, at_least, percentile, rows_of, running
from benchmarks.http_client import Client, Failed, Load, get, post
from tests.harness import Pipeline, until
from train.retrain import train
from train.training_rows import Problem, base_rows
from utils import process
from utils.broker import free_port
from utils.model_store import ModelStore
from utils.settings import ROOT, Settings

PYTHON = ROOT / ".venv-http" / "bin" / "python"
SERVING, TENSOR, TABLE, BENTO = "serving", "MLflow, inputs", "MLflow, dataframe_split", "BentoML"
#: The goal for one row in a request, against each rival.
GOAL = 3.0
#: Connections and rows in a request.
LOADS = [(1, 1), (4, 1), (16, 1), (1, 10), (1, 100), (1, 1000)]
#: Different rows that are sent.
ROWS = 2_000
#: Of the rivals: one thread for LightGBM, as in `serving`; no access log; no report to the makers.
RIVAL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "UVICORN_ACCESS_LOG": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "true",
    "DO_NOT_TRACK": "true",
}
#: Connections, and seconds between two swaps, while models are swapped.
SWAP_CONNECTIONS, SWAP_SECONDS = 4, 1.0


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--seconds", type=float, default=0.1 if quick else 0.6, help="per turn")
    parser.add_argument("--rounds", type=process.at_least(1), default=1 if quick else 5)
    parser.add_argument("--swaps", type=process.at_least(0), default=2 if quick else 10)


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    home = workshop.folder()
    pipeline = Pipeline(home, EXTRA_MODELS_TO_KEEP="9")
    pipeline.copy_files(workshop.prepared)
    rows = SameRows(pipeline.settings)
    with ExitStack() as resources:
        workshop.say("http: starting the servers")
        servers = resources.enter_context(all_servers(pipeline, rows, workshop.folder()))
        rows.check(servers)
        workshop.say(f"http: {len(servers)} servers agree in {ROWS} rows; measuring")
        found = compare(servers, rows, options)
        client = measure_client(servers[0].port, options.seconds)
        workshop.say(f"http: swapping the model {options.swaps} times")
        swapped = measure_swaps(pipeline, servers[0], rows, options.swaps)
    tables = [compared_table(found), _client_table(client), _swapped_table(swapped)]
    section = Section("Model over HTTP", tables)
    section.notes.append(
        f"One process each, {options.rounds} rounds of {options.seconds:g} s by turns; a model of "
        f"{rows.bundle.booster.num_trees()} trees and {rows.matrix.shape[1]} features, LightGBM in "
        "one thread. `serving / it` is the median of the rounds' ratios of rows/s, with the lowest "
        "and the highest; latencies are those of all rounds. Servers and client share the cores."
    )
    section.notes.append(
        "The rivals get encoded rows: `inputs` and `dataframe_split` in MLflow, each with a "
        "signature, arrays in BentoML. `serving` gets the raw values by name, so it does more: it "
        "checks and encodes them, and each answer has a request_id, a label and the model's id. "
        "Access logs are off, and the rivals have uvloop and httptools, too. All answers had the "
        "bundle's probabilities, bit for bit."
    )
    return section


@dataclass
class Server:
    """A server under measurement.

    Attributes:
        name: For the tables.
        port: Where it listens.
        request: Makes the request for the rows from one number up to another.
        read: Reads the probabilities in the body of an answer to several rows.
    """

    name: str
    port: int
    request: Callable[[int, int], bytes]
    read: Callable[[bytes], list[float]]


class SameRows:
    """The rows that are sent, raw and encoded, as requests to each server.

    Args:
        config: The settings of a home with a model.
    """

    def __init__(self, config: Settings) -> None:
        self.bundle = ModelStore(config.models_dir).load_current()
        found = rows_of(config)
        encoded = self.bundle.features.transform(pd.DataFrame(found))
        # JSON has no NaN, for which each server has a notation of its own.
        complete = np.flatnonzero(~np.isnan(encoded).any(axis=1))[:ROWS].tolist()
        self.raw: list[dict[str, Any]] = [found[number] for number in complete]
        self.matrix = encoded[complete]

    @cached_property
    def encoded(self) -> list[list[float]]:
        """The rows as LightGBM takes them."""
        rows: list[list[float]] = self.matrix.tolist()
        return rows

    def requests(self, server: Server, rows: int) -> list[bytes]:
        """Requests with different rows, several of them in each."""
        return [server.request(first, first + rows) for first in range(0, len(self.raw), rows)]

    def check(self, servers: Sequence[Server]) -> None:
        """Check that each server answers with the bundle's probabilities, to the last bit.

        Raises:
            Failed: One does not.
        """
        expected = self.bundle.score(self.matrix).tolist()
        for server in servers:
            with Client(server.port) as client:
                answered = server.read(client.ask(server.request(0, len(self.raw))))
            if answered != expected:
                raise Failed(f"{server.name} does not answer with the bundle's probabilities")

    # The requests of each server

    def to_serving(self, first: int, end: int) -> bytes:
        sent = self.raw[first:end]
        body = sent[0] if len(sent) == 1 else {"instances": sent}
        return post("/invocations", msgspec.json.encode(body))

    def to_mlflow_tensor(self, first: int, end: int) -> bytes:
        return post("/invocations", msgspec.json.encode({"inputs": self.encoded[first:end]}))

    def to_mlflow_table(self, first: int, end: int) -> bytes:
        names = self.bundle.booster.feature_name()
        table = {"columns": names, "data": self.encoded[first:end]}
        return post("/invocations", msgspec.json.encode({"dataframe_split": table}))

    def to_bento(self, first: int, end: int) -> bytes:
        return post("/predict", msgspec.json.encode({"rows": self.encoded[first:end]}))


def _read_serving(body: bytes) -> list[float]:
    return [answer["probability"] for answer in msgspec.json.decode(body)["predictions"]]


def _read_mlflow(body: bytes) -> list[float]:
    found: list[float] = msgspec.json.decode(body)["predictions"]
    return found


def _read_bento(body: bytes) -> list[float]:
    found: list[float] = msgspec.json.decode(body)
    return found


@contextmanager
def all_servers(pipeline: Pipeline, rows: SameRows, folder: Path) -> Iterator[list[Server]]:
    """Provide the servers, `serving` first; the rivals only if their environment exists."""
    model = str(pipeline.settings.models_dir / str(rows.bundle.model_id) / "model.txt")
    servers = [Server(SERVING, free_port(), rows.to_serving, _read_serving)]
    commands: list[list[str]] = [["-m", "serving", "--port", str(servers[0].port)]]
    if PYTHON.exists():
        for name, request, read in (
            (TENSOR, rows.to_mlflow_tensor, _read_mlflow),
            (TABLE, rows.to_mlflow_table, _read_mlflow),
            (BENTO, rows.to_bento, _read_bento),
        ):
            servers.append(Server(name, free_port(), request, read))
        tensor, table, bento = (str(server.port) for server in servers[1:])
        mlflow = ["-m", "benchmarks.rivals.mlflow_server", model]
        commands.append([*mlflow, str(folder / "tensor"), tensor, "tensor"])
        commands.append([*mlflow, str(folder / "table"), table, "table"])
        service = "benchmarks.rivals.bento_service:Model"
        commands.append(["-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", bento])
    with ExitStack() as resources:
        resources.enter_context(running(pipeline, *commands[0], says="serves at"))
        for command in commands[1:]:
            environment = {**RIVAL_ENVIRONMENT, "MODEL": model}
            rival = running(pipeline, *command, python=str(PYTHON), **environment)
            resources.enter_context(rival)
        for server in servers:
            until(partial(_answers, server), 120, partial("no answer from {}".format, server.name))
        yield servers


def _answers(server: Server) -> bool:
    try:
        with Client(server.port) as client:
            client.ask(server.request(0, 2))
    except OSError:
        return False
    return True


Loads = Mapping[tuple[tuple[int, int], str], Sequence[Load]]


def compare(servers: Sequence[Server], rows: SameRows, options: argparse.Namespace) -> Loads:
    """Measure the servers in turn, in rotating order; returns loads by their kind and server."""
    found: dict[tuple[tuple[int, int], str], list[Load]] = defaultdict(list)
    for connections, size in LOADS:
        requests = {server.name: rows.requests(server, size) for server in servers}
        for number in range(options.rounds):
            turn = number % len(servers)
            for server in (*servers[turn:], *servers[:turn]):
                with Client(server.port, connections) as client:
                    client.load(requests[server.name], options.seconds / 5)
                    load = client.load(requests[server.name], options.seconds)
                found[(connections, size), server.name].append(load)
    return found


def measure_client(port: int, seconds: float) -> dict[int, Load]:
    """Measure what the client costs: a request that is next to no work for the server."""
    found = {}
    for connections in sorted({connections for connections, _ in LOADS}):
        with Client(port, connections) as client:
            client.load([get("/ping")], seconds / 5)
            found[connections] = client.load([get("/ping")], seconds)
    return found


def measure_swaps(
    pipeline: Pipeline, server: Server, rows: SameRows, swaps: int
) -> dict[str, list[Load]]:
    """Measure single rows without and with swaps between two models, twice in turn.

    Raises:
        Failed: A request got no answer of success, or a model was not swapped.
    """
    config = pipeline.settings
    train(
        config, snapshot=None, hyper="hyperopt", evals=1, base=base_rows(Problem.of(config, None))
    )
    store = ModelStore(config.models_dir)
    models = store.on_disk()[-2:]
    requests = rows.requests(server, 1)
    found: dict[str, list[Load]] = defaultdict(list)
    with Client(server.port, SWAP_CONNECTIONS) as client:
        client.load(requests, SWAP_SECONDS)
        for part in (swaps // 2, swaps - swaps // 2):
            for what, number in (("nothing", 0), (f"{swaps} swaps", part)):
                with _swapping(config, models, number):
                    found[what].append(client.load(requests, (part + 1) * SWAP_SECONDS))
        answer = msgspec.json.decode(client.ask(requests[0]))
    last = store.load_current().model_id
    if answer["model_id"] != last:
        raise Failed(f"model {answer['model_id']} answers, but {last} is current")
    return found


@contextmanager
def _swapping(config: Settings, models: Sequence[int], swaps: int) -> Iterator[None]:
    # In a separate process, so as not to disturb the measurement.
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    swapping = context.Process(target=_swap, args=(config, models, swaps, ready))
    swapping.start()
    try:
        ready.wait(30)
        yield
    finally:
        swapping.join()


def _swap(config: Settings, models: Sequence[int], swaps: int, ready: Event) -> None:
    """Roll back to the next of the models every second."""
    store = ModelStore(config.models_dir)
    serving = store.load_current().model_id
    ready.set()
    turn = cycle(sorted(models, key=lambda model_id: model_id == serving))
    for model_id, _ in zip(turn, range(swaps), strict=False):
        time.sleep(SWAP_SECONDS)
        store.rollback(model_id, reason="benchmark")


def compared_table(found: Loads) -> Table:
    """Compare `serving` with each server under each load; ratios are those of each round."""
    table = Table(
        "Requests with 1 to 1,000 rows",
        [
            "connections",
            "rows",
            "what",
            "rows/s",
            "p50, ms",
            "p99, ms",
            "serving / it",
            "goal",
            "reached?",
        ],
    )
    for ((connections, size), name), loads in found.items():
        ours = found[(connections, size), SERVING]
        ratios = [one.rate / it.rate for one, it in zip(ours, loads, strict=True)]
        goal = at_least(median(ratios), GOAL) if size == 1 and name != SERVING else ("", "")
        table.add(
            str(connections),
            str(size),
            name,
            f"{size * median(one.rate for one in loads):,.0f}",
            *_latencies(loads),
            _spread(ratios) if name != SERVING else "1.00",
            *goal,
        )
    return table


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _latencies(loads: Sequence[Load]) -> tuple[str, str]:
    latencies = [one for load in loads for one in load.latencies]
    return f"{median(latencies):.2f}", f"{percentile(latencies, 0.99):.2f}"


def _client_table(found: Mapping[int, Load]) -> Table:
    table = Table(
        "What the client costs: /ping of serving",
        ["connections", "requests/s", "p50, ms", "p99, ms", "client's processor time, ms"],
    )
    for connections, load in found.items():
        cost = 1000 * load.processor / len(load.latencies)
        table.add(str(connections), f"{load.rate:,.0f}", *_latencies([load]), f"{cost:.3f}")
    return table


def _swapped_table(found: Mapping[str, Sequence[Load]]) -> Table:
    table = Table(
        f"serving, single rows on {SWAP_CONNECTIONS} connections",
        ["meanwhile", "requests", "failed", "p50, ms", "p99, ms", "max, ms"],
    )
    for what, loads in found.items():
        latencies = [one for load in loads for one in load.latencies]
        # A request that fails ends the benchmark.
        table.add(what, f"{len(latencies):,}", "0", *_latencies(loads), f"{max(latencies):.1f}")
    return table
