"""Counts a partition's known outcomes towards its next retrain request.

The count is the predictor's only state. It is stored as metadata of the committed offset, so
it commits in one transaction with the predictions and moves with the partition.
"""

from dataclasses import dataclass

import msgspec

from utils.messages import RetrainRequest


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    first: int
    count: int


@dataclass
class OutcomeCount:
    """Counts the known outcomes of one partition; every N outcomes make a retrain request.

    The offset ranges of the requests follow each other without gaps or overlaps: each
    range begins right after the end of the previous one.

    >>> count = OutcomeCount("outcomes", 0, every=2, first_offset=10)
    >>> count.observe(11)
    >>> request = count.observe(14)
    >>> request.batch_id, request.first_offset, request.last_offset, request.count
    ('outcomes-0-10', 10, 14, 2)
    >>> OutcomeCount.restore("outcomes", 0, every=2, offset=99, metadata=count.metadata())
    OutcomeCount(topic='outcomes', partition=0, every=2, first_offset=15, count=0)
    """

    topic: str
    partition: int
    every: int
    first_offset: int
    count: int = 0

    def observe(self, offset: int) -> RetrainRequest | None:
        """Count the outcome at `offset`; returns the request that it completes, or None."""
        self.count += 1
        if self.count < self.every:
            return None
        request = RetrainRequest(
            # The same id for the same range, also after a crash or a rebalance.
            batch_id=f"{self.topic}-{self.partition}-{self.first_offset}",
            topic=self.topic,
            partition=self.partition,
            first_offset=self.first_offset,
            last_offset=offset,
            count=self.count,
        )
        self.first_offset, self.count = offset + 1, 0
        return request

    def metadata(self) -> str:
        """The state as metadata for the committed offset, far below the limit of 4,096 bytes."""
        return msgspec.json.encode(_Metadata(self.first_offset, self.count)).decode()

    @classmethod
    def restore(
        cls, topic: str, partition: int, *, every: int, offset: int, metadata: str
    ) -> "OutcomeCount":
        """Restore the state committed with `offset`; a new count if there is none."""
        try:
            state = msgspec.json.decode(metadata, type=_Metadata)
        except msgspec.MsgspecError:
            return cls(topic, partition, every, offset)
        return cls(topic, partition, every, state.first, state.count)
