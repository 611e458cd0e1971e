"""`devloop list`: the workloads of the remote's namespace, and what devloop has to do with each."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from devloop.commands.common import print_json
from devloop.commands.remote import cluster, project
from devloop.errors import UsageError

if TYPE_CHECKING:
    from devloop.config.model import Project, Service
    from devloop.remote.kubernetes.kubeconfig import Kubeconfig
    from devloop.remote.workload.inventory import Entry, Inventory


def show(args: argparse.Namespace) -> int:
    """`devloop list`."""
    from devloop.remote.open import kubeconfig

    here = project(args)
    chosen = kubeconfig(cluster(args, here))
    found = asyncio.run(_ask(chosen))
    services, lost = _standing(here, found, chosen.chosen.namespace)
    held = _held(found)
    if args.json:
        workloads = [
            {
                "workload": each.reference,
                "ready": each.ready,
                "wanted": each.wanted,
                "services": [{"name": leading.name, "ports": list(leading.ports)} for leading in each.services],
                "service": services[each.reference].name if each.reference in services else None,
                "held_by": held.get(each.reference),
            }
            for each in found.entries
        ]
        print_json({"where": chosen.where, "workloads": workloads, "unseen": list(found.unseen)})
    elif found.entries:
        print(_table(found, services, held))
    else:
        print(f"{chosen.where}: no workloads")
    notes = [f"you may not list: {', '.join(found.unseen)}"] if found.unseen else []
    notes += [f"{name} stands for {reference}, and there is none" for name, reference in lost]
    for note in notes:
        print(f"devloop: {note}", file=sys.stderr)
    return 0


async def _ask(chosen: Kubeconfig) -> Inventory:
    from devloop.remote.workload.inventory import inventory
    from devloop.remote.workload.kube import KubeCluster

    async with KubeCluster(await chosen.configuration(), chosen.chosen.namespace) as connected:
        return await inventory(connected)


def _standing(
    of: Project | None, found: Inventory, namespace: str
) -> tuple[Mapping[str, Service], list[tuple[str, str]]]:
    """Workload → the service of devloop.toml that stands for it; and (service, workload) of those not found."""
    from devloop.remote.workload.references import POD, REPLICA_SET, parse

    there = {each.reference: each for each in found.entries}
    services: dict[str, Service] = {}
    lost = []
    for service in of.services.values() if of else ():
        place = service.place
        if place.none or (place.namespace or namespace) != namespace:
            continue
        if place.workload is None:
            # As `remote.catalog` finds it: the first kind, in the order of the list, that has one of its name.
            named = (
                each for each in found.entries if each.name == service.name and each.kind not in (POD, REPLICA_SET)
            )
            reference = next((each.reference for each in named), "")
        else:
            try:
                kind, name = parse(place.workload)
            except UsageError as problem:
                raise UsageError(problem.what, where=f"services.{service.name}.workload", hint=problem.hint) from None
            reference = f"{kind.name.lower()}/{name}"
            if reference not in there and kind.plural not in found.unseen:
                lost.append((service.name, reference))
        if reference in there:
            services.setdefault(reference, service)
    return services, lost


def _held(found: Inventory) -> Mapping[str, str]:
    """Workload → who has an attachment to it. There are no attachments yet."""
    return {}


def _table(found: Inventory, services: Mapping[str, Service], held: Mapping[str, str]) -> str:
    from devloop.metrics.table import columns

    rows = [
        (
            each.reference,
            "" if each.wanted is None else f"{each.ready}/{each.wanted}",
            _leading(each),
            f"{service.name} ({service.mode.value})" if (service := services.get(each.reference)) else "",
            held.get(each.reference, ""),
        )
        for each in found.entries
    ]
    return columns(("WORKLOAD", "READY", "SERVICES", "IN DEVLOOP.TOML", "HELD BY"), rows, "<><<<")


def _leading(entry: Entry) -> str:
    return " ".join(f"{each.name}:{','.join(map(str, each.ports))}" for each in entry.services)
