"""What processes import, which is most of their start time."""

import subprocess
import sys

import pytest

from utils.settings import ROOT


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("predictor", ("scipy", "pandas", "sklearn", "narwhals", "sqlalchemy", "hyperopt")),
        ("trainer", ("scipy", "pandas", "sklearn", "hyperopt")),
        ("utils.message_store", ("scipy", "pandas", "sklearn", "lightgbm")),
        ("train.train_hyperopt", ("scipy.stats", "sklearn", "pandas")),
    ],
)
def test_unused_libraries_are_not_imported(module: str, unused: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*sorted({{*{unused}}} & {{*sys.modules}}))"
    assert run(program) == ""


def test_stubbed_libraries_can_be_imported_later() -> None:
    program = """
import train.train_hyperopt, utils.boosting
import hyperopt.atpe, scipy.sparse, sklearn, pandas, narwhals.dependencies
assert narwhals.dependencies.is_into_series(pandas.Series([1]))
assert hyperopt.atpe.suggest and scipy.sparse.csr_matrix([[1]]).nnz == 1
print("all there")
"""
    assert run(program) == "all there"
