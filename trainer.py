"""Retrains whenever it is requested, and announces the new model.

    python trainer.py [--hyper hyperopt|hyperparameterhunter|optuna] [--evals 10] [--mlflow]

Reads the log into the message store, trains in a child process, compares the new model with
the serving one and publishes it. It requests a retraining itself when the newest one is too
old, the live loss rises or, with `on_input_drift`, the inputs move. A second trainer on the same
home waits for the first to end.
Ctrl-C finishes and announces a running training, and stops.
"""

import argparse
import sys
import time
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from typing import NamedTuple

from msgspec import UNSET

from train import live, optimisers, reasons, tracking
from train.deployment import Deployment
from train.drift import Alarm
from train.input_alarm import InputAlarm
from train.results import Judgement, Result, Review
from train.schedule import JUDGE_EVERY, Schedule
from train.tracking import Tracking
from train.worker import Job, Worker
from utils import changes, kafka_io, messages, model_numbers, process
from utils.errors import one_line
from utils.kafka_io import ExactlyOnce, Polled, Position, TopicPartition, log_scan
from utils.message_store import MessageStore, StoreError
from utils.message_store.ingest import Ingest
from utils.messages import RetrainRequest, Rollback, TrainingCompleted
from utils.metrics import ValueShares
from utils.model_store import ModelStore, ModelStoreError
from utils.model_store.manifest import AbsentModels, PublishedModel, RolledBack
from utils.settings import Settings
from utils.telemetry import exposition, live_figures
from utils.telemetry.counts import TrainerCounts
from utils.telemetry.live_line import LiveLine
from utils.telemetry.reporter import Reporter

POLL_MS = 50
#: The poll timeout during a training, shorter so that its end is noticed sooner.
BUSY_POLL_MS = 20
#: The most requests of one poll, which one training answers: all that arrived while no trainer ran.
MAX_REQUESTS = 10_000
#: Seconds that logging to MLflow may delay the trainer's end.
TRACKING_TIMEOUT = 5.0
#: Niceness of the process that logs to MLflow: predictors and trainings go first.
TRACKING_NICENESS = 15


class _Waiting(NamedTuple):
    """A request that no training has answered: its place, its timestamp (ms), and itself."""

    offset: int
    timestamp: int
    request: RetrainRequest

    def age(self, now: float) -> float:
        """How long it has waited, in seconds; 0 if its timestamp makes no sense."""
        return max(0.0, now - self.timestamp / 1000) if self.timestamp > 0 else 0.0


class Trainer:
    """The trainer's step, apart from the loop that calls it.

    A request waits, and its offset stays uncommitted, until the history of the model store
    names a model that was trained for it (its batch_id). After a kill the trainer therefore
    repeats a training that was not published, announces a model that was published but not
    announced, and does neither twice.

    Args:
        client: Consumes requests and produces announcements; both commit in one transaction.
        ingest: Copies the log into the message store.
        worker: Trains in another process.
        store: The bundles.
        settings: The pipeline's settings.
        home: The id of the home, which signs its events.
        report: Prints the lines for the user.
        counts: What the trainer counts; any thread may look.
    """

    def __init__(
        self,
        client: ExactlyOnce,
        ingest: Ingest,
        worker: Worker,
        store: ModelStore,
        settings: Settings,
        home: str,
        report: Reporter,
        *,
        counts: TrainerCounts,
    ) -> None:
        self.client = client
        self.ingest = ingest
        self.worker = worker
        self.store = store
        self.settings = settings
        self.home = home
        self.report = report
        self.counts = counts
        self._waiting: list[_Waiting] = []
        self._answers_may_be_new = True
        self._model_may_be_other = False
        self._position: Position | None = None
        self._partition = TopicPartition(messages.RETRAIN_TOPIC, 0)
        self._job: Future[Result] | None = None
        self._reviewing: Future[Review] | None = None
        self._announcements: list[messages.Event] = []
        self._alarms: list[Alarm | InputAlarm] = []
        self._schedule = Schedule()
        self._failure = ""
        self._newest_request = -1  # the highest offset of a request that was read
        self._is_member = False

    @property
    def busy(self) -> bool:
        """Whether a training runs, or has ended and is not announced yet."""
        return self._job is not None or self._reviewing is not None

    def live_figures(self) -> list[str]:
        """What the trainer does now, for the live line; any thread may ask."""
        training = self.worker.progress()
        return live_figures.of_trainer(self.counts, training.in_words() if training else "")

    def step(self, timeout_ms: int = POLL_MS, *, begin: bool = True) -> None:
        """Do everything that is due, once.

        1. Poll requests. 2. Read the log into the message store. 3. Collect the result of a
        finished training or review. 4. Request a retraining if there is a reason. 5. Announce
        results and requests. 6. Start one training for all waiting requests, or a review.

        Args:
            timeout_ms: How long to wait for requests.
            begin: False to start nothing new.

        Raises:
            kafka_io.KafkaError, StoreError: Nothing is lost; step again.
        """
        polled = self.client.poll(timeout_ms)
        self._read_requests(polled)  # 1
        if self._model_may_be_other and not self.busy:
            self._follow_model()
        if self._schedule.may_read(training=self._job is not None):
            read = self.ingest.step()  # 2
            self.counts.ingested += read
            self._schedule.log_read(read)
        self._collect()  # 3
        if begin and not self.busy and self._position is not None:
            self._request_training()  # 4
        self._announce(polled)  # 5
        if begin and self._job is None:
            self._start_work()  # 6

    def note_step(self, trouble: str = "") -> None:
        """Note in the counts that a step has succeeded.

        Args:
            trouble: Why steps have failed a moment ago; empty if they have not.
        """
        self.counts.waiting = len(self._waiting)
        stamps = [one.timestamp for one in self._waiting if one.timestamp >= messages.OLDEST_MS]
        self.counts.waiting_since = min(stamps) / 1000 if stamps else None
        owner = self._is_member and self._position is not None
        self.counts.stepped(owner=owner, trouble=trouble or self.client.silence())

    def _read_requests(self, polled: Polled) -> None:
        self._is_member = bool(polled.epoch)
        if polled.restored is not None:
            self._waiting.clear()
            # Whether an unfinished commit has sent them shows in the topic.
            self._announcements = [
                event for event in self._announcements if not isinstance(event, RetrainRequest)
            ]
            self._answers_may_be_new = True
            self._position = polled.restored.get(self._partition)
            if self._position is None:
                if self._partition not in polled.held_back and not self.client.missing_topics:
                    self.report(f"another trainer reads {messages.RETRAIN_TOPIC}; waiting")
            elif (rollback := self._rollback()) is not None:
                # The trainer that rolled back may have been killed before it announced that.
                self._announcements.append(rollback)
        requested, announced = False, dict[str | None, int]()
        for record in polled.records.get(self._partition, ()):
            self._position = Position(record.offset + 1)
            try:
                event = messages.decode_event(record.value)
            except messages.BadRecord:
                continue
            if isinstance(event, RetrainRequest):
                self._waiting.append(_Waiting(record.offset, record.timestamp, event))
                self._answers_may_be_new = requested = True
                if record.offset > self._newest_request:  # it may be read again
                    self._newest_request = record.offset
                    self.counts.received[event.reason] += 1
                if event.reason == "manual":  # by someone who may have mended the reason
                    self._schedule.forget_failures()
            elif isinstance(event, Rollback | TrainingCompleted):
                if isinstance(event, TrainingCompleted):
                    announced[event.batch_id] = record.offset
                # By hand or by initialize.py --force: the model may have other columns.
                self._model_may_be_other = True
        if announced:  # their requests are read again if the group's offsets have expired
            self._waiting = [
                one for one in self._waiting if one.offset > announced.get(one.request.batch_id, -1)
            ]
        if requested:
            # The training sees everything that was committed before its request.
            self.ingest.mark_end()

    def _follow_model(self) -> None:
        """Read messages and outcomes by the rules of the model that serves now.

        If its columns, classes or rules differ, the store's rows are built again from what was
        sent; trainings wait for that.
        """
        bundle = self.store.load_current()
        self.counts.model_id = bundle.model_id
        self.ingest.use(bundle.features, bundle.manifest.training.outcomes_from)
        self._model_may_be_other = False
        self._schedule.forget_failures()

    def _collect(self) -> None:
        if self._job is not None and self._job.done():
            job, self._job, self.counts.training_since = self._job, None, None
            self._answers_may_be_new = True
            try:
                result = job.result()
            except Exception as error:  # whatever it is, the requests wait for another training
                self.counts.failures += 1
                self._report_failure(one_line(error), self._schedule.training_failed())
            else:
                self._failure = ""
                self._schedule.forget_failures()
                self._count_training(result)
                self._report_training(result)
        if self._reviewing is not None and self._reviewing.done():
            reviewing, self._reviewing = self._reviewing, None
            try:
                review = reviewing.result()
            except Exception as error:  # whatever it is, the serving model stays
                self.report(
                    "the newer outcomes could not be reviewed, again after "
                    f"{JUDGE_EVERY} more: {one_line(error)}",
                    level="error",
                )
            else:
                self._alarms = list(review.alarms)
                self.counts.live = review.live
                self._announce_judgement(review.judgement)

    def _request_training(self) -> None:
        """Queue the requests of alarms, or of a training that is too old."""
        if self._alarms:
            while self._alarms:
                alarm = self._alarms[0]
                request = reasons.drift_request(alarm, self.store.history())
                if request is not None and not self._is_requested(request):
                    self.report(
                        f"DRIFT: {alarm}; retraining requested", level="warning", request=request
                    )
                    self._announcements.append(request)
                    self.counts.requested[request.reason] += 1
                self._alarms.pop(0)  # not before: an error of the broker repeats the step
        elif (
            self.settings.training.max_age
            and not self._waiting
            and self._schedule.may_look_at_age()
        ):
            max_age, history = self.settings.training.max_age, self.store.history()
            request = reasons.age_request(history, max_age, time.time())
            if request is not None and not self._is_requested(request):
                self.report("the newest training is too old; retraining requested", request=request)
                self._announcements.append(request)
                self.counts.requested[request.reason] += 1

    def _is_requested(self, request: RetrainRequest) -> bool:
        """Whether a request waits, also one that a killed trainer sent and nobody has polled."""
        if any(one.request.batch_id == request.batch_id for one in self._waiting):
            return True
        assert self._position is not None
        kafka, topic = self.settings.kafka, messages.RETRAIN_TOPIC
        _, end = log_scan.bounds(kafka, topic)[0]
        for record in log_scan.scan(kafka, topic, {0: (self._position.offset, end)}):
            with suppress(messages.BadRecord):
                event = messages.decode_event(record.value)
                if isinstance(event, RetrainRequest) and event.batch_id == request.batch_id:
                    return True
        return False

    def _report_failure(self, reason: str, delay: float) -> None:
        """Report a failed training; the same reason is given once."""
        if reason == self._failure:
            text = f"the training failed for the same reason, again in {delay:.0f} s"
        else:
            text = f"the training failed, again in {delay:.0f} s: {reason}"
        self.report(text, level="error", reason=reason, delay_seconds=delay)
        self._failure = reason

    def _count_training(self, result: Result) -> None:
        counts, champion = self.counts, result.champion
        counts.add_training(result.accepted, result.seconds)
        counts.challenger_log_loss = result.challenger.log_loss
        counts.champion_log_loss = champion.log_loss if champion else None
        if result.accepted:
            counts.model_id = result.model_id

    def _report_training(self, result: Result) -> None:
        spent = ", ".join(f"{name} {value:.2f}" for name, value in result.seconds.items())
        self.report(
            f"RETRAINING COMPLETED: {result.in_words()}; learnt from "
            f"{result.memory or 'everything'} (seconds: {spent})",
            **vars(result),
        )

    def _announce_judgement(self, judgement: Judgement | None) -> None:
        if judgement is None or not judgement.demoted:
            return
        self.report(
            f"MODEL {judgement.model_id} ROLLED BACK: model {judgement.parent_id} serves "
            f"again, better on {judgement.rows} newer outcomes",
            level="warning",
            **vars(judgement),
        )
        self.counts.rollbacks += 1
        self.counts.model_id = judgement.parent_id
        rollback = self._rollback()
        if rollback is not None:
            self._announcements.append(rollback)

    def _announce(self, polled: Polled) -> None:
        """Announce the answered requests; commit the offset up to the first unanswered one."""
        if not polled.epoch or self._position is None:
            return
        answers = {}
        if self._answers_may_be_new:
            answers = self._answers()
            # A failed commit restores the position, and then the answers are read again.
            self._answers_may_be_new = False
        # One query, however many requests are answered.
        values = self.ingest.all_values() if answers else ValueShares()
        events = self._announcements + [
            self._completed(answers[one.request.batch_id], one.request, values)
            for one in self._waiting
            if one.request.batch_id in answers
        ]
        if not events and not (polled.records and not self._waiting):
            return
        left = [one for one in self._waiting if one.request.batch_id not in answers]
        position = Position(left[0].offset) if left else self._position
        self.client.commit(
            polled,
            {self._partition: [messages.encode_event(event, self.home) for event in events]},
            {self._partition: position},
        )
        self.client.wait_for_commit()
        self._waiting = left
        self._announcements.clear()

    def _answers(self) -> dict[str, PublishedModel]:
        """The model that answers each request: its line of the history, by batch id.

        A topic that was deleted and recreated repeats its offsets, and so the batch ids of
        ranges. A model that was trained on the old topic does not answer a new request.
        """
        topics = {one.request.batch_id: one.request.topic for one in self._waiting}
        return {
            batch_id: entry
            for batch_id, entry in self.store.trainings_for(topics).items()
            if (topic := topics[batch_id]) is UNSET
            or self.ingest.is_same_log(topic, entry.topic_ids or {})
        }

    def _completed(
        self, model: PublishedModel, request: RetrainRequest, values: ValueShares
    ) -> TrainingCompleted:
        """The announcement that answers one request."""
        return TrainingCompleted(
            model_id=model.model_id,
            accepted=model.accepted,
            batch_id=request.batch_id,
            requests=len(model.batch_ids),
            parent_id=model.parent_id,
            rows=model.rows,
            challenger=model.metrics.challenger,
            champion=model.metrics.champion,
            gate=model.gate,
            values=values,
            recent_values=self.ingest.values.of_the_last(),
        )

    def _start_work(self) -> None:
        outcomes, requested = self.ingest.outcomes, bool(self._waiting)
        if (
            self._reviewing is None
            and not self.ingest.is_rereading
            and self._schedule.judgement_due(outcomes, requested=requested)
        ):
            self._schedule.judgement_started(outcomes)
            self._reviewing = self.worker.review()
        if requested:
            requests = [one.request for one in self._waiting]
            # The store may not have read what was committed before the requests yet.
            if self._schedule.may_train() and self.ingest.has_read(requests):
                self._train([request.batch_id for request in requests])

    def _train(self, batch_ids: list[str]) -> None:
        combined = f", {len(batch_ids)} requests in one" if len(batch_ids) > 1 else ""
        self.report(f"RETRAINING STARTED ({batch_ids[-1]}{combined})", batch_ids=batch_ids)
        waited = max(one.age(time.time()) for one in self._waiting)
        self._job = self.worker.train(Job(tuple(batch_ids), waited))
        self.counts.training_since = time.time()

    def _rollback(self) -> messages.Rollback | None:
        """The announcement of a rollback, if that is what the history ends with."""
        lines = [line for line in self.store.history() if not isinstance(line, AbsentModels)]
        if not lines or not isinstance(last := lines[-1], RolledBack):
            return None
        return messages.Rollback(
            model_id=last.rollback_to, from_model_id=last.from_id, reason=last.reason
        )


def loop(
    trainer: Trainer, deployment: Deployment, stop: process.Stop, report: process.Report
) -> None:
    """Step until asked to stop and idle; errors that may end by themselves are retried."""
    outage = process.Outage(report, "waiting: {}", "recovered", settled=process.SETTLED)
    while not stop() or trainer.busy:
        try:
            trainer.step(BUSY_POLL_MS if trainer.busy else POLL_MS, begin=not stop())
            outage.end()
            trainer.note_step(outage.reason)
        except (*kafka_io.RETRIABLE_ERRORS, StoreError, ModelStoreError) as error:
            kafka_io.raise_if_lasting(error)
            outage.begin(one_line(error))
            trainer.counts.failed(outage.reason)
            time.sleep(0.2)
        if not stop():
            deployment.step()


def main(arguments: argparse.Namespace, settings: Settings) -> None:
    """Wire the trainer and run it until a signal."""
    report = Reporter("trainer", "magenta", settings.log_format)
    optimisers.check(arguments.hyper)
    settings = tracking.with_tracking(settings, arguments.mlflow)
    stop, counts = process.Stop().on_signals(), TrainerCounts()
    with ExitStack() as resources:
        resources.enter_context(exposition.serve(settings.metrics, counts, settings.kafka.name))
        counts.health.fails("waits for another trainer to end, or starts")
        instance_id = resources.enter_context(
            process.single_instance(settings, "trainer", stop, report)
        )
        if instance_id is None:
            return
        store = ModelStore(settings.models_dir)
        claim = kafka_io.claim_topics(settings)
        store.reconcile()
        if line := model_numbers.keep_above_log(settings, store, claim.models):
            report(line, level="warning")
        bundle = store.load_current()
        counts.model_id = bundle.model_id
        if settings.training.on_drift:
            counts.live = live.figures(settings)
        if line := changes.since_training(settings, bundle, content=True):
            report(line, level="warning")
        # Ends last, after the group was left and the last model announced.
        resources.enter_context(
            Tracking(settings, timeout=TRACKING_TIMEOUT, niceness=TRACKING_NICENESS)
        )
        worker = Worker(settings, hyper=arguments.hyper, evals=arguments.evals)
        resources.enter_context(worker)
        message_store = resources.enter_context(
            MessageStore(settings.messages_url, bundle.features, report=report)
        )
        outcomes_from = bundle.manifest.training.outcomes_from
        ingest = resources.enter_context(
            Ingest(settings.kafka, message_store, bundle.features, outcomes_from)
        )
        client = ExactlyOnce(
            settings.kafka,
            group=messages.TRAINER_GROUP,
            topics=messages.GROUPS[messages.TRAINER_GROUP],
            instance_id=instance_id,
            max_records=MAX_REQUESTS,
            report=report,
        )
        resources.callback(client.close)
        report(f"ready; {arguments.evals} evaluations with {arguments.hyper} at each request")
        trainer = Trainer(
            client, ingest, worker, store, settings, claim.home, report, counts=counts
        )
        with (
            LiveLine(report, trainer.live_figures),
            Deployment(settings, report, counts) as deployment,
        ):
            loop(trainer, deployment, stop, report)
        trainings = trainer.counts.trainings.total()
        report(f"stopped after {trainings} trainings", trainings=trainings)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = process.parser(__doc__)
    optimisers.add_arguments(parser)
    tracking.add_argument(parser)
    return parser.parse_args()


if __name__ == "__main__":
    command_line = arguments()
    sys.exit(process.run(partial(main, command_line), log_format=command_line.log_format))
