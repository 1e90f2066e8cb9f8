"""Preprocessing, search and training as in the original pipeline that this one follows.

It repeats the original's methods, not its code: columns are scaled, crossed and encoded one
after the other on copies of a DataFrame; the search cross-validates without an objective and
with `is_unbalance`, and the model is fitted without it. An unseen category crashed the
original; here it gets its own code, so that the method can be measured.
"""

import time
from dataclasses import dataclass
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from hyperopt import Trials, fmin, hp, tpe
from sklearn.preprocessing import MinMaxScaler

from utils import data_set
from utils.settings import Settings

UNSEEN = -1


class Preprocessor:
    """Scales, crosses and encodes the columns of a DataFrame, each step on a copy."""

    def fit(self, frame: pd.DataFrame, crosses: tuple[tuple[str, str], ...]) -> pd.DataFrame:
        """Fit to a DataFrame without its target; returns it transformed."""
        self.crosses = {"_".join(pair): list(pair) for pair in crosses}
        self.numerical = list(frame.select_dtypes(include="number").columns)
        self.categorical = [name for name in frame.columns if name not in self.numerical]
        self.scaler = MinMaxScaler().fit(frame[self.numerical].astype(float))
        crossed = self._cross(frame)
        names = [*self.categorical, *self.crosses]
        self.codes = {
            name: {value: code for code, value in enumerate(crossed[name].unique())}
            for name in names
        }
        return self.transform(frame)

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Transform a DataFrame for the model."""
        scaled = frame.copy()
        scaled[self.numerical] = self.scaler.transform(scaled[self.numerical].astype(float))
        encoded = self._cross(scaled).copy()
        for name, codes in self.codes.items():
            encoded[name] = encoded[name].apply(lambda value, codes=codes: codes.get(value, UNSEEN))
        return encoded

    def _cross(self, frame: pd.DataFrame) -> pd.DataFrame:
        crossed = frame.copy()
        for name, pair in self.crosses.items():
            crossed[name] = crossed[pair].apply(lambda values: "-".join(values), axis=1)
        return crossed


def read(config: Settings, name: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Read a file's raw columns, with "?" as a normal category, and its labels as 0 and 1."""
    frame = data_set.read_data(
        config.data_dir / name, config.data.model_copy(update={"missing": ()})
    ).frame
    labels = frame.pop(config.data.target)
    return frame, (labels == config.data.positive).to_numpy(dtype=int)


@dataclass
class Trained:
    """A model, its preprocessor, and the duration (s) of its search."""

    preprocessor: Preprocessor
    model: Any
    searching: float

    def probabilities(self, frame: pd.DataFrame) -> np.ndarray:
        """The probabilities of the positive class, (rows,)."""
        return np.asarray(self.model.predict_proba(self.preprocessor.transform(frame))[:, 1])


def space() -> dict[str, Any]:
    """The search space."""
    return {
        "learning_rate": hp.uniform("learning_rate", 0.01, 0.2),
        "num_boost_round": hp.quniform("num_boost_round", 50, 500, 20),
        "num_leaves": hp.quniform("num_leaves", 31, 255, 4),
        "min_child_weight": hp.uniform("min_child_weight", 0.1, 10),
        "colsample_bytree": hp.uniform("colsample_bytree", 0.5, 1.0),
        "subsample": hp.uniform("subsample", 0.5, 1.0),
        "reg_alpha": hp.uniform("reg_alpha", 0.01, 0.1),
        "reg_lambda": hp.uniform("reg_lambda", 0.01, 0.1),
    }


def train(frame: pd.DataFrame, labels: np.ndarray, config: Settings, evals: int) -> Trained:
    """Preprocess the rows, search hyperparameters and fit a model."""
    preprocessor = Preprocessor()
    encoded = preprocessor.fit(frame, config.data.cross)
    names = list(preprocessor.codes)
    rows = lgb.Dataset(encoded, label=labels, categorical_feature=names, free_raw_data=False)
    began = time.perf_counter()
    best = search(rows, evals)
    searching = time.perf_counter() - began
    model = lgb.LGBMClassifier(
        **{k: v for k, v in best.items() if k != "num_boost_round"},
        n_estimators=best["num_boost_round"],
        verbose=-1,
    )
    model.fit(encoded, labels, categorical_feature=names)
    return Trained(preprocessor, model, searching)


def search(rows: lgb.Dataset, evals: int) -> dict[str, Any]:
    """Search hyperparameters from scratch: TPE on the loss of 3-fold cross-validation."""
    rounds: list[int] = []

    def loss(drawn: dict[str, Any]) -> float:
        params = {
            **drawn,
            "num_leaves": int(drawn["num_leaves"]),
            "is_unbalance": True,
            "metric": "binary_logloss",
            "verbose": -1,
            "seed": 1,
        }
        found = lgb.cv(
            params,
            rows,
            num_boost_round=int(params.pop("num_boost_round")),
            nfold=3,
            stratified=True,
            callbacks=[lgb.early_stopping(20, verbose=False)],
        )
        losses = found["valid binary_logloss-mean"]
        rounds.append(len(losses))
        return round(float(losses[-1]), 4)

    trials = Trials()
    best = fmin(
        loss,
        space(),
        algo=tpe.suggest,
        max_evals=evals,
        trials=trials,
        rstate=np.random.default_rng(1),
        show_progressbar=False,
        verbose=False,
    )
    best["num_leaves"] = int(best["num_leaves"])
    best["num_boost_round"] = rounds[trials.best_trial["tid"]]
    return dict(best)
