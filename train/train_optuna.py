"""Draws candidates with Optuna's TPE, from a study that is kept between searches.

The studies are in `searches/optuna.log`, Optuna's journal, one for each set of columns and
classes. Each search adds its trials and learns from all of them, with less weight on older
ones. Their losses may be of other rows, but never of another problem. After `start` a
search tries the best candidate of the previous search, if it is a different one, and
LightGBM's defaults.
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
    """Try `race.spec.evals` candidates, those of `race.known` first."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(race)
    earlier = study.get_trials(deepcopy=False, states=FINISHED)
    race.learnt_from = len(earlier)
    known = race.known(_previous_best(earlier) if earlier else None)
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
    """The study of this problem; unfinished trials of a killed search are marked as failed."""
    study = optuna.create_study(
        storage=_storage(race.spec.memory),
        study_name=race.problem_id(),
        load_if_exists=True,
    )
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    # With the seed of the last search it would begin with the same candidates again.
    seed = race.spec.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=8, seed=seed)
    return study


def _storage(memory: Path | None) -> BaseStorage | None:
    """The journal; a database takes seven times as long for the many small reports."""
    if memory is None:
        return None
    memory.mkdir(parents=True, exist_ok=True)
    journal = memory / "optuna.log"
    if journal.exists():  # Optuna refuses an incomplete last line, as after a power cut
        written = journal.read_bytes()
        os.truncate(journal, written.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(journal)))


def _previous_best(trials: list[FrozenTrial]) -> dict[str, float]:
    """The best of the last search; losses on other rows cannot be compared."""
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
    """Validate a trial and report the result to Optuna.

    Optuna's own pruners would compare it with all trials of the study, even on other rows.
    """
    trial.set_user_attr("search", search)

    def give_up(losses: Matrix) -> bool:
        trial.report(float(losses[-1]), len(losses))
        return cross_validation.has_no_chance(losses, race.best_loss)

    found = race.validate(trial.params, give_up)
    if found.given_up:
        trial.study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.study.tell(trial, found.loss)
