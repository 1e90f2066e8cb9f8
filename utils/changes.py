"""What has changed in pipeline.toml and in the data since the serving model was trained."""

import csv
import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from utils.model_store import Bundle
from utils.settings import Data, Settings


def since_training(settings: Settings, bundle: Bundle, *, content: bool = False) -> str | None:
    """What differs from what the serving model was trained by, and what to do; one line.

    Args:
        settings: The pipeline's settings now.
        bundle: The serving model.
        content: Compare the content of the training file too, not only its columns.

    Returns:
        The line, or None if nothing has changed, or it is not known.
    """
    if not bundle.manifest.training.data:
        return (
            f"model {bundle.model_id} is of an earlier version, which chose other rows for "
            "validation: retrainings compare with it unfairly; `python initialize.py --force` "
            "trains one that does not"
        )
    found = [*_changed_settings(settings.data, bundle), *_changed_columns(settings, bundle)]
    if content and not found:
        found = _changed_content(settings, bundle)
    if not found:
        return None
    return (
        f"since model {bundle.model_id} was trained, {'; '.join(found)}. It serves and is "
        "retrained as it was; `python initialize.py --force` trains one by what is there now"
    )


def _changed_settings(data: Data, bundle: Bundle) -> list[str]:
    before = dict(bundle.manifest.training.data)
    now = data.model_dump(mode="json", exclude={"files"})
    before.setdefault("max_categories", 0)  # versions without it learnt all categories
    if not bundle.features.is_changed_by(data.max_categories):
        del now["max_categories"]
    return [
        f"[data] {name} has changed from {before[name]!r} to {now[name]!r}"
        for name in now
        if name in before and before[name] != now[name]
    ]


def _changed_columns(settings: Settings, bundle: Bundle) -> list[str]:
    data = bundle.manifest.training.problem(settings.data)
    header = _header(settings.data_dir / data.train, data)
    if header is None:
        return []
    used = {*bundle.features.columns, data.target}
    found = []
    if gone := sorted(used - set(header)):
        found.append(f"{data.train} has lost {_named(gone)}")
    if new := [name for name in header if name not in used | set(data.drop)]:
        found.append(f"{data.train} has gained {_named(new)}")
    return found


def _changed_content(settings: Settings, bundle: Bundle) -> list[str]:
    training = bundle.manifest.training
    name = training.problem(settings.data).train
    try:
        with (settings.data_dir / name).open("rb") as file:
            now = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return []  # reported where the file is read
    same = training.base_data_sha256 in (None, now)
    return [] if same else [f"the content of {name} has changed"]


def _header(path: Path, data: Data) -> list[str] | None:
    """The names in a file's header; None if it has none or cannot be read."""
    if data.columns:
        return None
    encoding = "utf-8-sig" if data.encoding == "utf-8" else data.encoding
    try:
        with path.open(encoding=encoding, newline="") as file:
            lines = (x for x in file if not (data.comment and x.startswith(data.comment)))
            rows = csv.reader(lines, delimiter=data.separator, skipinitialspace=True)
            first = next(iter(islice(rows, 1)), None)
    except (OSError, ValueError, csv.Error):
        return None
    if first is None:
        return None
    # A column without a name is called as pandas calls it.
    return [name.strip() or f"Unnamed: {place}" for place, name in enumerate(first)]


def _named(columns: Sequence[str]) -> str:
    names = ", ".join(map(repr, columns[:5])) + (" ..." if len(columns) > 5 else "")
    return f"the column{'s' if len(columns) > 1 else ''} {names}"
