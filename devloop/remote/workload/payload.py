"""What ConfigMap, Secret, downwardAPI and projected volumes hold: path in the volume → bytes and mode.

Source of the rules: `MakePayload` in the kubelet's `pkg/volume/configmap` and `pkg/volume/secret`,
`CollectData` in `pkg/volume/downwardapi`, `collectData` in `pkg/volume/projected`, and
`changeFilePermission` in `pkg/volume/volume_linux.go`.

Pure: objects in, bytes out.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from devloop.errors import RemoteError

from . import beneath, downward
from .environment import missing
from .model import Absence, Note, Object, Problem, Sources, Workload, decoded

MATERIALISED = ("configMap", "secret", "downwardAPI", "projected")
"""Kinds of volumes that are made from the API alone."""
DEFAULT_MODE = 0o644
DEFAULT_TOKEN_SECONDS = 3600


@dataclass(frozen=True, slots=True, repr=False)
class File:
    """A file of a volume. Its repr has nothing of its content."""

    data: bytes
    mode: int
    """Permission bits, as the container sees them."""


@dataclass(frozen=True, slots=True)
class TokenSource:
    """A service account's token that a projected volume asks for."""

    audience: str
    """Empty for the API server's own."""
    seconds: int
    """How long it is asked to live."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The files of one volume, and what was wrong with it."""

    files: Mapping[str, File] = field(default_factory=dict)
    folder_mode: int = 0o777
    """Mode of the volume's folders."""
    notes: tuple[Note, ...] = ()
    problems: tuple[Problem, ...] = ()


def kind_of(volume: Object) -> str:
    """The field that says what a volume is, as in "configMap"."""
    return next((key for key in volume if key != "name"), "emptyDir")


def volumes_of(workload: Workload) -> dict[str, Object]:
    """The volumes that the workload's container mounts, by name. RemoteError for a name that no folder can have.

    The API server lets no such name through (DNS-1123 label); one that does is no API server to trust.
    """
    used = {each["name"] for each in workload.container.get("volumeMounts") or []}
    for each in used:
        try:
            beneath.name(each)
        except beneath.BadNameError as problem:
            raise RemoteError(f"a volume can't be called so: {problem}", where=workload.where) from None
    return {each["name"]: each for each in workload.pod["spec"].get("volumes") or [] if each["name"] in used}


def same_volumes(one: Workload, other: Workload) -> bool:
    """Whether two pods' containers mount the same at the same places; what admission names by chance does not count."""
    return _shape(one) == _shape(other)


def _shape(workload: Workload) -> tuple[list[Object], list[Object]]:
    def settled(each: Object) -> Object:
        name = "kube-api-access" if each["name"].startswith("kube-api-access-") else each["name"]
        return {**each, "name": name}

    mounts = workload.container.get("volumeMounts") or []
    return [settled(each) for each in mounts], [settled(each) for each in volumes_of(workload).values()]


def tokens_of(volume: Object) -> list[TokenSource]:
    """The tokens that a volume needs."""
    sources = (volume.get("projected") or {}).get("sources") or []
    return [_token(each["serviceAccountToken"]) for each in sources if "serviceAccountToken" in each]


def references(volume: Object) -> Iterator[tuple[str, str]]:
    """("configmap" or "secret", name) of each object that a volume is made from."""
    if ref := volume.get("configMap"):
        yield "configmap", ref.get("name", "")
    if ref := volume.get("secret"):
        yield "secret", ref.get("secretName", "")
    for source in (volume.get("projected") or {}).get("sources") or []:
        if ref := source.get("configMap"):
            yield "configmap", ref.get("name", "")
        if ref := source.get("secret"):
            yield "secret", ref.get("name", "")


def make(
    volume: Object,
    workload: Workload,
    sources: Sources,
    tokens: Mapping[TokenSource, str | Absence],
    bundles: Mapping[str, str | Absence] | None = None,
) -> Payload:
    """The files of a volume of one of the kinds in `MATERIALISED`, with all problems at once.

    `bundles` has the PEM text of ClusterTrustBundles by name.
    """
    maker = _Maker(volume["name"], workload, sources, tokens, bundles or {})
    kind = kind_of(volume)
    source = volume[kind] or {}
    mode = source.get("defaultMode", DEFAULT_MODE)
    if kind == "projected":
        for each in source.get("sources") or []:
            maker.projected(each, mode)
    elif kind == "downwardAPI":
        maker.downward(source.get("items") or [], mode)
    else:
        maker.keys(kind.lower(), source.get("secretName") or source.get("name", ""), source, mode)
    files, folder_mode = _with_group(maker.files, workload.pod, kind)
    return Payload(files, folder_mode, tuple(maker.notes), tuple(maker.problems))


@dataclass(slots=True)
class _Maker:
    """One walk through a volume's sources; a later source wins."""

    volume: str
    workload: Workload
    sources: Sources
    tokens: Mapping[TokenSource, str | Absence]
    bundles: Mapping[str, str | Absence]
    files: dict[str, File] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def subject(self) -> str:
        return f"volume {self.volume}"

    def projected(self, source: Object, mode: int) -> None:
        """One entry of `projected.sources`."""
        if (ref := source.get("configMap")) is not None:
            self.keys("configmap", ref.get("name", ""), ref, mode)
        elif (ref := source.get("secret")) is not None:
            self.keys("secret", ref.get("name", ""), ref, mode)
        elif (ref := source.get("downwardAPI")) is not None:
            self.downward(ref.get("items") or [], mode)
        elif (ref := source.get("serviceAccountToken")) is not None:
            self.token(ref, mode)
        elif (ref := source.get("clusterTrustBundle")) is not None:
            self.bundle(ref, mode)
        else:
            self.notes.append(Note(self.subject, f"its {kind_of(source)} can't be had outside of the pod"))

    def keys(self, kind: str, name: str, source: Object, mode: int) -> None:
        """A ConfigMap's or Secret's keys: all of them, or those that `items` names."""
        objects = self.sources.secrets if kind == "secret" else self.sources.config_maps
        found = objects.get(name, Absence.MISSING)
        if found is Absence.FORBIDDEN:
            text = f"{kind} {name} may not be read; its files are missing (the Role devloop-ingest: get {kind}s)"
            self.notes.append(Note(self.subject, text))
            return
        optional = bool(source.get("optional"))
        if isinstance(found, Absence):
            if not optional:
                self.problems.append(missing(kind, name, self.workload.namespace, self.subject))
                return
            found = {}
        content = _content(kind, found)
        for item in source.get("items") or [{"key": key, "path": key} for key in content]:
            if (data := content.get(item["key"])) is None:
                if not optional:
                    what = f"{kind} {name} has no key {item['key']}"
                    hint = f"Add it (kubectl edit {kind} {name}), correct the volume, or make it optional."
                    self.problems.append(Problem(self.subject, what, hint))
                continue
            self.put(item["path"], data, item.get("mode", mode))

    def downward(self, items: Iterable[Object], mode: int) -> None:
        """Fields of the pod, a file each."""
        for item in items:
            try:
                if ref := item.get("fieldRef"):
                    found = downward.field(ref["fieldPath"], self.workload, file=True)
                else:
                    ref = item["resourceFieldRef"]
                    found = downward.resource(ref, self.workload, self.sources, file=True)
            except (downward.UnsupportedError, ValueError) as problem:
                self.problems.append(Problem(f"{self.subject}, file {item['path']}", str(problem)))
                continue
            if found.stand_in:
                self.notes.append(Note(f"{self.subject}, file {item['path']}", found.stand_in))
            self.put(item["path"], found.value.encode(), item.get("mode", mode))

    def token(self, source: Object, mode: int) -> None:
        """A service account's token."""
        token = self.tokens.get(_token(source), Absence.FORBIDDEN)
        if isinstance(token, Absence):
            account = downward.service_account(self.workload.pod)
            text = f"no token may be asked for service account {account}; {source['path']} is missing"
            self.notes.append(Note(self.subject, f"{text} (the Role devloop-attach: create serviceaccounts/token)"))
            return
        self.put(source["path"], token.encode(), self.private(mode))

    def bundle(self, source: Object, mode: int) -> None:
        """A ClusterTrustBundle by its name."""
        name = source.get("name")
        found = self.bundles.get(name, Absence.MISSING) if name else Absence.FORBIDDEN
        if found is Absence.MISSING and not source.get("optional"):
            self.problems.append(Problem(self.subject, f"clustertrustbundle {name} does not exist"))
        elif isinstance(found, Absence) and name is None:
            text = f"trust bundles are not selected by signer; {source['path']} is missing"
            self.notes.append(Note(self.subject, text))
        elif found is Absence.FORBIDDEN:
            text = f"clustertrustbundle {name} may not be read; {source['path']} is missing"
            self.notes.append(Note(self.subject, text))
        else:
            text = "" if isinstance(found, Absence) else found
            self.put(source["path"], text.encode(), self.private(mode))

    def private(self, mode: int) -> int:
        """Tokens and trust bundles are 0600 where the pod has one user for its files, or an fsGroup."""
        return 0o600 if _fs_group(self.workload.pod) is not None or _fs_user(self.workload.pod) else mode

    def put(self, path: str, data: bytes, mode: int) -> None:
        self.files[posixpath.normpath(path)] = File(data, mode)


def nested_mount_points(volume: str, pod: Object) -> list[str]:
    """Folders to make in a volume because another is mounted there: `getNestedMountpoints`."""
    found: list[str] = []
    spec = pod["spec"]
    for container in (spec.get("initContainers") or []) + (spec.get("containers") or []):
        mounts = [(posixpath.normpath(each["mountPath"]), each["name"]) for each in container.get("volumeMounts") or []]
        for mine in (path for path, name in mounts if name == volume):
            outer: list[str] = []
            for path in sorted(path for path, _ in mounts):
                inside = path.startswith(mine.rstrip("/") + "/")
                if inside and not any(path.startswith(each) for each in outer):
                    outer.append(path + "/")
                    found.append(posixpath.relpath(path, mine))
    return list(dict.fromkeys(found))


def _content(kind: str, found: Object) -> dict[str, bytes]:
    data = found.get("data") or {}
    if kind == "secret":
        return {key: decoded(value) for key, value in data.items()}
    binary = {key: decoded(value) for key, value in (found.get("binaryData") or {}).items()}
    return {key: value.encode() for key, value in data.items()} | binary


def _token(source: Object) -> TokenSource:
    return TokenSource(source.get("audience") or "", int(source.get("expirationSeconds") or DEFAULT_TOKEN_SECONDS))


def _fs_group(pod: Object) -> int | None:
    return (pod["spec"].get("securityContext") or {}).get("fsGroup")


def _fs_user(pod: Object) -> bool:
    """All containers run as the same user that the spec names: `FsUserFrom`."""
    spec = pod["spec"]
    whole = (spec.get("securityContext") or {}).get("runAsUser")
    users = {
        (each.get("securityContext") or {}).get("runAsUser", whole)
        for key in ("initContainers", "containers", "ephemeralContainers")
        for each in spec.get(key) or []
    }
    return len(users) == 1 and None not in users


def _with_group(files: Mapping[str, File], pod: Object, kind: str) -> tuple[Mapping[str, File], int]:
    """An fsGroup may read all files of a read-only volume, and its folders pass their group on.

    All but ConfigMaps lie on a tmpfs of their own, whose root has the sticky bit.
    """
    mode = 0o777 if kind == "configMap" else 0o1777
    if _fs_group(pod) is None:
        return files, mode
    return {path: File(each.data, each.mode | 0o440) for path, each in files.items()}, mode | 0o2000
