"""A container's environment, as the kubelet makes it.

Source of the rules: `makeEnvironmentVariables` and `getServiceEnvVarMap` in the kubelet's
`pkg/kubelet/kubelet_pods.go`, and `pkg/kubelet/envvars`.

Pure: objects in, variables out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from devloop.agent.addresses import host_port
from devloop.protocol import Variable

from . import downward
from .expansion import expand
from .model import Absence, Environment, Note, Object, Problem, Sources, Workload, decoded

# Before Kubernetes 1.32 (feature RelaxedEnvironmentVariableValidation): validation.IsEnvVarName.
_STRICT_NAME = re.compile(r"(?!\.\.?$|\.\..)[-._a-zA-Z][-._a-zA-Z0-9]*")
MASTER_HOST = "kubernetes.default.svc"
"""Stands in for the API server's address: it resolves in every pod, and its certificate has that name."""
RUNTIME = "the container runtime: the pod's hostname"
STALE = "the running container still has the value from its start; a restarted one has this"


def make(workload: Workload, sources: Sources) -> Environment:
    """The variables of the workload's container, with all problems at once."""
    maker = _Maker(workload, sources)
    maker.run()
    # The runtime's, whatever the image is; the running container may say otherwise (`enriched`).
    name = () if "HOSTNAME" in maker.variables else (Variable("HOSTNAME", downward.hostname(workload), RUNTIME),)
    return Environment(
        tuple(maker.variables.values()),
        name,
        frozenset(maker.stand_ins),
        tuple(maker.notes),
        tuple(maker.problems),
    )


def enriched(environment: Environment, running: Mapping[str, str]) -> Environment:
    """With what the running container has in addition, `running` being its environment.

    A value that the API could only stand in for is taken from there. One that the API has and that differs
    keeps the API's value: that is what a restarted container gets. Variables that only the container has
    are the image's, the container runtime's, or links to Services that have gone since.
    """
    variables, names = [], {each.name for each in environment.variables}
    notes = [each for each in environment.notes if each.subject.removeprefix("variable ") not in running]
    for each in environment.variables:
        value = running.get(each.name, each.value)
        if each.name in environment.stand_ins and each.name in running:
            each = replace(each, value=value, origin=f"{each.origin}, read from the running container")
        elif value != each.value:
            notes.append(Note(f"variable {each.name}", STALE))
        variables.append(each)
    image = [
        Variable(name, value, "the image or the container runtime, read from the running container")
        for name, value in running.items()
        if name not in names
    ]
    image += [each for each in environment.image if each.name not in running]
    stand_ins = environment.stand_ins - running.keys()
    return replace(
        environment,
        variables=tuple(variables),
        image=tuple(image),
        stand_ins=stand_ins,
        notes=tuple(notes),
    )


def service_links(services: Iterable[Object]) -> Iterator[tuple[str, str, str]]:
    """(name, value, Service) of what each Service with an address gives: `envvars.FromServices`."""
    for service in sorted(services, key=lambda each: str(each["metadata"]["name"])):
        spec, name = service["spec"], service["metadata"]["name"]
        address, ports = spec.get("clusterIP"), spec.get("ports") or []
        if address in (None, "", "None") or not ports:
            continue
        prefix = _upper(name)
        yield f"{prefix}_SERVICE_HOST", address, name
        yield f"{prefix}_SERVICE_PORT", str(ports[0]["port"]), name
        for port in ports:
            if port.get("name"):
                yield f"{prefix}_SERVICE_PORT_{_upper(port['name'])}", str(port["port"]), name
        for index, port in enumerate(ports):
            protocol, number = port.get("protocol") or "TCP", port["port"]
            url = f"{protocol.lower()}://{host_port(address, number)}"
            if index == 0:
                yield f"{prefix}_PORT", url, name
            link = f"{prefix}_PORT_{number}_{protocol.upper()}"
            yield link, url, name
            yield f"{link}_PROTO", protocol.lower(), name
            yield f"{link}_PORT", str(number), name
            yield f"{link}_ADDR", address, name


def _upper(name: str) -> str:
    return name.replace("-", "_").upper()


@dataclass(slots=True)
class _Maker:
    """One walk through a container's `envFrom` and `env`."""

    workload: Workload
    sources: Sources
    variables: dict[str, Variable] = field(default_factory=dict)
    stand_ins: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def run(self) -> None:
        links = self.links()
        for source in self.workload.container.get("envFrom") or []:
            self.env_from(source)
        for entry in self.workload.container.get("env") or []:
            self.env(entry, links)
        for name, link in links.items():
            self.variables.setdefault(name, link)
        defined = {each.name for each in self.variables.values() if each is not links.get(each.name)}
        if self.sources.master is None:
            self.stand_ins |= {name for name in links if name.startswith("KUBERNETES_")} - defined

    def env_from(self, source: Object) -> None:
        """All keys of a ConfigMap (its text alone) or a Secret; a later source wins."""
        prefix, secret = source.get("prefix") or "", "secretRef" in source
        ref = source.get("secretRef") or source.get("configMapRef")
        if ref is None:
            return
        kind = "secret" if secret else "configmap"
        data = self.data(kind, ref, f"envFrom {kind} {ref.get('name', '')}")
        for key in data or {}:
            name = prefix + key
            if not self.sources.relaxed_names and not _STRICT_NAME.fullmatch(name):
                text = "this Kubernetes skips it: a variable can't have that name"
                self.notes.append(Note(f"variable {name}", text))
                continue
            self.put(name, self.value(data or {}, key, secret), f"{kind} {ref['name']} key {key}", secret)

    def env(self, entry: Object, links: Mapping[str, Variable]) -> None:
        """One entry of `env`. An optional one that is missing leaves what `envFrom` has given."""
        name, value, source = entry["name"], entry.get("value") or "", entry.get("valueFrom") or {}
        subject = f"variable {name}"
        if value or not source:
            used: set[str] = set()

            def value_of(reference: str) -> str | None:
                found = self.variables.get(reference) or links.get(reference)
                if found is None:
                    return None
                used.add(reference)
                return found.value

            try:
                text = expand(value, value_of)
            except ValueError as problem:
                self.problems.append(Problem(subject, str(problem)))
                return
            known = {**links, **self.variables}
            self.put(name, text, "the pod's spec", any(known[each].secret for each in used))
            if borrowed := sorted(used & (self.stand_ins | self.soft_links(links))):
                self.stand_ins.add(name)
                self.notes.append(Note(subject, f"made with {', '.join(borrowed)}, which a stand-in has"))
            return
        try:
            if ref := source.get("fieldRef"):
                self.take(name, downward.field(ref["fieldPath"], self.workload), ref)
            elif ref := source.get("resourceFieldRef"):
                self.take(name, downward.resource(ref, self.workload, self.sources), ref)
            elif ref := source.get("configMapKeyRef"):
                self.key("configmap", ref, name)
            elif ref := source.get("secretKeyRef"):
                self.key("secret", ref, name)
            elif ref := source.get("fileKeyRef"):
                self.file_key(name, ref)
            else:
                raise downward.UnsupportedError(f"source {', '.join(source)} is not known")
        except (downward.UnsupportedError, ValueError) as problem:
            self.problems.append(Problem(subject, str(problem)))

    def key(self, kind: str, ref: Object, name: str) -> None:
        """One key of a ConfigMap (its text alone) or a Secret."""
        subject = f"variable {name}"
        data = self.data(kind, ref, subject)
        if data is None:
            return
        if ref["key"] not in data:
            if not ref.get("optional"):
                what = f"{kind} {ref['name']} has no key {ref['key']}"
                self.problems.append(Problem(subject, what, _add_key(kind, ref["name"])))
            return
        secret = kind == "secret"
        self.put(name, self.value(data, ref["key"], secret), f"{kind} {ref['name']} key {ref['key']}", secret)

    def file_key(self, name: str, ref: Object) -> None:
        """A key of a file that an init container has written: only the running container has it."""
        where = f"key {ref['key']} of file {ref['path']} in volume {ref['volumeName']}"
        if not ref.get("optional"):
            self.put(name, "", where, False)
            self.stand_ins.add(name)
        self.notes.append(Note(f"variable {name}", f"{where} is written in the pod and could not be read"))

    def data(self, kind: str, ref: Object, subject: str) -> Mapping[str, str] | None:
        """What a ConfigMap or Secret holds; None, with a problem or a note where due, if it is not there."""
        name = ref.get("name", "")
        objects = self.sources.secrets if kind == "secret" else self.sources.config_maps
        found = objects.get(name, Absence.MISSING)
        if isinstance(found, Absence):
            if found is Absence.FORBIDDEN:
                self.notes.append(Note(subject, _forbidden(kind, name)))
            elif not ref.get("optional"):
                self.problems.append(missing(kind, name, self.workload.namespace, subject))
            return None
        data: Mapping[str, str] = found.get("data") or {}
        return data

    def value(self, data: Mapping[str, str], key: str, secret: bool) -> str:
        """Text that is not UTF-8 keeps its bytes, as Python's environment does (surrogateescape)."""
        return decoded(data[key]).decode(errors="surrogateescape") if secret else data[key]

    def put(self, name: str, value: str, origin: str, secret: bool) -> None:
        if "\0" in value:
            self.problems.append(Problem(f"variable {name}", "has a NUL byte, which no environment can hold"))
            return
        self.stand_ins.discard(name)
        self.variables.pop(name, None)
        self.variables[name] = Variable(name, value, origin, secret)

    def take(self, name: str, found: downward.Found, ref: Object) -> None:
        self.put(name, found.value, downward.described(ref), False)
        if found.stand_in:
            self.stand_ins.add(name)
            self.notes.append(Note(f"variable {name}", found.stand_in))

    def soft_links(self, links: Mapping[str, Variable]) -> set[str]:
        """Links that are stand-ins themselves."""
        if self.sources.master is not None:
            return set()
        return {name for name in links if name.startswith("KUBERNETES_")} - set(self.variables)

    def links(self) -> dict[str, Variable]:
        """Service links: of the Services that were there when the container started."""
        services: list[Object] = []
        if self.sources.master is not None:
            services.append(self.sources.master)
        else:
            services.append(_master())
            text = f"the API server's Service may not be read; {MASTER_HOST} stands in"
            self.notes.append(Note("variable KUBERNETES_SERVICE_HOST", text))
        started = self.workload.started_at
        if self.workload.pod["spec"].get("enableServiceLinks", True):
            if isinstance(self.sources.services, Absence):
                text = "Services may not be listed: their links (…_SERVICE_HOST) are missing"
                self.notes.append(Note("service links", text))
            else:
                services += [
                    each
                    for each in self.sources.services
                    if not _is_master(each) and (not started or _created(each) <= started)
                ]
        return {name: Variable(name, value, f"service {service}") for name, value, service in service_links(services)}


def missing(kind: str, name: str, namespace: str, subject: str) -> Problem:
    """The problem that a ConfigMap or Secret is not there."""
    what = f"{kind} {name} does not exist in namespace {namespace}"
    return Problem(subject, what, f"Create it (kubectl -n {namespace} create {kind} …) or make it optional.")


def _add_key(kind: str, name: str) -> str:
    return f"Add the key (kubectl edit {kind} {name}), correct its name in the workload, or make it optional."


def _forbidden(kind: str, name: str) -> str:
    return f"{kind} {name} may not be read; what comes from it is missing (the Role devloop-ingest: get {kind}s)"


def _created(service: Object) -> str:
    return str(service["metadata"].get("creationTimestamp") or "")


def _is_master(service: Object) -> bool:
    metadata = service["metadata"]
    return bool(metadata["name"] == "kubernetes" and metadata.get("namespace", "default") == "default")


def _master() -> Object:
    ports = [{"name": "https", "port": 443, "protocol": "TCP"}]
    return {"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": MASTER_HOST, "ports": ports}}
