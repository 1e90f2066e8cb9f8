"""Scores the rows of the channel `validation` as a client would send them.

Each row becomes a message whose values are text, so the rules are those of messages, not the more
lenient ones of files: text that is no number where a number belongs makes a row unusable.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from train import evaluate
from utils.data_set import DataError, read_text
from utils.feature_tools import Matrix, Row
from utils.message_decoder import unknown_class
from utils.messages import BadRecord
from utils.metrics import Metrics
from utils.model_store import Bundle
from utils.settings import Data
from utils.values import NO_CLASS

#: Rows that are scored at once.
BATCH = 16_000
#: How many reasons a line names.
NAMED = 3


@dataclass(frozen=True)
class Validated:
    """What a model makes of the validation rows.

    Attributes:
        metrics: Its metrics on the usable rows.
        unusable: How many rows could not be used, by reason.
    """

    metrics: Metrics
    unusable: Counter[str]

    def in_words(self) -> str:
        """How many rows were scored, and why others were not, in one line."""
        line = f"{self.metrics.rows:,} rows of the channel validation were scored"
        if not self.unusable:
            return line
        reasons = [f"{reason} ({count:,})" for reason, count in self.unusable.most_common(NAMED)]
        more = f"; and {len(self.unusable) - NAMED} more reasons" * (len(self.unusable) > NAMED)
        return f"{line}, {self.unusable.total():,} were unusable: {'; '.join(reasons)}{more}"


def validate(bundle: Bundle, path: Path, data: Data) -> Validated:
    """Score a CSV file.

    Args:
        bundle: The model.
        path: The file.
        data: Its format.

    Raises:
        DataError: The file cannot be read.
    """
    unusable: Counter[str] = Counter()
    rows = _usable(bundle, _messages(path, data), unusable)
    scores: list[Matrix] = []
    codes: list[int] = []
    try:
        while batch := list(islice(rows, BATCH)):
            scores.append(bundle.score(bundle.features.transform_rows([row for row, _ in batch])))
            codes.extend(code for _, code in batch)
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}") from None
    metrics = evaluate.metrics(np.concatenate(scores), np.array(codes)) if scores else Metrics()
    return Validated(metrics, unusable)


def _messages(path: Path, data: Data) -> Iterator[bytes]:
    """The rows of a file as messages of `app_messages`."""
    lines = io.StringIO(read_text(path, data), newline="")
    reader = csv.reader(lines, delimiter=data.separator, skipinitialspace=True)
    names = list(data.columns)
    for number, row in enumerate((row for row in reader if row), 1 - bool(names)):
        if not names:
            names = [name.strip() for name in row]
            continue
        sent = dict(zip(names, row, strict=False))
        yield msgspec.json.encode({"request_id": f"row-{number}", "data": sent})


def _usable(
    bundle: Bundle, messages: Iterator[bytes], unusable: Counter[str]
) -> Iterator[tuple[Row, int]]:
    """The rows with their classes; why others cannot be used is counted."""
    for message in messages:
        try:
            row = bundle.decoder(message).data
        except BadRecord as fault:
            unusable[str(fault)] += 1
            continue
        code = bundle.features.class_codes[row.outcome]
        if code >= 0:
            yield row, code
        elif code == NO_CLASS:
            unusable[unknown_class(row.outcome, bundle.features)] += 1
        else:
            unusable[f"no value of {bundle.features.target}"] += 1
