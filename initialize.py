"""Prepares everything once: folders, topics, data set and first model.

    python initialize.py [--hyper hyperopt|hyperparameterhunter|optuna] [--evals 10] [--force]
                         [--mlflow] [--take-over]

Safe to run twice: existing files, models and topics are kept. --force trains a new first
model with the next free number; the collected messages are kept as well. --take-over makes
topics of another home this home's, and gives the home the name that PIPELINE_NAME says.
"""

import argparse
import sys
import time
from collections.abc import Collection
from functools import partial

from train import first_model, optimisers, tracking
from train.retrain import serving_bundle
from train.tracking import Tracking
from train.training_rows import Rows
from utils import (
    changes,
    data_set,
    download,
    kafka_io,
    messages,
    model_numbers,
    preprocess_data,
    process,
)
from utils.errors import UserError
from utils.kafka_io import Claim, partition_bounds
from utils.message_store import RawLog, StoreError
from utils.messages import TrainingCompleted
from utils.model_store import BundleError, ModelStore
from utils.settings import Settings
from utils.telemetry import exposition
from utils.telemetry.counts import InitializeCounts
from utils.telemetry.reporter import Reporter

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


def download_data(settings: Settings, report: Reporter) -> None:
    """Download the files that pipeline.toml has a source for; check that the data is there."""
    for data_file in settings.data.files:
        download.fetch(data_file, settings.data_dir, report)
    train_file = settings.data_dir / settings.data.train
    if not train_file.exists():
        raise UserError(f"{train_file} is missing, and pipeline.toml names no source for it")


def create_model(
    settings: Settings,
    arguments: argparse.Namespace,
    known: Collection[int],
    report: Reporter,
    counts: InitializeCounts,
) -> None:
    """Search, fit and publish the first bundle, unless the current one loads.

    Args:
        settings: The pipeline's settings.
        arguments: The command line.
        known: The numbers of the models that `retrain_topic` names.
        report: Prints the lines for the user.
        counts: Gets the progress of the search.
    """
    store = ModelStore(settings.models_dir)
    for line in store.reconcile():
        report(line)
    try:
        if not arguments.force:
            bundle = store.load_current()
            report(
                f"model {bundle.model_id} exists and serves; --force trains a new one",
                model_id=bundle.model_id,
            )
            if changed := changes.since_training(settings, bundle, content=True):
                report(changed, level="warning")
            elif not (settings.data_dir / preprocess_data.held_out_file(settings.data)).exists():
                split_off_test_rows(settings, report)
            return
    except BundleError as error:
        if store.on_disk():
            report(str(error), level="warning")
    base = first_model.read_data_set(settings, report)
    report_test_rows(settings, base, report)
    outcomes_from = _outcomes_from(settings, store)
    if lacking := model_numbers.keep_above_log(settings, store, known):
        report(lacking, level="warning")

    def count(done: int, total: int, best: float) -> None:
        counts.evaluations, counts.best_log_loss = done, best

    result = first_model.train_first(
        settings,
        base,
        report,
        hyper=arguments.hyper,
        evals=arguments.evals,
        outcomes_from=outcomes_from,
        progress=count,
    )
    if arguments.force:
        done = TrainingCompleted(model_id=result.model_id, accepted=True, batch_id=None)
        kafka_io.announce(settings, done)


def _outcomes_from(settings: Settings, store: ModelStore) -> dict[int, int]:
    """The offsets of `outcomes` from which on records are about pipeline.toml's target.

    With another target than before, the records that are there by now are about that one.
    """
    before = serving_bundle(store)
    if before is None:
        return {}
    if before.features.target == settings.data.target:
        return dict(before.manifest.training.outcomes_from)
    ends = partition_bounds(settings.kafka, messages.OUTCOMES)
    return {partition: end for partition, (_, end) in ends.items()}


def report_test_rows(settings: Settings, base: Rows, report: Reporter) -> None:
    """Check pipeline.toml's file of rows for testing, or split some off the training file."""
    data = settings.data
    if data.test:
        tested = data_set.read_data(settings.data_dir / data.test, data, base.types)
        report(f"{len(tested.frame):,} rows for testing in {data.test}, which sample_app.py sends")
    split_off_test_rows(settings, report)


def split_off_test_rows(settings: Settings, report: Reporter) -> None:
    """Keep rows for testing, if pipeline.toml names no test file."""
    data = settings.data
    if not data.test:
        rows = preprocess_data.split_off_test_rows(settings.data_dir, data)
        report(
            f"{rows} rows are never trained on: they are in {preprocess_data.held_out_file(data)}, "
            "which sample_app.py sends (pipeline.toml names no test file)"
        )


def create_topics(settings: Settings, take_over: bool, report: Reporter) -> Claim:
    """Create the missing topics, commit a first offset for each group, and mark them as ours."""
    claim = kafka_io.claim_topics(settings, take_over=take_over)  # before anything is created
    if claim.former:
        report(f"took the topics over from the home with id {claim.former[:8]}")
    for line in kafka_io.ensure_topics(settings.kafka, messages.GROUPS) or ["all topics exist"]:
        report(line)
    found = kafka_io.read_settings(settings.kafka, messages.TOPICS)
    now = int(time.time() * 1000)
    for line in kafka_io.weaknesses(found, oldest_timestamps(settings), now):
        report(line, level="warning")
    return kafka_io.claim_topics(settings)


def oldest_timestamps(settings: Settings) -> dict[str, int]:
    """By topic, the timestamp of the oldest record that the message store has read."""
    try:
        with RawLog.open(settings.messages_url) as copy:
            firsts = [
                (topic, copy.record(topic, partition, first))
                for topic in messages.CO_PARTITIONED
                for partition, (first, _) in copy.bounds(topic).items()
            ]
    except StoreError:  # there is none yet
        return {}
    oldest: dict[str, int] = {}
    for topic, record in firsts:
        if record is not None and record.timestamp >= messages.OLDEST_MS:
            oldest[topic] = min(record.timestamp, oldest.get(topic, record.timestamp))
    return oldest


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Run the script with the command line's choices."""
    report = Reporter("initialize", "yellow", settings.log_format)
    optimisers.get(arguments.hyper)  # fails before minutes of work if a package is missing
    settings = tracking.with_tracking(settings, arguments.mlflow)
    counts = InitializeCounts()
    with exposition.serve(settings.metrics, counts, settings.kafka.name):
        prepare(arguments, settings, counts, report)


def prepare(
    arguments: argparse.Namespace, settings: Settings, counts: InitializeCounts, report: Reporter
) -> None:
    """Run all steps; each needs the ones before."""
    counts.health.fails("initialize.py prepares, and serves nothing")
    kafka_io.wait_for_broker(settings.kafka, arguments.wait)  # a missing broker fails at once
    create_folders(settings)
    claim = create_topics(settings, arguments.take_over, report)  # and for another home's topics
    download_data(settings, report)
    with Tracking(settings, timeout=TRACKING_TIMEOUT, niceness=0):
        create_model(settings, arguments, claim.models, report, counts)
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
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="make the topics this home's, though they are another home's or the home had another "
        "PIPELINE_NAME (stop all scripts first)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    command_line = arguments()
    sys.exit(
        process.run(
            partial(main, command_line),
            log_format=command_line.log_format,
            any_name=command_line.take_over,
        )
    )
