"""LightGBM (`lgb`) without scikit-learn, pandas and SciPy: their arrays are not used here.

Importing the three is most of the time in which a predictor starts. Whoever has imported one
already gets LightGBM with it, and each can still be imported later.
"""

import sys

from utils.lean_import import without

_types = () if "scipy" in sys.modules else ("scipy", "scipy.sparse")
with without("sklearn", "pandas", instead=_types):
    import lightgbm as lgb

__all__ = ["lgb"]
