"""Which message and which prediction of a request_id sent twice `why` shows."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from ops import explain
from ops.explain import MadePrediction
from tests.unit.utils.message_store.samples import FEATURES, message
from utils.kafka_io import Record
from utils.message_store import Batch, MessageStore
from utils.messages import APP_MESSAGES


def sent(partition: int, offset: int, timestamp: int, value: Any = None) -> Record:
    data = {"request_id": "a", "data": {"age": offset}} if value is None else value
    return Record(APP_MESSAGES, partition, offset, timestamp, None, json.dumps(data).encode(), ())


def made(partition: int, offset: int, timestamp: int) -> MadePrediction:
    return MadePrediction(partition, offset, timestamp, model_id=1, probability=0.5)


LATER = sent(0, 3, 20)
# messages, predictions, the place of the answer
CASES: dict[str, tuple[list[Record], list[MadePrediction], tuple[int, int] | None]] = {
    "one": ([LATER], [made(0, 0, 30)], (0, 0)),
    "the other partition's prediction is later": (
        [LATER, sent(1, 9, 10)], [made(0, 0, 30), made(1, 0, 40)], (0, 0)
    ),
    "at a lower offset, with a later timestamp": (
        [LATER, sent(0, 7, 10)], [made(0, 5, 30), made(0, 8, 40)], (0, 5)
    ),
    "a rejected message has no prediction": (
        [LATER, sent(0, 5, 30, {"request_id": "a", "data": 1})], [made(0, 0, 30)], (0, 0)
    ),
    "its first message has expired": ([LATER], [made(0, 0, 30), made(0, 1, 40)], (0, 1)),
    "no answer yet": ([LATER, sent(1, 0, 10)], [made(1, 0, 30)], None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_answer_in_the_log_is_that_of_the_message(case: str) -> None:
    messages, predictions, wanted = CASES[case]
    usable = [one for one in messages if isinstance(json.loads(one.value or b"")["data"], dict)]
    finished = 100 if "expired" in case else None
    answer = explain.answer_of(LATER, usable, predictions, finished)
    assert (answer and (answer.partition, answer.offset)) == wanted


@pytest.mark.parametrize("partition", [0, 1])
def test_stored_prediction_of_another_partition_is_not_the_answer(url: str, partition: int) -> None:
    rows = [message("a", p, offset) for p, offset in ((0, 9), (1, 4))]  # partition 0 is later
    with MessageStore(url, FEATURES) as store:
        store.ingest(Batch(rows, predictions=[("a", 1, 0.5, partition, 0, 2000)]))
    settings: Any = SimpleNamespace(messages_url=url)
    serving: Any = SimpleNamespace(features=FEATURES)
    found = explain._in_store(settings, serving, "a")
    assert found is not None and found.message is not None and found.message.partition == 0
    assert found.is_whole == (partition == 0) and len(found.predictions) == 1
