"""The results that the worker process returns to the trainer.

They are apart from `retrain`, so that the trainer's loop imports no training library.
"""

from dataclasses import dataclass, field

from train.drift import Alarm
from train.input_alarm import InputAlarm
from utils.metrics import Comparison, LiveLoss, Metrics


@dataclass(frozen=True)
class Result:
    """The result of a training, which the trainer announces on `retrain_topic`.

    `majority` are the metrics of predicting by the shares of the classes alone, `memory` says
    how much of the past the model learnt from.
    """

    model_id: int
    accepted: bool
    parent_id: int | None
    rows: int
    challenger: Metrics
    champion: Metrics | None
    comparison: Comparison | None
    seconds: dict[str, float] = field(default_factory=dict)
    learnt_from: int = 0
    majority: Metrics | None = None
    memory: str | None = None


@dataclass(frozen=True)
class Judgement:
    """The comparison of the serving model with its parent, on outcomes neither was trained on.

    If `demoted`, the parent serves again.
    """

    model_id: int
    parent_id: int
    rows: int
    demoted: bool
    comparison: Comparison


@dataclass(frozen=True)
class Review:
    """What newer outcomes say about the serving model, the predictions and the inputs.

    Attributes:
        alarms: The last alarm of the live loss and that of the inputs, also if an earlier
            review had them.
        judgement: The comparison with the parent; None if there was nothing to compare.
        live: The loss of the last predictions; None if it is not watched, or none is known.
    """

    alarms: tuple[Alarm | InputAlarm, ...]
    judgement: Judgement | None
    live: LiveLoss | None = None
