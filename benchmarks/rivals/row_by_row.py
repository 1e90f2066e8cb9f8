"""A predictor in the style of the original: one DataFrame and one flushed record per row.

    python -m benchmarks.rivals.row_by_row FROM TO

It uses neither a consumer group nor transactions, and also appends each message to a file. Its
model has as many trees and leaves as the serving model, so that scoring costs the same.
"""

import json
import sys

import lightgbm as lgb
import pandas as pd
from kafka import KafkaConsumer, KafkaProducer

from benchmarks.rivals import original
from utils import settings
from utils.model_store import ModelStore
from utils.settings import Settings


def model(config: Settings) -> tuple[original.Preprocessor, lgb.LGBMClassifier]:
    """Fit a preprocessor and a model on the data set, without a search."""
    chosen = ModelStore(config.models_dir).load_current().manifest.hyperparameters
    preprocessor = original.Preprocessor()
    frame, labels = original.read(config, config.data.train)
    encoded = preprocessor.fit(frame, config.data.cross)
    fitted = lgb.LGBMClassifier(
        n_estimators=chosen["num_boost_round"],
        num_leaves=chosen["num_leaves"],
        n_jobs=1,  # for fitting; it scores with the default, all cores
        verbose=-1,
    )
    fitted.fit(encoded, labels, categorical_feature=list(preprocessor.codes))
    return preprocessor, fitted.set_params(n_jobs=None)


def main(source: str, target: str) -> None:
    """Score messages until the process is ended."""
    config = settings.load()
    preprocessor, classifier = model(config)
    servers = config.kafka.bootstrap_servers
    consumer = KafkaConsumer(source, bootstrap_servers=servers, auto_offset_reset="latest")
    producer = KafkaProducer(bootstrap_servers=servers)
    consumer.poll(1000)
    print("ready", flush=True)
    with (config.home / "row_by_row.txt").open("a") as kept:
        for record in consumer:
            message = json.loads(record.value)
            data = {name: "?" if v is None else v for name, v in message["data"].items()}
            row = preprocessor.transform(pd.DataFrame(data, index=[0]))
            prediction = classifier.predict(row)[0]
            answer = {"request_id": message["request_id"], "prediction": float(prediction)}
            producer.send(target, json.dumps(answer).encode())
            producer.flush()
            kept.write(json.dumps(data) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
