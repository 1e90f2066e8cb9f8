"""Imports libraries with their slow, unused submodules stubbed out.

A process that restarts after a kill, or runs one command, spends most of its time on imports,
and most of that on modules that LightGBM and hyperopt import but do not need here.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class StubModule(ModuleType):
    """A stub module: each attribute is a type without instances; calling it returns False."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        stub = type(name, (), {"__new__": lambda *_, **__: False})
        setattr(self, name, stub)
        return stub


@contextmanager
def stub_modules(*missing: str, stubs: tuple[str, ...] = ()) -> Iterator[None]:
    """Import a library in the block with some of its modules stubbed out.

    Modules of packages that are imported already are not stubbed. After the block, the
    stubbed modules can be imported normally, but the library does not use them.

    Args:
        missing: Modules whose import fails in the block; for optional dependencies.
        stubs: Modules replaced by stubs in the block; for required dependencies of which
            only types are used.
    """
    named = (*missing, *stubs)
    not_imported = [name for name in named if name.partition(".")[0] not in sys.modules]
    made = {name: StubModule(name) for name in stubs if name in not_imported}
    for name, module in made.items():
        package, _, part = name.rpartition(".")
        if package in made:
            setattr(made[package], part, module)
    sys.modules.update({name: made.get(name) for name in not_imported})  # type: ignore[misc]
    try:
        yield
    finally:
        for name in not_imported:
            del sys.modules[name]
