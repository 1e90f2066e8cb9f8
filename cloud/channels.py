"""The channels of a training job: the CSV files of `train` and `validation`."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloud.container import Container, read_config
from utils.data_set import DataError, read_text
from utils.errors import UserError, describe_error
from utils.settings import Data
from utils.values import shown

TRAIN, VALIDATION = "train", "validation"
#: The content types of a channel, without their parameters; none is CSV as well.
CONTENT_TYPES = {"", "text/csv", "csv", "application/csv"}
#: The ways in which SageMaker provides files; a pipe would be another one.
INPUT_MODES = {"File", "FastFile"}


@dataclass(frozen=True)
class Channel:
    """A channel that a job has.

    Attributes:
        name: `train` or `validation`.
        files: Its files in the order of their names.
        skipped: Files that are empty or hidden, or markers such as _SUCCESS.
    """

    name: str
    files: tuple[Path, ...]
    skipped: tuple[Path, ...] = ()


def read_channels(container: Container) -> tuple[Channel, Channel | None]:
    """Find the files to learn from, and those to validate with, if the job has them.

    Raises:
        UserError: The channel `train` is missing or empty, the job has another channel, or one of
            another content type or input mode; or the job runs on several machines.
    """
    _check_machines(container.config / "resourceconfig.json")
    described = read_config(container.config / "inputdataconfig.json")
    folders = sorted(path.name for path in _entries(container.channels) if path.is_dir())
    for name in dict.fromkeys((*described, *folders)):
        if name not in (TRAIN, VALIDATION):
            raise UserError(f"channel {name!r} is unknown: the channels are train and validation")
        _check_description(name, described.get(name, {}))
    if TRAIN not in folders:
        raise UserError(f"the channel train is missing: there is no {container.channels / TRAIN}")
    validates = VALIDATION in folders or VALIDATION in described
    return (
        _channel(TRAIN, container.channels),
        _channel(VALIDATION, container.channels) if validates else None,
    )


def _check_machines(path: Path) -> None:
    hosts = read_config(path).get("hosts", [])
    if isinstance(hosts, list) and len(hosts) > 1:
        raise UserError(f"the job has {len(hosts)} instances: the training runs on one")


def _check_description(name: str, described: object) -> None:
    if not isinstance(described, dict):
        raise UserError(f"channel {name} is described by {described!r}, which is no JSON object")
    kind = str(described.get("ContentType") or "")
    if kind.partition(";")[0].strip().lower() not in CONTENT_TYPES:
        raise UserError(f"channel {name} has the ContentType {kind!r}: text/csv is read")
    mode = described.get("TrainingInputMode") or "File"
    if mode not in INPUT_MODES:
        raise UserError(f"channel {name} has the input mode {mode!r}: File and FastFile are read")
    wrapper = described.get("RecordWrapperType") or "None"
    if wrapper != "None":
        raise UserError(f"channel {name} has the record wrapper {wrapper!r}: plain files are read")


def _channel(name: str, folder: Path) -> Channel:
    files: list[Path] = []
    skipped: list[Path] = []
    for path in _files(folder / name):
        hidden = path.name.startswith((".", "_"))
        (skipped if hidden or not path.stat().st_size else files).append(path)
    if not files:
        raise UserError(f"channel {name} has no files with rows in {folder / name}")
    return Channel(name, tuple(files), tuple(skipped))


def _files(folder: Path) -> Iterator[Path]:
    """All files of a folder and its folders, in the order of their names."""
    for path in sorted(_entries(folder)):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {describe_error(error)}") from None


def join(channel: Channel, data: Data, path: Path) -> None:
    """Make one file of a channel's files: a link to a single one, or their rows one by one.

    Args:
        channel: The channel.
        data: The format of its files.
        path: The file to make.

    Raises:
        DataError: A file cannot be read, or has another header than the first.
    """
    if len(channel.files) == 1:
        path.symlink_to(channel.files[0])
        return
    with path.open("w", encoding=data.encoding, newline="") as file:
        file.writelines(_lines(channel.files, data))


def _lines(files: Sequence[Path], data: Data) -> Iterator[str]:
    """The text of files; the header, if there is one, only once."""
    header: list[str] | None = None
    for path in files:
        text = read_text(path, data)
        if not text.endswith("\n"):
            text += "\n"
        if data.columns:
            yield text
            continue
        fields, rows = _split_header(path, text, data.separator)
        if header is None:
            header = fields
            yield text
        elif fields == header:
            yield rows
        else:
            raise DataError(f"{path} has another header than {files[0]}: {shown(fields)}")


def _split_header(path: Path, text: str, separator: str) -> tuple[list[str], str]:
    """The names in the first record, which may have several lines, and the text after it."""
    lines = (found[0] for found in re.finditer(r"[^\n]*\n", text))
    try:
        header = next((row for row in csv.reader(lines, delimiter=separator) if row), [])
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}") from None
    return [name.strip() for name in header], "".join(lines)
