"""LightGBM, imported by utils.boosting without its unused dependencies."""

import subprocess
import sys

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
