"""The results that the worker process returns to the trainer.

They are apart from `retrain`, so that the trainer's loop imports no training library.
"""

from dataclasses import dataclass, field

from train.drift import Alarm
from train.input_alarm import InputAlarm
from utils.metrics import WITHIN_NOISE, Comparison, LiveLoss, Metrics


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

    def in_words(self) -> str:
        """Which model serves now, and why, for a reader.

        >>> from dataclasses import replace
        >>> made = Result(7, True, 6, 900, Metrics(), Metrics(), Comparison())
        >>> made.in_words()
        'model 7 serves now; no outcome of a prediction is known yet'
        >>> last = {"challenger": Metrics(log_loss=0.17), "champion": Metrics(log_loss=0.15)}
        >>> replace(made, **last, comparison=Comparison(0.02, 0.02, rows=58)).in_words()
        'model 7 serves now: log loss 0.1700 on the last 58 outcomes, what was served 0.1500; \
the difference of 0.0200 +- 0.0200 is within noise'
        """
        model, before = f"model {self.model_id}", f"model {self.parent_id}"
        if self.accepted:
            verdict = f"{model} serves now"
        else:
            verdict = f"{model} is REFUSED, {before} is better and serves on"
        if (comparison := self.comparison) is None:
            if self.accepted:
                return verdict  # a first model
            return f"{model} is REFUSED, {before} has other columns or classes and serves on"
        ours, theirs = self.challenger.log_loss, self.champion and self.champion.log_loss
        if ours is None or theirs is None:
            return f"{verdict}; no outcome of a prediction is known yet"
        words = comparison.in_words()
        if comparison.rows > 1 and abs(comparison.mean_difference) < 5e-5:  # as it is shown
            words = "no difference"
        elif words == WITHIN_NOISE:
            difference = f"{abs(comparison.mean_difference):.4f} +- {comparison.standard_error:.4f}"
            words = f"the difference of {difference} is {WITHIN_NOISE}"
        elif comparison.rows < 2:
            words = "too few to compare on"
        elif self.accepted and comparison.mean_difference > 0:
            words += ", too little evidence to refuse it"
        return (
            f"{verdict}: log loss {ours:.4f} on the last {comparison.rows} outcomes, "
            f"what was served {theirs:.4f}; {words}"
        )


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
