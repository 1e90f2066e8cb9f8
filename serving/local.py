"""Scores rows in this process."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from serving.rows import Answer, Refusal, SentRow
from serving.serving_bundle import ServingBundle
from utils import scoring
from utils.feature_tools import Row, ValueTally
from utils.messages import BadRecord
from utils.model_store import Bundle
from utils.telemetry.counts import ServingCounts
from utils.value_counts import new_tally

#: Requests of more rows are scored by a thread, so that others are answered meanwhile. Fewer take
#: less than a millisecond.
THREADED_MIN_ROWS = 32


class _Scored(NamedTuple):
    """The answers to rows, and how many of their values were missing, unknown, ..."""

    bundle: Bundle
    answers: list[Answer]
    tally: ValueTally


class LocalScorer:
    """Scores rows with the bundle that serves; the same bits as a predictor on Kafka.

    Args:
        serving: The bundle.
        counts: What is scored is added to it.
    """

    def __init__(self, serving: ServingBundle, counts: ServingCounts) -> None:
        self._serving = serving
        self._counts = counts
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves now."""
        return self._serving.bundle

    def trouble(self) -> str:
        """None: it depends on nothing else."""
        return ""

    async def score(
        self, rows: Sequence[SentRow], headers: Sequence[tuple[str, bytes]] = ()
    ) -> list[Answer]:
        """Answer rows, each in its place; all of them by one model."""
        bundle = self.bundle
        if len(rows) < THREADED_MIN_ROWS:
            scored = _score(bundle, rows)
        else:
            loop = asyncio.get_running_loop()
            scored = await loop.run_in_executor(self._threads, _score, bundle, rows)
        self._count(scored)
        return scored.answers

    def _count(self, scored: _Scored) -> None:
        refused = sum(isinstance(answer, Refusal) for answer in scored.answers)
        self._counts.refused += refused
        self._counts.predictions += len(scored.answers) - refused
        self._counts.values.add(scored.bundle.features.columns, scored.tally)

    def __enter__(self) -> "LocalScorer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown()


def _score(bundle: Bundle, sent: Sequence[SentRow]) -> _Scored:
    decode, tally = bundle.decoder, new_tally(bundle.features)
    lenient = [0] * len(bundle.features.columns)
    answers: list[Answer | None] = []
    rows: list[Row] = []
    request_ids: list[str] = []
    for request_id, message, fault in sent:
        try:
            if message is None:
                raise BadRecord(fault)
            rows.append(decode(message, lenient).data)
        except BadRecord as reason:
            answers.append(Refusal(request_id, str(reason), bundle.model_id))
        else:
            answers.append(None)
            request_ids.append(request_id)
    if rows:
        tally[2] += lenient
        scores = bundle.score(bundle.features.transform_rows(rows, tally))
        found = scoring.predictions(bundle, request_ids, scores)
        return _Scored(bundle, [next(found) if one is None else one for one in answers], tally)
    return _Scored(bundle, [one for one in answers if one is not None], tally)
