"""Move the traffic of a SageMaker endpoint between its variants, or back to what served before.

The weights need not add up to 1: a variant's share is its weight divided by the sum of all. A
variant that is not named keeps its weight. --rollback serves the configuration again that served
before this one; a second one undoes the first. The trainer deploys its next model all the same: to
keep an older one, roll back the pipeline (`python -m ops rollback N`).
"""

import argparse
from collections.abc import Sequence

from cloud import endpoints, requests
from cloud import session as shared
from cloud.aws import AwsError
from cloud.endpoints import IN_SERVICE, Endpoint
from cloud.session import Session
from utils.errors import UserError
from utils.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME VARIANT=WEIGHT",
        help="the endpoint ([sagemaker] endpoint), and weights: champion=0.9 challenger=0.1",
    )
    parser.add_argument(
        "--rollback", action="store_true", help="serve again what served before this"
    )
    shared.add_arguments(parser)


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Move the traffic.

    Raises:
        UserError: It is not moved.
    """
    name, weights = parse_words(arguments.words)
    if bool(weights) == arguments.rollback:
        raise UserError("give either weights, such as champion=0.9 challenger=0.1, or --rollback")
    session = shared.begin(arguments, settings, name)
    if arguments.rollback:
        roll_back(session)
    else:
        move(session, weights)


def parse_words(words: Sequence[str]) -> tuple[str | None, dict[str, float]]:
    """The endpoint's name, if there is one, and the weights.

    Raises:
        UserError: A word is neither.

    >>> parse_words(["adult", "champion=0.9", "challenger=0.1"])
    ('adult', {'champion': 0.9, 'challenger': 0.1})
    """
    name, weights = None, dict[str, float]()
    for place, word in enumerate(words):
        variant, equals, text = word.partition("=")
        if not equals and place == 0:
            try:
                name = shared.endpoint_name(word)
            except argparse.ArgumentTypeError as error:
                raise UserError(f"{word!r} is no endpoint: it {error}") from None
        elif variant in weights or not equals:
            raise UserError(f"{word!r} is no weight of one more variant, such as champion=0.9")
        else:
            weights[variant] = _weight(word, text)
    if weights and not sum(weights.values()):
        raise UserError("one of the weights must be above 0")
    return name, weights


def _weight(word: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UserError(f"{word!r}: a weight is a number of 0 or more")
    return number


def move(session: Session, weights: dict[str, float]) -> None:
    """Give variants other weights, and wait until the traffic follows.

    Raises:
        UserError: There is no such variant, or the endpoint does not follow.
    """
    name = session.endpoint
    found, _ = _in_service(session)
    unknown = sorted(set(weights) - set(found.weights))
    if unknown:
        there = ", ".join(sorted(found.weights))
        raise UserError(f"endpoint {name} has no variant {unknown[0]}; it has {there}")
    if endpoints.has_weights(found, weights):
        session.report(f"endpoint {name} has these weights already: {_in_words(found.weights)}")
        return
    endpoints.set_weights(session.aws, name, weights)
    session.waiting.until_serves(name, found.endpoint_config_name)
    if session.aws.dry_run:
        return
    found, _ = _in_service(session)
    if not endpoints.has_weights(found, weights):
        raise UserError(
            f"endpoint {name} was rolled back by SageMaker to {_in_words(found.weights)}: "
            f"{found.trouble}"
        )
    session.done(f"endpoint {name} has the weights {_in_words(found.weights)}")


def roll_back(session: Session) -> None:
    """Serve the configuration again that served before this one.

    Raises:
        UserError: There was none, it is gone, or the endpoint does not follow.
    """
    aws, name = session.aws, session.endpoint
    found, tags = _in_service(session)
    previous = endpoints.previous_of(found, tags)
    if previous is None:
        raise UserError(f"endpoint {name} has served nothing else before; nothing is changed")
    try:
        config = aws.call("describe_endpoint_config", EndpointConfigName=previous)
    except AwsError as error:
        if error.is_absent:
            raise UserError(f"what served before, {previous}, was deleted meanwhile") from None
        raise
    models = endpoints.tags_of(aws, str(config["EndpointConfigArn"])).get(requests.MODELS, "")
    endpoints.change(aws, found, tags, previous)
    session.waiting.until_serves(name, previous)
    session.done(f"endpoint {name} serves {previous} again ({models or 'models unknown'})")


def _in_service(session: Session) -> tuple[Endpoint, dict[str, str]]:
    """The pipeline's own endpoint and its tags, once nothing changes it.

    Raises:
        UserError: There is none, it is another's, or it does not serve.
    """
    name = session.endpoint
    found = session.waiting.until_settled(name)
    if found is None:
        raise UserError(f"there is no endpoint {name}")
    tags = endpoints.own_tags(session.aws, session.settings, found)
    if found.endpoint_status != IN_SERVICE and not session.aws.dry_run:
        raise UserError(f"endpoint {name} is {found.endpoint_status}: {found.trouble}")
    return found, tags


def _in_words(weights: dict[str, float]) -> str:
    return ", ".join(f"{name}={weight:.6g}" for name, weight in sorted(weights.items()))
