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
from collections.abc import Sequence
from dataclasses import dataclass

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

Flags = npt.NDArray[np.bool_]
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
    sample = _Sample.of(model, _spread(X, ROWS))
    for column in columns.tolist():
        values = X[~is_missing[:, column], column]
        if len(values):
            _settle_column(model, sample, column, values)
    return lgb.Booster(model_str=str(model))


def _spread(rows: npt.NDArray[np.float64], count: int) -> Matrix:
    """At most `count` of the rows, at even distances."""
    count = min(count, len(rows))
    return rows[((np.arange(count) + 0.5) * len(rows) / count).astype(np.int64)]


class Tree:
    """A tree of a model's text.

    Attributes:
        feature: (nodes), the column that each node splits.
        children: (nodes), the left and the right child of each; ~n is leaf n.
        leaves: (leaves,), their raw scores.
    """

    def __init__(self, text: str) -> None:
        """Parse the text: a line `name=values` for each of its arrays."""
        self._lines = dict(line.split("=", 1) for line in text.strip().splitlines())
        self.feature: list[int] = self._integers("split_feature").tolist()
        left, right = self._integers("left_child"), self._integers("right_child")
        self.children = list(zip(left.tolist(), right.tolist(), strict=True))
        self.leaves = np.array(self._lines["leaf_value"].split(), dtype=np.float64)
        # Of numbers the highest value that goes left, of categories the place in `_bounds`.
        self._threshold = [float(text) for text in self._lines.get("threshold", "").split()]
        self._kinds: list[int] = self._integers("decision_type").tolist()
        self._bounds: list[int] = self._integers("cat_boundaries").tolist()
        # Words of 32 bits: which categories go left.
        self._words = self._integers("cat_threshold").astype(np.uint32)

    def _integers(self, name: str) -> IntegerCodes:
        return np.array(self._lines.get(name, "").split(), dtype=np.int64)

    def __str__(self) -> str:
        if self.children:
            self._lines["decision_type"] = " ".join(map(str, self._kinds))
        if len(self._words):
            self._lines["cat_threshold"] = " ".join(map(str, self._words.tolist()))
        return "".join(f"{name}={values}\n" for name, values in self._lines.items())

    def scale(self, factor: float) -> None:
        """Multiply the tree's raw scores."""
        self.leaves = self.leaves * factor
        self._lines["leaf_value"] = " ".join(map(repr, self.leaves.tolist()))
        if "internal_value" in self._lines:
            inner = np.array(self._lines["internal_value"].split(), dtype=np.float64) * factor
            self._lines["internal_value"] = " ".join(map(repr, inner.tolist()))

    def goes_left(self, node: int, values: Matrix) -> Flags:
        """Which values of the node's column go left, in the shape of `values`."""
        kind = self._kinds[node]
        if kind & CATEGORICAL:
            place = int(self._threshold[node])
            words = self._words[self._bounds[place] : self._bounds[place + 1]]
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")
            codes = values.astype(np.int64)
            listed: Flags = (codes < len(bits)) & (bits[np.minimum(codes, len(bits) - 1)] == 1)
            return listed
        left: Flags = values <= self._threshold[node]
        if (missing := np.isnan(values)).any():
            as_zero = self._threshold[node] >= 0
            default = bool(kind & DEFAULT_LEFT) if kind & MISSING_IS_NAN else as_zero
            left = np.where(missing, default, left)
        return left

    def send_missing(self, column: int, value: float) -> None:
        """Send the column's missing values to where `value` goes, in all of its nodes."""
        for node in (node for node, split in enumerate(self.feature) if split == column):
            left = bool(self.goes_left(node, np.array([value]))[0])
            if self._kinds[node] & CATEGORICAL:
                word = self._bounds[int(self._threshold[node])]
                self._words[word] = self._words[word] & ~np.uint32(1) | np.uint32(left)
            else:
                self._kinds[node] = MISSING_IS_NAN | (DEFAULT_LEFT if left else 0)

    def score(
        self, decisions: Sequence[Flags], below: list[Matrix], nodes: Sequence[int]
    ) -> Matrix:
        """Score rows by their decisions.

        Args:
            decisions: By node, which rows go left.
            below: By node, the raw scores below it; changed for the `nodes`.
            nodes: Those to compute, children before their parents.

        Returns:
            The raw scores, in the shape to which the decisions broadcast.
        """
        for node in nodes:
            left, right = (
                below[child] if child >= 0 else self.leaves[~child] for child in self.children[node]
            )
            below[node] = np.where(decisions[node], left, right)
        return below[0] if below else self.leaves[:1]

    def nodes_above(self, column: int) -> list[int]:
        """The nodes that split the column and all above them, children before parents."""
        found: dict[int, None] = {}
        for node in range(len(self.children) - 1, -1, -1):  # a child comes after its parent
            if self.feature[node] == column or not found.keys().isdisjoint(self.children[node]):
                found[node] = None
        return list(found)


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
class _Path:
    """The way of some rows through a tree.

    Attributes:
        decisions: By node, (rows, 1), whether a row goes left.
        below: By node, (rows, 1), the raw score below the node.
        score: (rows, 1), the raw score of the tree.
    """

    decisions: list[Flags]
    below: list[Matrix]
    score: Matrix

    @classmethod
    def of(cls, tree: Tree, rows: Matrix) -> "_Path":
        decisions = [
            tree.goes_left(node, rows[:, split, None]) for node, split in enumerate(tree.feature)
        ]
        below: list[Matrix] = [tree.leaves] * len(decisions)
        score = tree.score(decisions, below, range(len(decisions) - 1, -1, -1))
        return cls(decisions, below, np.broadcast_to(score, (len(rows), 1)))


@dataclass
class _Sample:
    """Some rows.

    Attributes:
        paths: Their ways through the trees.
        raw: (classes, rows), their raw scores; those of the first of two classes are 0.
    """

    paths: list[_Path]
    raw: Matrix

    @classmethod
    def of(cls, model: ModelText, rows: Matrix) -> "_Sample":
        found = cls([], np.zeros((max(model.trees_per_round, 2), len(rows))))
        for number, tree in enumerate(model.trees):
            path = _Path.of(tree, rows)
            found.paths.append(path)
            found.raw[model.class_of(number)] += path.score[:, 0]
        return found


def _settle_column(model: ModelText, sample: _Sample, column: int, known: Matrix) -> None:
    """Choose, for each tree that splits the column, the value that a missing one follows."""
    known = np.sort(_spread(known, SORTED_ROWS))
    values, counts = np.unique(_spread(known, VALUES), return_counts=True)
    shares = counts / counts.sum()
    totals = np.repeat(sample.raw[:, :, None], len(values), axis=2)
    changes = {}
    for number, tree in enumerate(model.trees):
        if column in tree.feature:
            code = model.class_of(number)
            scores = _scores_by_value(tree, sample.paths[number], column, values)
            totals[code] += scores - sample.paths[number].score
            changes[number] = code, scores - (scores @ shares)[:, None]
    powers = np.exp(totals - totals.max(axis=0))
    wanted = (powers / powers.sum(axis=0)) @ shares
    chosen = _choose(changes, totals @ shares, wanted)
    for number, value in zip(changes, values[chosen], strict=True):
        model.trees[number].send_missing(column, value)


def _scores_by_value(tree: Tree, path: _Path, column: int, values: Matrix) -> Matrix:
    """The raw score of each row with each of the values: (rows, values)."""
    decisions = [
        tree.goes_left(node, values[None, :]) if split == column else decision
        for node, (split, decision) in enumerate(zip(tree.feature, path.decisions, strict=True))
    ]
    scores = tree.score(decisions, list(path.below), tree.nodes_above(column))
    return np.broadcast_to(scores, (len(path.score), len(values)))


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
