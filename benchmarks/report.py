"""Shows results on the terminal, and writes them to results.md with plots beside it."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.common import Plot, Section, Table
from utils import broker

HERE = Path(__file__).parent
RESULTS = HERE / "results.md"
LIBRARIES = ("kafka-python", "lightgbm", "hyperopt", "numpy", "pandas", "msgspec", "SQLAlchemy")
HEAD = """\
# Results of `make bench`

Ratios carry over to other machines; seconds and rows a second do not. Goals that were missed
are marked "NOT reached". Each section says when and on which machine it was measured.
"""


def show(section: Section, console: Console) -> None:
    """Print a section."""
    console.rule(section.title)
    for table in section.tables:
        shown = RichTable(*table.columns, title=table.title)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for note in section.notes:
        console.print(note)


def write(section: Section, results: Path = RESULTS) -> None:
    """Write a section into results.md, replacing its previous version, and draw its plots."""
    for plot in section.plots:
        _draw(plot, results.with_name(f"{plot.name}.svg"))
    kept = results.read_text("utf-8") if results.exists() else HEAD
    head, *sections = re.split(r"^(?=## )", kept, flags=re.MULTILINE)
    text = markdown(section)
    title = text.splitlines()[0]
    places = [n for n, other in enumerate(sections) if other.splitlines()[0] == title]
    if places:
        sections[places[0]] = text
    else:
        sections.append(text)
    results.write_text("\n".join(part.rstrip("\n") + "\n" for part in [head, *sections]), "utf-8")


def markdown(section: Section) -> str:
    """Format a section as Markdown."""
    parts = [f"## {section.title}", *map(_table, section.tables), *section.notes]
    parts += [f"![{plot.title}]({plot.name}.svg)" for plot in section.plots]
    return "\n\n".join([*parts, f"*{measured_on()}*"]) + "\n"


def _draw(plot: Plot, file: Path) -> None:
    import matplotlib  # imported here: the tests import this module without it

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"  # reproducible files
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for label, points in plot.curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    if plot.level is not None:
        height, label = plot.level
        axes.axhline(height, linestyle="--", color="grey", linewidth=1, label=label)
    if plot.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _table(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{table.title}**\n\n{rows}"


def measured_on() -> str:
    """Describe the date, the machine and the versions of a measurement."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {_commit()}: {os.cpu_count()} cores, {_cpu()}, "
        f"{_memory_gb():.0f} GB, {platform.system()} {platform.release()}; Python "
        f"{platform.python_version()}, Apache Kafka {broker.VERSION}, {versions}"
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    cpus = Path("/proc/cpuinfo")
    text = cpus.read_text() if cpus.exists() else ""
    named = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
