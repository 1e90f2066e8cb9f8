"""Log loss on adult.test by seconds of search: this project's search and the original's.

Both search from scratch on adult.data with all cores; this project's search holds out one row
in ten for the gate, as the trainer does.
"""

import argparse
import os

import lightgbm as lgb

from benchmarks.common import Plot, Section, Table, Workshop, at_most
from benchmarks.rivals import original
from train import evaluate, fit, train_hyperopt
from train.search import SearchSpec, search
from train.training_rows import Problem, fit_preprocessor, gather_rows, training_matrix
from utils import data_set, process
from utils.feature_tools import FeatureTools
from utils.settings import Settings

GOAL = 0.2745
WITHIN = 60.0

#: (evaluations, seconds searching, log loss on adult.test)
Point = tuple[int, float, float]


def add_options(parser: argparse.ArgumentParser, quick: bool) -> None:
    ours = [1, 2] if quick else [1, 5, 10, 20, 40, 80]
    theirs = [1, 2] if quick else [1, 5, 10, 20, 40]
    parser.add_argument(
        "--evaluations",
        type=process.at_least(1),
        nargs="+",
        default=ours,
        help="evaluations of our search",
    )
    parser.add_argument(
        "--original",
        type=process.at_least(1),
        nargs="+",
        default=theirs,
        help="evaluations of the original's search",
    )


def run(options: argparse.Namespace, workshop: Workshop) -> Section:
    config = workshop.settings()
    workshop.say(f"quality: our search, {options.evaluations} evaluations")
    ours = _ours(config, options.evaluations)
    workshop.say(f"quality: the original's, {options.original} evaluations")
    theirs = _original(config, options.original)
    table = Table(
        "Log loss on adult.test",
        ["search", "evaluations", "seconds searching", "log loss", "goal", "reached?"],
    )
    in_time = [loss for _, seconds, loss in ours if seconds <= WITHIN]
    best = min(in_time, default=float("nan"))
    for name, points in (("ours", ours), ("the original's", theirs)):
        for evals, seconds, loss in points:
            goal = at_most(loss, GOAL) if points is ours and loss == best else ("", "")
            table.add(name, str(evals), f"{seconds:.1f}", f"{loss:.4f}", *goal)
    section = Section("Quality for the time", [table])
    section.notes.append(
        f"The goal is a log loss of {GOAL} within {WITHIN:.0f} s; the best within that time is "
        f"{best:.4f}. Each point is a separate search from scratch."
    )
    section.plots.append(
        Plot(
            "quality",
            "Quality for the time",
            {
                "this project's search": [(seconds, loss) for _, seconds, loss in ours],
                "the original's search": [(seconds, loss) for _, seconds, loss in theirs],
            },
            x="seconds spent searching",
            y="log loss on adult.test",
            level=(GOAL, f"goal: {GOAL}"),
        )
    )
    return section


def our_loss(
    config: Settings, features: FeatureTools, booster: lgb.Booster, skip: int = 0
) -> float:
    """Mean log loss of a model on adult.test without its first `skip` rows."""
    path = config.data_dir / config.data.test
    frame = data_set.read_data(path, config.data, features.types).frame[skip:]
    codes = features.encode_target(frame[config.data.target])
    probabilities = booster.predict(features.transform(frame))
    return float(evaluate.row_losses(probabilities, codes).mean())


def original_loss(config: Settings, trained: original.Trained, skip: int = 0) -> float:
    """Mean log loss of a model that was trained the original's way, on the same rows."""
    frame, labels = original.read(config, config.data.test)
    probabilities = trained.probabilities(frame[skip:])
    return float(evaluate.row_losses(probabilities, labels[skip:]).mean())


def _ours(config: Settings, evaluations: list[int]) -> list[Point]:
    problem = Problem.of(config, None)
    rows = gather_rows(problem, None)
    features = fit_preprocessor(rows, problem)
    matrix, codes = training_matrix(rows, features)
    threads, seed = os.cpu_count() or 1, config.training.seed
    points = []
    for evals in evaluations:
        spec = SearchSpec(
            X=matrix,
            y=codes,
            features=features,
            evals=evals,
            seed=seed,
            n_folds=config.training.folds,
            threads=threads,
        )
        best = search(train_hyperopt.optimise, spec)
        booster = fit.fit(
            matrix, codes, features, best.params, best.rounds, threads=threads, seed=seed
        )
        points.append((evals, best.seconds, our_loss(config, features, booster)))
    return points


def _original(config: Settings, evaluations: list[int]) -> list[Point]:
    frame, labels = original.read(config, config.data.train)
    points = []
    for evals in evaluations:
        trained = original.train(frame, labels, config, evals)
        points.append((evals, trained.searching, original_loss(config, trained)))
    return points
