"""Draws candidates with HyperparameterHunter's Gaussian process; keeps them as experiments.

The experiments are in `searches/HyperparameterHunterAssets/`. When the same rows are
searched again, the package finds the matching experiments and learns from all of them.
After rows were added none match, because losses on different rows cannot be compared. Then
the best candidate of the last search is tried right after `start`. LightGBM's defaults follow.

The package's "model" is a whole cross-validation by `race`, which it fits once. So its
candidates are validated like those of every other optimiser.
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

if TYPE_CHECKING:  # can only be imported with the shims applied
    from hyperparameter_hunter import BayesianOptPro, Real

ASSETS = "HyperparameterHunterAssets"
DESCRIPTIONS = "Experiments/Descriptions"
LEADERBOARD = "Leaderboards/GlobalLeaderboard.csv"

#: The package creates only some of these itself, and those world-writable.
FOLDERS = (DESCRIPTIONS, "Leaderboards", "TestedKeys", "KeyAttributeLookup")

#: Files that the package would write for each experiment, and that nothing reads.
NOT_KEPT = (
    *("script_backup", "heartbeat", "current_heartbeat"),
    *("predictions_oof", "predictions_in_fold"),
)

RANDOM_FIRST = 8


def optimise(race: Race) -> None:
    """Try `race.spec.evals` candidates, those of `race.known` first."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = race.spec.memory or Path(temporary)
        for name in FOLDERS:
            (folder / ASSETS / name).mkdir(parents=True, exist_ok=True)
        _search(race, folder)


def _search(race: Race, folder: Path) -> None:
    earlier = _leaderboard(folder / ASSETS)
    known = race.known(_previous_best(earlier, folder / ASSETS, race))
    with hunter_shims.apply_shims() as hunter:
        hunter.Environment(
            train_dataset=pd.DataFrame(race.spec.X).add_prefix("f").assign(target=race.spec.y),
            results_path=str(folder),
            metrics={"loss": (mean, "min")},
            cv_type=Once,
            cv_params={"n_splits": 1, "subject": race.problem_id(), "seed": race.spec.seed},
            file_blacklist=list(NOT_KEPT),
            verbose=0,
        )
        model = _model(race)
        for params in known:
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
    """The package's Bayesian optimisation, which takes in all earlier experiments at once.

    The original fits a Gaussian process after each experiment, and discards all but the
    last.
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
    """The class that the package takes for a model: fitting it validates one candidate."""

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
    """A cross-validation with a single split of all rows: `Candidate` splits them itself.

    The package stores the arguments, which distinguish experiments of different problems.
    """

    def __init__(self, n_splits: int, subject: str, seed: int) -> None:
        pass

    def split(self, X: pd.DataFrame, y: pd.DataFrame) -> Iterator[tuple[IntegerCodes, ...]]:
        """All rows for fitting, and the same rows for predicting."""
        yield np.arange(len(X)), np.arange(len(X))


def mean(target: Matrix, prediction: Matrix) -> float:
    """The metric: `Candidate` predicts its loss for every row."""
    return float(np.mean(prediction))


def _dimension(hunter: ModuleType, spec: Range, known: list[float]) -> "Real | float":
    """A real dimension, or a constant; the package has no log-uniform integers: `race` rounds."""
    low, high = spec.interval(*known)
    if low == high:
        return low
    return hunter.Real(low, high, prior="log-uniform" if spec.log else "uniform")


def _leaderboard(assets: Path) -> pd.DataFrame:
    """All experiments, the newest last; one without a description was killed, and is removed."""
    path = assets / LEADERBOARD
    if not path.exists():
        return pd.DataFrame({"experiment_id": []})
    found = pd.read_csv(path).sort_values("experiment_#", kind="stable")
    if not _description(assets, found["experiment_id"].iloc[-1]).exists():
        found = found.iloc[:-1]
        found.to_csv(path, index=False)
    return found


def _previous_best(earlier: pd.DataFrame, assets: Path, race: Race) -> dict[str, float] | None:
    """The best experiment on the rows of the last one, if the problem is the same."""
    if earlier.empty:
        return None
    last = earlier[earlier["cross_experiment_key"] == earlier["cross_experiment_key"].iloc[-1]]
    best = last.loc[last["oof_loss"].idxmin(), "experiment_id"]
    description = json.loads(_description(assets, best).read_text("utf-8"))
    if description["cross_experiment_parameters"]["cv_params"]["subject"] != race.problem_id():
        return None
    return search_space.cut(description["hyperparameters"]["model_init_params"], race.space)


def _description(assets: Path, experiment_id: str) -> Path:
    return assets / DESCRIPTIONS / f"{experiment_id}.json"
