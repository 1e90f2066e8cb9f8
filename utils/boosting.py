"""LightGBM (`lgb`) without scikit-learn and pandas: what it wants them for is not used here.

Importing the two is most of the time in which a predictor starts. Whoever has imported one
already gets LightGBM with it, and either can still be imported later.
"""

import sys

_unwanted = [name for name in ("sklearn", "pandas") if name not in sys.modules]
# Importing one of them now fails.
sys.modules.update(dict.fromkeys(_unwanted))  # type: ignore[arg-type]
try:
    import lightgbm as lgb
finally:
    for _name in _unwanted:
        del sys.modules[_name]

__all__ = ["lgb"]
