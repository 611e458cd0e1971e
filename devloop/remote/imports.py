"""Imports that take a while, beside everything else."""

from __future__ import annotations

import asyncio
import ctypes.util
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

_COMPILERS = {name: vars(ctypes.util)[name] for name in ("_findLib_gcc", "_findLib_ld") if hasattr(ctypes.util, name)}
"""What `ctypes.util.find_library` asks for a library that ldconfig does not list."""


async def imported(*modules: str) -> None:
    """Import these in a thread: it takes some tenths of a second, and local services start meanwhile."""
    await asyncio.to_thread(_all, modules)


def _all(modules: tuple[str, ...]) -> None:
    with _no_compilers():
        for each in modules:
            importlib.import_module(each)


@contextmanager
def _no_compilers() -> Iterator[None]:
    """While it lasts, a library is looked for where the system has them, and neither gcc nor ld is run.

    asyncssh looks for liboqs when it is imported. Where there is a compiler and no liboqs, that took 40 ms of every
    start. If two threads do this at once, the first to end ends it for both: one more compiler runs then.
    """
    for name in _COMPILERS:
        setattr(ctypes.util, name, lambda _: None)
    try:
        yield
    finally:
        for name, look in _COMPILERS.items():
            setattr(ctypes.util, name, look)
