"""LightGBM (`lgb`), imported without scikit-learn, pandas, SciPy and narwhals.

Importing these four takes most of a predictor's start, and LightGBM gets only NumPy arrays
here. Any of them that is imported already is used; the others can be imported later.
"""

import ctypes
import weakref

import numpy as np

from utils.lean_import import stub_modules

# LightGBM uses these modules only to check whether its input is of one of their types.
_only_for_types = ("scipy", "scipy.sparse", "narwhals", "narwhals.dependencies", "narwhals.typing")
with stub_modules("sklearn", "pandas", stubs=_only_for_types):
    import lightgbm as lgb

__all__ = ["SingleRowPredictor", "lgb"]

_NORMAL, _ALL_TREES, _FLOAT64 = 0, -1, 1  # of LightGBM's C interface


class SingleRowPredictor:
    """Predicts a single row, several times as fast as `Booster.predict` and with the same bits.

    It calls https://lightgbm.readthedocs.io/en/stable/C-API.html,
    `LGBM_BoosterPredictForMatSingleRowFast`, which LightGBM's Python package does not offer.
    `Booster.predict` prepares each prediction from scratch: that is most of what one row takes.
    Threads may share it: LightGBM lets one at a time use what is prepared.

    Args:
        booster: The model.
    """

    def __init__(self, booster: lgb.Booster) -> None:
        self._booster = booster  # what is prepared refers to it
        self._library = lgb.basic._LIB
        self._features, self._outputs = booster.num_feature(), booster.num_model_per_iteration()
        self._prepared = ctypes.c_void_p()
        self._check(
            self._library.LGBM_BoosterPredictForMatSingleRowFastInit(
                booster._handle,
                ctypes.c_int(_NORMAL),
                ctypes.c_int(0),  # from the first tree
                ctypes.c_int(_ALL_TREES),
                ctypes.c_int(_FLOAT64),
                ctypes.c_int32(self._features),
                ctypes.c_char_p(b"num_threads=1"),
                ctypes.byref(self._prepared),
            )
        )
        weakref.finalize(self, self._library.LGBM_FastConfigFree, self._prepared)

    def predict(self, row: np.ndarray) -> np.ndarray:
        """Probabilities as `Booster.predict` returns them for a matrix of one row.

        Args:
            row: float64, (1, features), C order.

        Raises:
            lightgbm.basic.LightGBMError: LightGBM cannot predict it.
        """
        assert row.shape == (1, self._features) and row.dtype == np.float64
        found = np.empty(self._outputs)
        self._check(
            self._library.LGBM_BoosterPredictForMatSingleRowFast(
                self._prepared,
                ctypes.c_void_p(row.ctypes.data),
                ctypes.byref(ctypes.c_int64()),
                ctypes.c_void_p(found.ctypes.data),
            )
        )
        return found if self._outputs == 1 else found.reshape(1, -1)

    @staticmethod
    def _check(status: int) -> None:
        lgb.basic._safe_call(status)
