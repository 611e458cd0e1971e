"""`devloop logs --remote`: what the cluster's pods print."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from devloop.commands.common import age
from devloop.errors import UsageError

if TYPE_CHECKING:
    from devloop.config.model import Project
    from devloop.remote.kubernetes.api import Api
    from devloop.remote.kubernetes.podlogs import Line, Source, Wanted

    Hear = Callable[[Line], None]

TAIL = 200
"""Lines of each container, unless more are asked for."""


def logs(args: argparse.Namespace) -> int:
    """Print the lines of services' pods, each behind its pod's name; with --follow, as they come."""
    from devloop.commands.lines import LinePrinter
    from devloop.commands.remote import cluster, project
    from devloop.config.model import RemoteKind
    from devloop.protocol import LogLine
    from devloop.remote.kubernetes.podlogs import Wanted
    from devloop.remote.open import kubeconfig

    if not args.services:
        raise UsageError("which services? --remote takes at least one", hint="a service, or KIND/NAME of a workload")
    args.context = args.namespace = args.kubeconfig = None
    of = project(args)
    remote = cluster(args, of)
    if remote.kind is not RemoteKind.KUBERNETES:
        raise UsageError("only a cluster's pods have logs to show", hint='the project needs kind = "kubernetes"')
    since = None if args.since is None else age(args.since) // 10**9
    tail = args.tail if args.tail is not None else None if since is not None else TAIL
    printer = LinePrinter(json=args.json, level=args.level)
    chosen = kubeconfig(remote)

    def hear(line: Line) -> None:
        printer.print([LogLine(line.pod, line.at, "out", line.text)])

    async def run() -> None:
        from devloop.remote.kubernetes.api import Api

        api = Api(chosen)
        try:
            sources = await asyncio.gather(*(_source(api, of, name) for name in args.services))
            await _print(api, sources, Wanted(tail, since), hear, following=args.follow)
        finally:
            await api.close()

    asyncio.run(run())
    return 0


async def _print(api: Api, sources: list[Source], wanted: Wanted, hear: Hear, *, following: bool) -> None:
    from devloop.remote.kubernetes import podlogs

    if following:
        try:
            async with asyncio.TaskGroup() as group:
                for each in sources:
                    group.create_task(podlogs.follow(api, each, wanted, hear))
        except BaseExceptionGroup as problems:
            raise problems.exceptions[0] from None
    async for line in podlogs.read(api, sources, wanted):
        hear(line)


async def _source(api: Api, of: Project | None, name: str) -> Source:
    """A service of the project by its workload; anything else is a workload itself."""
    from devloop.remote.kubernetes import podlogs

    service = of.services.get(name) if of is not None else None
    if service is None:
        return await podlogs.source(api, name, None)
    if service.place.none:
        raise UsageError(f"{name} stands for no workload, so it has no pods", where=f"services.{name}.workload")
    if service.place.namespace not in (None, api.namespace):
        raise UsageError(
            f"{name} is in the namespace {service.place.namespace}",
            hint=f"kubectl logs -n {service.place.namespace} {service.place.workload or name}",
        )
    return await podlogs.source(api, service.place.workload or name, service.place.container)
