"""A training job's hyperparameters: the settings of [data] and [training], and of the search.

All values are text. A list or a table is JSON, or is separated by commas; text may be JSON, too,
because SageMaker's Python SDK encodes it so.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from utils.errors import UserError
from utils.settings import Data, Settings, Training, describe_invalid

Section = TypeVar("Section", Data, Training)

#: Those that SageMaker adds itself begin so; they say nothing about the training.
OF_SAGEMAKER = ("sagemaker_", "_tuning_objective_metric")


class _Unreadable(ValueError):
    """The text says nothing of the kind that is wanted; it says what is wanted."""


def _text(text: str) -> str:
    if text.startswith('"'):
        decoded = _json(text)
        return decoded if isinstance(decoded, str) else text
    return text


def _names(text: str) -> object:
    text = _text(text).strip()
    if text.startswith("["):
        if (decoded := _json(text)) is None:
            raise _Unreadable('wants names separated by commas, or JSON such as ["a", "b"]')
        return decoded
    return [name.strip() for name in text.split(",") if name.strip()]


def _pairs(text: str) -> object:
    text = _text(text).strip()
    if text.startswith("[") and (decoded := _json(text)) is not None:
        return decoded
    pairs = [[name.strip() for name in pair.split("*")] for pair in text.split(",") if pair.strip()]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise _Unreadable('wants a*b,c*d, or JSON such as [["a", "b"], ["c", "d"]]')
    return pairs


def _table(text: str) -> object:
    text = _text(text).strip()
    if text.startswith("{") and (decoded := _json(text)) is not None:
        return decoded
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise _Unreadable('wants name=type,name=type, or JSON such as {"name": "type"}')
    return {name.strip(): kind.strip() for name, _, kind in pairs}


def _separator(text: str) -> str:
    text = _text(text)
    return "\t" if text == r"\t" else text  # a form on the web takes no tab


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class Hyperparameter:
    """A hyperparameter: its name, the section of its setting, how it is read, and its meaning."""

    name: str
    section: str
    meaning: str
    read: Callable[[str], object] = _text


HYPERPARAMETERS = (
    Hyperparameter("target", "data", "the column to predict"),
    Hyperparameter("positive", "data", "of two classes, the one whose probability is predicted"),
    Hyperparameter("drop", "data", "columns that are not learnt from: a,b", _names),
    Hyperparameter("categorical", "data", "columns of numeric category codes: a,b", _names),
    Hyperparameter("cross", "data", "pairs of columns to learn together: a*b,c*d", _pairs),
    Hyperparameter("types", "data", "types inferred wrongly: zip=category,day=date", _table),
    Hyperparameter("max_categories", "data", "categories of a column learnt one by one; 0: all"),
    Hyperparameter("missing", "data", "texts that mean missing: ?,NA", _names),
    Hyperparameter("comment", "data", "lines that begin with it are skipped"),
    Hyperparameter("target_suffix", "data", "what may follow a class, as in >50K."),
    Hyperparameter("separator", "data", r"of the CSV files; \t is a tab", _separator),
    Hyperparameter("decimal", "data", "of numbers in text, . or ,"),
    Hyperparameter("encoding", "data", "of the CSV files"),
    Hyperparameter("columns", "data", "their columns, if they have no header: a,b", _names),
    Hyperparameter("seed", "training", "of the search and the fit"),
    Hyperparameter("folds", "training", "of the cross-validation in a search"),
    Hyperparameter("evals", "search", "candidates of the search (10)"),
    Hyperparameter("hyper", "search", "the optimiser (hyperopt)"),
)
_BY_NAME = {one.name: one for one in HYPERPARAMETERS}


@dataclass(frozen=True)
class Plan:
    """What a training job is to do.

    Attributes:
        data: The data set.
        training: How it is learnt.
        hyper: The optimiser's name.
        evals: Evaluations of the search.
        by_itself: Whether the hyperparameters alone describe the data set, without pipeline.toml.
        ignored: The hyperparameters of SageMaker itself.
    """

    data: Data
    training: Training
    hyper: str
    evals: int
    by_itself: bool
    ignored: tuple[str, ...]


def help_text() -> str:
    """The hyperparameters as a block of text, for `--help`."""
    lines = [f"  {one.name:<18}{one.meaning}" for one in HYPERPARAMETERS]
    return "\n".join(("hyperparameters:", *lines))


def plan_of(sent: Mapping[str, object], settings: Settings, path: Path) -> Plan:
    """Read hyperparameters.

    With `target` they describe the data set by themselves; without it they change single settings
    of pipeline.toml's [data].

    Args:
        sent: The hyperparameters as text.
        settings: The settings that hold for what they do not name.
        path: Their file, for messages.

    Raises:
        UserError: One of them is unknown or wrong; the text names it.
    """
    ignored = tuple(name for name in sent if name.startswith(OF_SAGEMAKER))
    read = _read({name: value for name, value in sent.items() if name not in ignored})
    data = read["data"]
    if "target" not in data:
        data = {**settings.data.model_dump(), **data}
    search = read["search"]
    return Plan(
        _checked(Data, {**data, "train": "train.csv", "test": "", "files": ()}, path),
        _checked(Training, {**settings.training.model_dump(), **read["training"]}, path),
        _optimiser(str(search.get("hyper", "hyperopt"))),
        _evaluations(str(search.get("evals", "10"))),
        by_itself="target" in read["data"],
        ignored=ignored,
    )


def _read(sent: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """The values by section and name."""
    found: dict[str, dict[str, object]] = {"data": {}, "training": {}, "search": {}}
    for name, value in sent.items():
        known = _BY_NAME.get(name)
        if known is None:
            raise UserError(f"hyperparameter {name!r} is unknown; known are {', '.join(_BY_NAME)}")
        if not isinstance(value, str):  # by hand: SageMaker sends text
            value = json.dumps(value)
        try:
            found[known.section][name] = known.read(value)
        except _Unreadable as error:
            raise UserError(f"hyperparameter {name}: {error}, not {value!r}") from None
    if found["data"].get("target") == "":
        raise UserError("hyperparameter target: names no column")
    return found


def _checked(section: type[Section], values: Mapping[str, object], path: Path) -> Section:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        paths = [tuple(map(str, fault["loc"])) for fault in error.errors()]
        names = {path: f"hyperparameter {path[0]}" for path in paths if path}
        raise UserError(describe_invalid(error, names, path)) from None


def _optimiser(name: str) -> str:
    from train import optimisers  # it takes longer to import than all the rest of the command

    optimisers.check(name)
    return name


def _evaluations(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text, re.ASCII):
        raise UserError(f"hyperparameter evals: wants a number from 1 to 999999, not {text!r}")
    return int(text)
