"""LightGBM (`lgb`), imported without scikit-learn, pandas, SciPy and narwhals.

Importing these four takes most of a predictor's start, and LightGBM gets only NumPy arrays
here. Any of them that is imported already is used; the others can be imported later.
"""

from utils.lean_import import stub_modules

# LightGBM uses these modules only to check whether its input is of one of their types.
_only_for_types = ("scipy", "scipy.sparse", "narwhals", "narwhals.dependencies", "narwhals.typing")
with stub_modules("sklearn", "pandas", stubs=_only_for_types):
    import lightgbm as lgb

__all__ = ["lgb"]
