"""Candidates drawn by HyperparameterHunter's Gaussian process, each an experiment on disk.

The experiments are in `searches/HyperparameterHunterAssets/`. Where the same rows are
searched again, the package finds those that match and learns from them all ("Matching
Experiments"). Where rows were added none match, for a loss on other rows does not
compare: then the best of the last search is tried right after `start`.

What it takes for a model is a whole cross-validation by `race`, which it is told to do
once, so that its candidates are judged as everybody's.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from train import hunter_shims, search_space
from train.search import Race
from train.search_space import Range
from utils.feature_tools import IntegerCodes, Matrix

if TYPE_CHECKING:  # the package is imported with the shims in place only
    from hyperparameter_hunter import BayesianOptPro, Real

ASSETS = "HyperparameterHunterAssets"
DESCRIPTIONS = "Experiments/Descriptions"
LEADERBOARD = "Leaderboards/GlobalLeaderboard.csv"

#: It makes those it does not forget itself, but writable for everybody.
FOLDERS = (DESCRIPTIONS, "Leaderboards", "TestedKeys", "KeyAttributeLookup")

#: Files of which there would be one for each experiment, and nobody to read them.
NOT_KEPT = (
    *("script_backup", "heartbeat", "current_heartbeat"),
    *("predictions_oof", "predictions_in_fold"),
)

RANDOM_FIRST = 8


def optimise(race: Race) -> None:
    """Try `race.spec.evals` candidates, `race.start` first."""
    with tempfile.TemporaryDirectory() as forgotten:
        folder = race.spec.memory or Path(forgotten)
        for name in FOLDERS:
            (folder / ASSETS / name).mkdir(parents=True, exist_ok=True)
        _hunt(race, folder)


def _hunt(race: Race, folder: Path) -> None:
    earlier = _leaderboard(folder / ASSETS)
    known = [race.start]
    best = _previous_best(earlier, folder / ASSETS, race)
    if best is not None and best != race.start:
        known.append(best)
    with hunter_shims.apply_shims() as hunter:
        hunter.Environment(
            train_dataset=pd.DataFrame(race.spec.X).add_prefix("f").assign(target=race.spec.y),
            results_path=str(folder),
            metrics={"loss": (mean, "min")},
            cv_type=Once,
            cv_params={"n_splits": 1, "subject": race.subject(), "seed": race.spec.seed},
            file_blacklist=list(NOT_KEPT),
            verbose=0,
        )
        model = _model(race)
        for params in known[: race.spec.evals]:
            hunter.CVExperiment(model, model_init_params=params)
        protocol = _protocol(race)
        ranges = {
            name: _dimension(hunter, spec, [params[name] for params in known])
            for name, spec in race.space.items()
        }
        protocol.forge_experiment(model, model_init_params=ranges, do_raise_repeated=False)
        protocol.go()
        matching = {experiment_id for *_, experiment_id in protocol.similar_experiments}
        race.learnt_from = len(matching & set(earlier["experiment_id"]))


def _protocol(race: Race) -> "BayesianOptPro":
    """Its Bayesian optimisation, which learns from earlier experiments at once.

    The original fits a Gaussian process again after each of them, and throws all but the
    last away.
    """
    from hyperparameter_hunter import BayesianOptPro
    from hyperparameter_hunter.optimization.protocol_core import SKOptPro
    from hyperparameter_hunter.utils.optimization_utils import dimension_subset

    class Protocol(BayesianOptPro):  # type: ignore[misc]
        def _find_similar_experiments(self) -> None:
            super(SKOptPro, self)._find_similar_experiments()
            names = self.space.names()
            points = [dimension_subset(params, names) for params, *_ in self.similar_experiments]
            self._update_optimizer(points, [loss for _, loss, _ in self.similar_experiments])

    return Protocol(
        iterations=race.left,
        n_initial_points=RANDOM_FIRST,
        random_state=race.spec.seed,
        acquisition_optimizer_kwargs={"n_points": 1000},
        verbose=0,
    )


def _model(race: Race) -> type:
    """What it takes for a class of models: one candidate, validated as everybody's."""

    class Candidate:
        def __init__(self, **params: float) -> None:
            self.params = params

        def fit(self, X: pd.DataFrame, y: pd.DataFrame) -> "Candidate":
            self.loss = race.validate(self.params).loss
            return self

        def predict(self, X: pd.DataFrame) -> Matrix:
            return np.full(len(X), self.loss)

    return Candidate


class Once:
    """A cross-validation that has all rows once: `Candidate` splits them itself.

    What it is told is only there to tell experiments of different kinds apart.
    """

    def __init__(self, n_splits: int, subject: str, seed: int) -> None:
        pass

    def split(self, X: pd.DataFrame, y: pd.DataFrame) -> Iterator[tuple[IntegerCodes, ...]]:
        """All rows to fit, and the same to predict."""
        yield np.arange(len(X)), np.arange(len(X))


def mean(target: Matrix, prediction: Matrix) -> float:
    """The metric: `Candidate` predicts its loss for every row."""
    return float(np.mean(prediction))


def _dimension(hunter: ModuleType, spec: Range, known: list[float]) -> "Real":
    """Its own whole numbers cannot be even in the logarithm; `race` rounds these."""
    low, high = spec.interval(*known)
    return hunter.Real(low, high, prior="log-uniform" if spec.log else "uniform")


def _leaderboard(assets: Path) -> pd.DataFrame:
    """All experiments, the newest last; without one that was killed before its description."""
    path = assets / LEADERBOARD
    if not path.exists():
        return pd.DataFrame({"experiment_id": []})
    found = pd.read_csv(path).sort_values("experiment_#", kind="stable")
    if not _description(assets, found["experiment_id"].iloc[-1]).exists():
        found = found.iloc[:-1]
        found.to_csv(path, index=False)
    return found


def _previous_best(earlier: pd.DataFrame, assets: Path, race: Race) -> dict[str, float] | None:
    """The best experiment on the rows of the last one, if those were of this problem."""
    if earlier.empty:
        return None
    last = earlier[earlier["cross_experiment_key"] == earlier["cross_experiment_key"].iloc[-1]]
    best = last.loc[last["oof_loss"].idxmin(), "experiment_id"]
    told = json.loads(_description(assets, best).read_text("utf-8"))
    if told["cross_experiment_parameters"]["cv_params"]["subject"] != race.subject():
        return None
    return search_space.cut(told["hyperparameters"]["model_init_params"], race.space)


def _description(assets: Path, experiment_id: str) -> Path:
    return assets / DESCRIPTIONS / f"{experiment_id}.json"
