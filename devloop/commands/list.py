"""`devloop list`: the workloads of the remote's namespace, and what devloop has to do with each."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devloop.commands.common import print_json, snapshot
from devloop.commands.remote import cluster, project
from devloop.errors import DevloopError

if TYPE_CHECKING:
    from devloop.commands.holdings import Holding
    from devloop.config.model import Project, Service
    from devloop.remote.kubernetes.kubeconfig import Kubeconfig
    from devloop.remote.workload.cluster import Cluster
    from devloop.remote.workload.inventory import Entry, Inventory
    from devloop.remote.workload.references import Kind


def show(args: argparse.Namespace) -> int:
    """`devloop list`."""
    from devloop.remote.open import kubeconfig

    here = project(args)
    chosen = kubeconfig(cluster(args, here))
    found = asyncio.run(_ask(chosen))
    services, lost = _standing(here, found.inventory, chosen.chosen.namespace)
    modes = _modes(args)
    if args.json:
        print_json({"where": chosen.where, **document(found, services, modes)})
    elif found.inventory.entries:
        print(table(found, services, modes))
    else:
        print(f"{chosen.where}: no workloads")
    for note in (*notes(found), *(f"{name} stands for {reference}, and there is none" for name, reference in lost)):
        print(f"devloop: {note}", file=sys.stderr)
    return 0


def _modes(args: argparse.Namespace) -> Mapping[str, str]:
    """Where each service is now, by the project's engine; empty if none runs."""
    try:
        return {each.name: each.mode for each in snapshot(args).services}
    except DevloopError:
        return {}


@dataclass(frozen=True, slots=True)
class Found:
    """What there is, and who holds what of it."""

    inventory: Inventory
    held: Sequence[Holding]
    nobodys: Mapping[str, bool]
    """Services that lead to an agent though nobody holds them, and whether each says what it was."""
    unseen: tuple[str, ...]
    """Kinds that may not be listed."""

    def of(self, entry: Entry) -> list[Holding]:
        """Who holds a workload, or a Service that leads to it; the oldest first."""
        leading = {each.name for each in entry.services}
        return [each for each in self.held if each.spec.workload == entry.reference or each.spec.service in leading]

    @property
    def elsewhere(self) -> list[Holding]:
        """What leads to no workload that is listed."""
        seen = [each for entry in self.inventory.entries for each in self.of(entry)]
        return [each for each in self.held if each not in seen]


async def _ask(chosen: Kubeconfig) -> Found:
    from devloop.remote.workload.kube import KubeCluster

    async with KubeCluster(await chosen.configuration(), chosen.chosen.namespace) as connected:
        return await survey(connected)


async def survey(connected: Cluster) -> Found:
    """Look at a namespace. What may not be listed is left out. Raises RemoteError."""
    from devloop.commands.holdings import LEASE, OURS, holdings, nobodys
    from devloop.remote.workload import references as kinds
    from devloop.remote.workload.cluster import AbsentError
    from devloop.remote.workload.inventory import inventory

    async def items(kind: Kind, **how: Any) -> list[dict[str, Any]] | None:
        try:
            return [dict(each) for each in (await connected.listing(kind, **how)).items]
        except AbsentError:
            return None

    # Services before leases: whatever a Service is marked for had its lease before.
    found, services = await asyncio.gather(inventory(connected), items(kinds.SERVICE))
    leases = await items(LEASE, labels=OURS)
    unseen = (*found.unseen, *([LEASE.plural] if leases is None else []))
    lost = nobodys(services or [], leases) if leases is not None else {}
    return Found(found, holdings(leases or []), lost, unseen)


def _with_role(kind: str) -> str:
    """A kind in the plural, and the Role that lists it."""
    from devloop.remote.kubernetes.rights import role_listing

    role = role_listing(kind)
    return f"{kind} (the Role {role.object_name})" if role is not None else kind


def notes(found: Found) -> list[str]:
    """What the table has no place for."""
    said = [f"you may not list: {', '.join(map(_with_role, found.unseen))}"] if found.unseen else []
    said += [f"{each.sentence()}, and no workload here stands behind it" for each in found.elsewhere]
    dead = [each for each in found.held if each.over > 0]
    if dead:
        who = ", ".join(sorted({each.spec.who for each in dead}))
        said.append(f"{who} has gone: `devloop leave --take-over` puts back what they hold")
    for name, known in found.nobodys.items():
        mend = "`devloop leave --take-over` puts it back" if known else "it does not say what its selector was"
        said.append(f"Service {name} leads to devloop's agent, and nobody holds it: {mend}")
    return said


def document(found: Found, services: Mapping[str, Service], modes: Mapping[str, str]) -> dict[str, Any]:
    """All of it as JSON has it; `modes` are those of services now, where an engine runs."""
    workloads = [
        {
            "workload": each.reference,
            "ready": each.ready,
            "wanted": each.wanted,
            "services": [{"name": leading.name, "ports": list(leading.ports)} for leading in each.services],
            "service": services[each.reference].name if each.reference in services else None,
            "mode": modes.get(services[each.reference].name) if each.reference in services else None,
            "held_by": [holding.document() for holding in found.of(each)],
        }
        for each in found.inventory.entries
    ]
    return {
        "workloads": workloads,
        "attachments": [each.document() for each in found.held],
        "held_by_nobody": list(found.nobodys),
        "unseen": list(found.unseen),
    }


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
            kind, name = parse(place.workload)
            meant = [each for each in found.entries if each.name == name and kind in (each.kind, None)]
            reference = meant[0].reference if len(meant) == 1 else place.workload
            if not meant and (kind is None or kind.plural not in found.unseen):
                lost.append((service.name, reference))
        if reference in there:
            services.setdefault(reference, service)
    return services, lost


def table(found: Found, services: Mapping[str, Service], modes: Mapping[str, str]) -> str:
    """One line a workload; one more for each further developer who holds something of it.

    A service's mode is the one that it has now; with no engine, the one that it starts in, and that is said.
    """
    from devloop.metrics.table import columns

    rows = []
    for each in found.inventory.entries:
        first, *more = [holding.cell() for holding in found.of(each)] or [""]
        service = services.get(each.reference)
        rows.append(
            (
                each.reference,
                "" if each.wanted is None else f"{each.ready}/{each.wanted}",
                _leading(each),
                f"{service.name} ({modes.get(service.name) or f'{service.mode.value}, not up'})" if service else "",
                first,
            )
        )
        rows += [("", "", "", "", cell) for cell in more]
    return columns(("WORKLOAD", "READY", "SERVICES", "IN DEVLOOP.TOML", "HELD BY"), rows, "<><<<")


def _leading(entry: Entry) -> str:
    return " ".join(f"{each.name}:{','.join(map(str, each.ports))}" for each in entry.services)
