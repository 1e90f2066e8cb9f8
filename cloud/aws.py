"""Calls of AWS by boto3, in one place: each can be shown, held back and interrupted here.

Region, credentials and addresses are those that boto3 finds: AWS_DEFAULT_REGION, AWS_PROFILE,
AWS_ENDPOINT_URL and the others.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from utils.errors import UserError, one_line
from utils.process import Report, Stop

#: What AWS answers, by the names of its documentation: any JSON.
Answer = Mapping[str, Any]

#: Beginnings of the operations that change nothing; a dry run makes them.
READING = ("describe_", "list_", "head_", "get_")
#: Seconds to wait for a connection and for an answer; each call is tried three times.
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60
#: Our own code where there is no answer.
NO_ANSWER = "no answer"
#: Codes of errors that pass; boto3 has repeated the call already.
_TRANSIENT = (NO_ANSWER, "ThrottlingException", "InternalFailure", "ServiceUnavailable")
#: What AWS says of a thing that is not there; SageMaker's error code alone does not say it.
_ABSENT = ("could not find", "does not exist", "not found", "no longer exists")


class AwsError(UserError):
    """A call has failed; the text is one line for the user.

    Attributes:
        code: AWS's code of the error, such as ValidationException; empty if the call was not sent.
    """

    def __init__(self, text: str, code: str = "") -> None:
        super().__init__(text)
        self.code = code

    @property
    def is_absent(self) -> bool:
        """Whether there is no such thing, or no longer."""
        if self.code in ("404", "NoSuchKey", "ResourceNotFound"):
            return True
        text = str(self).lower()
        return self.code == "ValidationException" and any(words in text for words in _ABSENT)

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed in a while."""
        return self.code in _TRANSIENT


class Interrupted(UserError):
    """A signal has ended the command between two calls."""


class Aws:
    """Makes the calls.

    Args:
        report: Shows the calls of a dry run.
        stop: Once set, no further call is made.
        dry_run: Whether to show every call, and to make none that changes anything.

    Raises:
        UserError: boto3 is not installed.
    """

    def __init__(self, report: Report, stop: Stop, *, dry_run: bool = False) -> None:
        try:
            import boto3
        except ImportError:
            raise UserError("this needs boto3: pip install -r requirements-sagemaker.txt") from None
        self._session = boto3.session.Session()
        self._report = report
        self._stop = stop
        self._clients: dict[str, Any] = {}
        self.dry_run = dry_run

    def call(self, operation: str, **parameters: object) -> Answer:
        """Make a call of SageMaker.

        Args:
            operation: The name of boto3's method.
            parameters: The method's arguments.

        Returns:
            The answer; nothing if a dry run holds the call back.

        Raises:
            AwsError: AWS refuses it or does not answer.
            Interrupted: A signal came before it.
        """
        return self._call("sagemaker", operation, parameters)

    def s3(self, operation: str, **parameters: object) -> Answer:
        """Make a call of S3; everything else is as for `call`."""
        return self._call("s3", operation, parameters)

    def _call(self, service: str, operation: str, parameters: Mapping[str, object]) -> Answer:
        if self._stop():
            raise Interrupted("interrupted; the same command goes on from what is there")
        with _one_line_errors(operation):
            answer: Answer = getattr(self._client(service), operation)(**parameters)
        return answer

    def pages(self, operation: str, key: str, **parameters: object) -> Iterator[Answer]:
        """The items of a list that SageMaker returns in pages.

        Args:
            operation: The name of boto3's method.
            key: Where a page has its items.
            parameters: The method's arguments.

        Raises:
            AwsError, Interrupted: As for `call`.
        """
        page = self.call(operation, **parameters)
        yield from page[key]
        while token := page.get("NextToken"):
            page = self.call(operation, **parameters, NextToken=token)
            yield from page[key]

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            from botocore.config import Config

            limits = Config(
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": 3},
            )
            client = self._session.client(service, config=limits)
            if self.dry_run:
                client.meta.events.register("provide-client-params.*.*", self._show)
                client.meta.events.register("before-call.*.*", _hold_back)
            self._clients[service] = client
        return self._clients[service]

    def _show(self, params: Mapping[str, object], model: Any, **_: object) -> None:
        """Show a call as Python; botocore calls this before it checks the parameters."""
        service = model.service_model.service_name
        written = ", ".join(f"{name}={_written(value)}" for name, value in params.items())
        self._report(f"{service}.{_method(model.name)}({written})")


def _hold_back(model: Any, **_: object) -> tuple[SimpleNamespace, Answer] | None:
    """Answer a call that would change something instead of AWS; botocore has checked it."""
    if _method(model.name).startswith(READING):
        return None
    return SimpleNamespace(status_code=200), {}


def _method(operation: str) -> str:
    from botocore import xform_name

    return str(xform_name(operation))


def _written(value: object) -> str:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else repr(value)


@contextmanager
def _one_line_errors(operation: str) -> Iterator[None]:
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoRegionError,
    )

    try:
        yield
    except ClientError as error:
        said = error.response.get("Error", {})
        code, text = str(said.get("Code", "")), " ".join(str(said.get("Message", "")).split())
        raise AwsError(f"{operation}: {code}: {text}", code) from None
    except NoRegionError:
        raise AwsError("no AWS region is known: set AWS_DEFAULT_REGION") from None
    except (ConnectionError, HTTPClientError) as error:
        raise AwsError(f"{operation}: {one_line(error)}", NO_ANSWER) from None
    except BotoCoreError as error:
        raise AwsError(f"{operation}: {one_line(error)}") from None
