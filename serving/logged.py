"""Sends rows to Kafka as an application does; a predictor answers them."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from serving.errors import NoAnswer, Unavailable
from serving.ledger import REMEMBERED, Claim, Ledger
from serving.rows import Answer, Refusal, SentRow
from serving.serving_bundle import ServingBundle
from utils import kafka_io, messages
from utils.errors import one_line
from utils.kafka_io import LogReader, Outgoing, Record, Sender, TopicPartition
from utils.messages import BadRecord, Prediction, Rejection
from utils.model_store import Bundle
from utils.process import SETTLED, Outage
from utils.settings import Settings
from utils.telemetry.counts import ServingCounts
from utils.telemetry.reporter import Reporter

#: The topics that are read: what was sent, and both kinds of answers.
READ = (messages.APP_MESSAGES, messages.PREDICTIONS, messages.DEAD_LETTERS)
#: Offsets that are read back at the start for each request to remember. A prediction of a small
#: transaction takes two of them, and of one that was aborted as many for nothing.
OFFSETS_PER_REQUEST = 4
#: Rows that are sent at a time, so that those of other requests are sent in between.
SENT_AT_ONCE = 500
#: Seconds between two looks whether the broker answers.
LOOK_EVERY = 2.0

Headers = list[tuple[str, bytes]]
decode_prediction = messages.Decoder(Prediction)


class LoggedScorer:
    """Sends rows to `app_messages` and waits for their predictions.

    A request_id is sent once, also if its request is repeated after this process was killed: what
    was sent and answered before is read back at the start. Use it in a `with` block.

    Args:
        serving: The bundle, by whose columns bodies are read.
        settings: Name the cluster, and how long a request may take.
        counts: What is answered is added to it.
        report: Prints the lines for the user.
        fail: Called with an error that waiting does not cure.
    """

    def __init__(
        self,
        serving: ServingBundle,
        settings: Settings,
        counts: ServingCounts,
        report: Reporter,
        fail: Callable[[Exception], None],
    ) -> None:
        self._serving = serving
        self._timeout = settings.serving.timeout
        self._counts = counts
        self._report = report
        self._fail = fail
        self._outage = Outage(
            report, "waiting for the broker: {}", "the broker answers again", settled=SETTLED
        )
        self._ledger = Ledger()
        self._stop = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader = LogReader(settings.kafka, READ, default="latest")
        self._sender = Sender(settings.kafka)
        self._sending = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sender")
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)

    def __enter__(self) -> "LoggedScorer":
        try:
            self._read_back()
        except kafka_io.KafkaError as error:
            raise kafka_io.KafkaUnavailable(
                f"what was sent before cannot be read: {one_line(error)}"
            ) from None
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._sending.shutdown(cancel_futures=True)
        self._sender.close()
        self._reader.close()

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves now; predictors load it at about the same time."""
        return self._serving.bundle

    def trouble(self) -> str:
        """Why Kafka cannot be read now."""
        return f"the broker does not answer: {self._outage.reason}" if self._outage else ""

    async def score(
        self, rows: Sequence[SentRow], headers: Sequence[tuple[str, bytes]] = ()
    ) -> list[Answer]:
        """Answer rows, each in its place, by what the predictor says.

        Raises:
            Unavailable: The broker does not answer.
            NoAnswer: Not every row had a prediction in time.
        """
        if trouble := self.trouble():
            raise Unavailable(trouble)
        claim = self._ledger.claim(rows, self.bundle.model_id)
        try:
            async with asyncio.timeout(self._timeout):
                if claim.to_send:
                    await self._send(claim, list(headers))
                await asyncio.wrap_future(claim.wait.done)
        except TimeoutError:
            if missing := self._ledger.leave(claim.wait):
                raise self._too_late(rows, missing) from None
        answers = [
            claim.refused.get(place) or claim.wait.answers[row.request_id]
            for place, row in enumerate(rows)
        ]
        refused = sum(isinstance(answer, Refusal) for answer in answers)
        self._counts.refused += refused
        self._counts.predictions += len(answers) - refused
        self._counts.repeated += claim.repeated
        return answers

    def _too_late(self, rows: Sequence[SentRow], missing: Sequence[str]) -> NoAnswer:
        text = (
            f"no prediction within {self._timeout:g} s for {len(missing)} of {len(rows)} rows; "
            "send the rows again with these request_ids, which are in their order, to get them"
        )
        return NoAnswer(text, request_ids=[row.request_id for row in rows])

    async def _send(self, claim: Claim, headers: Headers) -> None:
        sending = asyncio.create_task(self._send_parts(claim.to_send, headers))
        self._tasks.add(sending)  # the event loop holds no reference
        sending.add_done_callback(self._tasks.discard)
        # Rows that wait behind others are sent also after the timeout: they stay claimed.
        await asyncio.shield(sending)

    async def _send_parts(self, rows: Sequence[SentRow], headers: Headers) -> None:
        loop = asyncio.get_running_loop()
        for first in range(0, len(rows), SENT_AT_ONCE):
            part = rows[first : first + SENT_AT_ONCE]
            await loop.run_in_executor(self._sending, self._send_rows, part, headers)

    def _send_rows(self, rows: Sequence[SentRow], headers: Headers) -> None:
        for row in rows:
            if self._stop.is_set():  # each could wait for a broker that is away
                self._ledger.doubt(row.request_id, "the server ends")
                continue
            record = Outgoing(
                messages.APP_MESSAGES, None, row.request_id.encode(), row.message, headers or None
            )
            try:
                sent = self._sender.send(record)
            except kafka_io.RETRIABLE_ERRORS as error:
                self._ledger.doubt(row.request_id, one_line(error))
            else:
                sent.add_errback(partial(self._failed, row.request_id))

    def _failed(self, request_id: str, error: Exception) -> None:
        self._ledger.doubt(request_id, one_line(error))

    async def send_outcomes(self, records: Sequence[tuple[str, bytes]]) -> None:
        """Send outcomes to their topic, and wait until Kafka has them.

        Args:
            records: Each one's request_id and its record, JSON.

        Raises:
            Unavailable: It is not known whether Kafka has all of them.
        """
        try:
            # Not in the thread that sends rows, which must not wait for Kafka.
            await asyncio.wait_for(asyncio.to_thread(self._send_outcomes, records), self._timeout)
        except (TimeoutError, *kafka_io.RETRIABLE_ERRORS) as error:
            raise Unavailable(
                f"Kafka may not have all outcomes, send them again: {one_line(error)}"
            ) from None

    def _send_outcomes(self, records: Sequence[tuple[str, bytes]]) -> None:
        sent = [
            self._sender.send(Outgoing(messages.OUTCOMES, None, request_id.encode(), value))
            for request_id, value in records
        ]
        for one in sent:
            one.get(self._timeout)

    # The reader

    def _read_back(self) -> None:
        """Read what was sent and answered last, so that none of it is sent again."""
        ends = self._reader.ends()
        partitions = Counter(tp.topic for tp in ends)
        for tp, end in ends.items():
            offsets = OFFSETS_PER_REQUEST * REMEMBERED // partitions[tp.topic]
            self._reader.seek(tp, max(0, end - offsets))
        while not self._has_read(ends):
            self._take(self._reader.poll(timeout_ms=500))
        if count := len(self._ledger):
            self._report(f"{count:,} requests read back: their request_ids are not sent again")

    def _read(self) -> None:
        try:
            self._follow()
        except Exception as error:  # no request would have an answer without this thread
            self._fail(error)

    def _follow(self) -> None:
        look_at = 0.0
        while not self._stop.is_set():
            try:
                self._take(self._reader.poll(timeout_ms=100))
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + LOOK_EVERY
                    self._look()
                self._outage.end()
            except kafka_io.RETRIABLE_ERRORS as error:
                kafka_io.raise_if_lasting(error)
                self._outage.begin(one_line(error))
                self._stop.wait(0.2)

    def _look(self) -> None:
        """Ask the broker how far the topics go: a poll does not say that it answers no more."""
        ends = self._reader.ends()
        if self._ledger.has_doubts and self._has_read(ends):
            self._ledger.settle_doubts(self.bundle.model_id)

    def _has_read(self, ends: Mapping[TopicPartition, int]) -> bool:
        return all(self._reader.position(tp) >= end for tp, end in ends.items())

    def _take(self, polled: dict[TopicPartition, list[Record]]) -> None:
        for tp, records in polled.items():
            _TAKE[tp.topic](self._ledger, records, self.bundle.model_id)


def _take_messages(ledger: Ledger, records: Iterable[Record], model_id: int) -> None:
    for record in records:
        if record.key is not None and record.value is not None:
            ledger.saw_message(record.key.decode("utf-8", "replace"), record.value)


def _take_predictions(ledger: Ledger, records: Iterable[Record], model_id: int) -> None:
    for record in records:
        with suppress(BadRecord):  # not written by a predictor
            ledger.saw_prediction(decode_prediction(record.value))


def _take_letters(ledger: Ledger, records: Iterable[Record], model_id: int) -> None:
    for record in records:
        rejection = Rejection.from_headers(record.headers)
        if rejection is None or rejection.topic != messages.APP_MESSAGES or record.key is None:
            continue
        if rejection.outcome is None:  # else the message has a prediction
            request_id = record.key.decode("utf-8", "replace")
            ledger.saw_rejection(Refusal(request_id, rejection.reason, model_id))


_TAKE = {
    messages.APP_MESSAGES: _take_messages,
    messages.PREDICTIONS: _take_predictions,
    messages.DEAD_LETTERS: _take_letters,
}
