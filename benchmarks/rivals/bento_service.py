"""A BentoML service with a bundle's model, one worker, as BentoML's documentation shows it.

    MODEL=.../model.txt .venv-http/bin/python -m bentoml serve \
        benchmarks.rivals.bento_service:Model --port PORT

Without access log. Adaptive batching is off: it made nothing faster here.
"""

import os

import bentoml
import lightgbm as lgb
import numpy as np


@bentoml.service(workers=1, logging={"access": {"enabled": False}})  # type: ignore[untyped-decorator]
class Model:
    """Scores encoded rows."""

    def __init__(self) -> None:
        self._booster = lgb.Booster(model_file=os.environ["MODEL"])

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities, (rows,), of encoded rows, (rows, features)."""
        return np.asarray(self._booster.predict(rows, num_threads=1))
