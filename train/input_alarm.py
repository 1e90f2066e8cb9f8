"""The alarm that inputs or predictions have moved.

It is apart from `input_drift`, so that the trainer's loop imports no training library.
"""

from collections.abc import Sequence

import msgspec

#: How many columns a line names.
NAMED = 5


class Moved(msgspec.Struct, frozen=True):
    """A column, or the probability of a class, that has moved.

    Attributes:
        name: The column, or "prediction: " and the class.
        psi: The population stability index.
    """

    name: str
    psi: float

    def __str__(self) -> str:
        return f"{self.name} (PSI {self.psi:.2f})"


class InputAlarm(msgspec.Struct, frozen=True, kw_only=True):
    """A strong drift of the inputs or the predictions that asks for a retraining.

    Attributes:
        batch_id: The id of its retrain request.
        at: The number of known outcomes when it was raised.
        model_id: The newest training then, whose rows the recent ones were compared with.
        moved: What has moved strongly, the largest PSI first.
        recent: The number of recent rows.
        learnt: The number of rows they were compared with.
    """

    batch_id: str
    at: int
    model_id: int
    moved: tuple[Moved, ...]
    recent: int
    learnt: int

    def __str__(self) -> str:
        return (
            f"inputs moved: {in_words(self.moved)}, the last {self.recent} rows against the "
            f"{self.learnt} learnt last"
        )


def in_words(moved: Sequence[Moved]) -> str:
    """What has moved, by how much.

    >>> in_words([Moved("age", 1.234), Moved("prediction: yes", 0.3)])
    'age (PSI 1.23), prediction: yes (PSI 0.30)'
    """
    left = len(moved) - NAMED
    return ", ".join(map(str, moved[:NAMED])) + (f" and {left} more" if left > 0 else "")
