"""What a namespace's NetworkPolicies say of a connection. Pure: the API's JSON in.

While a Service leads to the agent, the agent is what clients connect to, and it is the original pods' client. Policies
that were written for these two alone let neither through. What they say is not the last word: some clusters enforce
none, and some have others besides (Cilium's, Calico's, an administrator's). `reaching.py` tries it out.

`None` stands for what can't be told: the labels of a namespace, which may not be read, or addresses, of which each
implementation thinks otherwise.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from devloop.agent.objects import Document

from .scalers import selects

Direction = Literal["Ingress", "Egress"]
NAME_LABEL = "kubernetes.io/metadata.name"
"""The label that every namespace has."""
ANYBODY: Document = {}
"""A peer that stands for all, whom a rule without peers admits."""


COMPARED = 300_000
"""Peers of rules that are looked at, some 0.5 s; what is left then can't be told. Policies are anybody's."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One end of a connection, a pod of the namespace."""

    labels: Mapping[str, str]
    addresses: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    """Its containers' named ports, which policies may speak of."""

    @classmethod
    def of(cls, pod: Document) -> Peer:
        """A pod as the API gives it."""
        containers = pod["spec"].get("containers") or []
        named = {p["name"]: int(p["containerPort"]) for c in containers for p in c.get("ports") or [] if p.get("name")}
        addresses = tuple(str(each["ip"]) for each in (pod.get("status") or {}).get("podIPs") or [])
        return cls(pod["metadata"].get("labels") or {}, addresses, named)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a connection may be made; and if that is not sure, the policies that apply and don't admit it."""

    may: bool | None
    out: tuple[str, ...] = ()
    """Those that say where the source may connect to."""
    into: tuple[str, ...] = ()
    """Those that say who may connect to the target."""

    def __str__(self) -> str:
        said = [f"the NetworkPolicy {each} does not let them out to it" for each in self.out]
        return " or ".join(said + [f"the NetworkPolicy {each} does not admit them" for each in self.into])


@dataclass(slots=True)
class _Work:
    """What has been worked out of some policies."""

    applying: dict[tuple[frozenset[tuple[str, str]], Direction], list[Document]] = field(default_factory=dict)
    """By a pod's labels: they are asked again for each port and each other pod."""
    compared: int = 0


@dataclass(frozen=True, slots=True)
class Policies:
    """A namespace's, with what is known of the namespace's own labels: its name, or all. For one look: the work that
    it does has a bound. Not to be asked in an event loop where there may be many."""

    items: Sequence[Document]
    namespace: str
    labels: Mapping[str, str] | None = None
    _work: _Work = field(default_factory=_Work, compare=False, repr=False)

    def connects(self, source: Peer, target: Peer, port: int | None) -> Verdict:
        """Whether `source` may connect to a TCP port of `target`; without a port, to any that is asked for."""
        out, by_out = self._admitted(source, target, "Egress", target, port)
        into, by_into = self._admitted(target, source, "Ingress", target, port)
        may = False if False in (out, into) else None if None in (out, into) else True
        sure = [each for each in (out, into) if each is may]
        return Verdict(
            may,
            () if out is True or (out is not may and sure) else tuple(by_out),
            () if into is True or (into is not may and sure) else tuple(by_into),
        )

    def outsiders(self, original: Peer, port: int | None, agent: Peer, listener: int) -> list[Document]:
        """Peers of other namespaces, or of none, that may connect to an original pod, and to the agent may not."""
        admitted = self._peers(agent, listener)
        if admitted is None or ANYBODY in admitted:
            return []
        known = self._peers(original, port)
        wanted = [ANYBODY] if known is None or ANYBODY in known else [each for each in known if self._outside(each)]
        found = []
        for each in wanted:
            if not self._looks(len(admitted)):  # whether one of them is kept out can't be told
                break
            if not any(_covers(one, each) for one in admitted):
                found.append(each)
        return found

    def selecting(self, peer: Peer, direction: Direction) -> list[str]:
        """The policies that apply to a pod: of those alone it depends who may connect to it, or where it may to."""
        return sorted(str(each["metadata"]["name"]) for each in self._applying(peer, direction))

    def _applying(self, peer: Peer, direction: Direction) -> list[Document]:
        key = (frozenset(peer.labels.items()), direction)
        if (found := self._work.applying.get(key)) is None:
            found = [each for each in self.items if applies(each["spec"], peer.labels, direction)]
            self._work.applying[key] = found
        return found

    def _looks(self, many: int) -> bool:
        """So many peers may be looked at."""
        self._work.compared += many
        return self._work.compared <= COMPARED

    def _rules(self, peer: Peer, direction: Direction) -> list[Document]:
        key = direction.lower()
        return [rule for each in self._applying(peer, direction) for rule in each["spec"].get(key) or []]

    def _admitted(
        self, subject: Peer, other: Peer, direction: Direction, target: Peer, port: int | None
    ) -> tuple[bool | None, list[str]]:
        names = self.selecting(subject, direction)
        if not names:
            return True, []
        peers = "from" if direction == "Ingress" else "to"
        may: bool | None = False
        for rule in self._rules(subject, direction):
            at_port = _port(rule.get("ports"), target, port)
            one = False if at_port is False else _both(at_port, self._any(rule.get(peers), other))
            if one is True:
                return True, names
            may = None if one is None else may
        return may, names

    def _any(self, peers: Sequence[Document] | None, pod: Peer) -> bool | None:
        if not peers:
            return True
        if not self._looks(len(peers)):
            return None
        found: bool | None = False
        for each in peers:
            if (one := self._is(each, pod)) is True:
                return True
            found = None if one is None else found
        return found

    def _is(self, peer: Document, pod: Peer) -> bool | None:
        if block := peer.get("ipBlock"):
            # What an ipBlock says of a pod's address is left to the implementation (NetworkPolicyPeer).
            return None if any(_within(block, each) for each in pod.addresses) else False
        here = True if peer.get("namespaceSelector") is None else self._here(peer["namespaceSelector"])
        labels = peer.get("podSelector")
        return _both(here, True if labels is None else selects(labels, dict(pod.labels)))

    def _here(self, selector: Document) -> bool | None:
        """Whether it takes this namespace."""
        if self.labels is not None:
            return selects(selector, dict(self.labels))
        known = {NAME_LABEL: self.namespace}
        keys = {*(selector.get("matchLabels") or {}), *(e["key"] for e in selector.get("matchExpressions") or [])}
        if keys <= known.keys():
            return selects(selector, known)
        of_name = {
            "matchLabels": {k: v for k, v in (selector.get("matchLabels") or {}).items() if k in known},
            "matchExpressions": [e for e in selector.get("matchExpressions") or [] if e["key"] in known],
        }
        return None if selects(of_name, known) else False

    def _peers(self, pod: Peer, port: int | None) -> list[Document] | None:
        """Who is admitted at a port of a pod; None: no policy applies, so all are."""
        if not self._applying(pod, "Ingress"):
            return None
        rules = [rule for rule in self._rules(pod, "Ingress") if _port(rule.get("ports"), pod, port) is not False]
        return [each for rule in rules for each in rule.get("from") or [ANYBODY]]

    def _outside(self, peer: Document) -> bool:
        if "ipBlock" in peer:
            return True
        selector = peer.get("namespaceSelector")
        if selector is None:
            return False
        return (selector.get("matchLabels") or {}).get(NAME_LABEL) != self.namespace


def applies(spec: Mapping[str, Any], labels: Mapping[str, str], direction: Direction) -> bool:
    """Whether a policy says who may connect to pods of these labels, or where these may.

    `policyTypes` may be left out: then it is Ingress, and Egress if there are egress rules (API reference,
    NetworkPolicySpec). Policies add up, so where none admits a connection each of them is one that doesn't.
    """
    kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return direction in kinds and selects(spec.get("podSelector") or {}, dict(labels))


def described(peer: Document) -> str:
    """A peer, for people."""
    if not peer:
        return "anybody"
    if block := peer.get("ipBlock"):
        return f"addresses in {block.get('cidr')}"
    selector = peer.get("namespaceSelector") or {}
    name = (selector.get("matchLabels") or {}).get(NAME_LABEL)
    if name:
        return f"the namespace {name}"
    labels = ", ".join(f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items())
    return f"namespaces with {labels}" if labels else "other namespaces"


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _port(ports: Iterable[Document] | None, target: Peer, port: int | None) -> bool | None:
    """Whether a rule's ports have this one of the target's. A name is that of a port of its containers."""
    entries = list(ports or ())
    if not entries:
        return True
    for each in entries:
        if each.get("protocol", "TCP") != "TCP":
            continue
        said = each.get("port")
        if said is None:
            return True
        if port is None:
            return None
        first = target.ports.get(said) if isinstance(said, str) else int(said)
        if first is not None and first <= port <= int(each.get("endPort") or first):
            return True
    return False


@functools.lru_cache(4096)
def _network(cidr: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(cidr, strict=False)


def _within(block: Document, address: str) -> bool:
    def has(cidr: str) -> bool:
        try:
            return ipaddress.ip_address(address) in _network(cidr)
        except ValueError:
            return False

    return has(str(block.get("cidr"))) and not any(has(str(each)) for each in block.get("except") or [])


def _covers(one: Document, other: Document) -> bool:
    """Whether a peer admits all that another one does, as far as can be told."""
    if one == other:
        return True
    if not other:
        return False
    if "ipBlock" in one or "ipBlock" in other:
        if "ipBlock" not in one or "ipBlock" not in other or one["ipBlock"].get("except"):
            return False
        try:
            outer, inner = (_network(str(each["ipBlock"]["cidr"])) for each in (one, other))
        except ValueError:
            return False
        return (
            outer.version == inner.version
            and int(outer.network_address) <= int(inner.network_address)
            and int(inner.broadcast_address) <= int(outer.broadcast_address)
        )
    wide = one.get("namespaceSelector") in ({}, other.get("namespaceSelector"))
    return wide and one.get("namespaceSelector") is not None and not one.get("podSelector")
