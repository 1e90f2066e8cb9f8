"""Sends rows of the data set as an application would, and reads the predictions.

    python sample_app.py [--messages 200] [--interval 2.0] [--outcome-delay SECONDS]

Ends when every message it sent has its prediction, with a summary.
"""

import argparse
import statistics
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import TypeVar

import msgspec
from rich.console import Console

from utils import kafka_io, messages, preprocess_data, process
from utils.errors import UserError, one_line
from utils.kafka_io import LogReader, Outgoing, Sender
from utils.messages import Label, label_text
from utils.settings import Settings

#: Each message is shown if the interval (s) is at least this long.
SHOW_EACH_ABOVE = 0.05
#: How long (s) to wait for the last predictions after a signal to stop.
STOPPED_TIMEOUT = 3.0

Client = TypeVar("Client", Sender, LogReader)


@dataclass
class Ledger:
    """What was sent and received. Both threads write, each to its own fields."""

    sent: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    twice: set[str] = field(default_factory=set)
    models: Counter[int] = field(default_factory=Counter)
    right: int = 0

    def missing(self) -> list[str]:
        """The requests without a prediction, in the order they were sent."""
        return [request_id for request_id in list(self.sent) if request_id not in self.answered]

    def record_prediction(self, prediction: messages.Prediction, now: float) -> bool:
        """Record a prediction; returns whether it is for a message of this process."""
        request_id = prediction.request_id
        if request_id not in self.sent:
            return False
        if request_id in self.answered:
            self.twice.add(request_id)
        self.answered.add(request_id)
        self.latencies.append(now - self.sent[request_id])
        self.models[prediction.model_id] += 1
        self.right += prediction.label == self.outcomes.get(request_id)
        return True


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
        self._console = Console(highlight=False, soft_wrap=True)
        self._done_sending = threading.Event()

    def produce(self, sender: Sender) -> None:
        """Send the messages, and their outcomes after the delay."""
        delay = self._arguments.outcome_delay
        late: deque[tuple[float, str]] = deque()
        started = time.monotonic()
        target = self._settings.data.target
        for number, data in enumerate(self._rows()):
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
            self.ledger.outcomes[request_id] = label_text(outcome)
            self.ledger.sent[request_id] = time.monotonic()
            self._send(sender, messages.APP_MESSAGES, request_id, data=data)
            if delay is not None:
                late.append((time.monotonic() + delay, request_id))
                self._send_due(sender, late)
            self._show("red", number, f"-- PRODUCER: Sent message with id {request_id}")
        while late and not self._stop():
            self._send_due(sender, late)
            self._stop.wait(0.02)
        sender.flush()

    def consume(self, reader: LogReader) -> None:
        """Read predictions until every message has one, or none arrives within the timeout."""
        decode = messages.Decoder(messages.Prediction)
        last = time.monotonic()
        while True:
            for records in reader.poll(timeout_ms=100).values():
                now = time.monotonic()
                for record in records:
                    try:
                        prediction = decode(record.value)
                    except messages.BadRecord:
                        continue  # not written by a predictor
                    if self.ledger.record_prediction(prediction, now):
                        last = now
                        self._show_prediction(prediction)
            if self._done_sending.is_set():
                if not self.ledger.missing():
                    return
                timeout = STOPPED_TIMEOUT if self._stop() else self._arguments.timeout
                if time.monotonic() - last > timeout:
                    return
            else:
                last = time.monotonic()

    def run(self) -> int:
        """Send, read and print a summary; returns the exit status."""
        started = time.monotonic()
        kafka = self._settings.kafka
        with ExitStack() as resources:
            reader = resources.enter_context(
                LogReader(kafka, [messages.PREDICTIONS], default="latest")
            )
            linger = 20 if self._arguments.interval < SHOW_EACH_ABOVE else 0
            sender = resources.enter_context(Sender(kafka, linger_ms=linger))
            consumer = threading.Thread(target=self._stop_on_error, args=(self.consume, reader))
            consumer.start()
            self._stop_on_error(self.produce, sender)
            self._done_sending.set()
            consumer.join()
        self._summary(time.monotonic() - started)
        if self.error is not None:
            raise kafka_io.KafkaUnavailable(one_line(self.error))
        if self.ledger.twice:
            return 1
        return 1 if self.ledger.missing() and not self._stop() else 0

    def _stop_on_error(self, work: Callable[[Client], None], client: Client) -> None:
        try:
            work(client)
        except kafka_io.RETRIABLE_ERRORS as error:
            self.error = error
            self._stop.set()

    def _rows(self) -> Iterator[dict[str, Label | None]]:
        data = self._settings.data
        rows = preprocess_data.sample_rows(self._settings.data_dir, data)
        if not rows:
            raise UserError(f"no row to send in {data.test or data.train}")
        return islice(cycle(rows), self._arguments.messages)

    def _send(self, sender: Sender, topic: str, request_id: str, **fields: object) -> None:
        value = msgspec.json.encode({"request_id": request_id, **fields})
        sender.send(Outgoing(topic, None, request_id.encode(), value))

    def _send_due(self, sender: Sender, late: deque[tuple[float, str]]) -> None:
        while late and late[0][0] <= time.monotonic():
            request_id = late.popleft()[1]
            outcome = self.ledger.outcomes[request_id]
            self._send(sender, messages.OUTCOMES, request_id, outcome=outcome)

    def _show(self, colour: str, number: int, text: str) -> None:
        if self._arguments.interval >= SHOW_EACH_ABOVE:
            self._console.print(f"[{colour}]{text}[/]")
        elif number % 1000 == 999:
            self._console.print(f"[{colour}]{text} ({number + 1} so far)[/]")

    def _show_prediction(self, prediction: messages.Prediction) -> None:
        self._show(
            "green",
            len(self.ledger.answered) - 1,
            f"** CONSUMER: Received prediction {prediction.prediction} ({prediction.label}) "
            f"for request id {prediction.request_id} from model {prediction.model_id}",
        )

    def _summary(self, seconds: float) -> None:
        ledger, say = self.ledger, partial(self._console.print, markup=False)
        sent, answered = len(ledger.sent), len(ledger.answered)
        models = ", ".join(f"{m} ({count})" for m, count in sorted(ledger.models.items()))
        say(
            f"sent {sent}, answered {answered}, in {seconds:.1f} s; models seen: {models or 'none'}"
        )
        if ledger.latencies:
            ordered = sorted(ledger.latencies)
            p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
            say(
                f"accuracy so far {ledger.right / answered:.4f}; latency median "
                f"{statistics.median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
            )
        if ledger.twice:
            say(f"ANSWERED TWICE: {len(ledger.twice)}, {' '.join(sorted(ledger.twice)[:10])}")
        if missing := ledger.missing():
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            say(f"WITHOUT A PREDICTION: {' '.join(missing[:10])}{more}")


def main(arguments: argparse.Namespace, settings: Settings) -> int:
    """Run the application with the command line's choices."""
    return SampleApp(settings, arguments, process.Stop().on_signals()).run()


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
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(process.run(partial(main, arguments())))
