"""The gate: a new model that is worse than the serving one on the validation rows never serves.

The new model is the challenger, the serving one the champion.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from train import evaluate, fit
from utils.boosting import lgb
from utils.feature_tools import FeatureTools, Matrix
from utils.metrics import Comparison, Metrics
from utils.model_store.bundle import MODEL, Bundle, sha256


class Scores:
    """Caches one model's probabilities for the rows of the last call, by the row's bytes.

    The validation rows of a training are those of the previous one and a few more, and its
    champion is often the previous challenger. So hardly any row is scored twice.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Matrix] = {}

    def __call__(self, booster: lgb.Booster, X: Matrix, threads: int) -> Matrix:
        """Return what `fit.predict` returns.

        Args:
            booster: The model, the same in every call.
            X: (rows, features).
            threads: LightGBM's threads at most.
        """
        keys = [row.tobytes() for row in X]
        new = [place for place, key in enumerate(keys) if key not in self._known]
        scored = fit.predict(booster, X[new], threads)
        self._known.update(zip((keys[place] for place in new), scored, strict=True))
        found = np.array([self._known[key] for key in keys])
        found = found.reshape(len(keys), *scored.shape[1:])  # also without rows
        self._known = dict(zip(keys, found, strict=True))
        return found


@lru_cache(maxsize=3)  # a champion, its challenger and the next one
def _scores_of(model_sha256: str) -> Scores:
    return Scores()


def are_comparable(champion: Bundle | None, features: FeatureTools) -> bool:
    """Whether both have the same classes and columns; pipeline.toml may have changed."""
    return champion is not None and (
        champion.features.classes == features.classes
        and set(champion.features.columns) == set(features.columns)
    )


@dataclass(frozen=True)
class Verdict:
    """The gate's decision.

    Attributes:
        challenger: The challenger's metrics on the validation rows.
        champion: The champion's metrics on them; None without a comparable champion.
        comparison: The comparison of both; None without a comparable champion.
        is_first: Whether there is no champion to compare with.
    """

    challenger: Metrics
    champion: Metrics | None = None
    comparison: Comparison | None = None
    is_first: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the challenger may serve: never without a judgement, but for the first."""
        if self.comparison is None:
            return self.is_first
        return not self.comparison.worse


def compare(
    booster: lgb.Booster,
    model_text: str,
    features: FeatureTools,
    champion: Bundle | None,
    rows: tuple[pd.DataFrame, np.ndarray],
    threads: int,
) -> Verdict:
    """Compare a challenger with the champion.

    Args:
        booster: The challenger.
        model_text: Its text, as a bundle holds it.
        features: Its preprocessor.
        champion: The serving bundle; None if there is none.
        rows: The raw columns of the validation rows, and their classes by name; rows of a
            class that the challenger does not know are left out.
        threads: LightGBM's threads at most.
    """
    frame, labels = rows
    codes = features.encode_target(labels)
    known = codes >= 0
    codes, frame = codes[known], frame[known]
    scores = _scores_of(sha256(model_text.encode()))
    challenger_scores = scores(booster, features.transform(frame), threads)
    if champion is None or not are_comparable(champion, features):
        return Verdict(evaluate.metrics(challenger_scores, codes), is_first=champion is None)
    scores = _scores_of(champion.manifest.sha256[MODEL])
    champion_scores = scores(champion.booster, champion.features.transform(frame), threads)
    comparison = evaluate.paired_comparison(
        evaluate.row_losses(champion_scores, codes), evaluate.row_losses(challenger_scores, codes)
    )
    return Verdict(
        evaluate.metrics(challenger_scores, codes),
        evaluate.metrics(champion_scores, codes),
        comparison,
    )
