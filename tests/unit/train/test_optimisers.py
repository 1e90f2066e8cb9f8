"""Every optimiser has to pass the same checks: the functions named `check_...`."""

import collections
import json
import random
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.utils.fixes
from sklearn.datasets import load_wine

from tests.harness import Pipeline, write_adult
from tests.unit.train.samples import Rows, make_spec
from tests.unit.utils.samples import fit
from train import optimisers, search_space, train_hyperparameterhunter
from train import search as searching
from train.search import RACING_RATE, Best
from train.search_space import CATEGORY_SPACE, SPACE, Range
from utils.broker import Broker
from utils.settings import ROOT, Data

ALL = {**SPACE, **CATEGORY_SPACE}


def two_classes(rows: int = 400) -> Rows:
    """Numbers, and a category with influence."""
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({"a": rng.normal(size=500), "b": rng.choice(list("klmnopqrst"), 500)})
    signal = frame["a"] + frame["b"].isin(["k", "p"]) * 2.0 + rng.logistic(size=500)
    frame["y"] = np.where(signal > 0.5, "yes", "no")
    return encode(frame[:rows])


def many_rounds() -> Rows:
    """The class depends on a sum of numbers, for which trees need many rounds."""
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({name: rng.normal(size=600) for name in "abcdef"})
    signal = frame.sum(axis=1) + 0.3 * rng.logistic(size=600)
    return encode(frame.assign(y=np.where(signal > 0, "yes", "no")))


def three_classes() -> Rows:
    """Numbers only."""
    wine = load_wine(as_frame=True)
    return encode(wine.data.assign(y=np.array(["a", "b", "c"])[wine.target]))


def encode(frame: pd.DataFrame) -> Rows:
    features = fit(frame, Data(train="", target="y"))
    return features.transform(frame), features.encode_target(frame["y"]), features


class Searches:
    """Runs searches by one optimiser, in the folder of one test."""

    def __init__(self, name: str, folder: Path) -> None:
        self.optimise = optimisers.get(name)
        self.folder = folder

    def __call__(self, rows: Rows, memory: str | None = None, **changes: Any) -> Best:
        folder = self.folder / memory if memory else None
        return searching.search(self.optimise, make_spec(rows, memory=folder, **changes))

    def has_memory(self, memory: str) -> bool:
        return (self.folder / memory).exists()


def check_search_is_reproducible(search: Searches) -> None:
    """Equal arguments and memory give equal results, for any number of threads."""
    best = search(two_classes(), evals=9)
    assert search(two_classes(), memory="new", evals=9, threads=1) == best
    assert search(two_classes(), seed=2) != search(two_classes())


def check_candidates_are_distinct_and_in_range(search: Searches) -> None:
    """There are as many candidates as requested, all different and inside the search space."""
    for rows, evals in ((two_classes(), 9), (three_classes(), 2), (two_classes(60), 1)):
        best = search(rows, evals=evals)
        race = best.trials[:-1]
        assert best.evaluations == evals
        assert len(race) == (evals if evals > 1 else 0)
        assert len({json.dumps(trial.params) for trial in race}) == len(race)
        space = ALL if rows[2].categorical_features else SPACE
        for trial in best.trials:
            assert set(trial.params) == {*space, "learning_rate"}
            assert all(is_in_range(spec, trial.params[name]) for name, spec in space.items())
        assert best.params == min(best.trials[-1:], key=lambda trial: trial.loss).params


def is_in_range(spec: Range, value: float) -> bool:
    return spec.low <= value <= spec.high and isinstance(value, int if spec.whole else float)


def check_warm_start_is_evaluated_first(search: Searches) -> None:
    """The parameters of an earlier model come first, even at the edge of the search space."""
    far = {name: spec.high for name, spec in ALL.items()}
    best = search(two_classes(), start_from={**far, "num_boost_round": 40, "of others": "x"})
    assert best.trials[0].params == {**far, "learning_rate": RACING_RATE}
    assert search(two_classes(), start_from={"num_leaves": 7}).trials[0].params["num_leaves"] == 7


def check_defaults_of_lightgbm_are_tried(search: Searches) -> None:
    """They are among the first three candidates, also when earlier searches are remembered."""
    for rows in (two_classes(), three_classes()):
        space = search_space.space_of(rows[2])
        defaults = {**search_space.defaults(space), "learning_rate": RACING_RATE}
        assert (defaults["num_leaves"], defaults["feature_fraction"]) == (31, 1.0)
        for _ in range(2):
            race = search(rows, memory="kept").trials[:-1]
            assert defaults in [trial.params for trial in race[:3]]


def check_progress_is_reported(search: Searches) -> None:
    calls: list[tuple[int, int, float]] = []
    best = search(two_classes(), evals=3, progress=lambda *figures: calls.append(figures))
    losses = [trial.loss for trial in best.trials[:3]]
    least = np.minimum.accumulate(losses).tolist()
    assert calls == [(done, 3, least[done - 1]) for done in (1, 2, 3)]


def check_bad_candidates_are_stopped_early(search: Searches) -> None:
    """A candidate that is better than all before it is not stopped."""
    trials = search(many_rounds(), evals=10).trials[:-1]
    assert not trials[0].given_up
    assert any(trial.given_up for trial in trials)
    for place, trial in enumerate(trials[1:], start=1):
        assert not (trial.given_up and trial.loss < min(t.loss for t in trials[:place]))


def check_earlier_searches_are_used(search: Searches) -> None:
    """With a memory, the earlier best is among the first candidates, even after a crash."""
    first = search(two_classes(), memory="kept", evals=10)
    if not search.has_memory("kept"):
        assert search(two_classes(), memory="kept", evals=10) == first
        return
    best = min(first.trials[:-1], key=lambda trial: trial.loss)
    again = search(two_classes(), memory="kept")
    assert again.learnt_from >= 8  # or 10: the start and the defaults are the same
    assert best.params in [trial.params for trial in again.trials[:2]]
    assert {json.dumps(t.params) for t in again.trials[3:4]}.isdisjoint(
        json.dumps(t.params) for t in first.trials
    )
    with pytest.raises(InterruptedError):
        search(two_classes(410), memory="kept", progress=interrupt)
    grown = search(two_classes(420), memory="kept", start_from={"num_leaves": 7})
    assert grown.trials[0].params["num_leaves"] == 7
    assert len(grown.trials) == 5
    other = search(three_classes(), memory="kept")  # ignores the searches of the first problem
    assert other.learnt_from == 0
    assert search(three_classes(), memory="kept").learnt_from > 0


def check_earlier_best_is_tried_on_more_rows(search: Searches) -> None:
    first = search(two_classes(), memory="kept", evals=6)
    if search.has_memory("kept"):
        best = min(first.trials[:-1], key=lambda trial: trial.loss)
        grown = search(two_classes(420), memory="kept")
        assert best.params in [trial.params for trial in grown.trials[:2]]


def interrupt(done: int, total: int, best_loss: float) -> None:
    if done == 2:
        raise InterruptedError


def check_process_state_is_unchanged(search: Searches) -> None:
    """A search leaves no shims and no changed settings in the process."""
    search(two_classes(60), evals=2)  # imports what it needs
    before = process_state()
    search(two_classes(60), evals=2)
    assert process_state() == before
    assert not hasattr(np, "int") and not hasattr(pd.DataFrame, "append")
    assert not hasattr(collections, "Mapping")


def process_state() -> list[Any]:
    return [
        repr(np.random.get_state()),
        random.getstate(),
        list(warnings.filters),
        list(sys.meta_path),
        [sys.modules.get(name) for name in ("pkg_resources", "sklearn.externals.joblib")],
        sklearn.utils.fixes.sp_version,
        pd.get_option("display.expand_frame_repr"),
        sys.stdout,
    ]


CHECKS = [check for name, check in sorted(globals().items()) if name.startswith("check_")]


def marks(name: str) -> list[pytest.MarkDecorator]:
    needs_package = (ROOT / f"requirements-{name}.txt").exists()
    return [pytest.mark.optional] if needs_package else []


@pytest.fixture(params=[pytest.param(name, marks=marks(name)) for name in optimisers.names()])
def search(request: pytest.FixtureRequest, tmp_path: Path) -> Searches:
    """Each optimiser in turn; it is skipped if its package is missing."""
    try:
        return Searches(request.param, tmp_path)
    except optimisers.OptimiserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_optimiser_passes_check(
    check: Callable[[Searches], None], search: Searches, capfd: pytest.CaptureFixture[str]
) -> None:
    check(search)
    assert capfd.readouterr() == ("", ""), "a search prints nothing"


def test_unknown_optimiser_is_an_error() -> None:
    assert optimisers.names() == ["hyperopt", "hyperparameterhunter", "optuna"]
    with pytest.raises(optimisers.OptimiserError, match="no optimiser 'grid'"):
        optimisers.get("grid")


@pytest.mark.parametrize("name", ["optuna", "hyperparameterhunter"])
def test_optimiser_without_its_package_names_the_requirements_file(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = metadata.distribution

    def missing(package: str) -> metadata.Distribution:
        if package in ("optuna", "hyperparameter-hunter"):
            raise metadata.PackageNotFoundError(package)
        return present(package)

    monkeypatch.setattr(metadata, "distribution", missing)
    for look in (optimisers.check, optimisers.get):
        with pytest.raises(optimisers.OptimiserError) as caught:
            look(name)
        assert f"pip install -r requirements-{name}.txt" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture
def small_pipeline(empty_broker: Broker, adult_files: Path, tmp_path: Path) -> Pipeline:
    """A pipeline with the first rows of Adult, and no model yet."""
    home = tmp_path / "home"
    config = write_adult(home, adult_files, train=2_000, test=2_000)
    return Pipeline(
        home, empty_broker.bootstrap, PIPELINE_CONFIG=str(config), EXTRA_MODELS_TO_KEEP="5"
    )


@pytest.mark.parametrize("package", ["optuna", "hyperparameterhunter"], indirect=False)
def test_optional_optimisers_are_in_requirements_dev(package: str) -> None:
    assert f"-r requirements-{package}.txt" in (ROOT / "requirements-dev.txt").read_text("utf-8")


@pytest.mark.optional
@pytest.mark.timeout(300)
def test_optimisers_learn_from_earlier_searches_in_a_real_pipeline(
    small_pipeline: Pipeline, adult: list[dict[str, Any]]
) -> None:
    """Initialise twice, then retrain, first with HyperparameterHunter and then with Optuna."""
    hunter = ("--hyper", "hyperparameterhunter", "--evals", "3")
    for text, options in (("", hunter), ("learnt from 1 earlier", (*hunter, "--force"))):
        done = small_pipeline.run("initialize.py", *options)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout and "Traceback" not in done.stderr
    assets = small_pipeline.settings.searches_dir / train_hyperparameterhunter.ASSETS
    recorded = list((assets / train_hyperparameterhunter.DESCRIPTIONS).glob("*.json"))
    assert len(recorded) == 6
    assert not [path for path in assets.rglob("*") if path.suffix in (".pkl", ".db", ".new")]

    predictor = small_pipeline.start("predictor.py")
    trainer = small_pipeline.start("trainer.py", *hunter)
    small_pipeline.send_rows(adult[:25], "first")
    small_pipeline.wait_for_events("training_completed", 2)
    assert trainer.end() == 0
    trainer = small_pipeline.start("trainer.py", "--hyper", "optuna", "--evals", "3")
    small_pipeline.send_rows(adult[25:50], "second")
    small_pipeline.wait_for_events("training_completed", 3)
    assert (trainer.end(), predictor.end()) == (0, 0)

    by_hunter, by_optuna = (
        json.loads((small_pipeline.settings.models_dir / number / "manifest.json").read_text())[
            "training"
        ]
        for number in ("3", "4")
    )
    assert (by_hunter["hyper"], by_optuna["hyper"]) == ("hyperparameterhunter", "optuna")
    assert by_hunter["learnt_from"] == 0  # the earlier searches were on other rows
    leaderboard = pd.read_csv(assets / train_hyperparameterhunter.LEADERBOARD)
    assert len(leaderboard) == 9
    assert leaderboard["cross_experiment_key"].nunique() == 2
    assert (small_pipeline.settings.searches_dir / "optuna.log").exists()
