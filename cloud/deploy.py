"""Deploy a model to a SageMaker endpoint.

It uploads the bundle to S3, registers its version, and creates the endpoint or moves it to the
model; then it waits until the endpoint serves. What is there already is not made again. If a step
fails, what this run has made is deleted again, and an endpoint that served goes on serving what it
served. A deployment that was interrupted is finished by the next one.

Without MODEL_ID it deploys the model that serves in this home. A challenger takes its share of the
requests, a shadow gets copies of all of them and its answers are dropped; SageMaker has one or the
other, not both. What serves there now is replaced, its challenger and its shadow too.
"""

import argparse
from collections.abc import Collection, Sequence

from cloud import endpoints, registry, requests, tidy
from cloud import session as shared
from cloud.aws import AwsError, Interrupted
from cloud.endpoints import FAILED, IN_SERVICE, Endpoint, StillBusy
from cloud.pack import pack
from cloud.requests import CHALLENGER, CHAMPION, SHADOW, Parameters, Variant
from cloud.session import Session
from cloud.undo import Made
from utils import process
from utils.errors import UserError
from utils.model_store import ModelStore, serving_id
from utils.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    model_id = process.at_least(1)
    parser.add_argument(
        "model_id", nargs="?", type=model_id, metavar="MODEL_ID", help="the model's number"
    )
    parser.add_argument(
        "--endpoint", type=shared.endpoint_name, metavar="NAME", help="([sagemaker] endpoint)"
    )
    second = parser.add_mutually_exclusive_group()
    second.add_argument(
        "--challenger", type=model_id, metavar="ID", help="a model that takes part of the requests"
    )
    second.add_argument(
        "--shadow", type=model_id, metavar="ID", help="a model that gets copies of the requests"
    )
    parser.add_argument(
        "--weight",
        type=share,
        metavar="SHARE",
        help="the challenger's share of the requests, between 0 and 1 (0.1)",
    )
    parser.add_argument(
        "--force", action="store_true", help="deploy the model even if the gate refused it"
    )
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until the endpoint serves (the default)",
    )
    parser.add_argument(
        "--niceness",
        type=int,
        choices=range(20),
        default=0,
        metavar="N",
        help="lower this process's priority, up to 19 (trainer.py does)",
    )
    shared.add_arguments(parser)


def share(text: str) -> float:
    """An argparse type: a share between 0 and 1, both excluded."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text}")
    return number


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Deploy.

    Raises:
        UserError: It is not deployed; the text says what became of what was made.
    """
    if arguments.niceness:
        process.be_nice(arguments.niceness)
    if arguments.weight is not None and arguments.challenger is None:
        raise UserError("--weight is the share of a challenger: give --challenger as well")
    session = shared.begin(arguments, settings, arguments.endpoint)
    requests.check_complete(settings.sagemaker)
    variants = choose(arguments, ModelStore(settings.models_dir))
    made = Made()
    try:
        deploy(session, variants, made, wait=arguments.wait)
    except (Interrupted, StillBusy):
        raise  # nothing has failed: the next deployment goes on from here
    except UserError as error:
        if arguments.dry_run:  # which has made nothing
            raise
        raise UserError(f"{error}; {made.delete_again()}") from None


def choose(arguments: argparse.Namespace, store: ModelStore) -> list[Variant]:
    """The variants of the command line, the champion first.

    Raises:
        UserError: A model is not there, or the gate refused the champion.
    """
    champion = pack(store, arguments.model_id or store.current_id())
    if not (champion.manifest.accepted or arguments.force or _serves(store, champion.model_id)):
        raise UserError(
            f"model {champion.model_id} was refused by the gate: deploy it as --challenger or "
            "--shadow, or with --force"
        )
    weight = arguments.weight or 0.1
    if arguments.challenger is not None:
        second = Variant(CHALLENGER, pack(store, arguments.challenger), weight)
        return [Variant(CHAMPION, champion, round(1 - weight, 6)), second]
    if arguments.shadow is not None:
        return [Variant(CHAMPION, champion), Variant(SHADOW, pack(store, arguments.shadow))]
    return [Variant(CHAMPION, champion)]


def _serves(store: ModelStore, model_id: int) -> bool:
    """Whether it serves in this home: somebody may have rolled back to a refused model."""
    return serving_id(store.history()) == model_id


def deploy(session: Session, variants: Sequence[Variant], made: Made, *, wait: bool) -> None:
    """Make the endpoint serve these variants.

    1. Wait until an earlier change has ended; an endpoint that has failed is deleted.
    2. Upload and register each bundle, and make its model.
    3. Make the configuration.
    4. Create the endpoint, or change its configuration.
    5. Wait until it serves.
    6. Delete older configurations and their models.

    Args:
        session: The command.
        variants: The champion, and a challenger or a shadow.
        made: Learns what was made.
        wait: Whether to do 5 and 6.

    Raises:
        UserError: A step has failed.
    """
    name = session.endpoint
    request = requests.config_request(session.settings, name, variants)
    config = str(request["EndpointConfigName"])
    found, tags = _look(session)  # 1
    if found is not None and found.endpoint_config_name == config:
        _keep_weights(session, found, variants, wait=wait)
        return
    _ensure_models(session, variants, made)  # 2
    _ensure_config(session, request, made)  # 3
    if found is None:  # 4
        _create(session, config, made)
    else:
        endpoints.change(session.aws, found, tags, config)
    if not wait:
        session.done(f"endpoint {name} changes to {in_words(variants)}; not waited for")
        return
    session.waiting.until_serves(name, config)  # 5
    made.keep()
    former = [found.endpoint_config_name] if found else []
    _tidy_up(session, {config, *former, *endpoints.served_before(tags)})  # 6
    session.done(f"endpoint {name} serves {in_words(variants)}", models=_ids(variants))


def in_words(variants: Sequence[Variant]) -> str:
    """What an endpoint serves, for a reader."""
    text = ""
    for one in variants:
        if one.name == CHAMPION:
            text += f"model {one.packed.model_id}"
        elif one.name == CHALLENGER:
            text += f", and challenger {one.packed.model_id} {100 * one.weight:g} %"
        else:
            text += f", and shadow {one.packed.model_id} gets copies"
    return text


def _ids(variants: Sequence[Variant]) -> dict[str, int]:
    return {one.name: one.packed.model_id for one in variants}


def _look(session: Session) -> tuple[Endpoint | None, dict[str, str]]:
    """The endpoint and its tags once nothing changes it; None if it has to be created."""
    aws, name = session.aws, session.endpoint
    found = session.waiting.until_settled(name)
    if found is None:
        return None, {}
    tags = endpoints.own_tags(aws, session.settings, found)
    if found.endpoint_status == FAILED:  # AWS allows nothing else than to delete it
        session.done(f"endpoint {name} had failed and is created again: {found.trouble}")
        aws.call("delete_endpoint", EndpointName=name)
        session.waiting.until_gone(name)
        return None, {}
    if found.endpoint_status != IN_SERVICE and not aws.dry_run:
        raise UserError(
            f"endpoint {name} is {found.endpoint_status}: {found.trouble}; delete it with "
            f"`python -m cloud delete {name}`, or repair it in AWS"
        )
    return found, tags


def _keep_weights(
    session: Session, found: Endpoint, variants: Sequence[Variant], *, wait: bool
) -> None:
    """Say that the endpoint serves the variants already; the traffic may have been moved since."""
    wanted = {one.name: one.weight for one in variants if one.name != SHADOW}
    if not endpoints.has_weights(found, wanted):
        endpoints.set_weights(session.aws, session.endpoint, wanted)
        if wait:
            session.waiting.until_serves(session.endpoint, found.endpoint_config_name)
    session.report(
        f"endpoint {session.endpoint} serves {in_words(variants)} already", models=_ids(variants)
    )


def _ensure_models(session: Session, variants: Sequence[Variant], made: Made) -> None:
    """Upload and register each bundle, and make its model."""
    settings = session.settings
    registry.ensure_group(session.aws, settings, made, session.done)
    for variant in variants:
        registry.keep(session.aws, settings, variant.packed, made, session.done)
        request = requests.model_request(settings, session.endpoint, variant.packed)
        _ensure_model(session, request, made)


def _ensure_model(session: Session, request: Parameters, made: Made) -> None:
    aws, name = session.aws, {"ModelName": request["ModelName"]}
    if not _exists(session, "describe_model", name):
        aws.call("create_model", **request)
        made.add(f"model {name['ModelName']}", lambda: aws.call("delete_model", **name))


def _ensure_config(session: Session, request: Parameters, made: Made) -> None:
    config = str(request["EndpointConfigName"])
    if not _exists(session, "describe_endpoint_config", {"EndpointConfigName": config}):
        session.aws.call("create_endpoint_config", **request)
        made.add(f"endpoint configuration {config}", lambda: _delete_config(session, config))


def _exists(session: Session, operation: str, name: Parameters) -> bool:
    try:
        session.aws.call(operation, **name)
    except AwsError as error:
        if error.is_absent:
            return False
        raise
    return True


def _delete_config(session: Session, config: str) -> None:
    """Delete a configuration that no endpoint uses.

    Raises:
        UserError: The endpoint may use it: AWS says not to delete it then.
    """
    found = endpoints.describe(session.aws, session.endpoint)
    if found is not None and (
        found.endpoint_status != IN_SERVICE or found.endpoint_config_name == config
    ):
        raise UserError(f"endpoint {session.endpoint} ({found.endpoint_status}), which may use it")
    session.aws.call("delete_endpoint_config", EndpointConfigName=config)


def _tidy_up(session: Session, keep: Collection[str]) -> None:
    """Delete the configurations but these; the endpoint serves, so a failure is only reported."""
    try:
        tidy.delete_configs(session.aws, session.settings, session.endpoint, keep, session.done)
    except AwsError as error:
        session.report(f"older configurations and models are left: {error}", level="warning")


def _create(session: Session, config: str, made: Made) -> None:
    name, settings = session.endpoint, session.settings
    session.aws.call(
        "create_endpoint",
        EndpointName=name,
        EndpointConfigName=config,
        Tags=requests.tags(settings),
    )
    made.add(f"endpoint {name}", lambda: _delete_endpoint(session))


def _delete_endpoint(session: Session) -> None:
    session.aws.call("delete_endpoint", EndpointName=session.endpoint)
    session.waiting.until_gone(session.endpoint)
