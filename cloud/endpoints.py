"""A SageMaker endpoint: its state, whose it is, waiting for it, and changing it."""

import time
from collections.abc import Callable, Mapping

import msgspec

from cloud import requests
from cloud.aws import Aws, AwsError, Interrupted
from utils.errors import UserError
from utils.process import Stop
from utils.settings import Settings
from utils.telemetry.live_line import LiveLine
from utils.telemetry.reporter import Reporter

IN_SERVICE, FAILED = "InService", "Failed"
#: Where AWS does not answer.
UNKNOWN = "in a state that AWS does not say"
#: The states that end by themselves.
PASSING = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting", UNKNOWN)
#: Seconds between two looks: the first, and the most that they grow to.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0
#: Seconds after which a line repeats what is waited for, where there is no live line.
REPEAT_SECONDS = 60.0
#: How many of the configurations that served before are remembered and kept.
REMEMBERED = 3
#: AWS keeps weights in single precision.
WEIGHT_TOLERANCE = 1e-6


class StillBusy(UserError):
    """The time to wait is over, and the endpoint still changes."""


class LiveVariant(msgspec.Struct, frozen=True, rename="pascal"):
    """A variant of an endpoint as it runs."""

    variant_name: str
    desired_weight: float = 0.0


class Endpoint(msgspec.Struct, frozen=True, rename="pascal"):
    """What AWS says of an endpoint."""

    endpoint_name: str
    endpoint_arn: str
    endpoint_status: str
    endpoint_config_name: str = ""
    failure_reason: str = ""
    production_variants: tuple[LiveVariant, ...] = ()

    @property
    def trouble(self) -> str:
        """Why it has failed, on one line."""
        return " ".join(self.failure_reason.split()) or "AWS gives no reason"

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each production variant."""
        return {one.variant_name: one.desired_weight for one in self.production_variants}


def describe(aws: Aws, name: str) -> Endpoint | None:
    """The endpoint; None if there is none.

    Raises:
        AwsError: AWS does not say.
    """
    try:
        return msgspec.convert(aws.call("describe_endpoint", EndpointName=name), Endpoint)
    except AwsError as error:
        if error.is_absent:
            return None
        raise


def tags_of(aws: Aws, arn: str) -> dict[str, str]:
    """The tags of a thing.

    Raises:
        AwsError: AWS does not list them.
    """
    return requests.values_of(list(aws.pages("list_tags", "Tags", ResourceArn=arn)))


def own_tags(aws: Aws, settings: Settings, endpoint: Endpoint) -> dict[str, str]:
    """An endpoint's tags, if this pipeline has made it.

    Raises:
        UserError: It has not.
    """
    found = tags_of(aws, endpoint.endpoint_arn)
    if found.get(requests.OWNER) != requests.owner_of(settings):
        raise UserError(
            f"endpoint {endpoint.endpoint_name} was not made by this pipeline: its tag "
            f"{requests.OWNER} is not {requests.owner_of(settings)}; nothing is changed"
        )
    return found


class Waiting:
    """Waits for an endpoint, and shows that it does.

    Args:
        aws: Makes the calls; in a dry run nothing is waited for.
        report: Prints lines; on a terminal, a live line below them.
        stop: Ends the waiting.
        timeout: How long to wait, in seconds.
        clock: Returns seconds; never goes back.
    """

    def __init__(
        self,
        aws: Aws,
        report: Reporter,
        stop: Stop,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._aws = aws
        self._report = report
        self._stop = stop
        self._timeout = timeout
        self._clock = clock
        self._status = ""
        self._has_answered = False
        self._started = self._noted = clock()

    def until_settled(self, name: str) -> Endpoint | None:
        """Wait until the endpoint's state does not end by itself; return it, or None without it.

        Raises:
            UserError: It has not settled in time.
            Interrupted: A signal came.
        """
        return self._until(name, lambda found: found.endpoint_status not in PASSING)

    def until_serves(self, name: str, config: str) -> None:
        """Wait until the endpoint serves a configuration.

        Raises:
            UserError: It does not, or not in time.
            Interrupted: A signal came.
        """
        found = self.until_settled(name)
        if not self._aws.dry_run:
            check_serves(found, name, config)

    def until_gone(self, name: str) -> None:
        """Wait until there is no such endpoint.

        Raises:
            UserError: It still runs.
            Interrupted: A signal came.
        """
        self._until(name, lambda found: False)

    def _until(self, name: str, is_over: Callable[[Endpoint], bool]) -> Endpoint | None:
        self._started, pause = self._clock(), FIRST_PAUSE
        with LiveLine(self._report, lambda: self._parts(name)) as line:
            while True:
                found = self._look(name)
                if found is None or is_over(found) or self._aws.dry_run:
                    return found
                self._note(name, found.endpoint_status, silent=line.is_shown)
                left = self._started + self._timeout - self._clock()
                if left <= 0:
                    raise StillBusy(
                        f"endpoint {name} is still there after {self._timeout:.0f} s, "
                        f"{found.endpoint_status}; the same command waits on"
                    )
                if self._stop.wait(min(pause, left)):
                    raise Interrupted(f"interrupted: endpoint {name} is {found.endpoint_status}")
                pause = min(2 * pause, LONGEST_PAUSE)

    def _look(self, name: str) -> Endpoint | None:
        """The endpoint; in a state that is not known if AWS answers no longer, for a while."""
        try:
            found = describe(self._aws, name)
        except AwsError as error:
            if not (error.is_transient and self._has_answered):
                raise
            return Endpoint(name, "", UNKNOWN)
        self._has_answered = True
        return found

    def _note(self, name: str, status: str, *, silent: bool) -> None:
        """Report a new state, and an old one now and then, where no live line shows it."""
        now, is_new = self._clock(), status != self._status
        self._status = status
        if not silent and (is_new or now - self._noted >= REPEAT_SECONDS):
            self._noted = now
            self._report(", ".join(self._parts(name)))

    def _parts(self, name: str) -> list[str]:
        status = self._status or "looked at"
        return [f"endpoint {name} is {status}", f"{self._clock() - self._started:.0f} s"]


def served_before(tags: Mapping[str, str]) -> list[str]:
    """The configurations that an endpoint's tags remember, the latest first."""
    return tags.get(requests.SERVED, "").split()


def remember(aws: Aws, endpoint: Endpoint, tags: Mapping[str, str]) -> None:
    """Note that the present configuration served, before another one does.

    If the change fails, the present one stands first and still serves: `previous_of` skips it.
    """
    present = endpoint.endpoint_config_name
    others = [name for name in served_before(tags) if name != present]
    served = " ".join([present, *others][:REMEMBERED])
    if served != tags.get(requests.SERVED):
        aws.call(
            "add_tags",
            ResourceArn=endpoint.endpoint_arn,
            Tags=[{"Key": requests.SERVED, "Value": served}],
        )


def previous_of(endpoint: Endpoint, tags: Mapping[str, str]) -> str | None:
    """The configuration that served before the present one; None if there was none."""
    others = (name for name in served_before(tags) if name != endpoint.endpoint_config_name)
    return next(others, None)


def change(aws: Aws, endpoint: Endpoint, tags: Mapping[str, str], config: str) -> None:
    """Begin to serve another configuration."""
    remember(aws, endpoint, tags)
    aws.call("update_endpoint", EndpointName=endpoint.endpoint_name, EndpointConfigName=config)


def check_serves(found: Endpoint | None, name: str, config: str) -> None:
    """Check that a change has come to its end.

    Raises:
        UserError: The endpoint has failed, or is back at what served before.
    """
    if found is None:
        raise UserError(f"endpoint {name} was deleted meanwhile")
    if found.endpoint_status != IN_SERVICE:
        raise UserError(f"endpoint {name} is {found.endpoint_status}: {found.trouble}")
    if found.endpoint_config_name != config:
        raise UserError(
            f"endpoint {name} was rolled back by SageMaker to {found.endpoint_config_name}, which "
            f"serves: {found.trouble}"
        )


def has_weights(endpoint: Endpoint, wanted: Mapping[str, float]) -> bool:
    """Whether the variants have these weights."""
    weights = endpoint.weights
    return all(
        abs(weights.get(name, -1.0) - value) <= WEIGHT_TOLERANCE for name, value in wanted.items()
    )


def set_weights(aws: Aws, name: str, weights: Mapping[str, float]) -> None:
    """Begin to move the traffic."""
    aws.call(
        "update_endpoint_weights_and_capacities",
        EndpointName=name,
        DesiredWeightsAndCapacities=[
            {"VariantName": variant, "DesiredWeight": weight} for variant, weight in weights.items()
        ],
    )
