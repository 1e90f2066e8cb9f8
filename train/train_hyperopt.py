"""Draws candidates with hyperopt's TPE, the default. It has no memory between searches."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from train.search import Race
from train.search_space import Range
from utils.lean_import import stub_modules

with stub_modules(stubs=("hyperopt.atpe",)):  # an unused algorithm that loads scipy.stats
    from hyperopt import STATUS_OK, Trials, fmin, hp, tpe
    from hyperopt.fmin import generate_trials_to_calculate
    from hyperopt.pyll.base import Apply


def optimise(race: Race) -> None:
    """Try `race.spec.evals` candidates, those of `race.known` first."""

    def loss_of(drawn: Mapping[str, float]) -> dict[str, object]:
        return {"loss": race.validate(drawn).loss, "status": STATUS_OK}

    known = race.known()
    if len(known) == race.left:  # fmin evaluates nothing if it has no candidate to draw
        for params in known:
            race.validate(params)
        return
    # fmin ignores points_to_evaluate when it is given trials, so these are among them.
    trials: Trials = generate_trials_to_calculate(known)
    trials.refresh()  # otherwise fmin does not count them
    fmin(
        loss_of,
        {name: _prior(name, spec) for name, spec in race.space.items()},
        algo=partial(tpe.suggest, n_startup_jobs=8),
        max_evals=race.spec.evals,
        trials=trials,
        rstate=np.random.default_rng(race.spec.seed),
        show_progressbar=False,
        verbose=False,
    )


def _prior(name: str, spec: Range) -> Apply:
    if spec.log:
        return hp.lognormal(name, math.log(spec.centre), spec.spread)
    return hp.normal(name, spec.centre, spec.spread)
