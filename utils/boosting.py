"""LightGBM (`lgb`) without scikit-learn, pandas, SciPy and narwhals: it gets NumPy arrays here.

Importing the four is most of the time in which a predictor starts. Whoever has imported one
already gets LightGBM with it, and each can still be imported later.
"""

from utils.lean_import import stub_modules

# What it asks SciPy's and narwhals' modules for is whether it was given one of their types.
_asked = ("scipy", "scipy.sparse", "narwhals", "narwhals.dependencies", "narwhals.typing")
with stub_modules("sklearn", "pandas", instead=_asked):
    import lightgbm as lgb

__all__ = ["lgb"]
