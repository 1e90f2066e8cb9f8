"""The benchmarks' command line, tables and HTTP client; no benchmark runs here."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import http, report
from benchmarks.common import Section, Table, at_least, by_turns, rate
from benchmarks.http_client import Client, Failed, Load, get, post


def test_all_benchmarks_run_by_default_and_one_by_name() -> None:
    assert [name for name, _ in benchmarks.parse([])] == list(benchmarks.BENCHES)
    [(name, options)] = benchmarks.parse(["--quick", "throughput", "--rows", "7"])
    assert (name, options.rows, options.quick) == ("throughput", 7, True)


def test_unknown_benchmark_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.parse(["speed"])
    assert "invalid choice: 'speed'" in capsys.readouterr().err


def test_section_replaces_that_of_the_last_run(tmp_path: Path) -> None:
    results = tmp_path / "results.md"
    for figure in ("1", "2"):
        for title in ("First", "Second"):
            section = Section(title, [Table("Figures", ["what", "it"], [("x", figure)])])
            report.write(section, results)
    text = results.read_text()
    assert text.count("## First") == text.count("## Second") == 1
    assert text.count("| x | 2 |") == 2 and "| x | 1 |" not in text


def test_rate_ignores_the_first_arrivals() -> None:
    assert rate([10.0, 10.0, 10.0, 10.5, 11.0, 12.0]) == pytest.approx(1.5)
    with pytest.raises(RuntimeError):
        rate([10.0, 10.0])


def test_by_turns_gives_each_its_median() -> None:
    values = {"a": iter([1.0, 5.0, 3.0]), "b": iter([2.0, 2.0, 9.0])}
    turns = {name: partial(next, some) for name, some in values.items()}
    lines: list[str] = []
    found = by_turns(3, turns, lines.append)
    assert found == {"a": 3.0, "b": 2.0}
    assert at_least(found["a"], 3.0) == (">= 3", "reached")
    assert [line[0] for line in lines] == ["a", "b", "b", "a", "a", "b"]


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *values: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_client_reads_whole_answers_and_counts_each(port: int) -> None:
    large = b"x" * 1_000_000
    with Client(port) as client:
        assert client.ask(post("/", b"one")) == b"one"
        assert client.ask(post("/", large)) == large
    with Client(port, 4) as client:
        load = client.load([post("/", large), post("/", b"two")], 0.05)
    assert len(load.latencies) >= 4 and 0 < min(load.latencies) <= max(load.latencies)
    assert max(load.latencies) / 1000 <= load.seconds
    assert load.rate == pytest.approx(len(load.latencies) / load.seconds)


def test_client_takes_no_error_for_an_answer(port: int) -> None:
    with Client(port) as client, pytest.raises(Failed, match="status 501"):
        client.load([get("/")], 0.05)


def test_http_compares_round_by_round() -> None:
    def loads(*rates: int) -> list[Load]:
        return [Load([1.0] * rate, 1.0, 0.1) for rate in rates]

    single, batch = (1, 1), (1, 10)
    table = http.compared_table(
        {
            (single, http.SERVING): loads(40, 90, 60),
            (single, http.BENTO): loads(10, 45, 10),
            (batch, http.SERVING): loads(5),
            (batch, http.BENTO): loads(10),
        }
    )
    ours, rival, _, slower = table.rows
    assert ours == ("1", "1", "serving", "60", "1.00", "1.00", "1.00", "", "")
    assert rival[3:] == ("10", "1.00", "1.00", "4.00 (2.00 to 6.00)", ">= 3", "reached")
    assert slower[3:] == ("100", "1.00", "1.00", "0.50 (0.50 to 0.50)", "", "")
