"""The progress of the worker process shows in the trainer's, also after it was killed."""

import math
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from tests.harness import Pipeline, until
from train.progress import PARTS, TrainingProgress
from train.results import Result
from train.worker import Job, Worker
from utils.message_store import MessageStore
from utils.model_store import ModelStore

EVALS = 5


def watch(worker: Worker, training: "Future[Result]") -> list[TrainingProgress]:
    """All different states of a training until its end."""
    seen: list[TrainingProgress] = []
    while not training.done():
        progress = worker.progress()
        if progress is not None and progress not in seen[-1:]:
            seen.append(progress)
        time.sleep(0.001)
    return seen


@pytest.mark.timeout(240)
def test_progress_of_a_training_shows_in_the_parent(prepared_home: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, PIPELINE_CONFIG=str(prepared_home / "pipeline.toml"))
    pipeline.copy_files(prepared_home)
    settings = pipeline.settings
    features = ModelStore(settings.models_dir).load_current().features
    with MessageStore(settings.messages_url, features):
        pass
    with Worker(settings, hyper="hyperopt", evals=EVALS) as worker:
        assert worker.progress() is None
        training = worker.train(Job(("first",), 0.0))
        seen = watch(worker, training)
        assert training.result().model_id == 2
        assert worker.progress() is None

        assert [one.part for one in seen] == sorted((one.part for one in seen), key=PARTS.index)
        searching = [one for one in seen if one.done]
        assert searching[-1] == TrainingProgress("searching", EVALS, EVALS, searching[-1].best_loss)
        losses = [one.best_loss for one in searching]
        assert losses == sorted(losses, reverse=True) and 0 < losses[-1] < math.log(2)
        assert {"reading", "adapting", "fitting"} <= {one.part for one in seen if not one.total}

        training = worker.train(Job(("second",), 0.0))
        until(lambda: worker.progress() is not None, 60)
        for child in worker._pool._processes.values():
            child.kill()
        with pytest.raises(BrokenProcessPool):
            training.result(30)
        assert worker.progress() is None  # not that of the process that was killed

        training = worker.train(Job(("third",), 0.0))
        until(lambda: worker.progress() is not None, 60)
        assert not training.done()
