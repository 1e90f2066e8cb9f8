"""The topics, the consumer groups, and the records of each topic with their decoder.

Values are JSON in UTF-8. Records are msgspec structs: decoding checks types in C, and the
error for an invalid record says where and why.
"""

from typing import Annotated, Any

import msgspec

APP_MESSAGES = "app_messages"
PREDICTIONS = "predictions"
OUTCOMES = "outcomes"
RETRAIN_TOPIC = "retrain_topic"
DEAD_LETTERS = "dead_letters"

#: Topics that share one number of partitions, so that a request, its prediction and its
#: outcome have the same partition number.
CO_PARTITIONED = (APP_MESSAGES, PREDICTIONS, OUTCOMES)

#: The consumer groups and the topics that they read.
PREDICTOR_GROUP = "predictor"
TRAINER_GROUP = "trainer"
GROUPS = {PREDICTOR_GROUP: (APP_MESSAGES, OUTCOMES), TRAINER_GROUP: (RETRAIN_TOPIC,)}

#: The most characters of a request_id. A prediction contains it twice, with at most eight
#: bytes per character, and must fit into a record (`kafka_io.MAX_MESSAGE_BYTES`).
MAX_REQUEST_ID = 2**20

RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REQUEST_ID)]

#: A class label in a message: the class name as text, or as a number or truth value.
Label = str | int | float | bool


class BadRecord(Exception):
    """A record that cannot be used; the text is the reason, on one line."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """A record of `outcomes`."""

    request_id: RequestId
    outcome: Label


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """A record of `predictions`."""

    request_id: str
    prediction: int
    label: str
    probability: float | list[float]
    model_id: int


class RetrainRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A predictor's record on `retrain_topic`; both offsets are inclusive."""

    retrain: bool = True
    batch_id: str
    topic: str
    partition: int
    first_offset: int
    last_offset: int
    count: int


class Rollback(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record on `retrain_topic`: an older model serves again."""

    rollback: bool = True
    model_id: int
    from_model_id: int | None
    reason: str


class Resent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A record on `retrain_topic`: records of `dead_letters` were sent again."""

    resent: bool = True
    offsets: list[int]


class Decoder:
    """Decodes the values of one topic into a struct."""

    def __init__(self, record_type: Any) -> None:
        self._decode = msgspec.json.Decoder(record_type).decode

    def __call__(self, value: bytes | None) -> Any:
        """Decode one record's value.

        Raises:
            BadRecord: The value is a tombstone, not JSON, not UTF-8, nested too deeply or
                not of the record type.
        """
        if value is None:
            raise BadRecord("no value (a tombstone)")
        try:
            return self._decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRecord(str(error).replace("\n", " ") or type(error).__name__) from None


def label_text(label: Label) -> str:
    """Convert a class label to the class name as the data set writes it.

    >>> label_text(">50K"), label_text(1), label_text(1.0), label_text(True)
    ('>50K', '1', '1', 'true')
    """
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)
