"""Candidates drawn by Optuna's TPE, from a study that is kept and taken up again.

The studies are in `searches/optuna.log`, Optuna's journal, one for each set of columns and
classes. Each search adds its trials and learns from all of them, the older the less; so
their losses may be of other rows, but never of another problem. After `start` it tries the
previous search's best, if that is another one.
"""

import os
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from train import cross_validation
from train.search import Race
from train.search_space import Range
from utils.feature_tools import Matrix

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def optimise(race: Race) -> None:
    """Try `race.spec.evals` candidates, `race.start` first."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(race)
    earlier = study.get_trials(deepcopy=False, states=FINISHED)
    race.learnt_from = len(earlier)
    known = [race.start]
    if earlier and (best := _previous_best(earlier)) != race.start:
        known.append(best)
    for params in known:
        study.enqueue_trial(params)
    search = earlier[-1].user_attrs["search"] + 1 if earlier else 1
    space = {
        name: _distribution(spec, [params[name] for params in known])
        for name, spec in race.space.items()
    }
    while race.left:
        _try(race, study.ask(space), search)


def _study(race: Race) -> optuna.Study:
    """The study of this problem, without the trials that a killed search left half done."""
    study = optuna.create_study(
        storage=_storage(race.spec.memory),
        study_name=race.subject(),
        load_if_exists=True,
    )
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    # With the same seed as before it would draw the same again before it has learnt much.
    seed = race.spec.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=8, seed=seed)
    return study


def _storage(memory: Path | None) -> BaseStorage | None:
    """The journal; a database took seven times as long for the many small reports."""
    if memory is None:
        return None
    memory.mkdir(parents=True, exist_ok=True)
    journal = memory / "optuna.log"
    if journal.exists():  # one that lost power while writing would be refused for its last line
        written = journal.read_bytes()
        os.truncate(journal, written.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(journal)))


def _previous_best(trials: list[FrozenTrial]) -> dict[str, float]:
    """The best of the last search alone: losses on other rows do not compare."""
    last = trials[-1].user_attrs["search"]
    latest = [trial for trial in trials if trial.user_attrs["search"] == last]
    params: dict[str, float] = min(latest, key=lambda trial: trial.value).params
    return params


def _distribution(spec: Range, known: list[float]) -> BaseDistribution:
    low, high = spec.interval(*known)
    if spec.whole:
        return IntDistribution(int(low), int(high), log=spec.log)
    return FloatDistribution(low, high, log=spec.log)


def _try(race: Race, trial: optuna.Trial, search: int) -> None:
    """Validate what was drawn, and tell Optuna.

    Its own pruners would compare with every trial of the study, whatever its rows.
    """
    trial.set_user_attr("search", search)

    def give_up(losses: Matrix) -> bool:
        trial.report(float(losses[-1]), len(losses))
        return cross_validation.has_no_chance(losses, race.least)

    found = race.validate(trial.params, give_up)
    if found.given_up:
        trial.study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.study.tell(trial, found.loss)
