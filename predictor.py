"""Scores what arrives on `app_messages`, exactly once, and asks for retrainings.

    python predictor.py

Run as many as there are partitions; they share them. Stop with Ctrl-C: the batch in
hand is finished. A new model is loaded without stopping.
"""

import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from utils import kafka_io, messages, process
from utils.bundle_watcher import BundleWatcher
from utils.bundles import Bundle, BundleError
from utils.kafka_io import ExactlyOnce, Outgoing, Polled, Position, TopicPartition
from utils.model_store import ModelStore
from utils.outcome_count import OutcomeCount
from utils.settings import Settings

#: The most records of one batch: large enough that what a batch costs is small beside
#: what its rows cost, small enough that a transaction is short.
MAX_RECORDS = 2_000
POLL_MS = 100
#: The most bytes of key and value that a record of `dead_letters` repeats; the rest of what
#: the topic takes is for the headers.
MAX_REPEATED = kafka_io.MAX_MESSAGE_BYTES - 64 * 1024

_encode = msgspec.json.encode


@dataclass
class Part:
    """What was decoded of one partition's records.

    Attributes:
        accepted: The (partition, request_id) of each message to be answered, in order.
        known: The offsets whose outcome is known.
        rejected: The records for `dead_letters`.
    """

    tp: TopicPartition
    end: int
    accepted: list[tuple[int, str]] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    rejected: list[Outgoing] = field(default_factory=list)


@dataclass
class Batch:
    """One poll on its way: decoded, being scored, not committed yet."""

    polled: Polled
    bundle: Bundle
    parts: list[Part]
    rows: int
    probabilities: Callable[[], np.ndarray]


class Predictor:
    """The consume-transform-produce step, apart from the loop that calls it.

    Under load two batches are on their way: while one is sent and committed the next
    one is scored, by a thread that LightGBM keeps free of the interpreter's lock. A
    batch that did not fill the poll is finished at once.

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
        self._announcements: list[Outgoing] = []
        self._decode_outcome = messages.Decoder(messages.Outcome)
        self._scorer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._previous: Batch | None = None

    def step(self, timeout_ms: int = POLL_MS) -> int:
        """Take one batch in and finish one.

        1. poll; 2. swap the bundle if a newer one is ready; 3. decode, encode as one
        matrix, begin to score; 4. finish the batch before it, and this one too unless
        more is waiting: count outcomes, send and commit all of it in one transaction.

        Returns:
            How many records were taken in.

        Raises:
            kafka_io.KafkaError: Nothing of an unfinished batch did commit; the next
                steps take it up again.
        """
        polled = self.exchange.poll(0 if self._previous else timeout_ms)  # 1
        if polled.restored is not None:
            self._restore(polled.restored)
        self._swap()  # 2
        batch = self._begin(polled)  # 3
        previous, self._previous = self._previous, None  # 4
        if previous is not None:
            self._finish(previous)
        taken = sum(map(len, polled.records.values()))
        if taken >= MAX_RECORDS:
            self._previous = batch
        elif taken or (self._announcements and polled.epoch):
            self._finish(batch)
        return taken

    def _restore(self, positions: dict[TopicPartition, Position]) -> None:
        self._previous = None  # what it held comes again
        self._counts = {
            tp: OutcomeCount.restored(
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
        record = {"model_loaded": True, "model_id": bundle.model_id}
        self._announcements.append(Outgoing(messages.RETRAIN_TOPIC, 0, None, _encode(record)))
        self._report(f"NEW MODEL RELOADED {bundle.model_id}")

    def _begin(self, polled: Polled) -> Batch:
        bundle, rows, parts = self.bundle, [], []
        for tp, records in polled.records.items():
            part = Part(tp, records[-1].offset + 1)
            if tp.topic == messages.APP_MESSAGES:
                rows += decode_messages(records, bundle, part)
            else:
                self._decode_outcomes(records, part)
            parts.append(part)
        return Batch(polled, bundle, parts, len(rows), self._score(bundle, rows))

    def _score(self, bundle: Bundle, rows: list[Any]) -> Callable[[], np.ndarray]:
        if not rows:
            return lambda: np.empty(0)
        matrix = bundle.features.transform_rows(rows)
        if len(rows) < MAX_RECORDS:
            return lambda: bundle.score(matrix)  # finished at once: no thread is any use
        return self._scorer.submit(bundle.score, matrix).result

    def _decode_outcomes(self, records: list[Any], part: Part) -> None:
        """Check one partition's late outcomes."""
        classes = self.bundle.features.classes
        for record in records:
            try:
                outcome = self._decode_outcome(record.value).outcome
                if messages.label_text(outcome) not in classes:
                    raise messages.BadRecord(f"{outcome!r:.80} is none of the classes")
            except messages.BadRecord as reason:
                part.rejected.append(dead_letter(record, str(reason)))
            else:
                part.known.append(record.offset)

    def _finish(self, batch: Batch) -> None:
        """Send what a batch comes to and commit it."""
        outgoing = list(self._announcements)
        requests: list[messages.RetrainRequest] = []
        positions = {}
        for part in batch.parts:
            count = self._counts[part.tp]  # after a failed commit it is restored
            requests += filter(None, map(count.observe, part.known))
            positions[part.tp] = Position(part.end, count.metadata())
            outgoing += part.rejected
        outgoing += predictions(batch)
        outgoing += [Outgoing(messages.RETRAIN_TOPIC, 0, None, _encode(r)) for r in requests]
        self.exchange.commit(batch.polled, outgoing, positions)
        self._announcements.clear()
        self.predictions += batch.rows
        self._tell(requests, sum(len(part.rejected) for part in batch.parts))

    def _tell(self, requests: list[messages.RetrainRequest], rejected: int) -> None:
        for request in requests:
            self._report(
                f"RETRAIN REQUESTED: {request.count} outcomes of {request.topic}-"
                f"{request.partition}, offsets {request.first_offset} to {request.last_offset}"
            )
        if rejected:
            self._report(f"{rejected} records rejected, see {messages.DEAD_LETTERS}")

    def close(self) -> None:
        """Finish the batch on its way."""
        previous, self._previous = self._previous, None
        if previous is not None:
            self._finish(previous)
        self._scorer.shutdown()


def decode_messages(records: list[Any], bundle: Bundle, part: Part) -> list[Any]:
    """Decode one partition's messages; returns the rows to score, in order."""
    features, decode, rows = bundle.features, bundle.decoder, []
    for record in records:
        try:
            message = decode(record.value)
            row = message.data
            if features.knows_nothing_of(row):
                raise messages.BadRecord("none of the known columns in $.data")
        except messages.BadRecord as reason:
            part.rejected.append(dead_letter(record, str(reason)))
            continue
        rows.append(row)
        part.accepted.append((record.partition, message.request_id))
        if row.outcome is not None and messages.label_text(row.outcome) in features.classes:
            part.known.append(record.offset)
    return rows


def predictions(batch: Batch) -> list[Outgoing]:
    """The records of `predictions`, each on the partition number of its message."""
    if not batch.rows:
        return []
    probabilities = batch.probabilities()
    labels, model_id = batch.bundle.features.classes, batch.bundle.model_id
    codes = (probabilities > 0.5) if probabilities.ndim == 1 else probabilities.argmax(axis=1)
    accepted = chain.from_iterable(part.accepted for part in batch.parts)
    return [
        Outgoing(
            messages.PREDICTIONS,
            partition,
            request_id.encode(),
            _encode(messages.Prediction(request_id, code, labels[code], probability, model_id)),
        )
        for (partition, request_id), code, probability in zip(
            accepted, codes.astype(int).tolist(), probabilities.tolist(), strict=True
        )
    ]


def dead_letter(record: Any, reason: str) -> Outgoing:
    """The record for `dead_letters`: bytes untouched, where it was and why in headers.

    One that is too large to be repeated stays where it is; the header `bytes` says so.
    """
    key, value = record.key, record.value
    headers = {
        "reason": reason,
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
    }
    size = len(key or b"") + len(value or b"")
    if size > MAX_REPEATED:
        headers |= {"reason": f"{reason} (too large to be repeated here)", "bytes": str(size)}
        key = value = None
    sent = [(name, text.encode()) for name, text in headers.items()]
    return Outgoing(messages.DEAD_LETTERS, 0, key, value, sent)


def loop(predictor: Predictor, stop: process.Stop, report: process.Report) -> None:
    """Step until asked to stop; broker trouble is waited out, not died of."""
    # What is there by now stays until the end: full collections need not go through it.
    gc.freeze()
    trouble = ""
    while not stop():
        try:
            predictor.step()
            if trouble:
                report("the broker answers again")
                trouble = ""
        except kafka_io.TROUBLE as error:
            text = process.one_line(error)
            if text != trouble:
                report(f"waiting for the broker: {text}")
            trouble = text
            stop.wait(0.2)
    try:
        predictor.close()
    except kafka_io.TROUBLE as error:
        report(f"the last batch is left for the next start: {process.one_line(error)}")


def main(settings: Settings) -> None:
    """Wire the predictor and run it until a signal."""
    report = process.reporter("predictor", "cyan")
    stop = process.Stop().on_signals()
    store = ModelStore(settings.models_dir)
    with ExitStack() as resources:
        slot = resources.enter_context(process.slot(settings, "predictor"))
        watcher = resources.enter_context(BundleWatcher(store, settings.kafka, report))
        exchange = ExactlyOnce(
            settings.kafka,
            group=messages.PREDICTOR_GROUP,
            topics=messages.GROUPS[messages.PREDICTOR_GROUP],
            slot=slot,
            max_records=MAX_RECORDS,
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
    sys.exit(process.run(main, errors=[kafka_io.KafkaUnavailable, kafka_io.Fenced, BundleError]))
