"""Fits the preprocessor to a data set, and turns its rows into messages."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from utils import splits
from utils.data_set import DataError, read_data, rules_of
from utils.feature_tools import FeatureTools
from utils.settings import ColumnType, Data
from utils.values import DAY, Label, canonical_text, date_text

#: A target of more different numbers is a quantity, not a class.
MOST_NUMERIC_CLASSES = 50


def fit_features(
    frame: pd.DataFrame,
    data: Data,
    types: Mapping[str, ColumnType],
    classes: tuple[str, ...] | None = None,
) -> FeatureTools:
    """Fit the preprocessor to the frame of a `DataSet`.

    Args:
        frame: The rows to learn from, with the target.
        data: The description of the data set.
        types: The types of the feature columns.
        classes: The classes in the order of their codes; None to take those of the target.
            Of two the positive one gets code 1; otherwise they are sorted.

    Raises:
        DataError: There are fewer than two classes, the positive class does not occur, or
            a column cannot be used or crossed.
    """

    def of_type(wanted: ColumnType) -> list[str]:
        return [name for name in frame.columns if types.get(name) == wanted]

    try:
        return FeatureTools().fit(
            frame,
            target=data.target,
            numerical=of_type("number"),
            dates=of_type("date"),
            categorical=of_type("category"),
            crosses=data.cross,
            classes=classes or classes_of(frame[data.target], data),
            rules=rules_of(data),
            suffix=data.target_suffix,
            max_categories=data.max_categories,
        )
    except ValueError as error:
        raise DataError(str(error)) from None


def classes_of(target: "pd.Series", data: Data) -> list[str]:
    """The classes of a target in the order of their codes.

    Raises:
        DataError: There are fewer than two, or so many numbers that it is a regression.
    """
    classes = [str(name) for name in pd.unique(target.dropna()).tolist()]
    try:
        classes.sort(key=float)
        if len(classes) > MOST_NUMERIC_CLASSES:
            raise DataError(
                f"the target {data.target!r} has {len(classes)} different numbers: that is a "
                "quantity (regression), but the pipeline predicts classes; choose another target"
            )
    except DataError:
        raise
    except ValueError:
        classes.sort()
    if len(classes) < 2:
        only = f"only the class {classes[0]!r}" if classes else "no value"
        raise DataError(f"the target {data.target!r} has {only}; it needs two classes or more")
    positive = canonical_text(data.positive)
    if data.positive and len(classes) == 2:
        if positive not in classes:
            raise DataError(f"the positive class {data.positive!r} is none of {classes}")
        classes.sort(key=lambda name: name == positive)
    return classes


def records(
    frame: pd.DataFrame, types: Mapping[str, ColumnType]
) -> Iterator[dict[str, Label | None]]:
    """Convert rows to the JSON values of a message's `data`.

    Args:
        frame: That of a `DataSet`, with or without the target.
        types: The types of its columns; those without one are sent as text.

    Yields:
        A dict per row, with None where a value is missing.
    """
    columns = list(frame.columns)
    lists = [_json_values(frame[name], types.get(name, "category")) for name in columns]
    for values in zip(*lists, strict=True):
        yield dict(zip(columns, values, strict=True))


def _json_values(column: "pd.Series", kind: ColumnType) -> list[Label | None]:
    values = column.tolist()
    missing = column.isna().tolist()
    if kind == "date":
        with_time = any(value % DAY for value in column.dropna())
        values = [
            None if gap else date_text(value, with_time=with_time)
            for value, gap in zip(values, missing, strict=True)
        ]
    return [None if gap else value for value, gap in zip(values, missing, strict=True)]


# The rows that are kept for testing


def held_out_file(data: Data) -> str:
    """The name of the file with the rows for testing: pipeline.toml's, or one that is split off."""
    path = Path(data.train)
    return data.test or f"{path.stem}.held-out{path.suffix or '.csv'}"


def split_off_test_rows(folder: Path, data: Data) -> int:
    """Write the rows for testing of a data set without a test file to a file of their own.

    Returns:
        The number of rows.

    Raises:
        DataError: The files cannot be read or written.
    """
    whole = data.model_copy(update={"drop": (), "cross": ()})
    found = read_data(folder / data.train, whole)
    frame = found.frame[found.frame[data.target].notna()]
    features = frame.drop(columns=[data.target, *data.drop])
    rows = list(records(frame[splits.is_test_row(features)], found.types))
    path = folder / held_out_file(data)
    try:
        with path.open("w", encoding=data.encoding, newline="") as file:
            writer = csv.DictWriter(
                file, list(frame.columns), delimiter=data.separator, lineterminator="\n"
            )
            if not data.columns:
                writer.writeheader()
            writer.writerows(
                {name: _cell(value, data) for name, value in row.items()} for row in rows
            )
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
    return len(rows)


def _cell(value: Label | None, data: Data) -> str:
    text = "" if value is None else str(value)
    return text.replace(".", data.decimal) if isinstance(value, float) else text


def sample_rows(folder: Path, data: Data) -> list[dict[str, Label | None]]:
    """The rows for a sample application to send, in the format of `records`, with the target.

    They come from the test file, or from the rows that initialize.py has split off. Rows with
    an unknown target are left out.

    Args:
        folder: The folder of the files.
        data: The description of the data set.
    """
    path = folder / held_out_file(data)
    if not data.test and not path.exists():
        raise DataError(f"{path} is missing; initialize.py splits it off {data.train}")
    found = read_data(path, data)
    frame = found.frame[found.frame[data.target].notna()]
    return list(records(frame, found.types))
