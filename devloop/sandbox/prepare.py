"""From a pod's manifest to what its containers are started with: folder, command, environment, mounts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devloop.errors import RemoteError
from devloop.local.process import Holders
from devloop.net.mounts import Bind
from devloop.remote.workload import environment, gather
from devloop.remote.workload.cluster import Cluster
from devloop.remote.workload.expansion import expand
from devloop.remote.workload.model import Object, Workload, refuse

from . import volumes
from .command import Start
from .network import PodRouter
from .objects import Objects
from .volumes import Places

if TYPE_CHECKING:
    from devloop.net.dns import Resolver


class NotStartedError(Exception):
    """A pod can't be run as its manifest stands; trying again changes nothing."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class World:
    """What all pods share."""

    objects: Objects
    cluster: Cluster
    holders: Holders
    images: Mapping[str, Path]
    data: Path
    private: Path
    """On a tmpfs where there is one: files that may hold secrets."""
    router: PodRouter
    resolver: Resolver
    base: Mapping[str, str]
    """Variables that each container has before its own: where programs are."""
    log: Callable[[str, str], None]
    changed: Callable[[], None]
    """Told when a pod has become ready, or no longer is, or has ended."""
    no_namespaces: Callable[[str], None]
    """Told, with the reason, that this machine lets nobody make one."""
    why_not: Callable[[], str]
    """That reason, once it is known; else empty."""

    def places(self, pod: str) -> Places:
        """Where a pod's folders lie."""
        return Places(self.private / pod, self.data / "pods" / pod / "volumes", self.data / "claims")


def specs(pod: Object) -> list[Object]:
    """A pod's containers in the order in which they are started."""
    return [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]


async def prepare(world: World, pod: Object, address: str) -> tuple[dict[str, Start], list[Bind], list[str]]:
    """How each container is started, what is mounted in the pod, and notes. Raises NotStartedError."""
    name = pod["metadata"]["name"]
    starts: dict[str, Start] = {}
    notes: list[str] = []
    by_path: dict[str, Bind] = {}
    # No status: service links are those of all Services, as for a container that is just being started.
    fresh = {**pod, "status": {**pod["status"], "containerStatuses": [], "initContainerStatuses": []}}
    init = [each["name"] for each in pod["spec"].get("initContainers") or []]
    for spec in specs(pod):
        folder = image_folder(world.images, str(spec.get("image", "")))
        workload = Workload(world.objects.namespace, "Pod", name, fresh, spec, False, spec["name"] in init)
        try:
            sources = await gather.sources(world.cluster, workload)
            made = environment.make(workload, sources)
            refuse(workload.where, made.problems)
            binds, more = await volumes.binds(world.cluster, world.objects, workload, made, sources, world.places(name))
        except RemoteError as problem:
            raise NotStartedError("CreateContainerConfigError", problem.what) from problem
        except OSError as problem:
            raise NotStartedError("CreateContainerError", f"its files can't be made: {problem}") from problem
        notes += map(str, more)
        for each in binds:
            if by_path.setdefault(each.target, each).source != each.source:
                text = "its containers have different volumes there, which share one here"
                notes.append(f"{each.target}: {text}; that of {spec['name']} is left out")
        variables = made.mapping(image=False)
        cwd, code = _working_folder(spec, folder)
        if code is not None:
            by_path.setdefault(code.target, code)
        starts[spec["name"]] = Start(_argv(spec, variables), {**world.base, "HOSTNAME": name, **variables}, cwd)
    etc = volumes.etc(world.data / "pods" / name / "etc", world.objects.namespace, name, address, pod["spec"])
    return starts, [*etc, *(by_path[path] for path in sorted(by_path))], notes


def image_folder(images: Mapping[str, Path], image: str) -> Path:
    """The folder with an image's code: by its whole name, without its digest, or without its tag."""
    plain = image.partition("@")[0]
    name, colon, tag = plain.rpartition(":")
    untagged = name if colon and "/" not in tag else plain
    folder = images.get(image) or images.get(plain) or images.get(untagged)
    if folder is None:
        what = f"no folder is named for the image {image or '(none)'}"
        raise NotStartedError("ErrImageNeverPull", f'{what}; add it to [remote]: images = {{ "{image}" = "FOLDER" }}')
    return folder


def _argv(spec: Object, variables: Mapping[str, str]) -> Sequence[str]:
    """`command` and `args`, expanded."""
    if not spec.get("command"):
        text = f"container {spec['name']} has no `command`, and what its image would run is not known here"
        raise NotStartedError("CreateContainerError", f"{text}; add `command` to the manifest")
    try:
        return [expand(each, variables.get) for each in (*spec["command"], *(spec.get("args") or []))]
    except ValueError as problem:
        raise NotStartedError("CreateContainerError", f"container {spec['name']}: an argument: {problem}") from None


def _working_folder(spec: Object, folder: Path) -> tuple[Path, Bind | None]:
    """Where a container starts: its image's folder, shown at `workingDir` if nothing is there on this machine."""
    wanted = str(spec.get("workingDir") or "")
    if not wanted.startswith("/") or Path(wanted).exists():
        return folder, None
    return Path(wanted), Bind(str(folder), wanted)
