"""Makes HyperparameterHunter 3.0.0, of 2019, run on today's Python and libraries.

`apply_shims` adds what they have removed since, and takes it away again. It also undoes
what the package itself does to the process.
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

if TYPE_CHECKING:  # can only be imported with the shims applied
    from hyperparameter_hunter.experiments import BaseExperiment
    from hyperparameter_hunter.leaderboards import Leaderboard


@contextmanager
def apply_shims() -> Iterator[types.ModuleType]:
    """Make the package work inside the context, which yields the package."""
    with ExitStack() as undo:
        undo.enter_context(_restore_process())
        for owner, name, value in _missing():
            undo.callback(_restore, owner, name, vars(owner).get(name))
            setattr(owner, name, value)
        for module in (_pkg_resources(), _sklearn_joblib()):
            undo.callback(_restore_module, module[0], sys.modules.get(module[0]))
            sys.modules[module[0]] = module[1]
        import hyperparameter_hunter

        _patch_package()
        yield hyperparameter_hunter


def _missing() -> list[tuple[object, str, object]]:
    """The missing attributes: their owner, name and value."""
    return [
        # Python 3.10 removed these aliases of collections.abc
        *(
            (collections, name, getattr(collections.abc, name))
            for name in ("Mapping", "Sequence", "Set", "ItemsView")
        ),
        # NumPy 1.24 removed its aliases of Python's types
        (np, "int", int),
        (np, "float", float),
        # scikit-optimize 0.7 replaced it by LogN, which takes the base
        (transformers, "Log10", lambda: transformers.LogN(10)),
        # once a tuple, now an object; the package compares it with (0, 16)
        (sklearn.utils.fixes, "sp_version", tuple(map(int, scipy.__version__.split(".")[:2]))),
        # pandas 2 removed it in favour of concat
        (pd.DataFrame, "append", _append),
    ]


def _append(frame: pd.DataFrame, other: pd.DataFrame, ignore_index: bool) -> pd.DataFrame:
    return pd.concat([frame, other], ignore_index=ignore_index) if len(frame) else other


def _sklearn_joblib() -> tuple[str, types.ModuleType]:
    """The copy of joblib that scikit-learn 0.23 removed."""
    return "sklearn.externals.joblib", joblib


def _pkg_resources() -> tuple[str, types.ModuleType]:
    """A part of what setuptools 82 removed: enough to check whether Keras is installed."""
    module: Any = types.ModuleType("pkg_resources")  # attributes are set on it
    module.DistributionNotFound = importlib.metadata.PackageNotFoundError
    module.get_distribution = importlib.metadata.distribution
    return "pkg_resources", module


def _patch_package() -> None:
    """Replace functions of the package itself; no other code uses them."""
    from hyperparameter_hunter import leaderboards, recorders
    from hyperparameter_hunter.experiments import BaseExperiment
    from hyperparameter_hunter.keys import makers
    from hyperparameter_hunter.utils import file_utils

    # It saves each training set as CSV and each class as a pickle, and reads neither.
    makers.KeyMaker.add_complex_type_lookup_entry = lambda *_: None
    # It creates integer columns, and pandas 3 refuses to write floats into them.
    BaseExperiment._empty_output_like = _zeros
    # It does not write atomically: after a kill, every later run fails on the partial file.
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
def _restore_process() -> Iterator[None]:
    """Undo what the package does: it sets seeds, import hooks and options, and it prints."""
    numpy_state, python_state, hooks = np.random.get_state(), random.getstate(), list(sys.meta_path)
    expand = pd.get_option("display.expand_frame_repr")
    try:
        with (
            redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            # The threads of the Gaussian process would spin on every core between small steps.
            threadpoolctl.threadpool_limits(1, user_api="blas"),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        sys.meta_path[:] = hooks
        pd.set_option("display.expand_frame_repr", expand)


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
