"""LightGBM (`lgb`) without scikit-learn, pandas and SciPy: their arrays are not used here.

Importing the three is most of the time in which a predictor starts. Whoever has imported one
already gets LightGBM with it, and each can still be imported later.
"""

from utils.lean_import import without

with without("sklearn", "pandas", instead=("scipy", "scipy.sparse")):  # SciPy's for types alone
    import lightgbm as lgb

__all__ = ["lgb"]
