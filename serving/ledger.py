"""Remembers which requests were sent to Kafka, and what the predictor has answered.

The event loop claims rows and waits, a reader's thread adds what it reads; a lock is held for
dictionary look-ups only.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serving.rows import Answer, Refusal, SentRow
from utils.messages import DECODE_ERRORS, Prediction

#: How many requests are remembered, those of other applications on the same topics included.
REMEMBERED = 100_000


class Wait:
    """The rows of one HTTP request that have no answer yet.

    Attributes:
        answers: The answers so far, by request_id.
        missing: The request_ids without one.
        done: Done when none is missing.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.missing: set[str] = set()
        self.done: Future[None] = Future()


@dataclass(slots=True)
class _Entry:
    """A request: what was sent, its prediction, and who waits for it.

    `is_open` says that an answer is to come, `is_on_kafka` that the message was read there, and
    `doubt` why Kafka may not have it. Of what was sent before the ledger began, the digest may be
    unknown.
    """

    digest: bytes = b""
    prediction: Prediction | None = None
    is_open: bool = True
    is_on_kafka: bool = False
    doubt: str = ""
    waits: list[Wait] = field(default_factory=list)


@dataclass
class Claim:
    """What becomes of the rows of an HTTP request.

    Attributes:
        to_send: The rows that were not sent before.
        refused: The answers to rows that are not to be sent, by place.
        wait: For the answers of all others.
        repeated: How many rows were sent before.
    """

    to_send: list[SentRow] = field(default_factory=list)
    refused: dict[int, Refusal] = field(default_factory=dict)
    wait: Wait = field(default_factory=Wait)
    repeated: int = 0


class Ledger:
    """The newest requests by request_id.

    A request_id is sent once: a row with one that was sent before gets the same answer, or a
    refusal if it is another row. A request that was rejected may be sent again.

    Args:
        remembered: How many requests it remembers.
    """

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._doubts = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def has_doubts(self) -> bool:
        """Whether it is unknown of a request whether Kafka has it."""
        return self._doubts > 0

    def claim(self, rows: Sequence[SentRow], model_id: int) -> Claim:
        """Decide for each row whether it has to be sent, and wait for its answer.

        Args:
            rows: The rows.
            model_id: The model that refusals name.
        """
        claim = Claim()
        with self._lock:
            for place, row in enumerate(rows):
                fault = row.fault if row.message is None else self._claim(claim, row, row.message)
                if fault:
                    claim.refused[place] = Refusal(row.request_id, fault, model_id)
            if not claim.wait.missing:
                claim.wait.done.set_result(None)
        return claim

    def _claim(self, claim: Claim, row: SentRow, message: bytes) -> str:
        """Claim one row; returns why it is refused, if it is."""
        request_id, wait, digest = row.request_id, claim.wait, _digest(message)
        entry = self._entries.get(request_id)
        if entry is None or not (entry.is_open or entry.prediction):
            entry = self._add(request_id, digest)
            claim.to_send.append(row)
        elif entry.digest and entry.digest != digest:
            return f"request_id {request_id} was sent before, with another row"
        else:
            claim.repeated += 1
        if entry.prediction is not None:
            wait.answers[request_id] = entry.prediction
        elif request_id not in wait.missing:
            wait.missing.add(request_id)
            entry.waits.append(wait)
        return ""

    def _add(self, request_id: str, digest: bytes = b"") -> _Entry:
        entry = self._entries[request_id] = _Entry(digest)
        self._entries.move_to_end(request_id)
        self._forget_oldest()
        return entry

    def _forget_oldest(self) -> None:
        while len(self._entries) > self._remembered:
            request_id, entry = self._entries.popitem(last=False)
            if entry.waits:
                self._entries[request_id] = entry  # the newest again
                return
            self._clear_doubt(entry)

    def leave(self, wait: Wait) -> list[str]:
        """Wait no longer; returns the request_ids without an answer, which stay claimed."""
        with self._lock:
            for request_id in wait.missing:
                entry = self._entries.get(request_id)
                if entry is not None and wait in entry.waits:
                    entry.waits.remove(wait)
            return sorted(wait.missing)

    # What the reader finds on the topics

    def saw_message(self, request_id: str, value: bytes) -> None:
        """Note a message on `app_messages`, whoever has sent it."""
        with self._lock:
            entry = self._entries.get(request_id) or self._add(request_id)
            entry.digest = entry.digest or _digest(value)
            entry.is_on_kafka = True
            self._clear_doubt(entry)

    def saw_prediction(self, prediction: Prediction) -> None:
        """Note a prediction; of several for one request, the first one counts."""
        self._saw_answer(prediction)

    def saw_rejection(self, rejection: Refusal) -> None:
        """Note that a message was rejected; its request_id may be used again."""
        self._saw_answer(rejection)

    def _saw_answer(self, answer: Answer) -> None:
        request_id = answer.request_id
        with self._lock:
            entry = self._entries.get(request_id) or self._add(request_id)
            if entry.prediction is not None:
                return
            if isinstance(answer, Prediction):
                entry.prediction = answer
            else:
                entry.digest = b""  # the next message may have another row
            entry.is_open = False
            self._clear_doubt(entry)
            waits, entry.waits = entry.waits, []
            for wait in waits:
                wait.answers[request_id] = answer
                wait.missing.discard(request_id)
            done = [wait for wait in waits if not wait.missing]
        for wait in done:
            with suppress(InvalidStateError):  # it has been given up
                wait.done.set_result(None)

    # What the sender finds

    def doubt(self, request_id: str, reason: str) -> None:
        """Note that Kafka may have a message or not: nobody knows yet."""
        with self._lock:
            entry = self._entries.get(request_id)
            if entry is None or entry.is_on_kafka:  # only its acknowledgement was lost
                return
            if entry.is_open and not entry.doubt:
                entry.doubt = reason
                self._doubts += 1

    def settle_doubts(self, model_id: int) -> None:
        """Refuse the requests in doubt; everything on `app_messages` was read, without them."""
        with self._lock:
            doubtful = [(key, entry.doubt) for key, entry in self._entries.items() if entry.doubt]
        for request_id, reason in doubtful:
            text = f"Kafka did not take it, send it again: {reason}"
            self.saw_rejection(Refusal(request_id, text, model_id))

    def _clear_doubt(self, entry: _Entry) -> None:
        if entry.doubt:
            entry.doubt = ""
            self._doubts -= 1


class _Data(msgspec.Struct, gc=False):
    data: Any  # any JSON value


_decode = msgspec.json.Decoder(_Data).decode


def _digest(message: bytes) -> bytes:
    """A digest of a message's row, whatever blanks its JSON has and in whatever order."""
    with suppress(*DECODE_ERRORS):  # NaN and Infinity: the bytes decide
        message = msgspec.json.encode(_decode(message).data, order="sorted")
    return hashlib.blake2b(message, digest_size=16).digest()
