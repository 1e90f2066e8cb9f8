"""Delete a SageMaker endpoint, its configurations and its models, and wait until it is gone.

Only what this pipeline has made is deleted: it is recognised by its tags. The registered versions
and the packed models in S3 stay, unless --all is given.
"""

import argparse

from cloud import endpoints, tidy
from cloud import session as shared
from cloud.session import Session
from utils.errors import UserError
from utils.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "name",
        nargs="?",
        type=shared.endpoint_name,
        metavar="NAME",
        help="the endpoint ([sagemaker] endpoint)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also every version of the pipeline's group, and the packed models in S3",
    )
    shared.add_arguments(parser)


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Delete.

    Raises:
        UserError: Something is left, or the endpoint still runs.
    """
    session = shared.begin(arguments, settings, arguments.name)
    if arguments.all and not settings.sagemaker.bucket:
        raise UserError("[sagemaker] bucket is not set in pipeline.toml: where the models are")
    delete(session)
    if arguments.all:
        tidy.delete_versions(session.aws, settings, session.done)


def delete(session: Session) -> None:
    """Delete the endpoint, and then what it has needed.

    Raises:
        UserError: It is another's, or still runs; then nothing else is deleted.
    """
    aws, settings, name = session.aws, session.settings, session.endpoint
    found = endpoints.describe(aws, name)
    if found is None:
        session.report(f"there is no endpoint {name}")
    else:
        endpoints.own_tags(aws, settings, found)
        # While it changes, AWS refuses to delete it.
        found = session.waiting.until_settled(name)
        if found is not None:
            aws.call("delete_endpoint", EndpointName=name)
            session.waiting.until_gone(name)
        session.done(f"endpoint {name} is gone")
    tidy.delete_configs(aws, settings, name, (), session.done)
