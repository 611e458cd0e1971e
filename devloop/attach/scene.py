"""Who stands in a namespace: the agent, the original pods and all others, and whom policies keep from whom. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from devloop.agent import objects
from devloop.agent.objects import Document

from . import pods
from .policies import Peer, Policies, Verdict, described
from .trying import Target

_OWN_LABELS = ("pod-template-hash", "controller-revision-hash", "statefulset.kubernetes.io/pod-name")
LABEL = ", ".join(f'{key}: "{value}"' for key, value in objects.AGENT_SELECTOR.items())
PEER = f"{{podSelector: {{matchLabels: {{{LABEL}}}}}}}"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A pod that could connect to the original, and to the agent perhaps not."""

    pod: Document
    verdict: Verdict
    sure: bool
    targets: tuple[Target, ...]
    """The agent, and what answers if it is only the agent that does not."""

    @property
    def name(self) -> str:
        """The pod's."""
        return str(self.pod["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Scene:
    """What stands in the namespace at one moment."""

    policies: Policies
    agent: Document
    originals: list[Document]
    others: list[Document]
    selector: Mapping[str, str]


Originals = Mapping[int, tuple[Peer, int | None]]
"""By the Service's port: see `original_of`."""


def suspect_of(scene: Scene, pod: Document, listeners: Mapping[int, int], originals: Originals) -> Suspect | None:
    """The pod, if at one of the ports it could connect to the original and to the agent perhaps not."""
    me, agent = Peer.of(pod), Peer.of(scene.agent)
    worst: Suspect | None = None
    for port, listener in listeners.items():
        to_agent = scene.policies.connects(me, agent, listener)
        if to_agent.may is True:
            continue
        original, own = originals[port]
        before = scene.policies.connects(me, original, own)
        if before.may is False:
            continue
        sure = to_agent.may is False and before.may is True
        control = ((original.addresses[0], own),) if original.addresses and own else ()
        if worst is None or (sure and not worst.sure):
            worst = Suspect(pod, to_agent, sure, ((address_of(scene.agent), listener), *control))
    return worst


def suspects(scene: Scene, service: Document, listeners: Mapping[int, int]) -> list[Suspect]:
    """One of each kind of the namespace's pods. `listeners`: where the agent listens, by the Service's port."""
    ports = [each["port"] for each in service["spec"].get("ports") or [] if each.get("protocol", "TCP") == "TCP"]
    known = {each: listeners[each] for each in ports if each in listeners}
    originals = {port: original_of(scene, service, port) for port in known}
    found = (suspect_of(scene, each, known, originals) for each in kinds(scene.others + scene.originals))
    return [each for each in found if each is not None]


def outside(scene: Scene, service: Document, listeners: Mapping[int, int]) -> str:
    """Who from outside of the namespace may connect to the original and to the agent not; empty: nobody is known."""
    agent = Peer.of(scene.agent)
    for each in service["spec"].get("ports") or []:
        if each.get("protocol", "TCP") != "TCP" or each["port"] not in listeners:
            continue
        original, own = original_of(scene, service, each["port"])
        if uncovered := scene.policies.outsiders(original, own, agent, listeners[each["port"]]):
            who = ", ".join(dict.fromkeys(map(described, uncovered)))
            names = " or ".join(scene.policies.selecting(agent, "Ingress"))
            return f"{who} may connect to its pods, and the NetworkPolicy {names} admits them to the agent's not"
    return ""


def barred_doors(scene: Scene, ports: Iterable[int]) -> list[tuple[Document, Verdict]]:
    """Kinds of the original's pods that may not connect to one of these ports of the agent's."""
    agent = Peer.of(scene.agent)
    found = []
    for pod in kinds(scene.originals):
        verdicts = (scene.policies.connects(Peer.of(pod), agent, port) for port in ports)
        if barred := next((each for each in verdicts if each.may is False), None):
            found.append((pod, barred))
    return found


def selecting(scene: Scene) -> tuple[list[str], list[str]]:
    """The policies that say who may connect to the original, and where the agent may connect to."""
    originals = [Peer.of(each) for each in kinds(scene.originals)] or [Peer(scene.selector)]
    into = {one for each in originals for one in scene.policies.selecting(each, "Ingress")}
    return sorted(into), scene.policies.selecting(Peer.of(scene.agent), "Egress")


def original_of(scene: Scene, service: Document, port: int) -> tuple[Peer, int | None]:
    """A pod that the Service leads to, with its own port for the Service's. Without a pod, its labels."""
    for each in scene.originals:
        own = pods.own_port(service, each, port)
        if own is not None:
            return Peer.of(each), own
    targets = [each.get("targetPort") or port for each in service["spec"].get("ports") or [] if each["port"] == port]
    return Peer(scene.selector), next((each for each in targets if isinstance(each, int)), None)


def kinds(found: Iterable[Document]) -> list[Document]:
    """One pod of each kind: policies tell pods apart by their labels alone."""
    seen: dict[frozenset[tuple[str, str]], Document] = {}
    for each in found:
        labels = frozenset((key, value) for key, value in labels_of(each).items() if key not in _OWN_LABELS)
        seen.setdefault(labels, each)
    return list(seen.values())


def kept_out(scene: Scene, service: Document) -> str:
    """Why the agent may not connect to a port of any of its original pods, by what policies say; empty: it may, or that
    is not sure."""
    agent = Peer.of(scene.agent)
    for port in service["spec"].get("ports") or []:
        owned = [(each, pods.own_port(service, each, port["port"])) for each in kinds(scene.originals)]
        known = [scene.policies.connects(agent, Peer.of(each), own) for each, own in owned if own is not None]
        if port.get("protocol", "TCP") == "TCP" and known and all(each.may is False for each in known):
            said = [f"the NetworkPolicy {one} does not admit it" for each in known for one in each.into]
            said += [f"the NetworkPolicy {one} does not let it out" for each in known for one in each.out]
            return " or ".join(dict.fromkeys(said))
    return ""


def labels_of(pod: Document) -> dict[str, str]:
    """What policies select it by."""
    return dict(pod["metadata"].get("labels") or {})


def address_of(pod: Document) -> str:
    """Its first one."""
    return str(pod["status"]["podIPs"][0]["ip"])


def admitting(verdict: Verdict, first: int = 20000) -> str:
    """What to change in the policies that keep clients from the agent."""
    said = []
    if verdict.out:
        said.append(f"add {PEER} to the `to` of {' and '.join(verdict.out)}, for ports from {first}")
    if verdict.into or not said:
        said.append(
            f"make a NetworkPolicy that admits its clients to the pods {{{LABEL}}} (docs/attachments.md has one)"
        )
    return f"Let them reach the agent: {'; '.join(said)}."
