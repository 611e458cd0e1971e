"""The sandbox: manifests in, pods that run here out. What the engine sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from devloop.agent.tasks import background
from devloop.local.process import RUN_VARIABLE, Holders
from devloop.remote.imports import imported
from devloop.remote.life import HOLD_SECONDS, LiveLink
from devloop.remote.sandbox import SandboxLink
from devloop.remote.workload import references as kinds
from devloop.remote.workload import runfolder
from devloop.remote.workload.cluster import Cluster
from devloop.remote.workload.gather import local_capacity
from devloop.remote.workload.model import Object
from devloop.remote.workload.references import Kind

from . import controllers, manifests
from .cluster import PodCluster
from .endpoints import slices
from .network import PODS, SERVICES, Network, PodNames, PodRouter, give_addresses
from .objects import CLAIM, ENDPOINT_SLICE, Objects
from .pod import Pod
from .prepare import World

NETWORKS = (str(SERVICES), str(PODS))
"""Addresses of its Services and of its pods: what a local service reaches through the link."""
SOURCE = "sandbox"
"""The source of lines that no pod has printed."""
_OWNERS = (kinds.STATEFUL_SET, kinds.DAEMON_SET, kinds.REPLICA_SET, kinds.POD)
_KEPT = (
    "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "PYENV_VERSION",
)  # fmt: skip
"""Of this machine's environment, what programs need to run on it at all."""


class Sandbox:
    """A namespace of a cluster, whose pods are processes here. Everything is for the event loop's thread."""

    def __init__(
        self,
        manifests: Sequence[Path],
        images: Mapping[str, Path],
        namespace: str,
        holders: Holders,
        data: Path,
        log: Callable[[str, str], None],
    ) -> None:
        """`manifests` are files and folders; `images` say where an image's code lies; `namespace` may be empty.

        `holders` is open by the time of `start`. `data` is a folder of this sandbox's own: it is emptied at the start
        and removed at the end. `log` takes a source (a pod's name, or "sandbox" for notes) and a line.
        """
        self.namespace = namespace or "default"
        self.networks = NETWORKS
        self._manifests = manifests
        self._images = images
        self._holders = holders
        self._data = data
        self._log = log
        self._objects = Objects(self.namespace)
        self._pods: dict[str, Pod] = {}
        self._lives: dict[str, asyncio.Task[bool]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._network = Network(self._objects, self._running)
        self._cluster = PodCluster(self._objects, self._running)
        self._private = runfolder.RunFolder()
        self._stack = contextlib.AsyncExitStack()
        self._lone: list[Object] = []
        """Pods that no workload owns, as the manifests have them."""
        self._addresses = itertools.count(10)
        self._draw = random.Random()

    @property
    def cluster(self) -> Cluster:
        """Its objects, as `open_view` and the like ask for them. Good from `start` on."""
        return self._cluster

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know: what was left out of the manifests, why pods don't run."""
        return self._network.notes

    def workload_of(self, pod: str) -> str:
        """The workload of a pod, as in "deployment/api", for a log's line; the pod itself if it has none."""
        kind, item = "pod", self._objects.find(kinds.POD, pod)
        owners = item["metadata"].get("ownerReferences") if item else None
        name = pod
        while owners:
            kind, name = owners[0]["kind"].lower(), owners[0]["name"]
            above = self._objects.find(kinds.REPLICA_SET, name) if kind == "replicaset" else None
            owners = above["metadata"].get("ownerReferences") if above else None
        return f"{kind}/{name}"

    def link(self, *, hold: float = HOLD_SECONDS) -> LiveLink:
        """A new link into it, of kind "sandbox", not started. Close it before the sandbox.

        It may be started before the sandbox: connections and questions wait for `start`.
        """
        return SandboxLink(self._network, hold=hold)

    # --- Start ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the manifests and start all pods side by side; returns when they are on their way.

        Raises ConfigError, which names file and document, before anything was started.
        """
        found, _ = await asyncio.gather(
            asyncio.to_thread(manifests.read, self._manifests, self.namespace),
            imported("devloop.net.dns", "devloop.remote.kubernetes.zone", "dns.message", "dns.reversename"),
        )
        await asyncio.to_thread(self._make_folders)
        for note in found.notes:
            self._note(note)
        from devloop.net.dns import Resolver
        from devloop.net.upstream import HostResolvers

        resolver = Resolver(PodNames(self._network), HostResolvers())
        self._stack.push_async_callback(resolver.close)
        if sys.platform != "linux":
            self._no_namespaces("network namespaces are a part of Linux")
        world = World(
            self._objects,
            self._cluster,
            self._holders,
            self._images,
            self._data,
            self._private.path,
            PodRouter(self._network),
            resolver,
            base_environment(self._holders.run_id),
            self._log,
            self._recount,
            self._no_namespaces,
            lambda: self._network.not_running,
        )
        self._fill(found.manifests)
        self._start_pods(world)
        self._network.opened.set()

    def _make_folders(self) -> None:
        self._stack.callback(runfolder.remove, self._data)
        runfolder.remove(self._data)  # what a run that was killed has left
        self._data.mkdir(parents=True, mode=0o700)
        self._stack.enter_context(self._private)

    def _note(self, text: str) -> None:
        if text not in self._network.notes:
            self._network.notes += (text,)
            self._log(SOURCE, text)

    def _no_namespaces(self, reason: str) -> None:
        self._network.not_running = reason
        self._note(f"the sandbox's pods do not run on this machine: {reason}")

    def _fill(self, found: Sequence[manifests.Manifest]) -> None:
        """All objects but those that controllers make."""
        objects = self._objects
        objects.put(kinds.NODE, _node(), namespace="")
        objects.put(kinds.SERVICE, _api_server(), namespace="default")
        objects.put(kinds.SERVICE_ACCOUNT, {"metadata": {"name": "default"}})
        placeholder = "There is no API server in a sandbox, and so no certificate.\n"
        objects.put(kinds.CONFIG_MAP, {"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": placeholder}})
        for service in give_addresses([each.object for each in found if each.kind is kinds.SERVICE]):
            objects.put(kinds.SERVICE, service)
        for each in found:
            if each.kind not in (kinds.SERVICE, kinds.POD):
                objects.put(each.kind, each.object)
        for deployment in objects.all(kinds.DEPLOYMENT):
            objects.put(kinds.REPLICA_SET, controllers.replica_set(deployment))
        self._lone = [each.object for each in found if each.kind is kinds.POD]

    def _start_pods(self, world: World) -> None:
        objects = self._objects
        for kind in _OWNERS:
            owners = self._lone if kind is kinds.POD else objects.all(kind)
            for owner in owners:
                before: Pod | None = None
                ordered = kind is kinds.STATEFUL_SET and owner["spec"].get("podManagementPolicy") != "Parallel"
                for made in controllers.pods(kind, owner, self._draw):
                    if made.kind is CLAIM:
                        if objects.find(CLAIM, made.object["metadata"]["name"]) is None:
                            objects.put(CLAIM, made.object)
                        continue
                    before = self._pod(world, made.object, before if ordered else None)
        for job in objects.all(kinds.JOB):
            if not job["spec"].get("suspend"):
                self._keep(self._job(world, job, self._pod(world, controllers.job_pod(job, self._draw))))

    def _pod(self, world: World, item: Object, after: Pod | None = None) -> Pod:
        made = self._objects.put(kinds.POD, item)
        pod = Pod(world, made, str(PODS[next(self._addresses)]))
        self._pods[pod.name] = pod

        async def live() -> bool:
            while after is not None and not after.ready:
                await self._objects.changed()
            return await pod.run()

        life = self._lives[pod.name] = asyncio.create_task(live(), name=f"pod {pod.name}")
        life.add_done_callback(lambda done: self._ended(pod, done))
        return pod

    def _ended(self, pod: Pod, life: asyncio.Task[bool]) -> None:
        if not life.cancelled() and (problem := life.exception()) is not None:
            self._log(pod.name, f"devloop can't keep this pod: {type(problem).__name__}: {problem}")
        self._objects.nudge()

    async def _job(self, world: World, job: Object, pod: Pod) -> None:
        """A Job: its pods one after the other, until enough have ended well or too many have not."""
        spec, done, failed = job["spec"], 0, 0
        while True:
            if await self._lives[pod.name]:
                done += 1
            else:
                failed += 1
            over = done >= int(spec.get("completions") or 1)
            given_up = failed > int(spec.get("backoffLimit", 6)) or not pod.over
            status: dict[str, Any] = {"succeeded": done, "failed": failed, "active": int(not over and not given_up)}
            if over or given_up:
                status["conditions"] = [{"type": "Complete" if over else "Failed", "status": "True"}]
            self._objects.put(kinds.JOB, {**job, "status": status})
            if over or given_up:
                return
            await asyncio.sleep(min(0.1 * 2**failed, 10.0))
            pod = self._pod(world, controllers.job_pod(job, self._draw))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = background(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- While it runs -------------------------------------------------------------------------------------------

    def _running(self, name: str) -> Pod | None:
        pod = self._pods.get(name)
        return pod if pod is not None and not pod.over else None

    def _recount(self) -> None:
        """Bring up to date what follows from the pods: EndpointSlices, and the status of workloads."""
        objects = self._objects
        pods = objects.all(kinds.POD)
        for service in objects.all(kinds.SERVICE):
            made = {each["metadata"]["name"]: each for each in slices(service, pods)}
            label = service["metadata"]["name"]
            for old in objects.all(ENDPOINT_SLICE):
                name = old["metadata"]["name"]
                if old["metadata"]["labels"]["kubernetes.io/service-name"] == label and name not in made:
                    objects.delete(ENDPOINT_SLICE, name)
            for name, new in made.items():
                there = objects.find(ENDPOINT_SLICE, name)
                if there is None or any(there[key] != new[key] for key in ("ports", "endpoints")):
                    objects.put(ENDPOINT_SLICE, new)
        self._count(kinds.REPLICA_SET, pods)
        self._count(kinds.DEPLOYMENT, objects.all(kinds.REPLICA_SET))
        self._count(kinds.STATEFUL_SET, pods)

    def _count(self, kind: Kind, owned: Sequence[Object]) -> None:
        for owner in self._objects.all(kind):
            mine = [each for each in owned if _owned_by(each, owner)]
            ready = sum(_ready_replicas(each) for each in mine)
            status = {"replicas": owner["spec"].get("replicas", 1), "readyReplicas": ready, "availableReplicas": ready}
            if owner.get("status") != status:
                self._objects.put(kind, {**owner, "status": status})

    async def ready(self, timeout: float) -> tuple[str, ...]:
        """Wait until all pods are ready (Jobs: complete), at most so many seconds; those that are not, and why."""

        def waited_for() -> list[Pod]:
            return [each for name, each in self._pods.items() if not each.ready and not self._lives[name].done()]

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while waited_for():
                    await self._objects.changed()
        wrong = [each for each in self._pods.values() if not each.ready and not each.done_well]
        return tuple(f"{each.name}: {each.trouble or 'not ready'}" for each in wrong)

    # --- End -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End all pods: SIGTERM, then after their grace, 2 s at most, SIGKILL. Removes what lies under `data`."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(pod.stop(self._lives[name]) for name, pod in self._pods.items()))
        self._pods.clear()
        self._network.opened.set()  # what waits for it is told that nothing is there
        await self._stack.aclose()


def base_environment(run_id: str) -> dict[str, str]:
    """What each container has before its own variables: devloop's own programs first, so that `python3` is found."""
    here = os.environ
    path = os.pathsep.join([str(Path(sys.executable).parent), here.get("PATH", os.defpath)])
    return {name: here[name] for name in _KEPT if name in here} | {"PATH": path, RUN_VARIABLE: run_id}


def _owned_by(item: Object, owner: Object) -> bool:
    return any(each["uid"] == owner["metadata"]["uid"] for each in item["metadata"].get("ownerReferences") or [])


def _ready_replicas(item: Object) -> int:
    """A ReplicaSet's ready pods; of a pod, 1 if it is ready."""
    status = item.get("status") or {}
    if "readyReplicas" in status:
        return int(status["readyReplicas"])
    return int(any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or []))


def _node() -> Object:
    """The one node: this machine."""
    capacity = local_capacity()
    return {"metadata": {"name": controllers.NODE}, "status": {"allocatable": capacity, "capacity": capacity}}


def _api_server() -> Object:
    """The Service that every pod has variables of. Nothing stands behind it."""
    ports = [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}]
    spec = {"type": "ClusterIP", "clusterIP": str(SERVICES[1]), "clusterIPs": [str(SERVICES[1])], "ports": ports}
    return {"metadata": {"name": "kubernetes"}, "spec": spec}
