"""The message store: what the trainer has read of the log, in SQL.

`utils.message_store.ingest` fills it from Kafka. It is not imported here, because readers of
the store need no broker.
"""

from utils.message_store.database import StoreError
from utils.message_store.lifecycle import StoreReplaced
from utils.message_store.raw_log import RawLog
from utils.message_store.records import (
    Batch,
    Counts,
    KnownPredictions,
    ModelPredictions,
    Offsets,
    RawChunk,
    RawRecord,
    Snapshot,
    StoredMessage,
)
from utils.message_store.store import MessageStore
from utils.message_store.summaries import (
    AGES_MS,
    Block,
    GroupSummary,
    Losses,
    ModelSummary,
    Outstanding,
    Recent,
)

__all__ = [
    "AGES_MS",
    "Batch",
    "Block",
    "Counts",
    "GroupSummary",
    "KnownPredictions",
    "Losses",
    "ModelPredictions",
    "ModelSummary",
    "MessageStore",
    "Offsets",
    "Outstanding",
    "RawChunk",
    "RawLog",
    "RawRecord",
    "Recent",
    "Snapshot",
    "StoreError",
    "StoreReplaced",
    "StoredMessage",
]
