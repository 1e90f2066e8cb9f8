"""What comes of a training or a judgement, as the process that did it hands it to the trainer.

Apart from `retrain`, so that whoever only receives it imports nothing to train with.
"""

from dataclasses import dataclass, field

from utils.figures import Comparison, Metrics


@dataclass(frozen=True)
class Result:
    """What a training came to, as `retrain_topic` and the manifest tell it."""

    model_id: int
    accepted: bool
    parent_id: int | None
    rows: int
    challenger: Metrics
    champion: Metrics | None
    comparison: Comparison | None
    seconds: dict[str, float] = field(default_factory=dict)
    learnt_from: int = 0


@dataclass(frozen=True)
class Judgement:
    """The serving model against its parent on outcomes that neither was trained on."""

    model_id: int
    parent_id: int
    rows: int
    demoted: bool
    comparison: Comparison
