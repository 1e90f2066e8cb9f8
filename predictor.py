"""Scores what arrives on `app_messages`, exactly once, and asks for retrainings.

    python predictor.py

Run as many as there are partitions; they share them. Stop with Ctrl-C: the batch in
hand is finished. A new model is loaded without stopping.
"""

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from utils import kafka_io, messages, model_store, process
from utils.bundle_watcher import BundleWatcher
from utils.kafka_io import ExactlyOnce, Outgoing, Polled, Position, TopicPartition
from utils.model_store import Bundle
from utils.outcome_count import OutcomeCount
from utils.settings import Settings

#: The most records of one batch: large enough that what a batch costs is small beside
#: what its rows cost, small enough that a transaction is short.
MAX_RECORDS = 2_000
POLL_MS = 100

_encode = msgspec.json.encode


@dataclass
class Scored:
    """What one batch of records comes to: everything that its transaction carries."""

    outgoing: list[Outgoing] = field(default_factory=list)
    positions: dict[TopicPartition, Position] = field(default_factory=dict)
    requests: list[messages.RetrainRequest] = field(default_factory=list)
    predictions: int = 0
    rejected: int = 0


class Predictor:
    """The consume-transform-produce step, apart from the loop that calls it.

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

    def step(self, timeout_ms: int = POLL_MS) -> int:
        """Process one batch.

        1. poll; 2. swap the bundle if a newer one is ready; 3. decode, encode as one
        matrix, score; 4. count outcomes; 5. send and commit all of it in one
        transaction.

        Returns:
            How many records were consumed.

        Raises:
            kafka_io.KafkaError: The batch did not commit; the next step takes it up
                again.
        """
        polled = self.exchange.poll(timeout_ms)  # 1
        if polled.restored is not None:
            self._restore(polled.restored)
        self._swap()  # 2
        if not polled.records and not (self._announcements and polled.epoch):
            return 0
        scored = Scored(outgoing=list(self._announcements))
        for tp, records in polled.records.items():
            if tp.topic == messages.APP_MESSAGES:
                known = self._score(records, scored)  # 3
            else:
                known = self._outcomes(records, scored)
            self._count(tp, known, records[-1].offset + 1, scored)  # 4
        self.exchange.commit(polled, scored.outgoing, scored.positions)  # 5
        self._committed(scored)
        return sum(map(len, polled.records.values()))

    def _restore(self, positions: dict[TopicPartition, Position]) -> None:
        self._counts = {
            tp: OutcomeCount.restored(
                *tp, every=self._every, offset=position.offset, metadata=position.metadata
            )
            for tp, position in positions.items()
        }
        parts = sorted(tp.partition for tp in positions if tp.topic == messages.APP_MESSAGES)
        self._report(f"partitions {parts} are this predictor's" if parts else "no partition to serve")

    def _swap(self) -> None:
        bundle = self._watcher.take()
        if bundle is None:
            return
        self.bundle = bundle
        record = {"model_loaded": True, "model_id": bundle.model_id}
        self._announcements.append(Outgoing(messages.RETRAIN_TOPIC, 0, None, _encode(record)))
        self._report(f"NEW MODEL RELOADED {bundle.model_id}")

    def _score(self, records: list[Any], scored: Scored) -> list[int]:
        """Predict one partition's messages; returns the offsets whose outcome is known."""
        features, decode = self.bundle.features, self.bundle.decoder
        good, rows, known = [], [], []
        for record in records:
            try:
                message = decode(record.value)
                if features.knows_nothing_of(message.data):
                    raise messages.BadRecord("none of the known columns in $.data")
            except messages.BadRecord as reason:
                scored.outgoing.append(dead_letter(record, str(reason)))
                scored.rejected += 1
                continue
            good.append((record, message.request_id))
            rows.append(message.data)
            outcome = message.data.outcome
            if outcome is not None and messages.label_text(outcome) in features.classes:
                known.append(record.offset)
        if rows:
            probabilities = self.bundle.score(features.transform_rows(rows))
            scored.outgoing.extend(predictions(self.bundle, good, probabilities))
            scored.predictions += len(rows)
        return known

    def _outcomes(self, records: list[Any], scored: Scored) -> list[int]:
        """Check one partition's late outcomes; returns the offsets of the usable ones."""
        classes, known = self.bundle.features.classes, []
        for record in records:
            try:
                outcome = self._decode_outcome(record.value).outcome
                if messages.label_text(outcome) not in classes:
                    raise messages.BadRecord(f"{outcome!r:.80} is none of the classes")
            except messages.BadRecord as reason:
                scored.outgoing.append(dead_letter(record, str(reason)))
                scored.rejected += 1
                continue
            known.append(record.offset)
        return known

    def _count(self, tp: TopicPartition, known: list[int], end: int, scored: Scored) -> None:
        count = self._counts[tp]
        for offset in known:
            request = count.observe(offset)
            if request is not None:
                scored.requests.append(request)
                value = _encode(request)
                scored.outgoing.append(Outgoing(messages.RETRAIN_TOPIC, 0, None, value))
        scored.positions[tp] = Position(end, count.metadata())

    def _committed(self, scored: Scored) -> None:
        self._announcements.clear()
        self.predictions += scored.predictions
        for request in scored.requests:
            self._report(
                f"RETRAIN REQUESTED: {request.count} outcomes of {request.topic}-"
                f"{request.partition}, offsets {request.first_offset} to {request.last_offset}"
            )
        if scored.rejected:
            self._report(f"{scored.rejected} records rejected, see {messages.DEAD_LETTERS}")


def predictions(
    bundle: Bundle, requests: Iterable[tuple[Any, str]], probabilities: np.ndarray
) -> Iterable[Outgoing]:
    """The records of `predictions`, each on the partition number of its message."""
    labels, model_id = bundle.features.classes, bundle.model_id
    codes = (probabilities > 0.5) if probabilities.ndim == 1 else probabilities.argmax(axis=1)
    for (record, request_id), code, probability in zip(
        requests, codes.astype(int).tolist(), probabilities.tolist(), strict=True
    ):
        value = messages.Prediction(request_id, code, labels[code], probability, model_id)
        yield Outgoing(
            messages.PREDICTIONS, record.partition, request_id.encode(), _encode(value)
        )


def dead_letter(record: Any, reason: str) -> Outgoing:
    """The record for `dead_letters`: bytes untouched, where it was and why in headers."""
    headers = {
        "reason": reason,
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
    }
    return Outgoing(
        messages.DEAD_LETTERS,
        0,
        record.key,
        record.value,
        [(name, text.encode()) for name, text in headers.items()],
    )


def loop(predictor: Predictor, stop: process.Stop, report: process.Report) -> None:
    """Step until asked to stop; broker trouble is waited out, not died of."""
    trouble = ""
    while not stop():
        try:
            predictor.step()
            if trouble:
                report("the broker answers again")
                trouble = ""
        except kafka_io.KafkaError as error:
            text = process.one_line(error)
            if text != trouble:
                report(f"waiting for the broker: {text}")
            trouble = text
            stop.wait(0.2)


def main(settings: Settings) -> None:
    """Wire the predictor and run it until a signal."""
    report = process.reporter("predictor", "cyan")
    stop = process.Stop().on_signals()
    store = model_store.ModelStore(settings.models_dir)
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
        report(f"model {bundle.model_id} serves; a retraining every "
               f"{settings.training.retrain_every} known outcomes")
        predictor = Predictor(
            exchange, bundle, watcher, every=settings.training.retrain_every, report=report
        )
        loop(predictor, stop, report)
        report(f"stopped after {predictor.predictions} predictions")


if __name__ == "__main__":
    process.parser(__doc__).parse_args()
    sys.exit(
        process.run(main, errors=[kafka_io.KafkaUnavailable, kafka_io.Fenced, model_store.BundleError])
    )
