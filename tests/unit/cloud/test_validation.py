"""Validation rows are scored as a client's messages are."""

from pathlib import Path

import numpy as np
import pytest

from cloud.validation import validate
from tests.unit.utils.model_store.samples import make_draft
from train import evaluate
from utils.data_set import DataError
from utils.model_store import Bundle, ModelStore
from utils.settings import Data

DATA = Data(train="train.csv", target="kind")
ROWS = [
    ("0.5", "12", "red", "round", "class 1"),
    (" -1.5 ", "", "green", "square", "class 0"),
    ("1", "30.0", "never seen", "round", "class 1"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    store = ModelStore(tmp_path_factory.mktemp("models"))
    return store.load(store.publish(make_draft()))


def write(folder: Path, *rows: tuple[str, ...], separator: str = ",") -> Path:
    path = folder / "validation.csv"
    header = ("size", "age", "colour", " shape", "kind")
    path.write_text("".join(separator.join(row) + "\n" for row in (header, *rows)))
    return path


def test_metrics_are_those_of_the_messages(tmp_path: Path, bundle: Bundle) -> None:
    found = validate(bundle, write(tmp_path, *ROWS), DATA)
    messages = [
        b'{"request_id": "1", "data": {"size": 0.5, "age": 12, "colour": "red", "shape": "round"}}',
        b'{"request_id": "2", "data": {"size": -1.5, "colour": "green", "shape": "square"}}',
        b'{"request_id": "3", "data": {"size": 1, "age": 30, "colour": "?", "shape": "round"}}',
    ]
    read = [bundle.decoder(message).data for message in messages]
    scores = bundle.score(bundle.features.transform_rows(read))
    assert found.metrics == evaluate.metrics(scores, np.array([1, 0, 1]))
    assert found.in_words() == "3 rows of the channel validation were scored"


def test_unusable_rows_are_counted_by_reason(tmp_path: Path, bundle: Bundle) -> None:
    bad = [
        ("big", "1", "red", "round", "class 1"),
        ("0", "1", "red", "round", "class 7"),
        ("0", "1", "red", "round", ""),
        ("big", "1", "blue", "round", "class 0"),
        ("0", "old", "red", "round", "class 0"),
    ]
    found = validate(bundle, write(tmp_path, *ROWS, *bad), DATA)
    assert found.metrics == validate(bundle, write(tmp_path, *ROWS), DATA).metrics
    assert found.in_words() == (
        "3 rows of the channel validation were scored, 5 were unusable: size: 'big' is no number "
        "(2); outcome 'class 7' is none of the classes 'class 0', 'class 1' (1); no value of kind "
        "(1); and 1 more reasons"
    )


def test_all_rows_may_be_unusable(tmp_path: Path, bundle: Bundle) -> None:
    found = validate(bundle, write(tmp_path, ("x", "1", "red", "round", "class 1")), DATA)
    assert (found.metrics.rows, found.metrics.log_loss, found.unusable.total()) == (0, None, 1)


def test_format_is_that_of_the_training_file(tmp_path: Path, bundle: Bundle) -> None:
    expected = validate(bundle, write(tmp_path, *ROWS), DATA).metrics
    path = write(tmp_path, *ROWS, separator=";")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(["# a comment\n", *lines[1:], "\n"]), "utf-16")
    columns = ("size", "age", "colour", "shape", "kind")
    changes = {"separator": ";", "columns": columns, "comment": "#", "encoding": "utf-16"}
    assert validate(bundle, path, DATA.model_copy(update=changes)).metrics == expected


def test_file_that_is_no_csv_is_one_line(tmp_path: Path, bundle: Bundle) -> None:
    path = write(tmp_path, ("1", "2", '"' + "x" * 200_000 + '"', "round", "class 1"))
    with pytest.raises(DataError, match=r"validation\.csv is not valid CSV: field larger"):
        validate(bundle, path, DATA)
