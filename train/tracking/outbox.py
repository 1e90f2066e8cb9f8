"""The outbox of bundles that wait to be logged: a bounded queue of folders.

The model store may prune a bundle at any time, so the outbox keeps those not logged yet.
"""

import contextlib
import os
import shutil
from pathlib import Path

from utils.durable_files import remove
from utils.model_store import ModelStore
from utils.settings import Settings

#: The most bundles in the outbox; a further one replaces the oldest.
OUTBOX_LIMIT = 50


def enqueue(settings: Settings, store: ModelStore, model_id: int) -> None:
    """Put a bundle into the outbox if tracking is on; hard links make that fast.

    Disk errors are ignored: tracking must not fail a training.
    """
    if not settings.mlflow.tracking_uri:
        return
    folder = folder_of(settings)
    temporary = folder / f".tmp-{model_id}-{os.getpid()}"
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(store.path / str(model_id), temporary, copy_function=os.link)
        temporary.rename(folder / str(model_id))
    remove(temporary)  # still there if the bundle was in the outbox already
    for oldest in waiting(settings)[:-OUTBOX_LIMIT]:
        remove(folder / str(oldest))


def enqueue_all(settings: Settings) -> None:
    """Put every bundle on disk into the outbox; some were trained without tracking."""
    store = ModelStore(settings.models_dir)
    for model_id in store.on_disk():
        enqueue(settings, store, model_id)


def folder_of(settings: Settings) -> Path:
    """The outbox of a home."""
    return settings.mlflow_dir / "outbox"


def waiting(settings: Settings) -> list[int]:
    """The models in the outbox, oldest first."""
    return sorted(int(folder.name) for folder in folder_of(settings).glob("[1-9]*"))
