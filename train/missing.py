"""Decides where a model's trees send a value that training never missed.

LightGBM sends such a value to where 0 goes: a number to the side of the column's minimum, a
category to the side of all categories that the split does not list. Summed over the trees
that is an extreme score: on Adult a missing age scored exactly as age 17.

Here each tree sends it to where one of the column's values goes, so nothing changes for rows
without gaps. The value is chosen tree by tree such that the sum over the trees comes as close
as possible to the average probability over the column's values. The choice is written into
the model, so LightGBM's own predictions and contributions follow it.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from utils.boosting import lgb
from utils.feature_tools import IntegerCodes, Matrix

#: Rows on which the scores are compared, and values of the column that are averaged. Twice
#: as many of either gain nothing on the data sets of `python -m benchmarks missing`.
ROWS = 64
VALUES = 16
#: The values are quantiles of at most this many rows.
SORTED_ROWS = 10_000
#: A column that training missed in fewer rows counts as never missed. So few rows decide next
#: to nothing: LightGBM's sides for them were five times as far from the average as these.
LEARNT_ROWS = 20

# The bits of LightGBM's decision_type.
CATEGORICAL, DEFAULT_LEFT, MISSING_IS_NAN = 1, 2, 8
#: LightGBM writes a set of codes as words of so many bits, the lowest code first.
WORD = 32

Change = tuple[int, Matrix]


def settle_missing(booster: lgb.Booster, X: Matrix, first_code: int) -> lgb.Booster:
    """Score values that training never missed near the average over the column's values.

    Args:
        booster: A fitted model.
        X: (rows, features), the rows that it was fitted to.
        first_code: The first column that holds codes, of which 0 is missing.

    Returns:
        The model. Its predictions are the same for rows that have all those values.
    """
    is_missing = np.isnan(X)
    is_missing[:, first_code:] |= X[:, first_code:] == 0
    columns = np.flatnonzero(is_missing.sum(axis=0) < LEARNT_ROWS)
    model = ModelText.parse(booster.model_to_string(num_iteration=-1))
    scoring = _Scoring.of(booster, model, _spread(X, ROWS))
    for column in columns.tolist():
        values = X[~is_missing[:, column], column]
        if len(values):
            _settle_column(model, scoring, column, values)
    return lgb.Booster(model_str=str(model))


def _spread(rows: npt.NDArray[np.float64], count: int) -> Matrix:
    """At most `count` of the rows, at even distances."""
    count = min(count, len(rows))
    return rows[((np.arange(count) + 0.5) * len(rows) / count).astype(np.int64)]


class Tree:
    """A tree of a model's text, of which only what is asked for is parsed.

    Args:
        text: A line `name=values` for each of its arrays.
    """

    def __init__(self, text: str) -> None:
        self._lines = dict(line.split("=", 1) for line in text.strip().splitlines())

    def __str__(self) -> str:
        return "".join(f"{name}={values}\n" for name, values in self._lines.items())

    def _numbers(self, name: str) -> list[float]:
        return [float(text) for text in self._lines.get(name, "").split()]

    def _integers(self, name: str) -> list[int]:
        return [int(text) for text in self._lines.get(name, "").split()]

    @property
    def leaves(self) -> list[float]:
        """The raw score of each leaf."""
        return self._numbers("leaf_value")

    @cached_property
    def nodes_of(self) -> dict[int, list[int]]:
        """The nodes that split each column."""
        found: dict[int, list[int]] = {}
        for node, column in enumerate(self._integers("split_feature")):
            found.setdefault(column, []).append(node)
        return found

    def scale(self, factor: float) -> None:
        """Multiply the tree's raw scores."""
        for name in ("leaf_value", "internal_value"):
            if name in self._lines:
                scaled = [value * factor for value in self._numbers(name)]
                self._lines[name] = " ".join(map(repr, scaled))

    def send_missing(self, column: int, value: float) -> None:
        """Send the column's missing values to where `value` goes, in all of its nodes."""
        kinds, thresholds = self._integers("decision_type"), self._numbers("threshold")
        for node in self.nodes_of[column]:
            # Of numbers the highest value that goes left, of categories the place of the set.
            if kinds[node] & CATEGORICAL:
                self._send_code(int(thresholds[node]), int(value))
            else:
                left = value <= thresholds[node]
                kinds[node] = MISSING_IS_NAN | (DEFAULT_LEFT if left else 0)
        self._lines["decision_type"] = " ".join(map(str, kinds))

    def _send_code(self, place: int, code: int) -> None:
        """Send the code 0, which is missing, to where another code goes in a set of codes."""
        bounds, words = self._integers("cat_boundaries"), self._integers("cat_threshold")
        first, end = bounds[place : place + 2]
        word = first + code // WORD
        is_listed = word < end and words[word] >> code % WORD & 1
        words[first] = words[first] & ~1 | is_listed
        self._lines["cat_threshold"] = " ".join(map(str, words))


@dataclass
class ModelText:
    """A model's text, split into its trees.

    Attributes:
        head: The text before the trees.
        trees: The trees; with more than two classes, one for each class after the other.
        tail: The text after them.
        trees_per_round: How many trees a boosting round has.
    """

    head: str
    trees: list[Tree]
    tail: str
    trees_per_round: int

    @classmethod
    def parse(cls, text: str) -> "ModelText":
        """Split a model's text."""
        head, *trees = re.split(r"^Tree=\d+\n", text, flags=re.MULTILINE)
        trees[-1], tail = trees[-1].split("end of trees\n")
        head = re.sub(r"^tree_sizes=.*\n", "", head, flags=re.MULTILINE)  # bytes, which may change
        found = re.search(r"^num_tree_per_iteration=(\d+)$", head, flags=re.MULTILINE)
        return cls(head, [Tree(tree) for tree in trees], tail, int(found[1]) if found else 1)

    def __str__(self) -> str:
        trees = "".join(f"Tree={number}\n{tree}\n\n" for number, tree in enumerate(self.trees))
        return f"{self.head}{trees}end of trees\n{self.tail}"

    def class_of(self, tree: int) -> int:
        """The class whose raw score a tree adds to; that of two classes is class 1."""
        return tree % self.trees_per_round if self.trees_per_round > 1 else 1


@dataclass
class _Scoring:
    """Scores some rows tree by tree, also with other values in a column.

    Attributes:
        booster: The model.
        leaves: (leaves,), the raw scores of the leaves of all trees, one tree after the other.
        starts: (trees,), where those of each tree begin.
        rows: (rows, features).
        scores: (trees, rows), their raw scores.
        raw: (classes, rows), the sums over the trees; those of the first of two classes are 0.
    """

    booster: lgb.Booster
    leaves: Matrix
    starts: IntegerCodes
    rows: Matrix
    scores: Matrix
    raw: Matrix

    @classmethod
    def of(cls, booster: lgb.Booster, model: ModelText, rows: Matrix) -> "_Scoring":
        scores = [tree.leaves for tree in model.trees]
        starts = np.cumsum([0, *map(len, scores[:-1])])
        leaves = np.concatenate(scores)
        found = cls(booster, leaves, starts, rows, np.empty(0), np.empty(0))
        found.scores = found._by_tree(rows)
        found.raw = np.zeros((max(model.trees_per_round, 2), len(rows)))
        for code in {model.class_of(tree) for tree in range(model.trees_per_round)}:
            trees = found.scores[code % model.trees_per_round :: model.trees_per_round]
            found.raw[code] = trees.sum(axis=0)
        return found

    def _by_tree(self, rows: Matrix) -> Matrix:
        places = np.asarray(self.booster.predict(rows, pred_leaf=True, num_threads=1))
        found: Matrix = self.leaves[self.starts + places.reshape(len(rows), -1)].T
        return found

    def with_values(self, column: int, values: Matrix) -> Matrix:
        """The raw scores of each row with each of the values: (trees, rows, values)."""
        changed = np.repeat(self.rows, len(values), axis=0)
        changed[:, column] = np.tile(values, len(self.rows))
        return self._by_tree(changed).reshape(-1, len(self.rows), len(values))


def _settle_column(model: ModelText, scoring: _Scoring, column: int, known: Matrix) -> None:
    """Choose, for each tree that splits the column, the value that a missing one follows."""
    trees = [number for number, tree in enumerate(model.trees) if column in tree.nodes_of]
    known = np.sort(_spread(known, SORTED_ROWS))
    values, counts = np.unique(_spread(known, VALUES), return_counts=True)
    shares = counts / counts.sum()
    if not trees:
        return
    totals = np.repeat(scoring.raw[:, :, None], len(values), axis=2)
    scores = scoring.with_values(column, values)
    changes = {}
    for number in trees:
        code = model.class_of(number)
        totals[code] += scores[number] - scoring.scores[number][:, None]
        changes[number] = code, scores[number] - (scores[number] @ shares)[:, None]
    powers = np.exp(totals - totals.max(axis=0))
    wanted = (powers / powers.sum(axis=0)) @ shares
    chosen = _choose(changes, totals @ shares, wanted)
    for number, value in zip(changes, values[chosen], strict=True):
        model.trees[number].send_missing(column, value)


def _choose(changes: dict[int, Change], average: Matrix, wanted: Matrix) -> list[int]:
    """Choose a value for each tree such that the sum of the trees predicts as wanted.

    One tree after the other takes the value with the least squared error of the probabilities,
    as long as the trees after it are at their average: each makes up for those before it.

    Args:
        changes: By tree, its class and (rows, values), the raw score above the tree's average.
        average: (classes, rows), the raw scores with every tree at its average.
        wanted: (classes, rows), the probabilities.

    Returns:
        The index of each tree's value.
    """
    powers = np.exp(average - average.max(axis=0))
    chosen = []
    for code, change in changes.values():
        old = powers[code]
        others = powers.sum(axis=0) - old
        squares = (powers**2).sum(axis=0) - old**2
        products = (powers * wanted).sum(axis=0) - old * wanted[code]
        new = old[:, None] * np.exp(change)
        total = new + others[:, None]
        error = (new / total - wanted[code][:, None]) ** 2
        error += (squares[:, None] / total - 2 * products[:, None]) / total
        # Rounded, so that the last bits, in which processors differ, decide no tie.
        chosen.append(int(error.sum(axis=0).round(9).argmin()))
        powers[code] = new[:, chosen[-1]]
    return chosen
