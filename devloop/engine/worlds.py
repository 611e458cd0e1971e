"""What a local service has of its workload, made ready on this machine: variables, files, and how names resolve."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from devloop.config.forms import ALL_VOLUMES
from devloop.config.model import Place, Service
from devloop.errors import ServiceError
from devloop.net.hosts import removed
from devloop.net.mounts import Bind
from devloop.net.service import LocalNetwork
from devloop.protocol import Mounted, Variable
from devloop.remote.link import Resolver
from devloop.remote.workload import Change, Options, VolumeMode, WorldView, open_view, read_environment
from devloop.remote.workload.cluster import Cluster
from devloop.remote.workload.copying import DEFAULT_LIMIT
from devloop.remote.workload.dns_config import of_pod
from devloop.remote.workload.payload import same_volumes
from devloop.remote.workload.runfolder import note_made

_HOSTS = Path("/etc/hosts")
_NSSWITCH = Path("/etc/nsswitch.conf")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a service's view comes from."""

    cluster: Cluster
    reference: str
    agent_image: str
    secrets_on_disk: bool = False


class World:
    """One service's. `open` may be called again, to have everything anew; what runs keeps seeing valid files."""

    def __init__(self, service: str, network: LocalNetwork, folder: Path, data: Path) -> None:
        """`folder` is private and in memory where that is possible, `data` may be on a disk."""
        self.service = service
        self.network = network
        self.view: WorldView | None = None
        self.ready = False
        """It has been opened."""
        self.notes: tuple[str, ...] = ()
        self._folder = folder
        self._data = data
        self._numbers = itertools.count(1)
        self._stack = AsyncExitStack()
        self._mounted: tuple[str, ...] = ()
        self._place: Place | None = None

    async def open(
        self,
        spec: Service,
        source: Source | None,
        resolver: Resolver,
        changed: Callable[[Change], None],
    ) -> None:
        """Read the workload and put its files in place. Raises DevloopError.

        Where that is done already, only the variables are read anew, unless its pod has other volumes now: files
        follow the cluster by themselves, and copies are the service's own by now.
        """
        if source is not None and self.view is not None and spec.place == self._place:
            found, environment = await read_environment(source.cluster, source.reference, spec.place.container)
            if same_volumes(found, self.view.workload):
                self.view = replace(self.view, environment=environment)
                return
        number = str(next(self._numbers))
        folder = self._folder / number
        folder.mkdir(parents=True, mode=0o700)
        stack = AsyncExitStack()
        try:
            view = None
            if source is not None:
                view = await stack.enter_async_context(
                    open_view(
                        source.cluster,
                        source.reference,
                        spec.place.container,
                        folder=folder,
                        data=self._data / number,
                        options=_options(spec, source, changed),
                    )
                )
            binds = _binds(view)
            if self.network.pid is not None:  # how names resolve is the host's business otherwise
                binds = [*_surroundings(folder / "etc", resolver, view), *binds]
            gone = [each for each in self._mounted if each not in {bind.target for bind in binds}]
            failed = await self.network.mount(binds, gone)
            note_made(self._folder, self.network.made)
            if failed:
                listed = "; ".join(f"{target}: {why}" for target, why in failed.items())
                raise ServiceError(
                    f"files of its workload can't be put in place: {listed}",
                    where=f"services.{self.service}",
                    hint='a volume may be left out: volumes = { NAME = "ignore" }',
                )
        except BaseException:
            await stack.aclose()
            raise
        before, self._stack = self._stack, stack
        self._mounted = tuple(bind.target for bind in binds)
        self.view = view
        self._place = spec.place
        self.ready = True
        self.notes = tuple(map(str, view.notes)) if view else ()
        await before.aclose()

    @property
    def variables(self) -> Sequence[Variable]:
        """The workload's variables."""
        if self.view is None:
            return ()
        found = self.view.environment
        return (*found.image, *found.variables)

    @property
    def mounts(self) -> tuple[Mounted, ...]:
        """Its files and folders."""
        return tuple(
            Mounted(each.path, str(each.source), each.volume, each.kind, each.read_only, each.follows)
            for each in (self.view.mounts if self.view else ())
        )

    async def close(self) -> None:
        """Let go of everything."""
        await self.network.close()
        # What follows the cluster may be in the middle of a request that nobody answers.
        async with asyncio.timeout(5):
            await self._stack.aclose()


def _options(spec: Service, source: Source, changed: Callable[[Change], None]) -> Options:
    modes = {name: VolumeMode(mode) for name, mode in spec.place.volumes.items()}
    return Options(
        agent_image=source.agent_image,
        modes=modes,
        default_mode=modes.pop(ALL_VOLUMES, VolumeMode.COPY),
        copy_limit=DEFAULT_LIMIT,
        secrets_on_disk=source.secrets_on_disk,
        on_change=changed,
    )


def _binds(view: WorldView | None) -> list[Bind]:
    return [Bind(str(each.source), each.path, each.read_only) for each in (view.mounts if view else ())]


def _surroundings(folder: Path, resolver: Resolver, view: WorldView | None) -> list[Bind]:
    """resolv.conf as the pod has it, and what makes libc ask DNS for names and nobody else."""
    folder.mkdir(mode=0o700)
    nsswitch = _NSSWITCH.read_text() if _NSSWITCH.is_file() else ""
    lines = [line for line in nsswitch.splitlines() if not line.startswith("hosts:")]
    aliases = (view.workload.pod["spec"].get("hostAliases") if view else None) or []
    files = {
        "resolv.conf": resolv_conf(of_pod(resolver, view.workload.pod, view.workload.namespace) if view else resolver),
        "nsswitch.conf": "\n".join([*lines, "hosts: files dns", ""]),
        "hosts": _host_lines() + "".join(f"{each['ip']} {' '.join(each.get('hostnames') or [])}\n" for each in aliases),
    }
    for name, text in files.items():
        (folder / name).write_text(text, errors="surrogateescape")
    return [Bind(str(folder / name), f"/etc/{name}", True) for name in files]


def _host_lines() -> str:
    """The host's own, without those that other projects have there (`network = "hosts"`): they are for the host."""
    text = _HOSTS.read_text(errors="surrogateescape") if _HOSTS.is_file() else "127.0.0.1 localhost\n"
    return removed(text, lambda owner: True)[0]


def resolv_conf(resolver: Resolver) -> str:
    """The file for a service (resolv.conf(5)). Any name server does: every address of a namespace answers."""
    lines = [f"search {' '.join(resolver.search)}"] if resolver.search else []
    lines += [f"nameserver {address}" for address in resolver.nameservers[:3] or ("127.0.0.1",)]
    options = [each for each in resolver.options if not each.startswith("ndots:")]
    if resolver.ndots != 1:
        options.insert(0, f"ndots:{resolver.ndots}")
    lines += [f"options {' '.join(options)}"] if options else []
    return "\n".join(lines) + "\n"
