"""Which cluster a command is about: the project's `[remote]`, and what the command line says otherwise."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from devloop.commands.common import project_file
from devloop.config.find import ForeignError
from devloop.config.model import Project, Remote, RemoteKind
from devloop.errors import ConfigError

if TYPE_CHECKING:
    from devloop.remote.kubernetes.api import Api

T = TypeVar("T")


def project(args: argparse.Namespace) -> Project | None:
    """The project that is meant; None if there is none here. Raises ConfigError for a broken one."""
    try:
        file = project_file(args)
    except ForeignError:
        raise
    except ConfigError:  # no devloop.toml here or above; one that was named with -f must be there
        return None
    from devloop.config.load import load

    return load(file, os.environ)


def cluster(args: argparse.Namespace, of: Project | None, *, asks: bool = True) -> Remote:
    """The cluster that is meant, from a project that may have none, and `--context`, `--namespace`, `--kubeconfig`.

    With no project, or one without a remote, it is kubectl's: the current context. A project with a remote that
    is no cluster keeps it, unless the command line names one. Raises UnagreedError where what the project names would
    be used and nobody has agreed to that, unless the cluster is not asked anything.
    """
    remote = of.remote if of else None
    if remote is None or (remote.kind is not RemoteKind.KUBERNETES and (args.context or args.kubeconfig)):
        remote = Remote(RemoteKind.KUBERNETES)
    if args.kubeconfig:
        # The project's context is one of another file.
        remote = replace(remote, kubeconfig=Path(args.kubeconfig).absolute(), context=None)
    remote = replace(remote, context=args.context or remote.context, namespace=args.namespace or remote.namespace)
    if of is not None and asks and not args.kubeconfig:  # which somebody has typed
        from devloop.commands.consent import require

        require(of, remote)
    return remote


def at(remote: Remote, ask: Callable[[Api], Awaitable[T]]) -> tuple[str, T]:
    """The context and namespace, for people, and what `ask` finds out at the API server.

    RemoteError if that can't be reached, or refuses.
    """
    from devloop.remote.open import kubeconfig

    # Read here: it looks into files.
    chosen = kubeconfig(remote)

    async def run() -> tuple[str, T]:
        from devloop.remote.kubernetes.api import Api

        api = Api(chosen)
        try:
            return api.where, await ask(api)
        finally:
            await api.close()

    return asyncio.run(run())
