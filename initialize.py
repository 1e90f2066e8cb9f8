"""Prepares everything once: folders, data set, first model and topics.

    python initialize.py [--hyper hyperopt|hyperparameterhunter|optuna] [--evals 10] [--force]
                         [--mlflow]

Safe to run twice: existing files, models and topics are kept. --force trains a new first
model with the next free number; the collected messages are kept as well.
"""

import argparse
import sys
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from train import optimisers, tracking
from train.retrain import train
from train.tracking import Tracking
from utils import download, kafka_io, messages, process
from utils.errors import UserError
from utils.messages import TrainingCompleted
from utils.model_store import BundleError, ModelStore
from utils.process import Report
from utils.settings import Settings

#: Seconds that MLflow may take to create its database and log the model.
TRACKING_TIMEOUT = 60.0


def create_folders(settings: Settings) -> None:
    """Create data/, models/, messages/ and searches/."""
    folders = (settings.data_dir, settings.models_dir, settings.messages_dir, settings.searches_dir)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {folder}: {error.strerror}") from None


def download_data(settings: Settings, report: Report) -> None:
    """Download the files that pipeline.toml has a source for; check that the data is there."""
    for data_file in settings.data.files:
        download.fetch(data_file, settings.data_dir, report)
    train_file = settings.data_dir / settings.data.train
    if not train_file.exists():
        raise UserError(f"{train_file} is missing, and pipeline.toml names no source for it")


def create_model(settings: Settings, arguments: argparse.Namespace, report: Report) -> None:
    """Search, fit and publish the first bundle, unless the current one loads."""
    store = ModelStore(settings.models_dir)
    for line in store.reconcile():
        report(line)
    try:
        if not arguments.force:
            bundle = store.load_current()
            report(f"model {bundle.model_id} exists and serves; --force trains a new one")
            return
    except BundleError as error:
        if store.on_disk():
            report(str(error))
    with _progress() as progress:
        task = progress.add_task("hyperparameters", total=arguments.evals, loss="")

        def show(done: int, total: int, best: float) -> None:
            progress.update(task, completed=done, total=total, loss=f"best log loss {best:.4f}")

        result = train(
            settings,
            snapshot=None,
            hyper=arguments.hyper,
            evals=arguments.evals,
            first=True,
            progress=show,
        )
    if result.learnt_from:
        report(f"the search learnt from {result.learnt_from} earlier candidates")
    report(
        f"model {result.model_id} serves: log loss {result.challenger.log_loss:.4f}, accuracy "
        f"{result.challenger.accuracy:.4f} on {result.challenger.rows} validation rows"
    )
    if arguments.force:
        done = TrainingCompleted(model_id=result.model_id, accepted=True, batch_id=None)
        kafka_io.announce(settings, done)


def create_topics(settings: Settings, report: Report) -> None:
    """Create the missing topics, and commit a first offset for each group."""
    created = kafka_io.ensure_topics(settings.kafka, messages.GROUPS)
    report(f"topics created: {', '.join(created)}" if created else "all topics exist")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
        console=Console(stderr=True),
    )


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Run all steps; each needs the ones before."""
    report = process.reporter("initialize", "yellow")
    optimisers.get(arguments.hyper)  # fails before minutes of work if a package is missing
    settings = tracking.with_tracking(settings, arguments.mlflow)
    if not arguments.wait:
        kafka_io.check_broker(settings.kafka)  # the same for a missing broker
    create_folders(settings)
    download_data(settings, report)
    with Tracking(settings, timeout=TRACKING_TIMEOUT, niceness=0):
        create_model(settings, arguments, report)
        kafka_io.wait_for_broker(settings.kafka, arguments.wait)
        create_topics(settings, report)
    report("done; now start predictor.py and trainer.py, then sample_app.py")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = process.parser(__doc__)
    optimisers.add_arguments(parser)
    tracking.add_argument(parser)
    parser.add_argument(
        "--wait",
        type=process.seconds,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for a broker that is about to start (0)",
    )
    parser.add_argument("--force", action="store_true", help="train a new first model")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(process.run(partial(main, arguments())))
