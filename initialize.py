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

from rich.console import Console

from train import optimisers, profile, tracking
from train.profile import Profile
from train.progress import SharedProgress
from train.results import Result
from train.retrain import serving_bundle, train
from train.tracking import Tracking
from train.training_rows import Rows, rows_of
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
from utils.telemetry.live_line import LiveLine
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
    base = read_data_set(settings, report)
    outcomes_from = _outcomes_from(settings, store)
    if lacking := model_numbers.keep_above_log(settings, store, known):
        report(lacking, level="warning")
    shared = SharedProgress()

    def show(done: int, total: int, best: float) -> None:
        counts.evaluations, counts.best_log_loss = done, best
        shared.search(done, total, best)

    with LiveLine(report, lambda: [one.in_words()] if (one := shared.read()) else []):
        result = train(
            settings,
            snapshot=None,
            hyper=arguments.hyper,
            evals=arguments.evals,
            base=base,
            outcomes_from=outcomes_from,
            progress=show,
            begin=shared.begin,
        )
    if counts.best_log_loss is not None:
        report(
            f"{counts.evaluations} candidates tried, best log loss {counts.best_log_loss:.4f} in "
            "cross-validation",
            evaluations=counts.evaluations,
            best_log_loss=counts.best_log_loss,
        )
    report_model(result, report)
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


def read_data_set(settings: Settings, report: Reporter) -> Rows:
    """Read the training file, show what was understood, and split off rows for testing."""
    data, path = settings.data, settings.data_dir / settings.data.train
    found = data_set.read_data(path, data)
    understood = profile.describe(found, data, settings.training.folds)
    show_profile(understood, report)
    for line in understood.warnings:
        report(f"WARNING: {line}", level="warning")
    if data.test:
        tested = data_set.read_data(settings.data_dir / data.test, data, found.types)
        report(f"{len(tested.frame):,} rows for testing in {data.test}, which sample_app.py sends")
    split_off_test_rows(settings, report)
    return rows_of(found, path, data)


def show_profile(understood: Profile, report: Reporter) -> None:
    """Show what was understood of the columns and classes: as tables, or as one line of JSON."""
    if report.is_json:
        report(f"read {understood.rows:,} rows", **vars(understood))
        return
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = 160  # whole lines for a log
    for table in profile.tables(understood):
        console.print(table)


def split_off_test_rows(settings: Settings, report: Reporter) -> None:
    """Keep rows for testing, if pipeline.toml names no test file."""
    data = settings.data
    if not data.test:
        rows = preprocess_data.split_off_test_rows(settings.data_dir, data)
        report(
            f"{rows} rows are never trained on: they are in {preprocess_data.held_out_file(data)}, "
            "which sample_app.py sends (pipeline.toml names no test file)"
        )


def report_model(result: Result, report: Reporter) -> None:
    """Show the figures of the first model, and those of knowing nothing but the classes."""
    if result.learnt_from:
        report(
            f"the search learnt from {result.learnt_from} earlier candidates",
            learnt_from=result.learnt_from,
        )
    figures, known = result.challenger, result.challenger.log_loss is not None
    if not known or result.majority is None:
        report(
            f"model {result.model_id} serves; there are no validation rows to judge it by",
            **vars(result),
        )
        return
    report(
        f"model {result.model_id} serves: log loss {figures.log_loss:.4f}, accuracy "
        f"{figures.accuracy:.4f} on {figures.rows} validation rows; always predicting the shares "
        f"of the classes gives {result.majority.log_loss:.4f} and {result.majority.accuracy:.4f}",
        **vars(result),
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
