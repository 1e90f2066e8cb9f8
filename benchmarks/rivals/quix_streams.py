"""The predictor's scoring as a Quix Streams application, the way its documentation shows.

    .venv-quix/bin/python -m benchmarks.rivals.quix_streams FROM TO [fast]

Row by row, exactly-once, all other settings at their defaults. It uses the predictor's bundle;
a row is encoded in plain Python, which for a single row is several times faster than the
predictor's column-wise encoding. `fast` calls LightGBM's C interface for single rows, which
avoids the overhead of `Booster.predict`: several times the cost of the scoring itself.
"""

import ctypes
import sys
from collections.abc import Callable
from math import isfinite, nan
from typing import Any

import lightgbm as lgb
import msgspec
import numpy as np
from lightgbm.basic import _LIB, _safe_call
from quixstreams import Application

from utils import settings
from utils.feature_tools import FeatureTools
from utils.model_store import ModelStore
from utils.model_store.bundle import Bundle


def encoder(features: FeatureTools) -> Callable[[dict[str, Any]], list[float]]:
    """Return a function that encodes a message's data as the model's features."""
    state = msgspec.json.decode(features.to_json())
    numbers = [
        (name, low, high - low if isfinite(high - low) and high > low else 1.0)
        for name, (low, high) in state["numerical"].items()
    ]
    codes = [
        (name, {value: code for code, value in enumerate(values, 1)})
        for name, values in state["categorical"].items()
    ]
    crosses: list[Any] = [
        (
            *(features.columns.index(name) for name in cross["columns"]),
            {tuple(pair): code for code, pair in enumerate(cross["pairs"], 1)},
        )
        for cross in state["crosses"]
    ]

    def encode(data: dict[str, Any]) -> list[float]:
        row: list[float] = []
        for name, low, span in numbers:
            value = data.get(name)
            row.append(nan if value is None else (value - low) / span)
        for name, known in codes:
            row.append(known.get(data.get(name), 0))
        for first, second, pairs in crosses:
            row.append(pairs.get((row[first], row[second]), 0))
        return row

    return encode


def booster_predict(booster: lgb.Booster) -> Callable[[list[float]], float]:
    """Return a function that scores one row with `Booster.predict`."""
    return lambda row: float(booster.predict([row], num_threads=1)[0])


def fast(booster: lgb.Booster) -> Callable[[list[float]], float]:
    """Return a function that scores with LGBM_BoosterPredictForMatSingleRowFast."""
    matrix = np.empty(booster.num_feature())
    prepared, length, result = ctypes.c_void_p(), ctypes.c_int64(), ctypes.c_double()
    _safe_call(
        _LIB.LGBM_BoosterPredictForMatSingleRowFastInit(
            booster._handle,
            ctypes.c_int(0),  # C_API_PREDICT_NORMAL: probabilities
            ctypes.c_int(0),  # from the first tree
            ctypes.c_int(-1),  # to the last
            ctypes.c_int(1),  # C_API_DTYPE_FLOAT64
            ctypes.c_int32(len(matrix)),
            ctypes.c_char_p(b"num_threads=1"),
            ctypes.byref(prepared),
        )
    )
    data = matrix.ctypes.data_as(ctypes.c_void_p)
    out, written = ctypes.byref(result), ctypes.byref(length)

    def predict(row: list[float]) -> float:
        matrix[:] = row
        call = _LIB.LGBM_BoosterPredictForMatSingleRowFast
        _safe_call(call(prepared, data, written, out))
        return result.value

    return predict


def scorer(
    bundle: Bundle, predict: Callable[[list[float]], float]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that turns a message into its prediction."""
    classes, encode = bundle.features.classes, encoder(bundle.features)

    def score(message: dict[str, Any]) -> dict[str, Any]:
        probability = predict(encode(message["data"]))
        code = int(probability > 0.5)
        return {
            "request_id": message["request_id"],
            "prediction": code,
            "label": classes[code],
            "probability": probability,
            "model_id": bundle.model_id,
        }

    return score


def main(source: str, target: str, how: str = "") -> None:
    """Run until a signal."""
    config = settings.load()
    app = Application(
        broker_address=config.kafka.bootstrap_servers,
        consumer_group="quix",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        loglevel="WARNING",
    )
    bundle = ModelStore(config.models_dir).load_current()
    score = scorer(bundle, (fast if how else booster_predict)(bundle.booster))
    requests = app.topic(source, value_deserializer="json")
    predictions = app.topic(target, value_serializer="json")
    app.dataframe(requests).apply(score).to_topic(predictions)
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
