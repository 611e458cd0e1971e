"""The parts of a project's remote. Imported late and in a thread: dnspython, asyncssh and the client take long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devloop.config.model import Remote, RemoteKind
from devloop.engine.names import Names
from devloop.engine.networks import Networks
from devloop.engine.routes import Routes
from devloop.net.dns import Resolver
from devloop.net.upstream import HostResolvers
from devloop.remote.kubernetes.kubeconfig import Lasting
from devloop.remote.open import agent_image, host_link, kubeconfig, link_by
from devloop.remote.workload import KubeCluster, RunFolder
from devloop.remote.workload.runfolder import remove

if TYPE_CHECKING:
    from devloop.engine.remote import Parts, RemoteSide
    from devloop.remote.link import Link


async def make(side: RemoteSide) -> Parts:
    """Make them, and start the link. What has to be closed is on the side's stack. Raises DevloopError."""
    from devloop.engine.remote import Parts

    remote = side._remote
    stack = side._stack
    folder = stack.enter_context(RunFolder())
    remove(side.copies)  # an engine that was killed has left them
    stack.callback(remove, side.copies)
    clusters: dict[str, Any] = {}
    link: Link
    match remote.kind:
        case RemoteKind.KUBERNETES:
            link, clusters = await _kubernetes(side, remote)
        case RemoteKind.SSH:
            link = host_link(remote)
        case RemoteKind.SANDBOX:
            link, clusters = await _sandbox(side, remote)
    stack.push_async_callback(link.close)
    if side.connects:
        link.start()
    names = Names(link, side.standings, side._outside.is_local, remote.names)
    stack.push_async_callback(names.close)
    routes = Routes(link, names, side.standings, side._outside.is_local, side.here.ports, remote.networks)
    resolver = Resolver(names, HostResolvers(), reached=routes.reached)
    stack.push_async_callback(resolver.close)
    networks = Networks(
        remote,
        lambda: side.project,
        side.standings,
        routes,
        resolver,
        side._holders,
        side.here.fronts,
        side._state,
        folder.path,
        side._outside.say,
        side._outside.notice,
        side.changed,
    )
    stack.push_async_callback(networks.close)
    image = "" if remote.kind is not RemoteKind.KUBERNETES else agent_image(remote)
    return Parts(link, names, routes, resolver, networks, folder, clusters, image)


async def _kubernetes(side: RemoteSide, remote: Remote) -> tuple[Link, dict[str, Any]]:
    chosen = kubeconfig(remote)
    link = link_by(chosen, remote)
    if side.connects:
        link.start()  # before all else: it takes the longest
    settings = await chosen.configuration()
    lasting = Lasting(chosen, settings)
    clusters = {}
    own = chosen.chosen.namespace
    others = (service.place.namespace for service in side.project.services.values())
    for namespace in dict.fromkeys((own, *(each for each in others if each))):
        clusters[namespace] = await side._stack.enter_async_context(KubeCluster(settings, namespace, lasting))
    return link, clusters


async def _sandbox(side: RemoteSide, remote: Remote) -> tuple[Link, dict[str, Any]]:
    from devloop.sandbox.sandbox import SOURCE, Sandbox

    def log(pod: str, line: str) -> None:
        """To the service that stands for the pod's workload; what no pod has said is for the notices."""
        if pod == SOURCE:
            side._outside.notice("info", line, "")
            return
        reference = sandbox.workload_of(pod)
        for standing in side.standings().by_service.values():
            if standing.workload is not None and standing.workload.reference == reference:
                side._outside.say(standing.service, f"{pod}: {line}")

    data = side._state.path / "sandbox"
    namespace = remote.namespace or ""
    sandbox = Sandbox(remote.manifests, remote.images, namespace, side._holders, data, log)
    side._stack.push_async_callback(sandbox.close)
    await sandbox.start()
    return sandbox.link(), {sandbox.namespace: sandbox.cluster}
