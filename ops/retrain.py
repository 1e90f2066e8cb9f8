"""Requests a retraining by hand, and waits for what comes of it."""

import time
import uuid
from collections.abc import Callable

from train.results import Result
from utils import kafka_io, messages
from utils.kafka_io import LogReader, log_scan
from utils.messages import RetrainRequest, TrainingCompleted
from utils.metrics import Metrics
from utils.settings import Kafka, Settings


def retrain(settings: Settings, seconds: float, report: Callable[[str], None]) -> bool:
    """Request a retraining; a trainer that is down answers it when it starts.

    Args:
        settings: The pipeline's settings.
        seconds: How long to wait for the training; 0 not to wait.
        report: Called with one line of text for the user.

    Returns:
        Whether the training is done, if it was waited for.

    Raises:
        KafkaUnavailable: No broker answers, or it has no such topic.
    """
    _, end = log_scan.bounds(settings.kafka, messages.RETRAIN_TOPIC)[0]
    batch_id = request(settings)
    report(f"retraining requested: {batch_id}")
    if not seconds:
        return True
    done = wait(settings.kafka, batch_id, end, seconds)
    report(f"no training after {seconds:g} s; the request waits" if done is None else text(done))
    return done is not None


def request(settings: Settings) -> str:
    """Request a retraining; returns the id that its answer will have.

    Raises:
        KafkaUnavailable: No broker answers.
    """
    batch_id = f"manual-{uuid.uuid4()}"
    kafka_io.announce(settings, RetrainRequest(reason="manual", batch_id=batch_id))
    return batch_id


def text(done: TrainingCompleted) -> str:
    """A finished training as one line of text.

    >>> text(TrainingCompleted(model_id=4, accepted=True, batch_id="manual-1"))
    'model 4 serves now'
    """
    result = Result(
        done.model_id,
        done.accepted,
        done.parent_id or None,
        done.rows or 0,
        done.challenger or Metrics(),
        done.champion or None,
        done.gate or None,
    )
    return result.in_words()


def wait(kafka: Kafka, batch_id: str, first: int, seconds: float) -> TrainingCompleted | None:
    """Wait for the training that answers a request; None if the time is over.

    Args:
        kafka: How to reach the cluster.
        batch_id: The request.
        first: An offset of `retrain_topic` before the request.
        seconds: How long to wait.
    """
    until = time.monotonic() + seconds
    with LogReader(kafka, [messages.RETRAIN_TOPIC], {(messages.RETRAIN_TOPIC, 0): first}) as reader:
        while (left := until - time.monotonic()) > 0:
            for records in reader.poll(min(round(left * 1000), 500)).values():
                for record in records:
                    if found := _answer(record.value, batch_id):
                        return found
    return None


def _answer(value: bytes | None, batch_id: str) -> TrainingCompleted | None:
    try:
        event = messages.decode_event(value)
    except messages.BadRecord:
        return None
    if isinstance(event, TrainingCompleted) and event.batch_id == batch_id:
        return event
    return None
