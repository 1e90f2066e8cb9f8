"""Data sets that several tests of training share and do not change."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine

from tests.unit.train.samples import Rows, encode_rows
from utils.settings import Data


@pytest.fixture(scope="session")
def binary_rows() -> Rows:
    """Two classes; numbers, some of them missing, and a category with influence."""
    rng = np.random.default_rng(7)
    rows = 1500
    frame = pd.DataFrame(
        {
            "a number": rng.normal(size=rows),
            'odd {"name"}: [1,2]'.replace('"', "'"): rng.normal(size=rows),
            "été": rng.choice([f"kind {kind}" for kind in range(12)], size=rows),
        }
    )
    signal = frame["a number"] + (frame["été"].str[-1].isin(["1", "4"])) * 2.0
    noise = rng.logistic(size=rows)
    frame.loc[rng.random(rows) < 0.1, "a number"] = np.nan
    frame["y"] = np.where(signal + noise > 0.5, "yes", "no")
    return encode_rows(frame, Data(train="", target="y"))


@pytest.fixture(scope="session")
def multiclass_rows() -> Rows:
    """Three classes; numbers only."""
    wine = load_wine(as_frame=True)
    names = np.array(["barolo", "grignolino", "barbera"])
    frame = wine.data.assign(kind=names[wine.target])
    return encode_rows(frame, Data(train="", target="kind"))
