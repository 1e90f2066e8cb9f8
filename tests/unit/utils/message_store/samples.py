"""Features, messages and batches that tests of the message store use."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from utils.feature_tools import FeatureTools
from utils.message_store import Batch, Snapshot, StoredMessage
from utils.messages import APP_MESSAGES, PREDICTIONS


def make_features(rows: Mapping[str, Sequence[Any]] | None = None, **changes: Any) -> FeatureTools:
    """A preprocessor that was fitted to two rows, or to others."""
    wanted: dict[str, Any] = {
        "target": "income",
        "numerical": ["age"],
        "categorical": ["job"],
        "crosses": [],
        "classes": ["no", "yes"],
    }
    wanted |= changes
    if rows is None:
        rows = {name: [1.0, 2.0] for name in wanted["numerical"]}
        rows |= {name: ["a", "b"] for name in wanted["categorical"]}
    return FeatureTools().fit(pd.DataFrame(rows), **wanted)


FEATURES = make_features()


def message(
    name: str, partition: int, offset: int, outcome: str | None = None, *values: Any
) -> StoredMessage:
    return StoredMessage(name, partition, offset, 1000 + offset, values or (1.0, "a"), outcome)


def judged_batch(rows: int) -> Batch:
    """Predictions of models 1 and 2 in turn, newest last; every tenth has no outcome."""
    draws = np.random.default_rng(1).random((rows, 2))
    batch = Batch()
    for place, (probability, chance) in enumerate(draws.tolist()):
        outcome = "yes" if chance < probability else "no"
        batch.messages.append(message(f"r{place}", 0, place, None if place % 10 == 0 else outcome))
        model = 1 + place % 2
        batch.predictions.append((f"r{place}", model, probability, 0, place, 1000 * place))
    batch.offsets = {(APP_MESSAGES, 0): rows, (PREDICTIONS, 0): rows}
    return batch


def contents(snapshot: Snapshot) -> dict[str, Any]:
    columns = [[None if pd.isna(v) else v for v in snapshot.frame[name]] for name in snapshot.frame]
    rows = zip(snapshot.request_ids, *columns, snapshot.outcomes, strict=True)
    times = zip(snapshot.known_at.tolist(), snapshot.sent_at.tolist(), strict=True)
    return {"rows": list(rows), "times": list(times), "offsets": snapshot.offsets}
