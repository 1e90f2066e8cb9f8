"""LightGBM's defaults and a search of ten evaluations, on public data sets of many shapes.

The defaults are 100 rounds at a learning rate of 0.1. Both are fitted on the same rows and
compared on the same test rows.
"""

import argparse
import os
import time

from benchmarks import datasets
from benchmarks.common import Section, Table, Workshop
from train import evaluate, fit, gate, optimisers
from train.search import SearchSpec, search
from utils.metrics import Metrics

NAMES = (
    *("banana", "titanic", "iris", "wine", "breast_cancer", "phishing", "german", "tic-tac-toe"),
    *("segment", "digits", "yeast", "splice", "shuttle", "sea", "elec2", "letter", "covtype"),
    "adult",
)


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    parser.add_argument("--sets", nargs="+", choices=NAMES, default=NAMES[:2] if quick else NAMES)
    parser.add_argument("--rows", type=int, default=50_000, help="rows of a data set at most")
    parser.add_argument("--optimiser", choices=optimisers.names(), default="hyperopt")


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    table = Table(
        f"Log loss and accuracy: LightGBM's defaults, then {options.evals} evaluations",
        [
            *("data set", "rows", "columns", "classes", "log loss", "accuracy"),
            *("difference", "standard error", "seconds", "no worse?"),
        ],
    )
    lost = 0
    for name in options.sets:
        workshop.say(f"tables: {name}")
        cells, worse = _compare(name, options)
        table.add(name, *cells, "NO" if worse else "yes")
        lost += worse
    section = Section("Other data sets", [table])
    section.notes.append(
        f"Worse by more than the standard error of the paired difference: {lost} of "
        f"{len(options.sets)}. Rows are those to learn from; three in ten, chosen by a hash, are "
        f"for testing (Adult: its test file). At most {options.rows:,} rows of a data set are "
        f"used. Optimiser: {options.optimiser}; seconds are those of the search and the fit."
    )
    return section


def _compare(name: str, options: argparse.Namespace) -> tuple[list[str], bool]:
    split = datasets.load(name, options.rows)
    features = split.features
    X, y = split.encode(split.train)
    X_test, y_test = split.encode(split.test)
    threads = os.cpu_count() or 1
    plain = fit.fit(X, y, features, {"learning_rate": 0.1}, 100, threads=threads)
    started = time.perf_counter()
    spec = SearchSpec(X=X, y=y, features=features, evals=options.evals, seed=1, threads=threads)
    best = search(optimisers.get(options.optimiser), spec)
    searched = fit.fit(X, y, features, best.params, best.rounds, threads=threads)
    seconds = time.perf_counter() - started
    scores = [fit.predict(booster, X_test, threads) for booster in (plain, searched)]
    usual, ours = (evaluate.row_losses(p, y_test) for p in scores)
    compared = gate.compare_losses(usual, ours, gate.REFUSE_AT)
    cells = [f"{len(y):,}", str(X.shape[1]), str(len(features.classes))]
    cells += _figures(*(evaluate.metrics(p, y_test) for p in scores))
    cells += [
        f"{compared.mean_difference:+.4f}",
        f"{compared.standard_error:.4f}",
        f"{seconds:.1f}",
    ]
    return cells, compared.mean_difference > compared.standard_error


def _figures(before: Metrics, after: Metrics) -> list[str]:
    return [
        f"{before.log_loss:.4f} / {after.log_loss:.4f}",
        f"{before.accuracy:.3f} / {after.accuracy:.3f}",
    ]
