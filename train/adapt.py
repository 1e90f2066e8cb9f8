"""Decides from what has just happened how much of the past counts.

Candidates differ in how much of the past they learn from (`Memory`) and in the model's size.
Each is fitted again and again, and each fit predicts outcomes of messages that were sent after
it, as a served model does: no candidate is scored on what it has learnt from, and a label that
is late for the served model is as late for the candidates. Their log losses are added up, older
ones counting less. There are two policies:

- *everything*: one model of all rows, with the parameters that the search has found.
- *recent*: the candidates' models as one (`train.blend`), the better their record the heavier.
  No single memory is best for long on a changing stream, and their blend beats the best of
  them: the weights are those of exponentially weighted forecasters (Cesa-Bianchi and Lugosi,
  "Prediction, Learning, and Games", 2006, chapter 2; with a discount, section 2.11). What has
  changed since the outcomes that a model has learnt from makes it too sure, the more the later
  labels come. So the raw scores of the blend are multiplied by a *sharpness*, which is decided
  by the record of what each would have given (temperature scaling: Guo et al., "On calibration
  of modern neural networks", ICML 2017).

The policy changes from everything to recent once an `EDetector` says that this predicts better
now, and back when it has predicted worse on the whole since then: everything is one of its
candidates, so what it needs then is mostly a change of weights. Whether the new model then serves
is up to the gate, which compares it with what was really predicted.

Once an `EDetector` says that the blend is worse than guessing, the world has turned round, and
the fits from before say nothing about it. Fits from afterwards would be scored one more delay
of the labels later. So outcomes of messages sent before that alarm are scored by the latest
fits that have not learnt from them. The sharpness is still judged by older ones: it is about
how much changes while labels are late.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from train import blend, evaluate, fit
from train.blend import Part
from train.evidence import EDetector
from train.memory import Memory
from utils.boosting import lgb
from utils.durable_files import read_state, replace_file
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix
from utils.model_store import predicted_codes
from utils.model_store.manifest import (
    MemberRecord,
    MemoryRecord,
    Parameters,
    StandingRecord,
    TopicOffsets,
    split_rounds,
)

Policy = Literal["everything", "recent"]
Places = npt.NDArray[np.int64]

#: Candidates are fitted again at each training and after this many outcomes, but only if an
#: eighth of their half-life is new.
GRID = 125
REFITS_PER_HALF_LIFE = 8
#: The memories and sizes of the candidates. One fit of the most rounds serves for fewer, too.
MEMORIES = tuple(map(Memory, (125, 500, 2000, 8000, None)))
LEAVES = (4, 16)
ROUNDS = (25, 50, 100)
#: A memory of at most this half-life has too few rows for the most rounds.
FEW_ROWS = 500
#: Cautious values for few rows, the same for all memories.
PARAMS: Parameters = {"learning_rate": 0.1, "min_data_in_leaf": 5, "lambda_l2": 1.0}
#: Outcomes after which a loss counts half in a candidate's record.
RECORD_HALF_LIFE = 1000
#: Losses beyond this many nats count as this many in a record.
LARGEST_LOSS = 4.0
#: A candidate whose record is one nat worse than another's has exp(-RATE) of its weight.
RATE = 0.1
#: What the raw scores of a blend may be multiplied by.
SHARPNESS = np.array([0.2, 0.25, 0.32, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25])
#: How far it is from 1 before any outcome: the standard deviation of its logarithm.
SHARPNESS_DEVIATION = 0.3
#: A blend has the fits that weigh the most, this many at most.
MOST_FITS = 4
LEAST_SHARE = 0.05
#: The policy changes at this evidence. While the other policy is no better, that happens once
#: in at least so many outcomes on average.
CHANGE_AT = 50_000.0
#: Fits that know fewer outcomes since the blend was last worse than guessing are not held
#: against it.
TURN = 2 * GRID
#: A race that lost its state begins with so many of the latest outcomes.
CATCH_UP = 2_000
#: Fits that are kept for messages whose outcomes are late; older messages get the oldest.
KEPT_FITS = 64
#: Of fits older than this many outcomes only those of the grid are kept.
FINE_OUTCOMES = 2 * GRID
#: Models whose training is remembered, so that they can be compared with newer ones.
KEPT_MODELS = 500
#: Blocks whose losses are kept apart.
KEPT_SUMS = 1_000
#: Scored blocks that are kept for the gate.
KEPT_BLOCKS = 64


@dataclass(frozen=True)
class Candidate:
    """A memory and a size.

    Attributes:
        memory: How much of the past it learns from.
        params: LightGBM's parameters.
        rounds: The numbers of boosting rounds to compare.
        name: Its name for a reader.
    """

    memory: Memory
    params: Parameters
    rounds: tuple[int, ...]
    name: str

    def step(self, rows: int) -> int:
        """After how many more outcomes it is fitted again; everything by an eighth more rows."""
        span = rows if self.memory.half_life is None else self.memory.half_life
        return span // REFITS_PER_HALF_LIFE


CANDIDATES = tuple(
    Candidate(
        memory,
        {**PARAMS, "num_leaves": leaves},
        ROUNDS[:-1] if memory.half_life and memory.half_life <= FEW_ROWS else ROUNDS,
        f"{memory}, {leaves} leaves",
    )
    for memory in MEMORIES
    for leaves in LEAVES
)
#: The places of two more fits: the first model, and that of the policy everything, which is the
#: last candidate.
_FIRST, _EVERYTHING = -1, len(CANDIDATES)
#: The candidate of each variant, which is a candidate with one of its numbers of rounds.
_FIT_OF = np.repeat(np.arange(_EVERYTHING + 1), [*(len(one.rounds) for one in CANDIDATES), 1])


def _as_searched(parameters: Parameters) -> Candidate:
    """The candidate that learns from all rows with the parameters of a manifest."""
    params, rounds = split_rounds(parameters)
    return Candidate(Memory(), params, (rounds,), "everything, as searched")


class Block(msgspec.Struct, array_like=True):
    """Sums of losses over some outcomes with a real prediction, in nats.

    Attributes:
        rows: Their number.
        served: The losses of the real predictions.
        first: What the first model would have had.
        everything: The policy of that name.
        recent: The policy of that name.
        correct: How many real predictions were right.
    """

    rows: int
    served: float
    first: float
    everything: float
    recent: float
    correct: int

    def plus(self, other: "Block") -> "Block":
        """The sums over the outcomes of both."""
        return Block(
            self.rows + other.rows,
            self.served + other.served,
            self.first + other.first,
            self.everything + other.everything,
            self.recent + other.recent,
            self.correct + other.correct,
        )


class State(msgspec.Struct):
    """What a race remembers between two trainings.

    Attributes:
        problem: What is learnt; a race of another problem starts from scratch.
        done: The number of outcomes that were scored.
        policy: The policy that serves.
        sums: By variant, the discounted sum of losses.
        policy_sums: The same of the policies everything and recent.
        sharpness_sums: The same of the blend, by its sharpness.
        weight: The discounted number of those losses.
        capital: The evidence for the other policy, as `EDetector.capital`.
        doubt: The evidence that the blend is worse than guessing, as `EDetector.capital`.
        turned_at: How many outcomes were scored when it last was.
        first: The parameters of the first model, which learnt from the base data alone, with
            the rounds; `first_model` is its number.
        everything: The parameters that the search has found last, with the rounds.
        blocks: The losses so far, at most `GRID` outcomes each, but for all older ones in the
            first.
        offsets: The offsets up to which the log was read.
        trained: By model, how many outcomes were scored when it was trained; the latest models.
    """

    problem: str
    first: Parameters
    everything: Parameters
    done: int = 0
    policy: Policy = "everything"
    first_model: int = 0
    sums: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(_FIT_OF))
    policy_sums: list[float] = msgspec.field(default_factory=lambda: [0.0, 0.0])
    sharpness_sums: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(SHARPNESS))
    weight: float = 0.0
    capital: list[float] = msgspec.field(default_factory=lambda: EDetector().capital)
    doubt: list[float] = msgspec.field(default_factory=lambda: EDetector().capital)
    turned_at: int = 0
    blocks: list[Block] = msgspec.field(default_factory=list)
    offsets: TopicOffsets = msgspec.field(default_factory=dict)
    trained: dict[int, int] = msgspec.field(default_factory=dict)

    def total(self) -> Block:
        """The sums over all outcomes so far."""
        return reduce(Block.plus, self.blocks, Block(0, 0.0, 0.0, 0.0, 0.0, 0))


@dataclass(frozen=True)
class Stream:
    """Encoded rows: the base data, then the outcomes in the order in which they became known.

    Attributes:
        base: The number of rows of the base data.
        X: (rows, features).
        codes: (rows,), the classes.
        sent_after: (outcomes,), how many outcomes were known when the message was sent.
        model_ids: (outcomes,), the model that really predicted; 0 if that is not known.
        served: (outcomes,) or (outcomes, classes), the probabilities that were really
            predicted; NaN if they are not known.
    """

    base: int
    X: Matrix
    codes: IntegerCodes
    sent_after: Places
    model_ids: Places
    served: Matrix

    @property
    def outcomes(self) -> int:
        """The number of outcomes."""
        return len(self.codes) - self.base


@dataclass(frozen=True)
class _Fit:
    """The candidates' boosters, and how the blend was made.

    Attributes:
        at: How many outcomes were known.
    """

    at: int
    candidates: tuple[Candidate, ...]
    boosters: list[lgb.Booster]
    weights: Matrix
    sharpness: float

    def predict(self, X: Matrix) -> Iterator[Matrix]:
        """The raw scores of each variant."""
        for candidate, booster in zip(self.candidates, self.boosters, strict=True):
            for rounds in candidate.rounds:
                yield booster.predict(X, raw_score=True, num_iteration=rounds, num_threads=1)


@dataclass(frozen=True)
class Scored:
    """The losses of some outcomes that no candidate had learnt from, in nats, (outcomes,).

    Attributes:
        everything: Those of the policy of that name.
        recent: Those of the other one.
        served: Those of the real predictions; NaN where there is none.
        probabilities: Those of each policy, and of the real predictions.
        codes: The classes.
        is_fair: Whether the fits were at least as new as the model that really predicted.
    """

    everything: Matrix
    recent: Matrix
    served: Matrix
    probabilities: Mapping[str, Matrix]
    codes: IntegerCodes
    is_fair: npt.NDArray[np.bool_]

    def of(self, policy: Policy) -> Matrix:
        """The losses of a policy."""
        return self.everything if policy == "everything" else self.recent


class Race:
    """The race of the candidates on one stream.

    Args:
        state: What it remembers.
        features: The preprocessor of all candidates, that of the base data.
        seed: LightGBM's.
    """

    def __init__(self, state: State, features: FeatureTools, seed: int) -> None:
        self.state = state
        self._features = features
        self._seed = seed
        self._fits: list[_Fit] = []
        self._fitted: dict[int, tuple[int, lgb.Booster]] = {}
        self._first: lgb.Booster | None = None
        self._latest: list[Scored] = []

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All candidates; the last one is the policy everything."""
        return *CANDIDATES, _as_searched(self.state.everything)

    def shrink(self, outcomes: int) -> None:
        """Forget the fits of more outcomes than there are: a log that was made again is shorter."""
        self.state.done = min(self.state.done, outcomes)
        self.state.turned_at = min(self.state.turned_at, outcomes)
        self._fits = [one for one in self._fits if one.at <= outcomes]
        self._fitted = {
            place: (at, booster) for place, (at, booster) in self._fitted.items() if at <= outcomes
        }

    def begin(self, stream: Stream) -> None:
        """Fit the candidates where the race goes on, unless that was done before."""
        state, known = self.state, stream.outcomes
        if known - state.done > CATCH_UP or not self._fits:
            state.done = max(state.done, known - CATCH_UP)
            self._fit(stream, state.done)

    def update(self, stream: Stream) -> None:
        """Score the outcomes that are new, and fit the candidates whose turn it is."""
        self.begin(stream)
        state, known = self.state, stream.outcomes
        while state.done < known:
            upto = min(known, (state.done // GRID + 1) * GRID)
            self._score(stream, state.done, upto)
            state.done = upto
            if upto % GRID == 0 or upto == known:
                self._fit(stream, upto)

    def _fit(self, stream: Stream, at: int) -> None:
        if self._first is None:
            self._first = self._refit(_FIRST, _as_searched(self.state.first), stream, 0)
            if self.state.everything == self.state.first:
                self._fitted[_EVERYTHING] = self._fitted[_FIRST]
        boosters = [
            self._refit(place, candidate, stream, at)
            for place, candidate in enumerate(self.candidates)
        ]
        self._fits.append(_Fit(at, self.candidates, boosters, self.weights(), self.sharpness))
        kept = [one for one in self._fits if one.at % GRID == 0 or one.at > at - FINE_OUTCOMES]
        self._fits = kept[-KEPT_FITS:]

    def _refit(self, place: int, candidate: Candidate, stream: Stream, at: int) -> lgb.Booster:
        upto = stream.base + at
        if place in self._fitted:
            last, booster = self._fitted[place]
            if at - last < candidate.step(upto):
                return booster
        places, weights = candidate.memory.weigh(stream.base, stream.codes, upto)
        booster = fit.fit_unsettled(
            stream.X[places],
            stream.codes[places],
            self._features,
            candidate.params,
            candidate.rounds[-1],
            threads=1,
            seed=self._seed,
            weights=None if candidate.memory.half_life is None else weights,
        )
        self._fitted[place] = at, booster
        return booster

    def _score(self, stream: Stream, first: int, last: int) -> None:
        """Score the outcomes [first, last) by the fits that were there when they were sent.

        Those of messages from before the world turned round, by the latest fits.
        """
        base, fitted_at = stream.base, np.array([one.at for one in self._fits])
        places = np.arange(first, last)
        X, codes = stream.X[base + places], stream.codes[base + places]
        sent_after = stream.sent_after[places]
        is_stale = sent_after < self.state.turned_at
        chosen = _places_of(fitted_at, np.where(is_stale, places, sent_after))
        # (variants, outcomes) and more of them by policy
        each = np.empty((len(_FIT_OF), len(places)))
        shape = (
            (len(places),)
            if len(self._features.classes) == 2
            else (len(places), len(self._features.classes))
        )
        blended, everything, sharpness = np.zeros(shape), np.zeros(shape), np.empty(len(places))
        for fits, rows in self._by_fit(chosen):
            for number, raw in enumerate(fits.predict(X[rows])):
                each[number, rows] = blend.losses(raw, codes[rows])
                blended[rows] += fits.weights[number] * raw
            everything[rows] = raw  # of the last candidate
            sharpness[rows] = fits.sharpness
        recent = (blended.T * sharpness).T
        assert self._first is not None
        raw_first = self._first.predict(X, raw_score=True, num_threads=1)
        scored = Scored(
            blend.losses(everything, codes),
            blend.losses(recent, codes),
            _losses_of(stream.served[places], codes),
            {
                "everything": _probabilities(everything),
                "recent": _probabilities(recent),
                "served": stream.served[places],
            },
            codes,
            fitted_at[chosen] >= self._trained(stream.model_ids[places]),
        )
        served_everything = everything.copy()  # what the policy would really have served
        for fits, rows in self._by_fit(_places_of(fitted_at, sent_after), is_stale):
            raws = list(fits.predict(X[rows]))
            blended[rows] = np.tensordot(fits.weights, raws, axes=1)
            served_everything[rows] = raws[-1]
        by_sharpness = [blend.losses(factor * blended, codes) for factor in SHARPNESS.tolist()]
        self._record(each, scored, np.stack(by_sharpness))
        self._weigh_evidence(scored)
        self._notice_turn(scored.recent, fitted_at[chosen], last)
        self._add_block(
            scored, blend.losses(raw_first, codes), blend.losses(served_everything, codes)
        )
        self._latest = [*self._latest, scored][-KEPT_BLOCKS:]

    def _by_fit(
        self, versions: Places, among: npt.NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[_Fit, npt.NDArray[np.bool_]]]:
        """Each fit that is the version of an outcome, and which outcomes those are."""
        for version in np.unique(versions if among is None else versions[among]).tolist():
            rows = versions == version
            yield self._fits[version], rows if among is None else rows & among

    def _trained(self, model_ids: Places) -> Places:
        """How many outcomes were scored when each of the models was trained."""
        trained = self.state.trained
        return np.array([trained.get(one, 0) for one in model_ids.tolist()], dtype=np.int64)

    def _record(self, each: Matrix, scored: Scored, by_sharpness: Matrix) -> None:
        state = self.state
        state.sums = _add_losses(state.sums, each)
        policies = np.stack([scored.everything, scored.recent])
        state.policy_sums = _add_losses(state.policy_sums, policies)
        state.sharpness_sums = _add_losses(state.sharpness_sums, by_sharpness)
        (state.weight,) = _add_losses([state.weight], np.ones((1, each.shape[1])))

    def _weigh_evidence(self, scored: Scored) -> None:
        """Compare the policies by fits of the same age; real predictions may be older."""
        state = self.state
        detector = EDetector(state.capital, 1.0 if state.policy == "everything" else 0.0)
        detector.update(scored.of(state.policy) - scored.of(other(state.policy)))
        state.capital = detector.capital

    def _notice_turn(self, losses: Matrix, fitted_at: Places, last: int) -> None:
        """Notice that the blend is worse than guessing, which all classes alike would be."""
        state = self.state
        detector = EDetector(state.doubt)
        heeded = fitted_at >= (state.turned_at + TURN if state.turned_at else 0)
        detector.update(losses[heeded] - math.log(len(self._features.classes)))
        if detector.value >= CHANGE_AT:
            state.turned_at, detector = last, EDetector()
        state.doubt = detector.capital

    def _add_block(self, scored: Scored, first: Matrix, everything: Matrix) -> None:
        known = ~np.isnan(scored.served)
        right = predicted_codes(scored.probabilities["served"][known]) == scored.codes[known]
        block = Block(
            rows=int(known.sum()),
            served=float(scored.served[known].sum()),
            first=float(first[known].sum()),
            everything=float(everything[known].sum()),
            recent=float(scored.recent[known].sum()),
            correct=int(right.sum()),
        )
        blocks = self.state.blocks
        if blocks and blocks[-1].rows + block.rows <= GRID:
            block = block.plus(blocks.pop())
        blocks.append(block)
        if len(blocks) > KEPT_SUMS:
            blocks[:2] = [blocks[0].plus(blocks[1])]

    def weights(self) -> Matrix:
        """The weight of each variant in the blend, (variants,), which sum to 1."""
        sums = np.array(self.state.sums)
        weights = np.exp(-RATE * (sums - sums.min()))
        weights[weights < LEAST_SHARE] = 0.0
        by_fit = np.bincount(_FIT_OF, weights)
        weights[(by_fit < np.sort(by_fit)[-MOST_FITS])[_FIT_OF]] = 0.0
        chosen: Matrix = weights / weights.sum()
        return chosen

    @property
    def sharpness(self) -> float:
        """What the raw scores of the blend are multiplied by: the mean, weighed by record."""
        costs = RATE * np.array(self.state.sharpness_sums)
        costs += (np.log(SHARPNESS) / SHARPNESS_DEVIATION) ** 2 / 2
        weights = np.exp(costs.min() - costs)
        return float(weights @ SHARPNESS / weights.sum())

    @property
    def evidence(self) -> float:
        """The evidence that the other policy predicts better than the one that serves."""
        return EDetector(self.state.capital).value

    def wanted(self) -> Policy:
        """The policy to serve from now on: the other one needs evidence and the better record."""
        policy = self.state.policy
        everything, recent = self.state.policy_sums
        is_better = recent < everything if policy == "everything" else everything < recent
        return other(policy) if is_better and self.evidence >= CHANGE_AT else policy

    def latest(self, outcomes: int) -> Scored | None:
        """The latest outcomes that were scored, at least so many if there are."""
        chosen: list[Scored] = []
        for scored in reversed(self._latest):
            if sum(len(one.codes) for one in chosen) >= outcomes:
                break
            chosen.insert(0, scored)
        if not chosen:
            return None
        return Scored(
            np.concatenate([one.everything for one in chosen]),
            np.concatenate([one.recent for one in chosen]),
            np.concatenate([one.served for one in chosen]),
            {
                policy: np.concatenate([one.probabilities[policy] for one in chosen])
                for policy in chosen[0].probabilities
            },
            np.concatenate([one.codes for one in chosen]),
            np.concatenate([one.is_fair for one in chosen]),
        )

    def memory_record(self, policy: Policy) -> MemoryRecord:
        """What a model of the policy learns from, and each candidate's figures."""
        state, weights = self.state, self.weights()
        variants = [(one, rounds) for one in self.candidates for rounds in one.rounds]
        standings = [
            StandingRecord(
                name=candidate.name,
                rounds=rounds,
                log_loss=round(total / state.weight, 6) if state.weight else None,
                weight=float(weight) if policy == "recent" else 0.0,
            )
            for (candidate, rounds), total, weight in zip(
                variants, state.sums, weights, strict=True
            )
        ]
        if policy == "everything":
            return MemoryRecord(policy=policy, standings=standings, outcomes=state.done)
        members = _members(self.candidates, weights)
        return MemoryRecord(
            policy=policy,
            members=members,
            standings=standings,
            outcomes=state.done,
            effective=_effective(members, state.done),
            sharpness=self.sharpness,
        )

    def switch(self, policy: Policy, model_id: int) -> None:
        """Record that a model of the policy serves from now on."""
        latest = [*self.state.trained.items(), (model_id, self.state.done)][-KEPT_MODELS:]
        self.state.trained = dict(latest)
        if policy != self.state.policy:
            self.state.policy = policy
            new = EDetector() if policy == "everything" else EDetector.of_all()
            self.state.capital = new.capital


def _add_losses(sums: Sequence[float], losses: Matrix) -> list[float]:
    """Add losses, (sums, outcomes), to discounted sums."""
    count = losses.shape[1]
    ages = 0.5 ** (np.arange(count)[::-1] / RECORD_HALF_LIFE)
    faded = np.array(sums) * 0.5 ** (count / RECORD_HALF_LIFE)
    found: list[float] = (faded + np.minimum(losses, LARGEST_LOSS) @ ages).tolist()
    return found


def _places_of(fitted_at: Places, known: Places) -> Places:
    """The places of the latest fits that learnt from no more than so many outcomes each."""
    return np.maximum(np.searchsorted(fitted_at, known, side="right") - 1, 0)


def _losses_of(served: Matrix, codes: IntegerCodes) -> Matrix:
    """The losses of real predictions; NaN stays NaN."""
    losses = np.full(len(codes), np.nan)
    known = ~np.isnan(served if served.ndim == 1 else served[:, 0])
    losses[known] = evaluate.row_losses(served[known], codes[known])
    return losses


def _probabilities(raw: Matrix) -> Matrix:
    if raw.ndim == 1:
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(-raw)))
    powers = np.exp(raw - raw.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def other(policy: Policy) -> Policy:
    """The other policy."""
    return "recent" if policy == "everything" else "everything"


def _members(candidates: Sequence[Candidate], weights: Matrix) -> list[MemberRecord]:
    """The fits of a blend, with the weight of each boosting round."""
    found = []
    for place, candidate in enumerate(candidates):
        shares = weights[place == _FIT_OF]
        if shares.any():
            rounds = [count for count, share in zip(candidate.rounds, shares, strict=True) if share]
            found.append(
                MemberRecord(
                    half_life=candidate.memory.half_life,
                    params=dict(candidate.params),
                    rounds=candidate.rounds[: candidate.rounds.index(max(rounds)) + 1],
                    weights=[float(share) for share in shares],
                )
            )
    return found


def _effective(members: Sequence[MemberRecord], outcomes: int) -> int:
    """How many outcomes a blend learns from: a member's weights add up to h / log 2."""
    kept = [
        outcomes if one.half_life is None else min(outcomes, one.half_life / math.log(2))
        for one in members
    ]
    return round(float(np.average(kept, weights=[sum(one.weights) for one in members])))


def rows_of_members(members: Sequence[MemberRecord], base: int, codes: IntegerCodes) -> Places:
    """The rows that any member learns from, ascending."""
    chosen = [Memory(one.half_life).weigh(base, codes, len(codes))[0] for one in members]
    return np.unique(np.concatenate(chosen))


def fit_blend(
    memory: MemoryRecord,
    base: int,
    codes: IntegerCodes,
    encode: Callable[[Places], Matrix],
    features: FeatureTools,
    *,
    threads: int,
    seed: int,
) -> lgb.Booster:
    """Fit a model of the policy *recent*.

    Args:
        memory: Its members, and the sharpness.
        base: The number of rows of the base data, which come first.
        codes: (rows,), the classes of all rows.
        encode: Encodes the rows of some indices.
        features: The preprocessor that does so.
        threads: LightGBM's threads at most.
        seed: LightGBM's.
    """
    parts = []
    for member in memory.members:
        places, weights = Memory(member.half_life).weigh(base, codes, len(codes))
        booster = fit.fit_unsettled(
            encode(places),
            codes[places],
            features,
            member.params,
            member.rounds[-1],
            threads=threads,
            seed=seed,
            weights=None if member.half_life is None else weights,
        )
        parts.append(Part(booster, memory.sharpness * _round_weights(member)))
    return blend.merge(parts)


def _round_weights(member: MemberRecord) -> Matrix:
    """A round counts in each variant that has it: (rounds,)."""
    weights = np.zeros(member.rounds[-1])
    for rounds, share in zip(member.rounds, member.weights, strict=False):
        weights[:rounds] += share
    return weights


def problem_id(base_sha256: str, features: FeatureTools) -> str:
    """An id of what is learnt, from what, into which classes."""
    parts = (base_sha256, features.target, features.classes, features.columns)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def load_state(path: Path) -> State | None:
    """Read a race's state; None if there is none, or it does not fit this version."""
    state = read_state(path, State)
    if state is None:
        return None
    new = State("", {}, {})
    fits = all(
        len(getattr(state, name)) == len(getattr(new, name))
        for name in ("sums", "sharpness_sums", "capital", "doubt")
    )
    return state if fits else None


def save_state(path: Path, state: State) -> None:
    """Write a race's state, as a whole or not at all."""
    replace_file(path, msgspec.json.encode(state))
