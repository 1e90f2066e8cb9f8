"""The predictor's scoring as a Quix Streams application, the way its documentation shows.

    .venv-quix/bin/python -m benchmarks.rivals.quix_streams FROM TO

Row by row, exactly-once, all settings but that one as they come. The bundle is the
predictor's; a row is encoded in plain Python, which for one row is several times quicker
than the predictor's columns of many.
"""

import sys
from collections.abc import Callable
from math import isfinite, nan
from typing import Any

import msgspec
from quixstreams import Application

from utils import settings
from utils.bundles import Bundle
from utils.feature_tools import FeatureTools
from utils.model_store import ModelStore


def encoder(features: FeatureTools) -> Callable[[dict[str, Any]], list[float]]:
    """A function from a message's data to the numbers that the model sees."""
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


def scorer(bundle: Bundle) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function from a message to its prediction."""
    classes, predict = bundle.features.classes, bundle.booster.predict
    encode = encoder(bundle.features)

    def score(message: dict[str, Any]) -> dict[str, Any]:
        probability = float(predict([encode(message["data"])], num_threads=1)[0])
        code = int(probability > 0.5)
        return {
            "request_id": message["request_id"],
            "prediction": code,
            "label": classes[code],
            "probability": probability,
            "model_id": bundle.model_id,
        }

    return score


def main(source: str, target: str) -> None:
    """Run until a signal."""
    config = settings.load()
    app = Application(
        broker_address=config.kafka.bootstrap_servers,
        consumer_group="quix",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        loglevel="WARNING",
    )
    score = scorer(ModelStore(config.models_dir).load_current())
    requests = app.topic(source, value_deserializer="json")
    predictions = app.topic(target, value_serializer="json")
    app.dataframe(requests).apply(score).to_topic(predictions)
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
