"""What attachments write into a cluster, and how it is read and taken back. Pure: JSON in, JSON out.

A Service that leads to the agent says so in one annotation (`RECORD`), which is written in the same call as its
selector. It holds what was there before, by port. What somebody else writes into the Service meanwhile is
theirs: `owners` gives the Service as its owner wants it, which is the original with those edits, and that is
what is put back.

A lease stands for each attachment, from before its first change until after the last one is undone. So whatever is
found in a cluster is one of: held by a lease that is renewed; or to be undone by whoever finds it. `next_step` says
the next call for that, given what is there; it is asked again after each call, by anybody.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from .spec import Spec, SpecError

Document = dict[str, Any]

AGENT_KEY = "devloop.dev/agent"
AGENT_SELECTOR = {AGENT_KEY: "true"}
"""The label of the agent's pod. A key that nobody else's selector has: then a merge with it can be told."""
RECORD = "devloop.dev/attached"
SPEC = "devloop.dev/attachment"
REPLICAS = "devloop.dev/replicas"
OWNER_KEY = "devloop.dev/key"
"""Of a lease: the fingerprint of the SSH key that its attachment belongs to, as OpenSSH writes it (SHA256:…)."""
SHADOW_OF = "devloop.dev/shadow-of"
MANAGED = {"app.kubernetes.io/managed-by": "devloop"}
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""What `kubectl apply` has sent last, as kubectl notes it. It takes a key away that is in there and no more in what it
applies now."""
LEASE_LABEL = "devloop.dev/lease"
LEASE_SECONDS = 30
KEPT = "devloop.dev/kept"
"""Annotation ("true") of what was installed to stay: no client and no agent that leaves takes it away."""
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def stamp(now: datetime | None = None) -> str:
    """A MicroTime of the API's."""
    return (now or datetime.now(UTC)).strftime(_TIME)


def short(name: str, suffix: str, limit: int = 63) -> str:
    """`name` and `suffix` as one DNS label."""
    if len(name) + len(suffix) <= limit:
        return name + suffix
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{name[: limit - len(suffix) - 7]}-{digest}{suffix}"


def kept(item: Document) -> bool:
    """It was installed to stay."""
    return (item["metadata"].get("annotations") or {}).get(KEPT) == "true"


def shadow_name(service: str) -> str:
    """The Service that keeps the original selector."""
    return short(service, "-devloop")


# --- The record in a Service --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """What the annotation of a Service says."""

    selector: Mapping[str, str]
    """The original one, as it was last seen."""
    targets: Mapping[int, int | str]
    """The agent's listener to the original targetPort."""
    local_policy: bool = False
    """Its internalTrafficPolicy was Local: with one agent, other nodes' pods would reach nothing."""
    holders: Mapping[str, Document] = field(default_factory=dict)
    """Every attachment by its id: decided by the one object that all of them write."""

    def text(self) -> str:
        """For the annotation."""
        return json.dumps(
            {
                "selector": dict(self.selector),
                "targets": {str(key): value for key, value in self.targets.items()},
                "localPolicy": self.local_policy,
                "holders": dict(self.holders),
            },
            sort_keys=True,
        )

    @property
    def specs(self) -> list[Spec]:
        """The holders that can be read."""
        found = []
        for document in self.holders.values():
            try:
                found.append(Spec.read(document))
            except SpecError:
                continue
        return found


def record(service: Document) -> Record | None:
    """The annotation of a Service; None if there is none, or nobody can read it."""
    text = (service["metadata"].get("annotations") or {}).get(RECORD)
    if text is None:
        return None
    try:
        said = json.loads(text)
        return Record(
            {str(key): str(value) for key, value in said["selector"].items()},
            {int(key): value for key, value in said["targets"].items()},
            bool(said.get("localPolicy")),
            {str(key): dict(value) for key, value in said.get("holders", {}).items()},
        )
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def is_marked(service: Document) -> bool:
    """Something of an attachment's is in this Service."""
    return RECORD in (service["metadata"].get("annotations") or {}) or AGENT_KEY in (
        service["spec"].get("selector") or {}
    )


def is_swapped(service: Document) -> bool:
    """Its traffic goes to the agent, and to nobody else."""
    return service["spec"].get("selector") == AGENT_SELECTOR and record(service) is not None


def is_broken(service: Document) -> bool:
    """Somebody has merged a selector into ours: it matches no pod at all."""
    selector = service["spec"].get("selector") or {}
    return AGENT_KEY in selector and selector != AGENT_SELECTOR


ROLLOUTS_HASH = "rollouts-pod-template-hash"
"""Argo Rollouts: the label by which the Services of a Rollout select its stable, canary, active or preview pods."""
ROLLOUTS_BY = "argo-rollouts.argoproj.io/managed-by-rollouts"


def keeper_of(service: Document) -> str:
    """The controller that keeps a Service's selector as it is, for people; empty: none that is known."""
    meta = service["metadata"]
    by = (meta.get("annotations") or {}).get(ROLLOUTS_BY)
    if by or ROLLOUTS_HASH in (service["spec"].get("selector") or {}):
        return f"the Argo Rollout {by}" if by else "an Argo Rollout"
    for owner in meta.get("ownerReferences") or []:
        if owner.get("kind") == "Canary" and str(owner.get("apiVersion", "")).startswith("flagger.app/"):
            return f"Flagger's Canary {owner.get('name')}"
    return ""


def unsupported(service: Document) -> tuple[str, bool]:
    """Why a Service's traffic can't be taken at its address, and whether the way through its pods remains."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return "it is an ExternalName: its traffic goes to another name, and never to a pod of this cluster", False
    if not spec.get("selector"):
        return "it has no selector: somebody else keeps its endpoints", False
    if keeper := keeper_of(service):
        return f"{keeper} keeps its selector, and would write it back at once", True
    if spec.get("externalTrafficPolicy") == "Local":
        return (
            "its externalTrafficPolicy is Local: what comes from outside to a node without the agent's pod would be "
            "dropped",
            True,
        )
    if spec.get("clusterIP") == "None":
        return "it is headless: its clients connect to the pods' own addresses, and a selector changes nothing", True
    odd = sorted({each.get("protocol", "TCP") for each in spec.get("ports", [])} - {"TCP"})
    if odd:
        return f"it has ports of {' and '.join(odd)}, and all ports of a Service move together", True
    return "", False


def owners(service: Document, known: Record | None = None) -> Document:
    """The Service as its owner wants it: without what attachments have changed, with what others have.

    `known`: a record from elsewhere (a lease), for a Service that has lost its own.
    """
    out = copy.deepcopy(service)
    kept = record(service) or known
    annotations = out["metadata"].get("annotations") or {}
    annotations.pop(RECORD, None)
    if LAST_APPLIED in annotations:
        annotations[LAST_APPLIED] = annotations[LAST_APPLIED].replace(_OUR_KEY, "")
    if not annotations:
        out["metadata"].pop("annotations", None)
    selector = dict(out["spec"].get("selector") or {})
    if AGENT_KEY in selector:
        del selector[AGENT_KEY]
        # Keys beside ours were merged into it by somebody who wants the Service to select by these.
        if not selector and kept is not None:
            selector = dict(kept.selector)
        out["spec"]["selector"] = selector
    if kept is not None:
        for port in out["spec"].get("ports", []):
            target = port.get("targetPort")
            # A record that was made before there were listeners has the ports' own numbers, below zero.
            listener = target if target in kept.targets else -port["port"]
            if listener in kept.targets:
                port["targetPort"] = kept.targets[listener]
        if kept.local_policy and out["spec"].get("internalTrafficPolicy") == "Cluster":
            out["spec"]["internalTrafficPolicy"] = "Local"
    return out


def swapped(service: Document, listeners: Mapping[int, int], holders: Mapping[str, Document]) -> Document:
    """The Service with its traffic led to the agent: `listeners` by the Service's port number."""
    original = owners(service)
    out = copy.deepcopy(original)
    targets: dict[int, int | str] = {}
    for port in out["spec"]["ports"]:
        listener = listeners[port["port"]]
        targets[listener] = port.get("targetPort", port["port"])
        port["targetPort"] = listener
    local = out["spec"].get("internalTrafficPolicy") == "Local"
    if local:
        out["spec"]["internalTrafficPolicy"] = "Cluster"
    made = Record(original["spec"]["selector"], targets, local, holders)
    annotations = out["metadata"].setdefault("annotations", {})
    annotations[RECORD] = made.text()
    if LAST_APPLIED in annotations:
        annotations[LAST_APPLIED] = _applied_by_us(annotations[LAST_APPLIED])
    out["spec"]["selector"] = dict(AGENT_SELECTOR)
    return out


_OUR_KEY = f"{json.dumps(AGENT_KEY)}:{json.dumps(AGENT_SELECTOR[AGENT_KEY])},"


def _applied_by_us(text: str) -> str:
    """The last applied configuration, as if our key had been in its selector: then `kubectl apply` of the original
    takes the key away, and the Service leads to its pods at once. The key would stay beside the original's, and
    together they fit no pod at all. What kubectl has not written in its own form (without spaces) stays as it is."""
    start = '"selector":{"'
    return text.replace(start, f'{start[:-1]}{_OUR_KEY}"') if text.count(start) == 1 else text


def listeners_of(service: Document) -> dict[int, int]:
    """Port number to the agent's listener, for the ports that lead there."""
    kept = record(service)
    if kept is None:
        return {}
    ports = service["spec"].get("ports", [])
    return {each["port"]: each["targetPort"] for each in ports if each.get("targetPort") in kept.targets}


def without_holders(service: Document, gone: Collection[str]) -> Document:
    """The same Service with fewer holders in its record."""
    kept = record(service)
    assert kept is not None
    holders = {key: value for key, value in kept.holders.items() if key not in gone}
    out = copy.deepcopy(service)
    made = Record(kept.selector, kept.targets, kept.local_policy, holders)
    out["metadata"]["annotations"][RECORD] = made.text()
    return out


# --- The shadow Service -------------------------------------------------------------------------------------------


def shadow(service: Document) -> Document:
    """The Service that leads to the original pods. It goes with the one that it stands for (ownerReferences)."""
    original = owners(service)
    spec, meta = original["spec"], original["metadata"]
    keep = ("name", "port", "protocol", "targetPort", "appProtocol")
    out: Document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": shadow_name(meta["name"]),
            "labels": {**MANAGED, SHADOW_OF: short(meta["name"], "")},
            "annotations": {SHADOW_OF: meta["name"]},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": meta["name"], "uid": meta["uid"]}],
        },
        "spec": {
            "selector": spec["selector"],
            "ports": [{key: port[key] for key in keep if key in port} for port in spec["ports"]],
        },
    }
    for key in ("publishNotReadyAddresses", "ipFamilies", "ipFamilyPolicy"):
        if spec.get(key):
            out["spec"][key] = spec[key]
    return out


def shadows(one: Document) -> str | None:
    """The name of the Service that this one is a shadow of."""
    found = (one["metadata"].get("annotations") or {}).get(SHADOW_OF)
    return found if one["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") == "devloop" else None


def same_shadow(found: Document, wanted: Document) -> bool:
    """It leads where it should, and stands for the Service that there is now."""
    keys = ("name", "port", "targetPort")

    def ports(document: Document) -> list[tuple[Any, ...]]:
        return [tuple(each.get(key) for key in keys) for each in document["spec"]["ports"]]

    return (
        found["spec"].get("selector") == wanted["spec"]["selector"]
        and ports(found) == ports(wanted)
        and same_owner(found, wanted)
    )


def same_owner(found: Document, wanted: Document) -> bool:
    """Both stand for the same Service, and `found` is not on its way out."""
    owners_of = [[each["uid"] for each in one["metadata"].get("ownerReferences", [])] for one in (found, wanted)]
    return owners_of[0] == owners_of[1] and not found["metadata"].get("deletionTimestamp")


def renewed_shadow(found: Document, wanted: Document) -> Document:
    """The shadow that is there, leading where it should; its addresses stay."""
    out = copy.deepcopy(found)
    out["spec"]["selector"], out["spec"]["ports"] = wanted["spec"]["selector"], wanted["spec"]["ports"]
    return out


def is_whole(service: Document, holder: str) -> bool:
    """It leads to the agent with all its ports, and knows of this holder."""
    kept = record(service)
    if kept is None or not is_swapped(service) or holder not in kept.holders:
        return False
    return all(each.get("targetPort") in kept.targets for each in service["spec"].get("ports", []))


def changed_by(found: Document, field: str = "selector") -> str:
    """Who has changed a field of an object's spec last, as the API server notes it (managedFields); empty: it doesn't
    say."""
    entries = [
        each
        for each in found["metadata"].get("managedFields") or []
        if f"f:{field}" in (each.get("fieldsV1") or {}).get("f:spec", {})
    ]
    entries.sort(key=lambda each: str(each.get("time") or ""))
    return str(entries[-1].get("manager") or "") if entries else ""


# --- The marker ---------------------------------------------------------------------------------------------------


def marker_name(spec: Spec) -> str:
    """A marker's name."""
    return short(f"devloop-{spec.id}", "")


def marker(spec: Spec, key: str, service: Document | None = None, replicas: int | None = None) -> Document:
    """What stands beside the lease of an attachment in the pods, or of a `replace`: a Service that leads nowhere.

    A lease is what many may write who may take nobody's traffic and start nobody's workload: whatever elects a leader.
    In the pods, nothing else is changed that who attaches has to have the right to change. And what the agent starts
    again, it starts with its own rights. `key`: as in the lease. `service`: its owner, with which it goes. `replicas`:
    the size that the workload is to have again.
    """
    annotations = {
        SHADOW_OF: spec.service or spec.workload,
        SPEC: json.dumps(spec.document(), sort_keys=True),
        OWNER_KEY: key,
    }
    if replicas is not None:
        annotations[REPLICAS] = str(replicas)
    out: Document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": marker_name(spec), "labels": dict(MANAGED), "annotations": annotations},
        "spec": {"clusterIP": "None"},
    }
    if service is not None:
        meta = service["metadata"]
        out["metadata"]["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Service", "name": meta["name"], "uid": meta["uid"]}
        ]
    return out


def is_marker(found: Document) -> bool:
    """It is one, of whatever attachment."""
    return shadows(found) is not None and SPEC in found["metadata"]["annotations"]


def marks(found: Document, spec: Spec, key: str) -> bool:
    """It is the marker of this very attachment, of this key."""
    there = not found["metadata"].get("deletionTimestamp")
    return is_marker(found) and there and spec_of(found) == spec and key_of(found) == key


def same_marker(found: Document, wanted: Document) -> bool:
    """It says the same, and goes with the same Service."""
    if not is_marker(found) or spec_of(found) != spec_of(wanted) or not same_owner(found, wanted):
        return False
    said = [one["metadata"]["annotations"] for one in (found, wanted)]
    return all(said[0].get(key) == said[1].get(key) for key in (SHADOW_OF, OWNER_KEY, REPLICAS))


def renewed_marker(found: Document, wanted: Document) -> Document:
    """The marker that is there, saying what it should."""
    annotations = {**(found["metadata"].get("annotations") or {}), **wanted["metadata"]["annotations"]}
    return {**found, "metadata": {**found["metadata"], "annotations": annotations}}


# --- The lease ----------------------------------------------------------------------------------------------------


def lease_name(spec: Spec) -> str:
    """A replaced workload has one holder, so its lease has the workload's name: the API lets one creator win."""
    if spec.kind == "replace":
        return short(f"devloop-replace-{spec.workload.replace('/', '-')}", "", 253)
    return f"devloop-{spec.id}"


def lease(
    spec: Spec,
    *,
    key: str = "",
    replicas: int | None = None,
    seconds: int = LEASE_SECONDS,
    kept: Record | None = None,
) -> Document:
    """A lease that holds a spec, and what a restoration needs that the objects themselves don't say.

    `key`: the fingerprint of the key that its developer has at the agent.
    """
    annotations = {SPEC: json.dumps(spec.document(), sort_keys=True)}
    if key:
        annotations[OWNER_KEY] = key
    if replicas is not None:
        annotations[REPLICAS] = str(replicas)
    if kept is not None:
        annotations[RECORD] = Record(kept.selector, kept.targets, kept.local_policy).text()
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": lease_name(spec),
            "labels": {**MANAGED, LEASE_LABEL: "attachment"},
            "annotations": annotations,
        },
        "spec": {
            "holderIdentity": f"{spec.who} {spec.id}",
            "leaseDurationSeconds": seconds,
            "acquireTime": stamp(),
            "renewTime": stamp(),
        },
    }


def spec_of(found: Document) -> Spec | None:
    """The attachment that a lease is for, or a marker."""
    text = (found["metadata"].get("annotations") or {}).get(SPEC)
    try:
        return Spec.read(json.loads(text)) if text is not None else None
    except (ValueError, SpecError, RecursionError):
        return None


def key_of(found: Document) -> str:
    """The fingerprint of the key that a lease or a marker belongs to; empty: it names none."""
    return str((found["metadata"].get("annotations") or {}).get(OWNER_KEY) or "")


def stands_for(found: Document | None, spec: Spec) -> bool:
    """It is the lease of this very attachment: a replaced workload's has the same name whoever holds it."""
    held_by = spec_of(found) if found is not None else None
    return held_by is not None and held_by.id == spec.id


def kept_in(found: Document) -> Record | None:
    """The copy of a Service's record that a lease has."""
    return record({"metadata": found["metadata"]})


def seconds_over(found: Document, now: datetime) -> float:
    """By how many seconds a lease is over; negative while it holds. By the wall clock: to be shown, and to be asked
    about; who acts alone watches the lease instead (`expiry.py`)."""
    spec = found["spec"]
    try:
        renewed = datetime.strptime(spec["renewTime"], _TIME).replace(tzinfo=UTC)
    except (KeyError, TypeError, ValueError):
        return 0.0
    return (now - renewed).total_seconds() - float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)


# --- Restoration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API. A PUT has its object's resourceVersion, a DELETE its uid and resourceVersion, so a change
    that came between is a conflict and everything is looked at anew."""

    verb: Literal["PUT", "DELETE", "SCALE"]
    kind: str
    """As in the API's paths: services, leases; for SCALE deployments, statefulsets, replicasets."""
    name: str
    body: Document = field(default_factory=dict)
    replicas: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a namespace holds. `replicas` has the size of each workload that a lease replaces (None: it has gone).

    One whose size can't be read now is missing there: its lease stays for who can.
    """

    services: tuple[Document, ...]
    leases: tuple[Document, ...]
    replicas: Mapping[str, int | None] = field(default_factory=dict)


def delete(kind: str, found: Document, why: str) -> Call:
    """Delete this object and no later version of it."""
    same = {key: found["metadata"][key] for key in ("uid", "resourceVersion") if key in found["metadata"]}
    return Call("DELETE", kind, found["metadata"]["name"], {"preconditions": same}, why=why)


@dataclass(frozen=True, slots=True)
class Dead:
    """A lease whose holder has gone or is leaving, by what is known of it; empty: any is meant. A name is not enough:
    that of a replaced workload is the next holder's too, and who was away for a while renews their lease."""

    uid: str = ""
    renewed: str = ""
    """Its `renewTime` when it was taken for dead."""
    attachment: str = ""

    @classmethod
    def seen(cls, found: Document) -> Dead:
        """This very lease, unless it is renewed."""
        return cls(str(found["metadata"].get("uid") or ""), str((found.get("spec") or {}).get("renewTime") or ""))

    def means(self, found: Document) -> bool:
        """The lease of its name that is there now is still that one."""
        now, spec = Dead.seen(found), spec_of(found)
        return (
            self.uid in ("", now.uid)
            and self.renewed in ("", now.renewed)
            and (not self.attachment or (spec is not None and spec.id == self.attachment))
        )


def is_dead(found: Document, dead: Collection[str]) -> bool:
    """Whether a lease is among these: see `next_step`."""
    name = found["metadata"]["name"]
    if isinstance(dead, Mapping):
        return name in dead and bool(dead[name].means(found))
    return name in dead


def _size_of(found: Document) -> int | None:
    text = (found["metadata"].get("annotations") or {}).get(REPLICAS, "")
    return int(text) if text.isdecimal() else None


def _vouched(services: Iterable[Document], spec: Spec) -> int | None:
    """The size that the marker of a replaced workload says; None: there is none that says one."""
    for each in services:
        said = spec_of(each) if is_marker(each) else None
        if said is not None and (said.id, said.workload) == (spec.id, spec.workload):
            return _size_of(each)
    return None


def next_step(snapshot: Snapshot, dead: Mapping[str, Dead] | Collection[str], *, vouched: bool = False) -> Call | None:
    """The next call that puts back what nobody holds any more; None when all is as it should be.

    `dead`: by their names, leases whose holders have gone or are leaving. In this order, so that nothing is ever
    without the lease that tells of it: the traffic, the workload's size, the shadow Service, the lease.

    `vouched`: the size is the one that a marker says, and none without one. For the agent: it has rights that who
    writes a lease may not have.
    """
    gone = [each for each in snapshot.leases if is_dead(each, dead)]
    held = [each for each in snapshot.leases if not is_dead(each, dead)]
    living = {spec.id: spec for each in held if (spec := spec_of(each)) is not None}
    # In the pods the Service itself is not led anywhere: who is there has no use for its being led here.
    used = {spec.service for spec in living.values() if spec.service and spec.way == "service"}
    for service in snapshot.services:
        if not is_marked(service):
            continue
        name = service["metadata"]["name"]
        kept = record(service)
        if name not in used:
            copies = [kept_in(each) for each in gone if (spec := spec_of(each)) and spec.service == name]
            known = kept or next((each for each in copies if each is not None), None)
            if known is None and service["spec"].get("selector") == AGENT_SELECTOR:
                continue  # it says nothing of what it was: `list` shows it
            return Call("PUT", "services", name, owners(service, known), why="its original selector")
        stale = set(kept.holders) - living.keys() if kept is not None else set()
        if stale:
            return Call("PUT", "services", name, without_holders(service, stale), why="one holder less")
    stay: set[str] = set()
    for each in gone:
        spec, wanted = spec_of(each), _size_of(each)
        if spec is None or not spec.workload or REPLICAS not in (each["metadata"].get("annotations") or {}):
            continue
        if spec.workload not in snapshot.replicas:
            stay.add(spec.id)  # whether it is to be started again can't be told now
            continue
        # Another size than zero is somebody's decision since then.
        if snapshot.replicas[spec.workload] != 0 or not wanted:
            continue
        size = _vouched(snapshot.services, spec) if vouched else wanted
        if size is None:
            stay.add(spec.id)  # whoever may start it does: its holder, or who takes over
        elif size:
            kind, _, name = spec.workload.partition("/")
            return Call("SCALE", f"{kind}s", name, replicas=size, why="its original size")
    for service in snapshot.services:
        owner, marked = shadows(service), spec_of(service)
        if owner is None or service["metadata"].get("deletionTimestamp"):
            continue
        of_living = marked is not None and (marked.id in living or marked.id in stay)
        if not (of_living if is_marker(service) else owner in used):
            return delete("services", service, "nobody needs it")
    for each in gone:
        spec = spec_of(each)
        if spec is not None and spec.id in stay:
            continue
        return delete("leases", each, "all that it stood for is put back")
    return None


def after(snapshot: Snapshot, call: Call, answer: Document) -> Snapshot:
    """What there is once a call has been answered, as far as it goes: others' doings are not in it."""

    def those(found: tuple[Document, ...]) -> tuple[Document, ...]:
        if call.verb == "DELETE":
            return tuple(each for each in found if each["metadata"]["name"] != call.name)
        return tuple(answer if each["metadata"]["name"] == call.name else each for each in found)

    if call.verb == "SCALE":
        workload = f"{call.kind.removesuffix('s')}/{call.name}"
        return replace(snapshot, replicas={**snapshot.replicas, workload: call.replicas})
    if call.kind == "services":
        return replace(snapshot, services=those(snapshot.services))
    return replace(snapshot, leases=those(snapshot.leases))


def holdings(leases: Iterable[Document], now: datetime) -> list[tuple[Spec, float]]:
    """Every attachment, the oldest first, with how many seconds its lease is over (negative: it holds)."""
    found = [(spec, seconds_over(each, now)) for each in leases if (spec := spec_of(each)) is not None]
    return sorted(found, key=lambda pair: (pair[0].since, pair[0].id))
