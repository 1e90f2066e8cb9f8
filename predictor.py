"""Scores what arrives on `app_messages`, exactly once, and asks for retrainings.

    python predictor.py

Run as many as there are partitions; they share them. Stop with Ctrl-C: the batch in
hand is finished. A new model is loaded without stopping.
"""

import gc
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import msgspec
import numpy as np

from utils import kafka_io, messages, process, scoring
from utils.errors import one_line
from utils.feature_tools import Row
from utils.kafka_io import Content, ExactlyOnce, Polled, Position, TopicPartition
from utils.messages import ModelLoaded, RetrainRequest
from utils.model_store import Bundle, ModelStore
from utils.model_store.watcher import BundleWatcher
from utils.outcome_count import OutcomeCount
from utils.scoring import DecodedRecords
from utils.settings import Settings

#: From so many records on a batch is worth the threads that keep several on their way.
PIPELINE_MIN_RECORDS = 256
POLL_MS = 100
#: The same while a large batch is on its way: most likely the next one is too.
NEXT_MS = 20
#: So many new objects the garbage collector lets pass. The client leaves some in cycles with
#: each wait for the network, and among them buffers of megabytes.
GC_THRESHOLD = 2_000
DEAD_LETTERS = TopicPartition(messages.DEAD_LETTERS, 0)
RETRAIN_TOPIC = TopicPartition(messages.RETRAIN_TOPIC, 0)

DECODERS = {
    messages.APP_MESSAGES: scoring.decode_messages,
    messages.OUTCOMES: scoring.decode_outcomes,
}


@dataclass
class PendingBatch:
    """One poll on its way: decoded, being scored, not committed yet."""

    polled: Polled
    bundle: Bundle
    decoded: dict[TopicPartition, DecodedRecords]
    scores: Callable[[], np.ndarray]


class Predictor:
    """The consume-transform-produce step, apart from the loop that calls it.

    Under load three batches are on their way: while one is decoded the one before it is
    scored, by a thread that LightGBM keeps free of the interpreter's lock, and the one
    before that is being committed. A small batch is finished at once.

    Args:
        exchange: Where records come from and go to, in transactions.
        bundle: The model that serves first.
        watcher: Hands over a newer one when it is ready.
        every: Known outcomes, per partition, between two retrain requests.
        report: Told in one line what a user should see.
    """

    def __init__(
        self,
        exchange: ExactlyOnce,
        bundle: Bundle,
        watcher: BundleWatcher,
        *,
        every: int,
        report: process.Report,
    ) -> None:
        self.exchange = exchange
        self.bundle = bundle
        self.predictions = 0
        self._watcher = watcher
        self._every = every
        self._report = report
        self._counts: dict[TopicPartition, OutcomeCount] = {}
        self._announcements: list[ModelLoaded] = []
        self._scorer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._previous: PendingBatch | None = None

    def step(self, timeout_ms: int = POLL_MS) -> int:
        """Take one batch in and finish one.

        1. poll; 2. swap the bundle if a newer one is ready; 3. decode, encode as one
        matrix, begin to score; 4. send the batch before it: count outcomes, begin to
        commit all of it in one transaction; 5. unless this one is large, and more is to be
        expected, send it too and wait until it is committed.

        Returns:
            How many records were taken in.

        Raises:
            kafka_io.KafkaError: Nothing of an unfinished batch did commit; the next
                steps take it up again.
        """
        polled = self.exchange.poll(NEXT_MS if self._previous else timeout_ms)  # 1
        if polled.restored is not None:
            self._restore(polled.restored)
        self._swap()  # 2
        batch = self._begin(polled)  # 3
        taken = sum(map(len, polled.records.values()))
        is_large = taken >= PIPELINE_MIN_RECORDS
        previous, self._previous = self._previous, batch if is_large else None  # 4
        if previous is not None:
            self._send(previous)
        if not is_large:  # 5
            if taken or (self._announcements and polled.epoch):
                self._send(batch)
            self.exchange.wait_for_commit()
        return taken

    def _restore(self, positions: dict[TopicPartition, Position]) -> None:
        self._previous = None  # what it held comes again
        self._counts = {
            tp: OutcomeCount.restore(
                *tp, every=self._every, offset=position.offset, metadata=position.metadata
            )
            for tp, position in positions.items()
        }
        parts = sorted(tp.partition for tp in positions if tp.topic == messages.APP_MESSAGES)
        self._report(f"serves partitions {parts}" if parts else "no partition to serve")

    def _swap(self) -> None:
        bundle = self._watcher.take()
        if bundle is None:
            return
        self.bundle = bundle
        self._announcements.append(ModelLoaded(model_id=bundle.model_id))
        self._report(f"NEW MODEL RELOADED {bundle.model_id}")

    def _begin(self, polled: Polled) -> PendingBatch:
        bundle = self.bundle
        decoded = {
            tp: DECODERS[tp.topic](records, bundle) for tp, records in polled.records.items()
        }
        rows = list(chain.from_iterable(part.rows for part in decoded.values()))
        return PendingBatch(polled, bundle, decoded, self._score(bundle, rows))

    def _score(self, bundle: Bundle, rows: list[Row]) -> Callable[[], np.ndarray]:
        if not rows:
            return lambda: np.empty(0)
        matrix = bundle.features.transform_rows(rows)
        if len(rows) < PIPELINE_MIN_RECORDS:
            return lambda: bundle.score(matrix)
        return self._scorer.submit(bundle.score, matrix).result

    def _send(self, batch: PendingBatch) -> None:
        """Begin to commit what a batch comes to."""
        scores, scored = batch.scores(), 0
        records: dict[TopicPartition, list[Content]] = defaultdict(list)
        for tp, part in batch.decoded.items():
            if part.rows:
                place = TopicPartition(messages.PREDICTIONS, tp.partition)
                some = scores[scored : (scored := scored + len(part.rows))]
                records[place] = scoring.prediction_records(batch.bundle, part.request_ids, some)
            if part.rejected:
                records[DEAD_LETTERS] += part.rejected
        rejected = sum(len(part.rejected) for part in batch.decoded.values())
        self.exchange.wait_for_commit()
        announced, positions = list(self._announcements), {}
        requests: list[RetrainRequest] = []
        for tp, part in batch.decoded.items():
            count = self._counts[tp]  # after a failed commit it is restored
            requests += filter(None, map(count.observe, part.known))
            end = batch.polled.records[tp][-1].offset + 1
            positions[tp] = Position(end, count.metadata())
        if told := announced + requests:
            records[RETRAIN_TOPIC] = [(None, msgspec.json.encode(one), None) for one in told]

        def committed() -> None:
            del self._announcements[: len(announced)]
            self.predictions += scored
            self._tell(requests, rejected)

        self.exchange.commit(batch.polled, records, positions, committed)

    def _tell(self, requests: list[RetrainRequest], rejected: int) -> None:
        for request in requests:
            self._report(
                f"RETRAIN REQUESTED: {request.count} outcomes of {request.topic}-"
                f"{request.partition}, offsets {request.first_offset} to {request.last_offset}"
            )
        if rejected:
            self._report(f"{rejected} records rejected, see {messages.DEAD_LETTERS}")

    def close(self) -> None:
        """Finish the batches on their way."""
        previous, self._previous = self._previous, None
        if previous is not None:
            self._send(previous)
        self.exchange.wait_for_commit()
        self._scorer.shutdown()


def loop(predictor: Predictor, stop: process.Stop, report: process.Report) -> None:
    """Step until asked to stop; broker errors are retried."""
    # What is there by now stays until the end: the collector need not go through it. Nor
    # through a batch a dozen times while it is made; between two there is little to look at.
    gc.freeze()
    gc.disable()
    outage = process.Outage(report, "waiting for the broker: {}", "the broker answers again")
    while not stop():
        if gc.get_count()[0] > GC_THRESHOLD:
            gc.collect()
        try:
            predictor.step()
            outage.over()
        except kafka_io.TROUBLE as error:
            outage.failed(one_line(error))
            stop.wait(0.2)
    try:
        predictor.close()
    except kafka_io.TROUBLE as error:
        report(f"the last batch is left for the next start: {one_line(error)}")


def main(settings: Settings) -> None:
    """Wire the predictor and run it until a signal."""
    report = process.reporter("predictor", "cyan")
    stop = process.Stop().on_signals()
    store = ModelStore(settings.models_dir)
    with ExitStack() as resources:
        instance_id = resources.enter_context(process.claim_instance_id(settings, "predictor"))
        watcher = resources.enter_context(BundleWatcher(store, settings.kafka, report))
        exchange = ExactlyOnce(
            settings.kafka,
            group=messages.PREDICTOR_GROUP,
            topics=messages.GROUPS[messages.PREDICTOR_GROUP],
            instance_id=instance_id,
            max_records=scoring.MAX_RECORDS,
            report=report,
        )
        resources.callback(exchange.close)
        bundle = watcher.current()
        report(
            f"model {bundle.model_id} serves; a retraining every "
            f"{settings.training.retrain_every} known outcomes"
        )
        predictor = Predictor(
            exchange, bundle, watcher, every=settings.training.retrain_every, report=report
        )
        loop(predictor, stop, report)
        report(f"stopped after {predictor.predictions} predictions")


if __name__ == "__main__":
    process.parser(__doc__).parse_args()
    sys.exit(process.run(main))
