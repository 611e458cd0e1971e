"""Connections that clients had before a Service was attached: they still lead to the original pods, and are counted.

Who keeps a connection keeps the pod that it leads to, whatever the Service's selector says by now: kube-proxy looks at
its first packet alone. Nothing of them passes the agent, so they are looked for where they end: in the tables of the
original pods' networks, by a command there. What comes from the agent is what it hands on. Two looks, by what the
kernel has counted between them, tell about how many requests per second they carry (`devloop.agent.request_rate`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from devloop.agent import objects, sockets
from devloop.agent.objects import Document
from devloop.agent.request_rate import Compared, RequestRate, estimate
from devloop.agent.sockets import Carried
from devloop.errors import RemoteError
from devloop.failures import contained
from devloop.remote.kubernetes.api import Api
from devloop.remote.kubernetes.install import SELECTOR

from . import pods
from .attachment import Attachment
from .claims import Claims
from .seam import AttachError
from .session import SessionLostError
from .tables import ways

log = logging.getLogger(__name__)

Run = Callable[[str, str, Sequence[str]], Awaitable[bytes]]
"""Runs a command in a pod's container, and gives what it prints; empty if the command is not there. RemoteError, with
the reason, if none may be run."""
SOON_SECONDS, LATER_SECONDS = 10.0, 60.0
"""Between two looks, while there are some, and while there are none."""
SETTLE_SECONDS = 2.0
"""After the first look, and after one that was asked for, there is another one: nodes take a moment to hear where a
Service leads, and who connects in that moment is counted as soon. It is also the first that can tell a rate."""
COUNTING = "they are being counted"
"""What is said until they have been counted once: on a busy node a command in a pod takes some seconds."""
NAME_SECONDS = 60.0
"""How long it is believed which pod has an address."""
OTHERS = "others"
"""Clients that are too many to be named."""
AT_ONCE = 4
"""Commands at a time: each is a process on a node."""


@dataclass(frozen=True, slots=True)
class Past:
    """Of one of the original's pods."""

    clients: Mapping[str, int]
    """How many connections of each client's address lead to it."""
    compared: Compared | None = None
    """What they carry; None: nothing is known of that."""


Ask = Callable[[str], Awaitable[Mapping[str, Past]]]
"""Asks the doors of an attachment, by pod's uid, for what leads past them. RemoteError."""


class UncountedError(RemoteError):
    """It can't be known; `what` is the reason."""


class Earlier:
    """One engine's."""

    def __init__(self, api: Api, claims: Claims, run: Run | None, ask: Ask | None = None) -> None:
        """`run` is for pods of the API's namespace; without it nothing can be known. `ask` is for those with a door."""
        self._api = api
        self._claims = claims
        self._run = run
        self._ask = ask
        self._pods = f"/api/v1/namespaces/{api.namespace}/pods"
        self._ways: dict[str, int] = {}
        """A pod's uid → which of the commands its image has."""
        self._rates: dict[str, dict[str, RequestRate[Carried]]] = {}
        """An attachment's id → of its pods, by uid, what the last look has seen."""
        self._names: dict[str, tuple[float, str]] = {}
        """A client's address → when it was asked, and its pod's name, or the address again."""
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def watching(self, found: Attachment) -> None:
        """Keep `found.earlier` true, until the attachment is over."""
        if not found.spec.service or found.spec.kind == "replace":
            found.looked.set()
            return
        try:
            await self._watching(found)
        finally:
            self._rates.pop(found.spec.id, None)

    async def _watching(self, found: Attachment) -> None:
        fresh = True
        while not found.over:
            await self.look(found)
            found.looked.set()
            none = not (found.earlier or found.uncounted)
            pause = SETTLE_SECONDS if fresh else LATER_SECONDS if none else SOON_SECONDS
            fresh = False
            try:
                async with asyncio.timeout(pause):
                    await found.look_again.wait()
                fresh = True
            except TimeoutError:
                pass
            found.look_again.clear()

    async def look(self, found: Attachment) -> None:
        """Count anew, and say so if it is news."""
        counted: tuple[tuple[str, int], ...] = ()
        uids, rate, why = frozenset[str](), None, ""
        try:
            counted, uids, rate = await self._count(found)
        except UncountedError as problem:
            why = problem.what
        except (RemoteError, OSError, TimeoutError) as problem:
            log.info("connections from before of %s: %s", found.spec.service, problem)
            if found.looked.is_set() and not found.uncounted:
                if found.earlier_rate is not None:  # it was of a moment
                    found.earlier_rate = None
                    found.tell()
                return  # the count: what was counted last is likelier than nothing
            why = problem.what if isinstance(problem, RemoteError) else "the cluster did not answer"
        except Exception as problem:  # what a pod prints is anybody's, and `attach` waits for this
            why = contained(problem, f"the connections from before of {found.spec.service} can't be counted").what
        found.leads_to = uids
        if (counted, rate, why) != (found.earlier, found.earlier_rate, found.uncounted):
            found.earlier, found.earlier_rate, found.uncounted = counted, rate, why
            found.tell()

    async def service(self, found: Attachment) -> Document | None:
        """The Service as its owner wants it."""
        service = await self._claims.service(found.spec.service)
        return None if service is None else objects.owners(service)

    async def original(self, found: Attachment) -> list[tuple[Document, pods.Pod]]:
        """The original's running pods, with their own ports. UncountedError, RemoteError."""
        owned = await self.service(found)
        if owned is None:
            return []
        query = ",".join(f"{key}={value}" for key, value in (owned["spec"].get("selector") or {}).items())
        items = (await self._api.get(self._pods, labelSelector=query)).get("items") or []
        try:
            chosen = {each.uid: each for each in pods.chosen(owned, items, found.spec.ports, found.spec.service)}
        except RemoteError as problem:
            raise UncountedError(problem.what) from None
        return [(each, chosen[each["metadata"]["uid"]]) for each in items if each["metadata"]["uid"] in chosen]

    async def agents(self) -> list[str]:
        """The agent's addresses."""
        items = (await self._api.get(self._pods, labelSelector=SELECTOR)).get("items") or []
        return [str(each["ip"]) for pod in items for each in pod["status"].get("podIPs") or []]

    async def restarts(self, found: Attachment) -> str:
        """The commands that restart the clients that are known, for people."""
        names = [client for client, _ in found.earlier]
        documents = await asyncio.gather(*(self._api.find(f"{self._pods}/{each}") for each in names))
        references = dict.fromkeys(filter(None, (_workload(each) for each in documents if each is not None)))
        if not references:
            return ""
        return f"kubectl -n {self._api.namespace} rollout restart {' '.join(references)}"

    async def named(self, counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
        """(client, how many), most first, of numbers by address."""
        named = Counter[str]()
        for address, number in counts.items():
            named[await self._name(address) if address else OTHERS] += number
        return tuple(sorted(named.items(), key=lambda each: (-each[1], each[0])))

    async def _count(self, found: Attachment) -> tuple[tuple[tuple[str, int], ...], frozenset[str], float | None]:
        """`named`, the uids of the pods that they lead to, and how many requests per second, if that is known."""
        by_pod = await (self._past_doors(found) if found.spec.way == "pods" else self._in_tables(found))
        counts: Counter[str] = Counter()
        for each in by_pod.values():
            counts.update(each.clients)
        uids = frozenset(uid for uid, each in by_pod.items() if each.clients)
        return await self.named(counts), uids, estimate(by_pod[uid].compared for uid in uids)

    async def _past_doors(self, found: Attachment) -> Mapping[str, Past]:
        """A pod's tables don't tell connections from before from those that its door has caught; the door knows."""
        if self._ask is None:
            raise UncountedError("there is no way to ask the doors of its pods")
        try:
            by_pod, agents = await asyncio.gather(self._ask(found.spec.id), self.agents())
        except SessionLostError:
            raise
        except AttachError as problem:
            raise UncountedError(problem.what) from None
        return {
            uid: replace(past, clients={a: n for a, n in past.clients.items() if a not in agents})
            for uid, past in by_pod.items()
        }

    async def _in_tables(self, found: Attachment) -> Mapping[str, Past]:
        if self._run is None:
            raise UncountedError("there is no way to look into its pods")
        original, agents = await asyncio.gather(self.original(found), self.agents())
        before = self._rates.get(found.spec.id, {})
        rates = {pod.uid: before.get(pod.uid) or RequestRate[Carried]() for _, pod in original}
        found_in = await asyncio.gather(*(self._of_pod(*each, agents, rates[each[1].uid]) for each in original))
        self._rates[found.spec.id] = rates
        return {pod.uid: each for (_, pod), each in zip(original, found_in, strict=True)}

    async def _of_pod(
        self, document: Document, pod: pods.Pod, agents: Collection[str], rate: RequestRate[Carried]
    ) -> Past:
        network = await self._network(document, pod)
        ports, known = set(pod.ports.values()), (*agents, *pod.nodes, *pod.addresses, *network.gateways)
        held = sockets.others(network.connections, ports, known)
        compared = None
        if network.at is not None:
            carried = {each: each.packets for each in sockets.others(network.carried, ports, known)}
            compared = rate.look(network.at, carried, len(held))
        return Past(Counter(each.client for each in held), compared)

    async def _network(self, document: Document, pod: pods.Pod) -> sockets.Network:
        assert self._run is not None
        container = str(document["spec"]["containers"][0]["name"])
        commands = ways(pod.ports.values())
        known = self._ways.get(pod.uid)
        async with self._slots:
            for number in range(len(commands)) if known is None else (known,):
                try:
                    printed = await self._run(pod.name, container, commands[number])
                    network = sockets.read(printed.decode(errors="replace"))
                except ValueError:
                    continue
                except RemoteError as problem:
                    raise UncountedError(problem.what) from None
                self._ways[pod.uid] = number
                return network
        self._ways.pop(pod.uid, None)
        tools = ", ".join(dict.fromkeys(way[0].rpartition("/")[2] for way in commands))
        raise UncountedError(f"the image of pod {pod.name} has none of {tools}")

    async def _name(self, address: str) -> str:
        """A pod of this namespace by its address, else the address."""
        now = time.monotonic()
        asked, name = self._names.get(address, (now - NAME_SECONDS, ""))
        if asked <= now - NAME_SECONDS:
            # A pod's second address, of the other family, can't be selected by.
            chosen = {} if ":" in address else {"fieldSelector": f"status.podIP={address}"}
            items = (await self._api.get(self._pods, **chosen)).get("items") or []
            running = [each for each in items if pods.runs(each) and not each["spec"].get("hostNetwork")]
            self._names[address] = now, address
            for each in running:
                for one in each["status"].get("podIPs") or []:
                    self._names[str(one["ip"])] = now, str(each["metadata"]["name"])
            _, name = self._names[address]
        return name


def _workload(pod: Document) -> str:
    """What a pod's workload is called, as kubectl takes it; empty if it has none that can be restarted."""
    for owner in pod["metadata"].get("ownerReferences") or []:
        kind, name = str(owner.get("kind")), str(owner.get("name"))
        if kind == "ReplicaSet":
            return f"deployment/{name.rpartition('-')[0]}"
        if kind in ("StatefulSet", "DaemonSet"):
            return f"{kind.lower()}/{name}"
    return ""
