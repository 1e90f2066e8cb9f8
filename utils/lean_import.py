"""Imports of libraries without those parts of theirs that nothing here uses.

A process that is started again after a kill, or for one command, spends most of its time on
imports, and most of those on parts that LightGBM and hyperopt import without need.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class StandIn(ModuleType):
    """A module with whatever is asked for: a type without instances, a question answered no."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"__new__": lambda *_, **__: False})
        setattr(self, name, made)
        return made


@contextmanager
def stub_modules(*missing: str, instead: tuple[str, ...] = ()) -> Iterator[None]:
    """Import a library inside; packages that are there already are left alone, parts and all.

    Afterwards each of the others can be imported as ever, though not by that library.

    Args:
        missing: Importing them fails inside: for what a library can do without.
        instead: They are stand-ins inside: for what it cannot do without, but only
            wants for types.
    """
    named = (*missing, *instead)
    absent = [name for name in named if name.partition(".")[0] not in sys.modules]
    made = {name: StandIn(name) for name in instead if name in absent}
    for name, module in made.items():
        package, _, part = name.rpartition(".")
        if package in made:
            setattr(made[package], part, module)
    sys.modules.update({name: made.get(name) for name in absent})  # type: ignore[misc]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
