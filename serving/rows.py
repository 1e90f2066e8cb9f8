"""What passes between the formats of HTTP bodies and the scoring: rows and their answers."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from utils.messages import Prediction
from utils.model_store import Bundle


class SentRow(NamedTuple):
    """One row of a request's body.

    Attributes:
        request_id: The row's request_id, the client's or a new one.
        message: The row as a message of `app_messages`, JSON; None if there is none to be made.
        fault: Why there is none.
    """

    request_id: str
    message: bytes | None
    fault: str = ""


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """The answer to a row that cannot be scored."""

    request_id: str
    error: str
    model_id: int


Answer = Prediction | Refusal


class Scorer(Protocol):
    """Scores rows; one for each way to do so."""

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves now, also for whoever needs to know columns and classes."""

    def trouble(self) -> str:
        """Why no row can be scored now; empty if rows can."""

    async def score(
        self, rows: Sequence[SentRow], headers: Sequence[tuple[str, bytes]] = ()
    ) -> list[Answer]:
        """Answer rows, each in its place.

        Args:
            rows: The rows.
            headers: Headers of the records on Kafka, if rows go there: the trace context.

        Raises:
            RequestError: They cannot be scored now.
        """
