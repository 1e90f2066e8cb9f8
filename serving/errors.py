"""Why a request cannot be answered with rows."""

from http import HTTPStatus


class RequestError(Exception):
    """A request that cannot be answered; the text says why, in one line.

    Args:
        text: Why.
        more: What the answer says besides.

    Attributes:
        status: The HTTP status of the answer.
    """

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, text: str, **more: object) -> None:
        super().__init__(text)
        self.more = more


class BadBody(RequestError):
    """Nothing of the body can be used."""


class NotFound(RequestError):
    """There is no such model, or no such version of it."""

    status = HTTPStatus.NOT_FOUND


class UnsupportedType(RequestError):
    """The body is of a type that is not read."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class NotAcceptable(RequestError):
    """The client accepts none of the types of answers."""

    status = HTTPStatus.NOT_ACCEPTABLE


class TooLarge(RequestError):
    """The body has too many bytes or rows."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class Unavailable(RequestError):
    """No row can be scored now."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


class NoAnswer(RequestError):
    """No predictor has answered in time."""

    status = HTTPStatus.GATEWAY_TIMEOUT
