"""Bundles that wait to be logged: a bounded queue of folders.

The model store may prune a bundle any time, so one that is not logged yet is kept here.
"""

import contextlib
import os
import shutil
from pathlib import Path

from utils.durable_files import remove
from utils.model_store import ModelStore
from utils.settings import Settings

#: Bundles that wait at most; a further one takes the place of the oldest.
OUTBOX_MOST = 50


def enqueue(settings: Settings, store: ModelStore, model_id: int) -> None:
    """Put a bundle into the outbox, if there is tracking; hard links, so in no time.

    Trouble with the disk is passed over: tracking is not worth a training.
    """
    if not settings.mlflow.tracking_uri:
        return
    folder = folder_of(settings)
    temporary = folder / f".tmp-{model_id}-{os.getpid()}"
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(store.path / str(model_id), temporary, copy_function=os.link)
        temporary.rename(folder / str(model_id))
    remove(temporary)  # it is there already
    for oldest in waiting(settings)[:-OUTBOX_MOST]:
        remove(folder / str(oldest))


def enqueue_all(settings: Settings) -> None:
    """Put every bundle that is there into the outbox: some were made without tracking."""
    store = ModelStore(settings.models_dir)
    for model_id in store.on_disk():
        enqueue(settings, store, model_id)


def folder_of(settings: Settings) -> Path:
    """The outbox of a home."""
    return settings.mlflow_dir / "outbox"


def waiting(settings: Settings) -> list[int]:
    """The models in the outbox, oldest first."""
    return sorted(int(folder.name) for folder in folder_of(settings).glob("[1-9]*"))
