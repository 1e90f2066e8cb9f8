"""What `backtest` replays: the rows of a file, or the messages of the message store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pandas as pd

from train import adapt, racing
from train.retrain import serving_bundle
from train.training_rows import Problem
from utils import data_set
from utils.errors import UserError
from utils.message_store import MessageStore, Snapshot
from utils.model_store import Bundle, ModelStore
from utils.model_store.manifest import Parameters
from utils.settings import Mlflow, Settings


@dataclass(frozen=True)
class Stream:
    """Rows in the order in which they were sent.

    Attributes:
        frame: The raw feature columns.
        labels: (rows,), the outcomes.
        delay: After how many more rows an outcome became known, as really seen; 0 for a file.
        left_out: The number of rows that were left out because their class is unknown.
    """

    frame: pd.DataFrame
    labels: npt.NDArray[np.object_]
    delay: int = 0
    left_out: int = 0


def serving_of(settings: Settings) -> Bundle:
    """The serving bundle.

    Raises:
        UserError: There is none.
    """
    bundle = serving_bundle(ModelStore(settings.models_dir))
    if bundle is None:
        raise UserError("there is no model yet: run initialize.py first")
    return bundle


def read_file(settings: Settings, bundle: Bundle, path: Path) -> Stream:
    """Read a CSV file by the rules of the serving model's data set.

    Raises:
        DataError, UserError: It cannot be read, or has no row of a known class.
    """
    problem = Problem.of(settings, bundle)
    types = bundle.features.types
    frame = data_set.read_data(path, problem.data, types).frame
    names = [name for name, kind in types.items() if kind == "category"]
    features = frame[list(types)].astype(dict.fromkeys(names, "category"))
    stream = _of_known_classes(bundle, features, frame[problem.data.target].to_numpy(dtype=object))
    if not len(stream.frame):
        raise UserError(f"{path} has no row of a class that the serving model knows")
    return stream


def read_store(settings: Settings, bundle: Bundle) -> Stream:
    """Read the messages with a known outcome from the message store, in the order sent.

    Raises:
        StoreError, UserError: There are none.
    """
    with MessageStore.open(settings.messages_url, bundle.features) as store:
        snapshot = store.snapshot()
    if not len(snapshot.request_ids):
        raise UserError("the message store has no message with an outcome; give a CSV file")
    order = np.argsort(snapshot.sent_at, kind="stable")
    stream = _of_known_classes(
        bundle,
        snapshot.frame.iloc[order].reset_index(drop=True),
        np.asarray(snapshot.outcomes, dtype=object)[order],
    )
    return Stream(stream.frame, stream.labels, seen_delay(snapshot), stream.left_out)


def seen_delay(snapshot: Snapshot) -> int:
    """The median of how many messages were sent between a message and its outcome."""
    sent = np.sort(snapshot.sent_at)
    behind = np.searchsorted(sent, snapshot.known_at, side="left")
    before = np.searchsorted(sent, snapshot.sent_at, side="right")
    return int(np.median(np.maximum(behind - before, 0)))


def _of_known_classes(
    bundle: Bundle, frame: pd.DataFrame, labels: npt.NDArray[np.object_]
) -> Stream:
    known = bundle.features.encode_target(labels) >= 0
    kept = frame[known].reset_index(drop=True)
    return Stream(kept, labels[known], left_out=int((~known).sum()))


def first_parameters(settings: Settings, bundle: Bundle) -> Parameters:
    """The parameters of the first model, which the race remembers, or else of the serving one."""
    state, training = racing.state_of(settings), bundle.manifest.training
    problem = adapt.problem_id(str(training.base_data_sha256), bundle.features)
    if state is not None and state.problem == problem:
        return state.first
    return bundle.manifest.hyperparameters


@contextmanager
def temporary_home(settings: Settings, bundle: Bundle) -> Iterator[Settings]:
    """A home for a replay: a copy of the settings, without models, with the same data set."""
    with TemporaryDirectory(prefix="backtest-") as folder:
        home = Path(folder)
        (home / "data").symlink_to(settings.data_dir.resolve(), target_is_directory=True)
        data = bundle.manifest.training.problem(settings.data)
        yield settings.model_copy(update={"home": home, "data": data, "mlflow": Mlflow()})
