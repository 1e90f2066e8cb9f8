"""The benchmarks' command line and their tables of results; no benchmark runs here."""

from functools import partial
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import report
from benchmarks.common import Section, Table, at_least, by_turns, rate


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
