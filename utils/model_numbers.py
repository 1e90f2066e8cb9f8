"""Keeps the numbers of new models above all that were ever used.

A home that was restored from a backup, or whose models were deleted, does not know its latest
models. But the log does, and so may the message store.
"""

from collections.abc import Iterable
from contextlib import suppress

from utils import messages
from utils.kafka_io import Record, log_scan
from utils.message_store import RawLog, StoreError
from utils.message_store.records import RawRecord
from utils.model_store import ModelStore
from utils.settings import Kafka, Settings

#: How many of the last records of each partition of `predictions` are read. Each transaction's
#: marker counts as one.
LAST_RECORDS = 100
#: How many numbers a line names.
NAMED = 5

_decode = messages.Decoder(messages.Prediction)


def keep_above_log(settings: Settings, store: ModelStore, named: Iterable[int]) -> str | None:
    """Record in the home which models it lacks, so that their numbers are not used again.

    They are those that `retrain_topic`, the last predictions in the log or the message store
    name.

    Args:
        settings: The pipeline's settings.
        store: The home's models.
        named: The numbers that `retrain_topic` names.

    Returns:
        A line of text for the user, or None if the home lacks no model, or says so already.

    Raises:
        KafkaUnavailable: No broker answers.
        ModelStoreError: The store cannot be read or written.
    """
    used = {*named, *_in_the_log(settings.kafka), *_in_the_store(settings.messages_url)}
    lacking = store.record_absent(model_id for model_id in used if model_id > 0)
    if not lacking:
        return None
    return (
        f"the log knows {in_words(lacking)}, which this home lacks (restored from a backup?); "
        f"the next one is {store.next_id()}"
    )


def in_words(model_ids: list[int]) -> str:
    """Some models by their numbers.

    >>> in_words([3]), in_words([3, 4]), in_words([2, 3, 4, 7, 8, 9, 12])
    ('model 3', 'models 3 and 4', 'models 2, 3, 4, 7, 8 and 2 more up to 12')
    """
    *first, last = map(str, model_ids)
    if not first:
        return f"model {last}"
    if len(first) < NAMED:
        return f"models {', '.join(first)} and {last}"
    return f"models {', '.join(first[:NAMED])} and {len(model_ids) - NAMED} more up to {last}"


def _in_the_log(kafka: Kafka) -> set[int]:
    """The models of the last predictions in the log: `retrain_topic` may have expired."""
    with suppress(log_scan.NoTopic):
        tails = _tails(log_scan.bounds(kafka, messages.PREDICTIONS))
        return _models_of(log_scan.scan(kafka, messages.PREDICTIONS, tails))
    return set()


def _in_the_store(url: str) -> set[int]:
    """The models of the last predictions in the message store; none if it cannot be read."""
    with suppress(StoreError), RawLog.open(url) as copy:
        chunks = copy.chunks(messages.PREDICTIONS, _tails(copy.bounds(messages.PREDICTIONS)))
        return _models_of(record for chunk in chunks for record in chunk.records)
    return set()


def _tails(within: log_scan.Bounds) -> log_scan.Bounds:
    return {p: (max(first, end - LAST_RECORDS), end) for p, (first, end) in within.items()}


def _models_of(predictions: Iterable[Record | RawRecord]) -> set[int]:
    found = set()
    for record in predictions:
        with suppress(messages.BadRecord):
            found.add(_decode(record.value).model_id)
    return found
