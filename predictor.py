"""Scores the messages of `app_messages` exactly once, and requests retrainings.

    python predictor.py

Predictors share the partitions: run up to one for each. Ctrl-C finishes the current batch
and stops. A new model is loaded while the predictor runs.
"""

import gc
import sys
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from operator import attrgetter

import numpy as np

from utils import changes, kafka_io, messages, process, resume, scoring, trace_context
from utils.errors import one_line
from utils.feature_tools import Row, ValueTally
from utils.kafka_io import Content, ExactlyOnce, Polled, Position, TopicPartition
from utils.message_decoder import request_id_of
from utils.messages import ModelLoaded, PredictorStarted, Rejection, RetrainRequest
from utils.model_store import Bundle, ModelStore
from utils.model_store.watcher import Announcements, BundleWatcher
from utils.outcome_count import OutcomeCount
from utils.scoring import NO_LIMITS, DecodedRecords, Limits
from utils.settings import Kafka, Settings
from utils.telemetry import exposition, live_figures
from utils.telemetry.counts import PredictorCounts
from utils.telemetry.live_line import LiveLine
from utils.telemetry.reporter import Reporter
from utils.value_counts import ValueCounts, describe, new_tally

#: Batches at least this large are pipelined on worker threads.
PIPELINE_MIN_RECORDS = 256
POLL_MS = 100
#: The poll timeout while a large batch is in flight: more records are likely to follow.
NEXT_MS = 20
#: New objects between two garbage collections. Kafka's client leaves reference cycles at each
#: wait for the network, some of which hold buffers of megabytes.
GC_THRESHOLD = 2_000
#: Seconds between two looks at the lag.
LAG_EVERY = 1.0
#: The most rejected records of one batch that get a line of their own, in JSON.
MAX_REJECTED_LINES = 20
DEAD_LETTERS = TopicPartition(messages.DEAD_LETTERS, 0)
RETRAIN_TOPIC = TopicPartition(messages.RETRAIN_TOPIC, 0)


@dataclass
class PendingBatch:
    """One poll in flight: decoded, being scored, not committed yet."""

    polled: Polled
    bundle: Bundle
    decoded: dict[TopicPartition, DecodedRecords]
    scores: Callable[[], np.ndarray]
    tally: ValueTally


class Predictor:
    """The consume-transform-produce step, apart from the loop that calls it.

    Under load three batches are in flight: one is being decoded, the one before it is being
    scored in a thread (LightGBM releases the interpreter's lock), and the one before that is
    being committed. A small batch is finished at once.

    Args:
        client: Consumes and produces records; both commit in one transaction.
        bundle: The model that serves first.
        watcher: Provides a newer bundle once it is loaded.
        home: The id of the home, which signs its events.
        instance_id: The predictor's own, named in its events.
        every: Known outcomes, per partition, between two retrain requests.
        report: Prints the lines for the user.
        counts: What the predictor counts; any thread may look.
        limits: The largest records that it may write.

    Attributes:
        headers_left_out: The number of predictions that lack the headers of their message: those
            were too large.
    """

    def __init__(
        self,
        client: ExactlyOnce,
        bundle: Bundle,
        watcher: BundleWatcher,
        *,
        home: str,
        instance_id: str,
        every: int,
        report: Reporter,
        counts: PredictorCounts,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.client = client
        self.bundle = bundle
        self.counts = counts
        counts.model_id = bundle.model_id
        self.headers_left_out = 0
        self.values = ValueCounts(bundle.features)
        self._watcher = watcher
        self._home = home
        self._instance_id = instance_id
        self._every = every
        self._report = report
        self._limits = limits
        self._counts: dict[TopicPartition, OutcomeCount] = {}
        self._announcements: list[ModelLoaded | PredictorStarted] = [
            PredictorStarted(model_id=bundle.model_id, predictor=instance_id)
        ]
        self._scorer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._previous: PendingBatch | None = None
        self._is_member = False
        self._lag_from = 0.0

    def step(self, timeout_ms: int = POLL_MS) -> int:
        """Poll one batch, and finish the previous one.

        1. Poll. 2. Swap the bundle if a newer one is loaded. 3. Decode the records, encode the
        rows as one matrix, and start scoring. 4. Send the previous batch: count its outcomes
        and start committing it in one transaction. 5. If this batch is small, send it too and
        wait for its commit.

        Returns:
            The number of records polled.

        Raises:
            kafka_io.KafkaError: Nothing of an unfinished batch is committed; later steps
                poll it again.
        """
        polled = self.client.poll(NEXT_MS if self._previous else timeout_ms)  # 1
        self._is_member = bool(polled.epoch)
        if polled.restored is not None:
            self._restore(polled.restored, polled.held_back)
        self._swap()  # 2
        batch = self._decode_and_score(polled)  # 3
        count = sum(map(len, polled.records.values()))
        is_large = count >= PIPELINE_MIN_RECORDS
        previous, self._previous = self._previous, batch if is_large else None  # 4
        if previous is not None:
            self._send(previous)
        if not is_large:  # 5
            if count or (self._announcements and polled.epoch):
                self._send(batch)
            self.client.wait_for_commit()
        return count

    def note_step(self, trouble: str = "") -> None:
        """Note in the counts that a step has succeeded.

        Args:
            trouble: Why steps have failed a moment ago; empty if they have not.
        """
        now = time.monotonic()
        if now >= self._lag_from:
            self._lag_from = now + LAG_EVERY
            self.counts.lag = {(tp.topic, tp.partition): n for tp, n in self.client.lag().items()}
        self.counts.stepped(member=self._is_member, trouble=trouble or self.client.silence())

    def _restore(
        self, positions: dict[TopicPartition, Position], held_back: frozenset[TopicPartition]
    ) -> None:
        self._previous = None  # its records are polled again
        self._counts = {
            tp: OutcomeCount.restore(
                *tp, every=self._every, offset=position.offset, metadata=position.metadata
            )
            for tp, position in positions.items()
        }
        self.counts.assign(positions, held_back)
        self._lag_from = 0.0
        parts = sorted(tp.partition for tp in positions if tp.topic == messages.APP_MESSAGES)
        line = f"serves partitions {parts}" if parts else "no partition to serve"
        self._report(line, partitions=parts)

    def _swap(self) -> None:
        bundle = self._watcher.take()
        if bundle is None:
            return
        self.bundle = bundle
        self.counts.model_id = bundle.model_id
        self.counts.swaps += 1
        loaded = ModelLoaded(model_id=bundle.model_id, predictor=self._instance_id)
        self._announcements.append(loaded)
        self._report(f"NEW MODEL RELOADED {bundle.model_id}", model_id=bundle.model_id)

    def _decode_and_score(self, polled: Polled) -> PendingBatch:
        bundle, tally = self.bundle, new_tally(self.bundle.features)
        decoded = {
            tp: scoring.DECODERS[tp.topic](records, bundle, tally, self._limits)
            for tp, records in polled.records.items()
        }
        rows = list(chain.from_iterable(part.rows for part in decoded.values()))
        return PendingBatch(polled, bundle, decoded, self._score(bundle, rows, tally), tally)

    def _score(
        self, bundle: Bundle, rows: list[Row], tally: ValueTally
    ) -> Callable[[], np.ndarray]:
        if not rows:
            return lambda: np.empty(0)
        matrix = bundle.features.transform_rows(rows, tally)
        if len(rows) < PIPELINE_MIN_RECORDS:
            return lambda: bundle.score(matrix)
        return self._scorer.submit(bundle.score, matrix).result

    def _send(self, batch: PendingBatch) -> None:
        """Start committing a batch: its predictions, dead letters, requests and offsets."""
        scores, scored = batch.scores(), 0
        records: dict[TopicPartition, list[Content]] = defaultdict(list)
        for tp, part in batch.decoded.items():
            if part.rows:
                place = TopicPartition(messages.PREDICTIONS, tp.partition)
                some = scores[scored : (scored := scored + len(part.rows))]
                records[place] = scoring.prediction_records(
                    batch.bundle, part.request_ids, some, part.headers
                )
            if part.rejected:
                records[DEAD_LETTERS] += part.rejected
        self.client.wait_for_commit()
        announced, positions = list(self._announcements), {}
        requests: list[RetrainRequest] = []
        for tp, part in batch.decoded.items():
            count = self._counts[tp]  # restored after a failed commit
            requests += filter(None, map(count.observe, part.known))
            end = batch.polled.records[tp][-1].offset + 1
            positions[tp] = Position(end, count.metadata())
        events: list[messages.Event] = [*announced, *requests]
        if events:
            records[RETRAIN_TOPIC] = [messages.encode_event(one, self._home) for one in events]

        def committed() -> None:
            del self._announcements[: len(announced)]
            self._count(batch, scored, len(requests))
            self._report_batch(requests, batch)
            self._count_values(batch, scored)

        self.client.commit(batch.polled, records, positions, committed)

    def _count(self, batch: PendingBatch, scored: int, requests: int) -> None:
        """Add a committed batch to the counts."""
        counts, now = self.counts, time.time() * 1000
        counts.batches += 1
        counts.predictions += scored
        counts.requests += requests
        for tp, part in batch.decoded.items():
            if part.timestamps:
                counts.latencies.observe(part.timestamps, now)
            if part.known:
                records = batch.polled.records[tp]
                place = bisect_left(records, part.known[-1], key=attrgetter("offset"))
                counts.add_outcomes(len(part.known), records[place].timestamp, now)
            if part.rejected:
                counts.unknown_outcomes += part.unknown_outcomes
                counts.rejected[tp.topic] += len(part.rejected) - part.unknown_outcomes
        if scored:
            counts.values.add(batch.bundle.features.columns, batch.tally)

    def _report_batch(self, requests: list[RetrainRequest], batch: PendingBatch) -> None:
        for request in requests:
            self._report(
                f"RETRAIN REQUESTED: {request.count} outcomes of {request.topic}-"
                f"{request.partition}, offsets {request.first_offset} to {request.last_offset}",
                request=request,
            )
        parts = batch.decoded.values()
        outcomes = sum(part.unknown_outcomes for part in parts)
        if self._report.is_json:
            self._report_each(chain.from_iterable(part.rejected for part in parts))
        if rejected := sum(len(part.rejected) for part in parts) - outcomes:
            self._report(
                f"{rejected} records rejected, see {messages.DEAD_LETTERS}",
                level="warning",
                rejected=rejected,
            )
        if outcomes:
            self._report(
                f"{outcomes} messages scored whose outcome is no known class, see "
                f"{messages.DEAD_LETTERS}",
                level="warning",
                unknown_outcomes=outcomes,
            )
        if left_out := sum(part.headers_left_out for part in parts):
            self.headers_left_out += left_out
            self._report(
                f"{left_out} predictions without the headers of their messages, which are larger "
                f"than {scoring.MAX_HEADERS // 1024} KiB",
                level="warning",
                headers_left_out=left_out,
            )

    def _report_each(self, letters: Iterable[Content]) -> None:
        """Report the first rejected records one by one, with the trace that they belong to."""
        for _, value, headers in islice(letters, MAX_REJECTED_LINES):
            rejection = Rejection.from_headers(headers or ())
            assert rejection is not None
            self._report(
                f"rejected: {rejection.reason}",
                level="warning",
                reason=rejection.reason,
                topic=rejection.topic,
                partition=rejection.partition,
                offset=rejection.offset,
                request_id=request_id_of(value),
                **trace_context.log_fields(headers or ()),
            )

    def _count_values(self, batch: PendingBatch, rows: int) -> None:
        if self.values.columns != batch.bundle.features.columns:
            self.values = ValueCounts(batch.bundle.features)
        if rows:
            self.values.add(rows, batch.tally)
        for line in self.values.jumps():
            self._report(line)

    def live_figures(self) -> list[str]:
        """What the predictor does now, for the live line; any thread may ask."""
        return live_figures.of_predictor(self.counts, self.values.of_the_last())

    def close(self) -> None:
        """Finish the batches in flight."""
        previous, self._previous = self._previous, None
        if previous is not None:
            self._send(previous)
        self.client.wait_for_commit()
        self._scorer.shutdown()


def loop(predictor: Predictor, stop: process.Stop, report: process.Report) -> None:
    """Step until asked to stop; broker errors that may end by themselves are retried."""
    # Objects created so far live until the end: the collector skips them. It runs between two
    # batches, when there are few objects to scan, and not a dozen times within each.
    gc.freeze()
    gc.disable()
    outage = process.Outage(
        report, "waiting for the broker: {}", "the broker answers again", settled=process.SETTLED
    )
    while not stop():
        if gc.get_count()[0] > GC_THRESHOLD:
            gc.collect()
        try:
            predictor.step()
            outage.end()
            predictor.note_step(outage.reason)
        except kafka_io.RETRIABLE_ERRORS as error:
            kafka_io.raise_if_lasting(error)
            outage.begin(one_line(error))
            predictor.counts.failed(outage.reason)
            stop.wait(0.2)
    try:
        predictor.close()
    except kafka_io.RETRIABLE_ERRORS as error:
        report(
            f"the last batch is not committed, the next start scores it again: {one_line(error)}"
        )


def read_limits(kafka: Kafka, report: Reporter) -> Limits:
    """The largest records that the topics take; it is said if they are smaller than usual."""
    found = kafka_io.read_settings(kafka, (messages.PREDICTIONS, messages.DEAD_LETTERS))
    for line in filter(None, map(kafka_io.describe_limit, found.values())):
        report(line, level="warning")
    return Limits.of(found)


def main(settings: Settings) -> None:
    """Wire the predictor and run it until a signal."""
    report = Reporter("predictor", "cyan", settings.log_format)
    stop = process.Stop().on_signals()
    store, counts = ModelStore(settings.models_dir), PredictorCounts()
    with ExitStack() as resources:
        resources.enter_context(exposition.serve(settings.metrics, counts, settings.kafka.name))
        home = kafka_io.claim_topics(settings).home
        limits = read_limits(settings.kafka, report)
        instance_id = resources.enter_context(process.claim_instance_id(settings, "predictor"))
        watcher = resources.enter_context(
            BundleWatcher(store, Announcements(settings.kafka), report)
        )
        client = ExactlyOnce(
            settings.kafka,
            group=messages.PREDICTOR_GROUP,
            topics=messages.GROUPS[messages.PREDICTOR_GROUP],
            instance_id=instance_id,
            max_records=scoring.MAX_RECORDS,
            report=report,
            answers={messages.APP_MESSAGES: messages.PREDICTIONS},
            resume=partial(resume.positions, settings, limits, report, stop),
        )
        resources.callback(client.close)
        bundle = watcher.current()
        every = settings.training.retrain_every
        report(
            f"model {bundle.model_id} serves; a retraining every {every} known outcomes",
            model_id=bundle.model_id,
            retrain_every=every,
        )
        if line := changes.since_training(settings, bundle):
            report(line, level="warning")
        predictor = Predictor(
            client,
            bundle,
            watcher,
            home=home,
            instance_id=instance_id,
            every=every,
            report=report,
            counts=counts,
            limits=limits,
        )
        with LiveLine(report, predictor.live_figures):
            loop(predictor, stop, report)
        report(
            f"stopped after {predictor.counts.predictions} predictions",
            predictions=predictor.counts.predictions,
            headers_left_out=predictor.headers_left_out,
        )
        if text := describe(shares := predictor.values.since_start()):
            report(f"values since the start, {text}", values=shares)


if __name__ == "__main__":
    command_line = process.parser(__doc__).parse_args()
    sys.exit(process.run(main, log_format=command_line.log_format))
