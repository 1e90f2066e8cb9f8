"""Sends rows of the data set as an application would, and reads predictions and rejections.

    python sample_app.py [--messages 200] [--interval 2.0] [--outcome-delay SECONDS] [--verbose]

Ends when every message it sent has its prediction or was rejected, with a summary. On a terminal
one line shows how far it is; --verbose, and a file or a pipe, have a line for each message.
"""

import argparse
import statistics
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice

import msgspec

from utils import changes, kafka_io, messages, preprocess_data, process, trace_context
from utils.errors import UserError, one_line
from utils.kafka_io import LogReader, Outgoing, Record, Sender
from utils.messages import Rejection
from utils.model_store import ModelStore, ModelStoreError
from utils.settings import Settings
from utils.telemetry import exposition
from utils.telemetry.counts import AppCounts
from utils.telemetry.live_line import LiveLine
from utils.telemetry.live_text import SEPARATOR, bar, duration_text, encodable, rate_text
from utils.telemetry.reporter import Reporter
from utils.values import Label, label_text

#: Each message has its line if the interval (s) is at least this long, else each thousandth; in
#: JSON each always has.
SHOW_EACH_ABOVE = 0.05
#: How many rejections have their line in any case; the summary counts all.
SHOWN_REJECTIONS = 10
#: Seconds between two lines that say how far it is, without a terminal and lines of messages.
PROGRESS_EVERY = 5.0
#: The latest predictions whose latency the live line shows.
LATEST = 1_000
#: How long (s) to wait for the last predictions after a signal to stop.
STOPPED_TIMEOUT = 3.0
#: Seconds that a message may wait for its answer before `/healthz` says that there is none.
UNANSWERED_S = 10.0

decode_prediction = messages.Decoder(messages.Prediction)


@dataclass
class Ledger:
    """What was sent and received. Both threads write, each to its own fields.

    The counts are what any other thread may look at.
    """

    sent: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)
    rejected: dict[str, str] = field(default_factory=dict)
    rejected_outcomes: dict[str, str] = field(default_factory=dict)
    models: Counter[int] = field(default_factory=Counter)
    right: int = 0
    waiting: deque[str] = field(default_factory=deque)
    counts: AppCounts = field(default_factory=AppCounts)

    def missing(self) -> list[str]:
        """The requests without a prediction or rejection, in the order they were sent."""
        return [request_id for request_id in list(self.sent) if not self._is_answered(request_id)]

    def _is_answered(self, request_id: str) -> bool:
        return request_id in self.answered or request_id in self.rejected

    def record_sent(self, request_id: str, outcome: str) -> None:
        """Record a message that is sent now."""
        self.outcomes[request_id] = outcome
        self.sent[request_id] = time.monotonic()
        self.waiting.append(request_id)
        self.counts.sent += 1

    def record_prediction(self, prediction: messages.Prediction, now: float) -> bool:
        """Record a prediction; returns whether it is for a message of this process."""
        request_id = prediction.request_id
        if request_id not in self.sent:
            return False
        if request_id in self.answered:
            self.twice.add(request_id)
            self.counts.twice += 1
        self.answered.add(request_id)
        self.latencies.append(now - self.sent[request_id])
        self.models[prediction.model_id] += 1
        self.right += prediction.label == self.outcomes.get(request_id)
        self.counts.answered, self.counts.right = len(self.answered), self.right
        return True

    def figures(self, total: int) -> list[str]:
        """How far it is, in parts, the most important first; any thread may ask.

        Args:
            total: How many messages there will be.
        """
        answered, sent, rejected = len(self.answered), len(self.sent), len(self.rejected)
        parts = [
            f"{bar(answered + rejected, total)} {answered:,}/{total:,} answered",
            f"waiting {max(0, sent - answered - rejected):,}",
        ]
        if rejected or self.rejected_outcomes:
            parts.append(f"rejected {rejected + len(self.rejected_outcomes):,}")
        parts.append(rate_text(self.counts.recent().rate))
        if latest := self.latencies[-LATEST:]:
            median, p99 = quantiles(latest)
            parts.append(f"p50 {duration_text(median)} p99 {duration_text(p99)}")
            parts.append(f"accuracy {self.right / answered:.3f}")
            models = sorted(self.models.copy())
            parts.append(f"model{'s' * (len(models) > 1)} {', '.join(map(str, models))}")
        return parts

    def note_step(self, now: float) -> None:
        """Add the latencies that are new to the counts, and note whether messages are answered.

        Args:
            now: Seconds, monotonic.
        """
        counts = self.counts
        if new := self.latencies[counts.latencies.now().count :]:
            counts.latencies.add([seconds * 1000 for seconds in new])
        counts.mark()
        while self.waiting and self._is_answered(self.waiting[0]):
            self.waiting.popleft()
        waited = now - self.sent[self.waiting[0]] if self.waiting else 0.0
        if waited > UNANSWERED_S:
            counts.health.fails(f"a message has had no answer for {waited:.0f} s")
        else:
            counts.health.serves("sends and receives")

    def record_rejection(self, record: Record) -> str | None:
        """Record a dead letter; returns the reason if it is for a message of this process."""
        request_id = (record.key or b"").decode("utf-8", "replace")
        rejection = Rejection.from_headers(record.headers)
        if rejection is None or request_id not in self.sent:
            return None
        is_message = rejection.topic == messages.APP_MESSAGES and rejection.outcome is None
        kept = self.rejected if is_message else self.rejected_outcomes
        kept[request_id] = rejection.reason
        self.counts.rejected = len(self.rejected)
        self.counts.rejected_outcomes = len(self.rejected_outcomes)
        return rejection.reason


def quantiles(latencies: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile, in seconds."""
    ordered = sorted(latencies)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return statistics.median(ordered), p99


def line_every(verbose: bool | None, interval: float, report: Reporter) -> int:
    """One of how many messages has a line; 0 is none.

    Args:
        verbose: Whether each has; None if the user has not said.
        interval: Seconds between two messages.
        report: Prints the lines.
    """
    if verbose is not None:
        return int(verbose)
    if report.is_json:
        return 1
    if report.may_be_live:
        return 0
    return 1 if interval >= SHOW_EACH_ABOVE else 1000


class SampleApp:
    """The application: a producer and a consumer thread that share a ledger.

    Args:
        settings: Name the data and the cluster.
        arguments: The command line.
        stop: Ends the sending.
    """

    def __init__(
        self, settings: Settings, arguments: argparse.Namespace, stop: process.Stop
    ) -> None:
        self.ledger = Ledger()
        self.error: Exception | None = None
        self._settings = settings
        self._arguments = arguments
        self._stop = stop
        self._report = Reporter("sample_app", "", settings.log_format, prefix=False)
        self._done_sending = threading.Event()
        #: One of how many messages has its line; 0 is none.
        self._every = line_every(arguments.verbose, arguments.interval, self._report)

    def produce(self, sender: Sender, rows: Iterator[dict[str, Label | None]]) -> None:
        """Send the rows as messages, and their outcomes after the delay."""
        delay = self._arguments.outcome_delay
        late: deque[tuple[float, str]] = deque()
        started = time.monotonic()
        target = self._settings.data.target
        for number, data in enumerate(rows):
            due = started + number * self._arguments.interval
            while (pause := due - time.monotonic()) > 0 and not self._stop():
                self._send_due(sender, late)
                self._stop.wait(min(pause, 0.02 if late else pause))
            if self._stop():
                break
            request_id = str(uuid.uuid4())
            outcome = data[target]
            assert outcome is not None  # rows without one are left out
            if delay is not None:
                data = {name: value for name, value in data.items() if name != target}
            self.ledger.record_sent(request_id, label_text(outcome))
            self._send(sender, messages.APP_MESSAGES, request_id, data=data)
            if delay is not None:
                late.append((time.monotonic() + delay, request_id))
                self._send_due(sender, late)
            text = f"-- PRODUCER: Sent message with id {request_id}"
            self._show("red", number, text, request_id=request_id)
        while late and not self._stop():
            self._send_due(sender, late)
            self._stop.wait(0.02)
        sender.flush()

    def consume(self, reader: LogReader) -> None:
        """Read until every message has its answer, or none arrives within the timeout."""
        last = time.monotonic()
        while True:
            for records in reader.poll(timeout_ms=100).values():
                now = time.monotonic()
                for record in records:
                    if self._take(record, now):
                        last = now
            self.ledger.note_step(time.monotonic())
            if self._done_sending.is_set():
                if not self.ledger.missing():
                    return
                timeout = STOPPED_TIMEOUT if self._stop() else self._arguments.timeout
                if time.monotonic() - last > timeout:
                    return
            else:
                last = time.monotonic()

    def _take(self, record: Record, now: float) -> bool:
        """Record and show an answer; returns whether it is for a message of this process."""
        if record.topic == messages.DEAD_LETTERS:
            reason = self.ledger.record_rejection(record)
            if reason is not None:
                self._show_rejection(reason, record)
            return reason is not None
        try:
            prediction = decode_prediction(record.value)
        except messages.BadRecord:
            return False  # not written by a predictor
        if not self.ledger.record_prediction(prediction, now):
            return False
        self._show_prediction(prediction, record)
        return True

    def run(self) -> int:
        """Send, read and print a summary; returns the exit status."""
        rows, kafka = self._rows(), self._settings.kafka
        answers = [messages.PREDICTIONS, messages.DEAD_LETTERS]
        there = kafka_io.wait_for_topics(
            kafka,
            [messages.APP_MESSAGES, messages.OUTCOMES, *answers],
            seconds=self._arguments.timeout,
            pause=self._stop.wait,
            report=self._report,
        )
        if not there:
            return 0
        started = time.monotonic()
        with ExitStack() as resources:
            reader = resources.enter_context(LogReader(kafka, answers, default="latest"))
            linger = 20 if self._arguments.interval < SHOW_EACH_ABOVE else 0
            sender = resources.enter_context(Sender(kafka, linger_ms=linger))
            produce, consume = partial(self.produce, sender, rows), partial(self.consume, reader)
            threads = [
                threading.Thread(target=self._stop_on_error, args=(work,), daemon=True)
                for work in (produce, consume)
            ]
            live = resources.enter_context(LiveLine(self._report, self._figures))
            if not (self._every or live.is_shown):
                threads.append(threading.Thread(target=self._report_progress, daemon=True))
            for thread in threads:
                thread.start()
            self._await(threads[0])
            self._done_sending.set()
            self._await(threads[1])
        self._summary(time.monotonic() - started)
        if self.error is not None:
            raise kafka_io.KafkaUnavailable(one_line(self.error))
        if self.ledger.twice or self.ledger.rejected or self.ledger.rejected_outcomes:
            return 1
        return 1 if self.ledger.missing() and not self._stop() else 0

    def _await(self, thread: threading.Thread) -> None:
        """Wait for the end of a thread; after a stop not for one that a lost broker holds up."""
        while thread.is_alive() and not self._stop():
            thread.join(0.1)
        thread.join(STOPPED_TIMEOUT + 1)
        if thread.is_alive():
            self.error = kafka_io.KafkaUnavailable("the broker does not answer")

    def _figures(self) -> list[str]:
        return self.ledger.figures(self._arguments.messages)

    def _report_progress(self) -> None:
        """Report how far it is from time to time, until all is answered."""
        while not self._stop.wait(PROGRESS_EVERY):
            if self._done_sending.is_set() and not self.ledger.missing():
                return
            ascii_only = self._report.console.options.ascii_only
            self._report(encodable(SEPARATOR.join(self._figures()), ascii_only=ascii_only))

    def _stop_on_error(self, work: Callable[[], None]) -> None:
        try:
            work()
        except kafka_io.RETRIABLE_ERRORS as error:
            self.error = error
            self._stop.set()

    def _rows(self) -> Iterator[dict[str, Label | None]]:
        data = self._settings.data
        rows = preprocess_data.sample_rows(self._settings.data_dir, data)
        if not rows:
            raise UserError(f"no row to send in {preprocess_data.held_out_file(data)}")
        return islice(cycle(rows), self._arguments.messages)

    def _send(self, sender: Sender, topic: str, request_id: str, **fields: object) -> None:
        value = msgspec.json.encode({"request_id": request_id, **fields})
        sender.send(Outgoing(topic, None, request_id.encode(), value))

    def _send_due(self, sender: Sender, late: deque[tuple[float, str]]) -> None:
        while late and late[0][0] <= time.monotonic():
            request_id = late.popleft()[1]
            outcome = self.ledger.outcomes[request_id]
            self._send(sender, messages.OUTCOMES, request_id, outcome=outcome)

    def _show(self, style: str, number: int, text: str, **fields: object) -> None:
        """Show a message, if it is one of those that have their line."""
        if self._every and number % self._every == self._every - 1:
            more = f" ({number + 1} so far)" if self._every > 1 else ""
            self._report(f"{text}{more}", level="info", style=style, **fields)

    def _show_rejection(self, reason: str, record: Record) -> None:
        count = len(self.ledger.rejected) + len(self.ledger.rejected_outcomes)
        if self._every == 1 or count <= SHOWN_REJECTIONS:
            self._report(
                f"!! CONSUMER: Rejected: {reason}",
                level="warning",
                style="yellow",
                request_id=(record.key or b"").decode("utf-8", "replace"),
                reason=reason,
                **trace_context.log_fields(record.headers),
            )
        elif count == SHOWN_REJECTIONS + 1:
            text = "!! CONSUMER: Further rejections have no line each, the summary counts them"
            self._report(text, level="warning", style="yellow")

    def _show_prediction(self, prediction: messages.Prediction, record: Record) -> None:
        self._show(
            "green",
            len(self.ledger.answered) - 1,
            f"** CONSUMER: Received prediction {prediction.prediction} ({prediction.label}) "
            f"for request id {prediction.request_id} from model {prediction.model_id}",
            request_id=prediction.request_id,
            label=prediction.label,
            probability=prediction.probability,
            model_id=prediction.model_id,
            latency_ms=round(self.ledger.latencies[-1] * 1000, 3),
            **trace_context.log_fields(record.headers),
        )
        if not self._every and self.ledger.models[prediction.model_id] == 1:
            text = f"first prediction from model {prediction.model_id}"
            self._report(text, style="green", model_id=prediction.model_id)

    def _summary(self, seconds: float) -> None:
        ledger, say = self.ledger, self._report
        sent, answered = len(ledger.sent), len(ledger.answered)
        models = ", ".join(f"{m} ({count})" for m, count in sorted(ledger.models.items()))
        say(
            f"sent {sent}, answered {answered}, rejected {len(ledger.rejected)}, "
            f"in {seconds:.1f} s; models seen: {models or 'none'}",
            sent=sent,
            answered=answered,
            rejected=len(ledger.rejected),
            seconds=round(seconds, 3),
            predictions_by_model=dict(ledger.models),
        )
        if ledger.latencies:
            p50, p99 = (seconds * 1000 for seconds in quantiles(ledger.latencies))
            accuracy = ledger.right / answered
            say(
                f"accuracy so far {accuracy:.4f}; latency median {p50:.1f} ms, p99 {p99:.1f} ms",
                accuracy=accuracy,
                latency_p50_ms=round(p50, 3),
                latency_p99_ms=round(p99, 3),
            )
        if ledger.twice:
            some = sorted(ledger.twice)[:10]
            self._complain(f"ANSWERED TWICE: {len(ledger.twice)}, {' '.join(some)}", some)
        for what, kept in (("MESSAGES", ledger.rejected), ("OUTCOMES", ledger.rejected_outcomes)):
            for reason, count in Counter(kept.values()).most_common(5):
                say(
                    f"REJECTED {what}: {count} because {reason}",
                    level="error",
                    rejected=count,
                    reason=reason,
                )
        if missing := ledger.missing():
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            some = missing[:10]
            self._complain(f"WITHOUT A PREDICTION: {' '.join(some)}{more}", some)

    def _complain(self, text: str, request_ids: list[str]) -> None:
        self._report(text, level="error", request_ids=request_ids)


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the application with the command line's choices."""
    kafka_io.check_owner(settings)
    with suppress(ModelStoreError):  # an application need not have the models
        bundle = ModelStore(settings.models_dir).load_current()
        if line := changes.since_training(settings, bundle):
            report = Reporter("sample_app", "", settings.log_format, prefix=False, stderr=True)
            report(line, level="warning")
    app = SampleApp(settings, arguments, process.Stop().on_signals())
    with exposition.serve(settings.metrics, app.ledger.counts, settings.kafka.name):
        return app.run()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = process.parser(__doc__)
    parser.add_argument(
        "--messages", type=process.at_least(1), default=200, help="how many to send (200)"
    )
    parser.add_argument(
        "--interval", type=process.seconds, default=2.0, help="seconds between two (2.0)"
    )
    parser.add_argument(
        "--outcome-delay",
        type=process.seconds,
        metavar="SECONDS",
        help="send outcomes separately, that much later (default: inside the messages)",
    )
    parser.add_argument(
        "--timeout",
        type=process.seconds,
        default=60.0,
        help="fail when no prediction arrives for that many seconds (60)",
    )
    parser.add_argument(
        "--verbose",
        action=argparse.BooleanOptionalAction,
        help="a line for each message (default: not on a terminal, and not if --interval is "
        f"below {SHOW_EACH_ABOVE})",
    )
    return parser.parse_args()


if __name__ == "__main__":
    command_line = arguments()
    sys.exit(process.run(partial(main, command_line), log_format=command_line.log_format))
