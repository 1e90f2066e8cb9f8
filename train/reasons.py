"""The retrainings that the trainer requests itself, and why."""

from collections.abc import Sequence
from datetime import datetime

from train.drift import Alarm
from train.input_alarm import InputAlarm
from utils.messages import RetrainRequest
from utils.model_store.manifest import HistoryLine, published


def age_request(
    history: Sequence[HistoryLine], max_age: float, now: float
) -> RetrainRequest | None:
    """The request that is due when the newest training is too old; else None.

    A training counts whether its model serves or was refused. The id names the training, so
    that one that is too old asks for its successor once.

    Args:
        history: The lines of the model store's history.
        max_age: Seconds; 0 is never.
        now: Seconds since 1970.
    """
    trainings = published(history)
    if not (max_age and trainings and trainings[-1].created):
        return None
    if now - datetime.fromisoformat(trainings[-1].created).timestamp() < max_age:
        return None
    return RetrainRequest(reason="age", batch_id=f"age-{trainings[-1].model_id}")


def drift_request(
    alarm: Alarm | InputAlarm, history: Sequence[HistoryLine]
) -> RetrainRequest | None:
    """The request of an alarm; None if a training has answered it.

    Any later training answers an alarm of the inputs, since it has learnt the rows that moved.
    """
    trainings = published(history)
    if any(alarm.batch_id in training.batch_ids for training in trainings):
        return None
    if isinstance(alarm, InputAlarm) and trainings[-1].model_id > alarm.model_id:
        return None
    return RetrainRequest(reason="drift", batch_id=alarm.batch_id)
