"""Live quality, on SQLite and on PostgreSQL."""

from tests.unit.utils.message_store.samples import FEATURES, judged_batch
from train import evaluate, quality
from utils.message_store import (
    MessageStore,
)


def test_live_quality_covers_the_predictions_of_each_model(url: str) -> None:
    rows = 400
    batch = judged_batch(rows)
    with MessageStore(url, FEATURES) as store:
        store.ingest(batch)
        first, second = store.predictions_by_model()
        assert (first.model_id, second.model_id) == (1, 2)
    found = quality.measure_quality(first, FEATURES, last=50, now=rows * 1000.0)
    codes = FEATURES.encode_target(first.outcomes)
    assert found.overall == evaluate.metrics(first.probabilities, codes)
    assert found.last == evaluate.metrics(first.probabilities[-50:], codes[-50:])
    assert (found.known, found.missing, found.oldest) == (160, 40, 400.0)
    nothing_missing = quality.measure_quality(second, FEATURES, last=50, now=0.0)
    assert (nothing_missing.missing, nothing_missing.oldest, nothing_missing.median) == (
        0,
        None,
        None,
    )
