"""What HyperparameterHunter 3.0.0, of 2019, misses in today's Python and libraries.

`apply_shims` puts it in place and takes it away again: nothing of it, nor of what the package
does to the process by itself, is left for others to see.
"""

import collections
import collections.abc
import importlib.metadata
import io
import json
import random
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas as pd
import scipy
import sklearn.utils.fixes
import threadpoolctl
from skopt.space import transformers

if TYPE_CHECKING:  # the package is imported with the shims in place only
    from hyperparameter_hunter.experiments import BaseExperiment
    from hyperparameter_hunter.leaderboards import Leaderboard


@contextmanager
def apply_shims() -> Iterator[types.ModuleType]:
    """Make the package work for as long as the context lasts; gives the package."""
    with ExitStack() as undo:
        undo.enter_context(_process_as_it_was())
        for owner, name, value in _missing():
            undo.callback(_restore, owner, name, vars(owner).get(name))
            setattr(owner, name, value)
        for module in (_pkg_resources(), _sklearn_joblib()):
            undo.callback(_restore_module, module[0], sys.modules.get(module[0]))
            sys.modules[module[0]] = module[1]
        import hyperparameter_hunter

        _mend_package()
        yield hyperparameter_hunter


def _missing() -> list[tuple[object, str, object]]:
    """Where the package looks for something, its name, and what to find there."""
    return [
        # Python 3.10 left the abstract classes to collections.abc
        *(
            (collections, name, getattr(collections.abc, name))
            for name in ("Mapping", "Sequence", "Set", "ItemsView")
        ),
        # numpy 1.24 dropped its names for Python's own types
        (np, "int", int),
        (np, "float", float),
        # scikit-optimize 0.7 made it LogN, which is told the base
        (transformers, "Log10", lambda: transformers.LogN(10)),
        # a tuple then, an object now; it is compared with (0, 16)
        (sklearn.utils.fixes, "sp_version", tuple(map(int, scipy.__version__.split(".")[:2]))),
        # pandas 2 dropped it in favour of concat
        (pd.DataFrame, "append", _append),
    ]


def _append(frame: pd.DataFrame, other: pd.DataFrame, ignore_index: bool) -> pd.DataFrame:
    return pd.concat([frame, other], ignore_index=ignore_index) if len(frame) else other


def _sklearn_joblib() -> tuple[str, types.ModuleType]:
    """Scikit-learn 0.23 no longer brought joblib along."""
    return "sklearn.externals.joblib", joblib


def _pkg_resources() -> tuple[str, types.ModuleType]:
    """Setuptools 82 dropped it; it is only asked whether Keras is installed."""
    module: Any = types.ModuleType("pkg_resources")
    module.DistributionNotFound = importlib.metadata.PackageNotFoundError
    module.get_distribution = importlib.metadata.distribution
    return "pkg_resources", module


def _mend_package() -> None:
    """Replace what is wrong in the package itself; nobody else sees it."""
    from hyperparameter_hunter import leaderboards, recorders
    from hyperparameter_hunter.experiments import BaseExperiment
    from hyperparameter_hunter.keys import makers
    from hyperparameter_hunter.utils import file_utils

    # It would keep each training set as CSV and each class as a pickle, and read neither.
    makers.KeyMaker.add_complex_type_lookup_entry = lambda *_: None
    # Made of whole zeros, which pandas 3 does not overwrite with fractions.
    BaseExperiment._empty_output_like = _zeros
    # Killed while it writes, it would leave half a file, and stumble over it ever after.
    leaderboards.Leaderboard.save = _save_leaderboard
    for module in (file_utils, makers, recorders):
        module.write_json = _write_json


def _zeros(
    experiment: "BaseExperiment",
    like: pd.DataFrame,
    index: pd.Index | None = None,
    target_column: str | None = None,
) -> pd.DataFrame:
    index = like.index if index is None else index
    return pd.DataFrame(0.0, index, target_column or experiment.target_column)


def _save_leaderboard(leaderboard: "Leaderboard", path: str) -> None:
    _replace(path, leaderboard.data.to_csv(index=False))


def _write_json(path: str, data: object, do_clear: bool = False) -> None:
    from hyperparameter_hunter.utils.file_utils import default_json_write

    _replace(path, json.dumps(data, default=default_json_write))


def _replace(path: str, text: str) -> None:
    new = Path(path).with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(path)


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Undo what the package does to the process: it seeds, hooks, prints and silences."""
    numpys, pythons, hooks = np.random.get_state(), random.getstate(), list(sys.meta_path)
    wide = pd.get_option("display.expand_frame_repr")
    try:
        with (
            redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            # Else the Gaussian process's threads spin on every core between its small steps.
            threadpoolctl.threadpool_limits(1, user_api="blas"),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)
        sys.meta_path[:] = hooks
        pd.set_option("display.expand_frame_repr", wide)


def _restore(owner: object, name: str, value: object) -> None:
    if value is None:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _restore_module(name: str, module: types.ModuleType | None) -> None:
    if module is None:
        del sys.modules[name]
    else:
        sys.modules[name] = module
