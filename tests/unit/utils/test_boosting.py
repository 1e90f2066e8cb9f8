"""LightGBM, imported by utils.boosting without its unused dependencies."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from utils.boosting import SingleRowPredictor, lgb
from utils.settings import ROOT


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_lightgbm_uses_scipy_when_it_is_already_imported() -> None:
    program = """
import numpy as np, scipy.sparse
from utils.boosting import lgb
rows = np.arange(200.0).reshape(100, 2)
booster = lgb.train({"verbose": -1}, lgb.Dataset(rows, rows[:, 0] > 99), 2)
print(np.array_equal(booster.predict(scipy.sparse.csr_matrix(rows)), booster.predict(rows)))
"""
    assert run(program) == "True"


@pytest.mark.parametrize("classes", [2, 3])
def test_single_rows_in_several_threads_score_as_in_a_batch(classes: int) -> None:
    rows = np.random.default_rng(1).random((400, 3))
    rows[::7, 1] = np.nan
    kind = {"objective": "binary"} if classes == 2 else {"objective": "multiclass", "num_class": 3}
    labels = (rows[:, 0] * classes).astype(int)
    booster = lgb.train({**kind, "verbose": -1}, lgb.Dataset(rows, labels), 20)
    predictor = SingleRowPredictor(booster)
    with ThreadPoolExecutor(4) as threads:
        alone = list(threads.map(predictor.predict, (rows[n : n + 1] for n in range(len(rows)))))
    assert np.concatenate(alone).tobytes() == booster.predict(rows, num_threads=1).tobytes()
    assert alone[0].shape == booster.predict(rows[:1]).shape
