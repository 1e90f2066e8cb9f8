"""Keeps the event loop free while a large body is read or written."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

#: Bodies of so many bytes take some milliseconds, in which no other request would be answered.
THREADED_MIN_BYTES = 128 * 1024

P = ParamSpec("P")
T = TypeVar("T")


async def call(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function, in a thread if its request's body is large.

    Args:
        size: The bytes of the body.
        function: What to call.
        args: Its arguments.
        kwargs: The same.
    """
    if size < THREADED_MIN_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
