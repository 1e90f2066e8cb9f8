"""Waiting for an endpoint, and what it remembers."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from cloud import endpoints
from cloud.aws import Answer, Aws
from cloud.endpoints import Endpoint, StillBusy, Waiting
from utils.process import Stop
from utils.telemetry.reporter import Reporter


class ScriptedAws(Aws):
    """Answers each look at the endpoint with the next state."""

    def __init__(self, states: Iterator[str]) -> None:
        self._states = states
        self.dry_run = False

    def call(self, operation: str, **parameters: object) -> Answer:
        return {
            "EndpointName": "adult",
            "EndpointArn": "arn:aws:sagemaker:eu-central-1:123456789012:endpoint/adult",
            "EndpointStatus": next(self._states),
            "EndpointConfigName": "adult-1",
        }


class ScriptedStop(Stop):
    """Waits by moving a clock."""

    now = 0.0

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


def waiting(states: list[str]) -> tuple[Waiting, io.StringIO]:
    """A waiting of 1,000 seconds by its own clock, and what it prints."""
    stop, printed, report = ScriptedStop(), io.StringIO(), Reporter("cloud", "cyan", prefix=False)
    report.console = Console(file=printed, width=60)
    last = [states[-1]] * 10**4
    aws = ScriptedAws(iter([*states, *last]))
    return Waiting(aws, report, stop, 1000.0, lambda: stop.now), printed


def test_state_is_repeated_every_minute_where_there_is_no_terminal() -> None:
    wait, printed = waiting(["Creating"] * 30 + ["InService"])
    found = wait.until_settled("adult")
    assert found is not None and found.endpoint_status == "InService"
    lines = printed.getvalue().splitlines()
    assert lines[0] == "endpoint adult is Creating, 0 s"
    assert [line for line in lines if not line.startswith("endpoint adult is Creating, ")] == []
    # One second, two, four, eight, and then ten each time.
    assert len(lines) == 5


def test_time_is_up_exactly_then() -> None:
    wait, _ = waiting(["Updating"])
    with pytest.raises(StillBusy, match=r"still there after 1000 s, Updating"):
        wait.until_settled("adult")
    assert wait._clock() == 1000.0


def test_endpoint_in_service_is_not_gone() -> None:
    wait, _ = waiting(["Deleting", "InService"])
    with pytest.raises(StillBusy, match=r"still there after 1000 s, InService"):
        wait.until_gone("adult")


@pytest.mark.parametrize(
    ("served", "present", "previous"),
    [
        ("", "a", None),
        ("a", "a", None),  # the first change has failed
        ("a", "b", "a"),
        ("b a", "b", "a"),  # the change from b has failed
        ("b a", "c", "b"),
        ("b a", "a", "b"),  # after a rollback
    ],
)
def test_previous_configuration_is_the_latest_other_one(
    served: str, present: str, previous: str | None
) -> None:
    endpoint = Endpoint("adult", "arn", "InService", present)
    assert endpoints.previous_of(endpoint, {"pipeline:served": served}) == previous


def test_weights_are_compared_in_single_precision() -> None:
    endpoint = Endpoint(
        "adult",
        "arn",
        "InService",
        production_variants=(endpoints.LiveVariant("champion", 0.8999999761581421),),
    )
    assert endpoints.has_weights(endpoint, {"champion": 0.9})
    assert not endpoints.has_weights(endpoint, {"champion": 0.91})
    assert not endpoints.has_weights(endpoint, {"challenger": 0.9})
