"""Reads a data set as pipeline.toml describes it, and fits the preprocessor to it."""

import io
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError
from utils.feature_tools import FeatureTools, canonical_text
from utils.messages import Label, label_text
from utils.settings import Data


class DataError(UserError, ValueError):
    """A data set that does not fit pipeline.toml; its text is one line for the user."""


def read_frame(path: Path, data: Data) -> pd.DataFrame:
    """Read a CSV file.

    Returns:
        (rows, columns) in the file's order, without the dropped columns. Numbers are
        unchanged, everything else is text without surrounding blanks, NaN where missing.
        The target, the columns declared categorical and truth values have the format of
        `messages.label_text`.

    Raises:
        DataError: The file cannot be read or lacks a column.
    """
    text_columns = {data.target, *data.categorical}
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            frame = pd.read_csv(
                _without_comments(path, data.comment),
                names=list(data.columns) or None,
                index_col=False,
                skipinitialspace=True,
                keep_default_na=False,  # "NA" is a category unless pipeline.toml says otherwise
                na_values=["", *data.missing],
                dtype=dict.fromkeys(text_columns, str),
                low_memory=False,  # infer one type per column, not one per chunk
            )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, pd.errors.ParserWarning) as error:
        raise DataError(f"{path} is not valid CSV: {' '.join(str(error).split())}") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    named = {
        data.target,
        *data.drop,
        *data.categorical,
        *(name for pair in data.cross for name in pair),
    }
    if unknown := sorted(named - set(frame.columns)):
        raise DataError(f"{path} has no column {unknown[0]!r}, which pipeline.toml names")
    frame = frame.drop(columns=list(data.drop))
    return pd.DataFrame({name: _clean(frame[name], data) for name in frame.columns})


def column_types(frame: pd.DataFrame, data: Data) -> tuple[list[str], list[str]]:
    """The numerical and the categorical feature columns, from the data and pipeline.toml."""
    features = [name for name in frame.columns if name != data.target]
    numerical = [
        name
        for name in features
        if name not in data.categorical and pd.api.types.is_numeric_dtype(frame[name])
    ]
    return numerical, [name for name in features if name not in numerical]


def fit_features(frame: pd.DataFrame, data: Data) -> FeatureTools:
    """Fit the preprocessor to a frame from `read_frame`.

    Of two classes the positive one gets code 1; otherwise classes are sorted.

    Raises:
        DataError: There are fewer than two classes, the positive class does not occur, or
            a column cannot be used or crossed.
    """
    numerical, categorical = column_types(frame, data)
    try:
        return FeatureTools().fit(
            frame,
            target=data.target,
            numerical=numerical,
            categorical=categorical,
            crosses=data.cross,
            classes=_classes(frame[data.target], data),
            mixed=[name for name in categorical if _is_mixed(name, frame, data)],
        )
    except ValueError as error:
        raise DataError(str(error)) from None


def records(frame: pd.DataFrame, numerical: Collection[str]) -> Iterator[dict[str, Label | None]]:
    """Convert rows to the JSON values of a message's `data`.

    Args:
        frame: Columns as from `read_frame`, with or without the target.
        numerical: The columns of numbers; all others are sent as text.

    Yields:
        A dict per row, with None where a value is missing.
    """
    columns = list(frame.columns)
    lists = [_json_values(frame[name], name in numerical) for name in columns]
    for values in zip(*lists, strict=True):
        yield dict(zip(columns, values, strict=True))


def sample_rows(folder: Path, data: Data) -> list[dict[str, Label | None]]:
    """The rows for a sample application to send, in the format of `records`, with the target.

    They come from the test file, or from the training file if there is none. Rows with an
    unknown target are left out.

    Args:
        folder: The folder of the files.
        data: The description of the data set.
    """
    frame = read_frame(folder / (data.test or data.train), data)
    frame = frame[frame[data.target].notna()]
    numerical, _ = column_types(frame, data)
    return list(records(frame, numerical))


def _json_values(column: "pd.Series", numbers: bool) -> list[Label | None]:
    # As text: in this file a categorical column may look like numbers, unlike in training.
    return [
        None if missing else value if numbers else label_text(value)
        for value, missing in zip(column.tolist(), column.isna().tolist(), strict=True)
    ]


def _without_comments(path: Path, comment: str) -> io.StringIO:
    # pandas' own `comment` option would also truncate lines that contain the character later.
    text = path.read_text(encoding="utf-8-sig")
    if comment:
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith(comment))
    return io.StringIO(text)


def _clean(column: "pd.Series", data: Data) -> "pd.Series":
    """Convert a column to the format described in `read_frame`."""
    if pd.api.types.is_bool_dtype(column):
        return column.map({True: "true", False: "false"}).astype(object)
    if pd.api.types.is_numeric_dtype(column) and column.name != data.target:
        # JSON has no infinity: the model must not learn values that no message can contain.
        return column if column.dtype.kind in "iu" else column.replace([np.inf, -np.inf], np.nan)
    places, values = pd.factorize(column)
    texts = [_clean_text(str(value), str(column.name), data) for value in values.tolist()]
    if column.name not in (data.target, *data.categorical) and _all_numbers(texts):
        numbers = [np.nan if text is None else float(text) for text in texts]
        return pd.Series(np.array([*numbers, np.nan])[places], name=column.name)
    return pd.Series(np.array([*texts, None], dtype=object)[places], name=column.name)


def _clean_text(value: str, name: str, data: Data) -> str | None:
    text = value.strip()
    if name == data.target:
        text = text.removesuffix(data.target_suffix)
    if text == "" or text in data.missing:
        return None
    if name in (data.target, *data.categorical) or text in ("True", "False"):
        return canonical_text(text)
    return text


def _all_numbers(texts: list[str | None]) -> bool:
    known = [text for text in texts if text is not None]
    try:
        return bool(np.isfinite([float(text) for text in known]).all()) and bool(known)
    except ValueError:
        return False


def _is_mixed(name: str, frame: pd.DataFrame, data: Data) -> bool:
    """Whether messages may write the column's categories as numbers, or true and false."""
    return name in data.categorical or bool(frame[name].isin(["true", "false"]).any())


def _classes(target: "pd.Series", data: Data) -> list[str]:
    classes = [str(name) for name in pd.unique(target.dropna()).tolist()]
    try:
        classes.sort(key=float)
    except ValueError:
        classes.sort()
    if len(classes) < 2:
        raise DataError(f"the target {data.target!r} has fewer than two classes: {classes}")
    positive = canonical_text(data.positive)
    if data.positive and len(classes) == 2:
        if positive not in classes:
            raise DataError(f"the positive class {data.positive!r} is none of {classes}")
        classes.sort(key=lambda name: name == positive)
    return classes
