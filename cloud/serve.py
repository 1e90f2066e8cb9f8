"""Serve the model of a SageMaker endpoint over HTTP.

    model/    the bundles, as `python -m cloud train` leaves them; the current one serves

The folder is under SAGEMAKER_BASE_DIR. `GET /ping` and `POST /invocations` are answered as by
`python -m serving`, at all addresses and the port SAGEMAKER_BIND_TO_PORT. Kafka is not needed: no
row goes there, whatever [serving] log says. A request may take 20 s at most, because SageMaker
kills a container 30 s after SIGTERM.
"""

import argparse

from cloud.container import ContainerSettings
from serving import startup
from utils.errors import UserError
from utils.model_store import ModelStore
from utils.settings import Settings

#: All addresses of the container: SageMaker sends its requests from outside.
HOST = "0.0.0.0"  # nosec B104
#: Seconds that a request may take: it is answered before SageMaker kills the container.
TIMEOUT = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none: everything comes from the environment."""


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Serve until a signal."""
    limits = {"log": False, "timeout": min(settings.serving.timeout, TIMEOUT)}
    served = ContainerSettings.of(settings, serving=settings.serving.model_copy(update=limits))
    if not ModelStore(served.models_dir).on_disk():
        raise UserError(
            f"no model in {served.models_dir}: it has to hold what `python -m cloud train` leaves"
        )
    startup.serve_models(served, HOST, settings.sagemaker.port)
