"""LightGBM (`lgb`) without scikit-learn, which it imports for estimators not used here.

That import is half of the time in which a predictor starts. Whoever has imported
scikit-learn already gets LightGBM with its estimators, and can still import it later.
"""

import sys

if "sklearn" in sys.modules:
    import lightgbm as lgb
else:
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # importing it now fails
    try:
        import lightgbm as lgb
    finally:
        del sys.modules["sklearn"]

__all__ = ["lgb"]
