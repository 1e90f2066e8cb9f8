"""What the trainer has read of the log, in SQL.

Filling it from Kafka is `utils.message_store.ingest`, which is not imported here: whoever only
looks at the store needs no broker.
"""

from utils.message_store.database import StoreError
from utils.message_store.lifecycle import StoreReplaced
from utils.message_store.records import Batch, Counts, Judged, Offsets, Snapshot, StoredMessage
from utils.message_store.store import MessageStore

__all__ = [
    "Batch",
    "Counts",
    "Judged",
    "MessageStore",
    "Offsets",
    "Snapshot",
    "StoreError",
    "StoreReplaced",
    "StoredMessage",
]
