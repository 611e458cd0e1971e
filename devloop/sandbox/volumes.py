"""A pod's files: its volumes as folders here, and what is mounted where in its namespace.

What the API's objects make (ConfigMap, Secret, downward, projected) is written by the code that writes it for views.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from devloop.net.mounts import Bind
from devloop.remote.sandbox import resolv_conf
from devloop.remote.workload import materialise, payload
from devloop.remote.workload.cluster import Cluster
from devloop.remote.workload.following import Follower
from devloop.remote.workload.model import Environment, Note, Object, Problem, Sources, Workload, refuse

from .objects import CLAIM, Objects


@dataclass(frozen=True, slots=True)
class Places:
    """Where a pod's folders lie."""

    private: Path
    """On a tmpfs where there is one: files that may hold secrets."""
    scratch: Path
    """This pod's own: emptyDir."""
    claims: Path
    """All pods': a claim outlives its pod."""


async def binds(
    cluster: Cluster, objects: Objects, workload: Workload, found: Environment, sources: Sources, places: Places
) -> tuple[list[Bind], list[Note]]:
    """The mounts of one container. Raises RemoteError with all problems at once."""
    mounts, problems = materialise.mounts_of(workload, found.mapping(image=False))
    follower = Follower(cluster, workload, sources, places.private / "volumes", lambda change: None)
    await follower.fetch()
    notes: list[Note] = []
    problems += follower.write(notes)
    made: list[Bind] = []
    for index, (mount, volume, path) in enumerate(mounts):
        try:
            if payload.kind_of(volume) in payload.MATERIALISED:
                source = places.private / "volumes" / volume["name"]
                if path and not problems:
                    target = places.private / "subpaths" / str(workload.container["name"]) / str(index)
                    materialise.snapshot(source, path, target)
                    source = target
            else:
                source = folder_of(volume, objects, places, notes)
                if path:
                    source = _made(source / path) if not (source / path).exists() else source / path
        except ValueError as problem:
            problems.append(Problem(f"volume {volume['name']}", str(problem)))
            continue
        shown = materialise.as_mount(mount, volume, source, whole=not path)
        made.append(Bind(str(shown.source), shown.path, shown.read_only))
    refuse(workload.where, problems)
    return made, notes


def folder_of(volume: Object, objects: Objects, places: Places, notes: list[Note]) -> Path:
    """The folder that a volume is here. Raises ValueError where there is none."""
    kind = payload.kind_of(volume)
    if kind == "persistentVolumeClaim":
        name = volume[kind]["claimName"]
        if objects.find(CLAIM, name) is None:
            raise ValueError(f"persistentvolumeclaim {name} does not exist")
        return _made(places.claims / name)
    if kind == "hostPath":
        path = Path(volume[kind]["path"])
        if not path.exists():
            raise ValueError(f"{path} does not exist on this machine")
        return path
    if kind not in ("emptyDir", "ephemeral"):
        notes.append(Note(f"volume {volume['name']}", f"an empty folder stands in for its {kind}"))
    return _made(places.scratch / volume["name"])


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o777)  # as the kubelet's; what is above keeps others out
    return folder


def etc(folder: Path, namespace: str, name: str, address: str, spec: Object) -> list[Bind]:
    """What the kubelet writes for each pod: resolv.conf and hosts; and where names are looked up."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    full = f"{name}.{spec['subdomain']}.{namespace}.svc.cluster.local\t" if spec.get("subdomain") else ""
    hosts.append(f"{address}\t{full}{spec.get('hostname') or name}")
    hosts += [f"{each['ip']}\t{' '.join(each.get('hostnames') or [])}" for each in spec.get("hostAliases") or []]
    files = {
        "resolv.conf": resolv_conf(namespace),
        "hosts": "\n".join(hosts) + "\n",
        "nsswitch.conf": _nsswitch(Path("/etc/nsswitch.conf")),
    }
    made = []
    for file, text in files.items():
        (folder / file).write_text(text)
        if os.path.lexists(f"/etc/{file}"):
            made.append(Bind(str(folder / file), f"/etc/{file}"))
    return made


def _nsswitch(file: Path) -> str:
    """The host's, but for names of hosts: some of its ways (mdns, resolve) would go past the pod's DNS."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    kept = [each for each in lines if not each.strip().startswith("hosts:")]
    return "\n".join([*kept, "hosts: files dns"]) + "\n"
