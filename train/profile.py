"""What was understood of a data set: its columns, its target, and what looks wrong."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from train import evaluate
from utils.data_set import DataSet
from utils.feature_tools import IntegerCodes, Matrix, usual_range
from utils.message_store.tables import MOST_COLUMNS
from utils.metrics import Metrics
from utils.preprocess_data import classes_of
from utils.settings import Data
from utils.values import DAY, date_text, shown

#: A column whose AUC by itself is above this gives the target away.
LEAK = 0.99
#: Rows that the AUC of a column is measured on, at most.
LEAK_ROWS = 20_000
#: Bins of a column of numbers for that, at most, and the fewest rows of one.
LEAK_BINS = 64
ROWS_PER_BIN = 20
#: A column with a larger share of different values is an id or free text.
MOSTLY_DIFFERENT = 0.9
#: Fewer rows say nothing about that.
LEAST_ROWS = 50
#: How many classes the line about the target names.
NAMED = 12

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_OTHER_DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([ T].*)?", re.ASCII)


@dataclass(frozen=True)
class ColumnProfile:
    """A column as understood.

    Attributes:
        name: Its name.
        type: Its type, and `reason` why it has that.
        missing: The share of rows without a value.
        distinct: The number of different values.
        learnt: How many of them are learnt one by one; all, but for a column of many categories.
        other: The share of rows with one of its other categories, which count as one.
        values: Its range, or its commonest values, as text.
        warnings: What looks wrong, each with what to do.
    """

    name: str
    type: str
    reason: str
    missing: float
    distinct: int
    values: str
    warnings: tuple[str, ...] = ()
    learnt: int = 0
    other: float = 0.0


@dataclass(frozen=True)
class Profile:
    """A data set as understood.

    Attributes:
        rows: The number of rows with a target.
        dropped: The number of rows without one.
        classes: The number of rows of each class, by its name, in the order of the codes.
        columns: The columns in the file's order.
        warnings: What looks wrong, a line each.
    """

    rows: int
    dropped: int
    classes: dict[str, int]
    columns: list[ColumnProfile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def describe(found: DataSet, data: Data, folds: int) -> Profile:
    """Look at every column of a data set.

    Args:
        found: The training file.
        data: The section [data] of pipeline.toml.
        folds: The folds of the cross-validation.

    Raises:
        DataError: The target cannot be learnt.
    """
    target = found.frame[data.target]
    classes = classes_of(target, data)
    frame, target = found.frame[target.notna()], target[target.notna()]
    codes = pd.Categorical(target, categories=classes).codes.astype(np.int64)
    sample = np.random.default_rng(0).permutation(len(frame))[:LEAK_ROWS]
    columns = [
        _describe_column(frame[name], name, found, codes, sample, data.max_categories)
        for name in found.types
    ]
    counts = dict(zip(classes, np.bincount(codes, minlength=len(classes)).tolist(), strict=True))
    profile = Profile(len(frame), len(found.frame) - len(frame), counts, columns)
    profile.warnings.extend(_warnings(profile, found, data, folds))
    return profile


def majority(train: IntegerCodes, valid: IntegerCodes, n_classes: int) -> Metrics:
    """The metrics of predicting each row's class by the shares of the classes in training."""
    valid = valid[valid >= 0]
    shares = np.bincount(train, minlength=n_classes) / max(len(train), 1)
    probabilities = np.tile(shares if n_classes > 2 else shares[1], (len(valid), 1))
    return evaluate.metrics(probabilities if n_classes > 2 else probabilities[:, 0], valid)


def tables(profile: Profile) -> list[Table]:
    """The columns, and the classes of the target, as tables."""
    columns = Table(box=box.SIMPLE_HEAD, title=f"{profile.rows:,} rows", title_justify="left")
    for heading in ("column", "type", "why", "missing", "different", "range or commonest"):
        right = heading in ("missing", "different")
        columns.add_column(heading, justify="right" if right else "left")
    for one in profile.columns:
        columns.add_row(
            escape(one.name),
            one.type,
            escape(one.reason),
            f"{one.missing:.1%}" if one.missing else "",
            f"{one.distinct:,}" + (f", {one.learnt:,} learnt" if one.other else ""),
            escape(one.values),
        )
    classes = Table(box=box.SIMPLE_HEAD)
    for heading in ("class", "rows", "share"):
        classes.add_column(heading, justify="left" if heading == "class" else "right")
    ranked = sorted(profile.classes.items(), key=lambda item: -item[1])
    for name, count in ranked[:NAMED]:
        classes.add_row(escape(name), f"{count:,}", f"{count / profile.rows:.1%}")
    if len(ranked) > NAMED:
        rest = sum(count for _, count in ranked[NAMED:])
        classes.add_row(
            f"and {len(ranked) - NAMED} more", f"{rest:,}", f"{rest / profile.rows:.1%}"
        )
    return [columns, classes]


def _describe_column(
    column: "pd.Series",
    name: str,
    found: DataSet,
    codes: IntegerCodes,
    sample: IntegerCodes,
    max_categories: int,
) -> ColumnProfile:
    known = column.dropna()
    kind, different = found.types[name], int(known.nunique())
    warnings = _shape_warnings(name, kind, found.reasons[name], known, different)
    if different > 1:
        area = _area_alone(column.iloc[sample], codes[sample])
        if area > LEAK:
            warnings.append(
                f"{name} gives the target away by itself (AUC {area:.3f}): drop it, unless it is "
                "really known when a prediction is asked for"
            )
    learnt, other = different, 0.0
    if kind == "category" and 0 < max_categories < different:
        learnt = max_categories
        other = float(known.value_counts().iloc[learnt:].sum() / len(column))
        warnings.append(
            f"{name} has {different:,} different values: the {learnt:,} most frequent ones are "
            f"learnt, all others ({other:.1%} of the rows) count as one ([data] max_categories)"
        )
    return ColumnProfile(
        name,
        kind,
        found.reasons[name],
        1 - len(known) / len(column) if len(column) else 0.0,
        different,
        _values_text(known, kind),
        tuple(warnings),
        learnt,
        other,
    )


def _shape_warnings(
    name: str, kind: str, reason: str, known: "pd.Series", different: int
) -> list[str]:
    drop = f"[data] drop can name {name!r}"
    if not different:
        return [f"{name} is empty: {drop}"]
    if different == 1:
        return [f"{name} always has the same value, {shown(known.tolist()[0])}: {drop}"]
    if kind == "number" and usual_range(known.to_numpy(np.float64)) != (known.min(), known.max()):
        return [f"{name} goes from {known.min():g} to {known.max():g}: are the extremes real?"]
    if kind == "category":
        texts = known.head(1_000).tolist()
        if all(map(_EMAIL.fullmatch, texts)):
            return [f"{name} holds e-mail addresses, from which little can be learnt: {drop}"]
        if "ISO" not in reason and all(map(_OTHER_DATE.fullmatch, texts)):
            return [
                f"{name} looks like dates, but not ISO ones (2026-11-27): write them so, or {drop}"
            ]
    is_whole = kind == "number" and bool((known % 1 == 0).all())
    share = different / len(known)
    if len(known) >= LEAST_ROWS and (
        (kind == "category" and share > MOSTLY_DIFFERENT) or (is_whole and share == 1)
    ):
        what = "an id or free text" if kind == "category" else "an id"
        return [
            f"{name} has {different:,} different values in {len(known):,} rows, like {what}: {drop}"
        ]
    return []


def _values_text(known: "pd.Series", kind: str) -> str:
    if not len(known):
        return ""
    if kind == "number":
        return f"{known.min():g} to {known.max():g}"
    if kind == "date":
        with_time = bool((known % DAY != 0).any())
        return " to ".join(
            date_text(end, with_time=with_time) for end in (known.min(), known.max())
        )
    counts = known.value_counts().head(3)
    return ", ".join(
        f"{shown(name)[1:-1]} {count / len(known):.0%}" for name, count in counts.items()
    )


def _warnings(profile: Profile, found: DataSet, data: Data, folds: int) -> list[str]:
    lines = [warning for column in profile.columns for warning in column.warnings]
    lines += [
        f"{column.name}: {column.reason}"
        for column in profile.columns
        if any(hint in column.reason for hint in ("decimal", "thousands", "different values"))
    ]
    lines += [
        f"column {number} has no name: it is called {name!r}, as pandas does; give it one"
        for number, name in enumerate(found.types, 1)
        if name.startswith("Unnamed: ")
    ]
    if len(profile.columns) > MOST_COLUMNS:
        lines.append(
            f"{len(profile.columns):,} columns: the database of messages keeps their values "
            "packed, without a column for each that could be queried"
        )
    if found.blank_names:
        lines.append(
            f"the header has blanks around {', '.join(map(repr, found.blank_names[:NAMED]))}: "
            "messages must name the columns without them"
        )
    lines += [
        f"{count:,} values of {name} are no {found.types[name]}s and count as missing"
        for name, count in found.unread.items()
    ]
    lines += [
        f"several columns are called {name!r}: the later ones are {name + '.1'!r} and so on; a "
        "message can hold only one of a name, so rename them in the file"
        for name in found.duplicates
    ]
    if profile.dropped:
        lines.append(f"{profile.dropped:,} rows have no {data.target} and were left out")
    rare = [f"{name!r} ({count})" for name, count in profile.classes.items() if count < folds]
    if rare:
        lines.append(
            f"classes with fewer rows than the {folds} folds: {', '.join(rare[:NAMED])}: the model "
            "learns little about them; merge them, or collect more"
        )
    return lines


def _area_alone(column: "pd.Series", codes: IntegerCodes) -> float:
    """The AUC of predicting the target from one column, the mean over the classes.

    On one half of the rows the shares of the classes are learnt for each category, or each of
    `LEAK_BINS` bins, and measured on the other, so that an id does not look like a leak.
    """
    bins = _binned(column)
    half = len(codes) // 2
    classes = [code for code in np.unique(codes) if (codes[:half] == code).sum() > 0]
    areas = []
    for code in classes if len(classes) > 2 else classes[1:]:
        is_class = codes == code
        if 0 < is_class[half:].sum() < len(codes) - half:
            scores = _means_by_bin(bins[:half], is_class[:half], int(bins.max()) + 1)
            areas.append(evaluate.area_under_curve(scores[bins[half:]], is_class[half:]))
    return float(np.mean(areas)) if areas else 0.0


def _binned(column: "pd.Series") -> IntegerCodes:
    bins = max(2, min(LEAK_BINS, len(column) // ROWS_PER_BIN))
    if pd.api.types.is_numeric_dtype(column.dtype) and column.nunique() > bins:
        found = pd.qcut(column, bins, labels=False, duplicates="drop")
        return np.asarray(found.fillna(-1).to_numpy(), dtype=np.int64) + 1
    return np.asarray(pd.factorize(column)[0], dtype=np.int64) + 1


def _means_by_bin(bins: IntegerCodes, is_class: Sequence[bool] | np.ndarray, n: int) -> Matrix:
    """The share of a class in each bin, drawn towards its share in all of them."""
    overall = float(np.mean(is_class))
    sums = np.bincount(bins, weights=is_class, minlength=n)
    means: Matrix = (sums + overall) / (np.bincount(bins, minlength=n) + 1)
    return means
