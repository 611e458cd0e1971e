"""Kubernetes manifests → objects as the API server would keep them: checked as far as it matters here, completed.

What is wrong is an error that names the file and the document, before anything is started.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devloop.errors import ConfigError
from devloop.paths import LARGE, read_file
from devloop.remote.workload import references as kinds
from devloop.remote.workload.model import Object
from devloop.remote.workload.references import Kind

from .objects import CLAIM

KINDS = {
    each.name: each
    for each in (
        kinds.POD, kinds.SERVICE, kinds.CONFIG_MAP, kinds.SECRET, kinds.SERVICE_ACCOUNT, kinds.DEPLOYMENT,
        kinds.STATEFUL_SET, kinds.DAEMON_SET, kinds.REPLICA_SET, kinds.JOB, kinds.CRON_JOB, CLAIM,
    )
}  # fmt: skip
"""What the sandbox takes; all else is left out, with a note."""
_SUFFIXES = (".yaml", ".yml", ".json")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object, and where it was read."""

    kind: Kind
    object: dict[str, Any]
    where: str

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.object["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Read:
    """What all files say together."""

    manifests: tuple[Manifest, ...]
    notes: tuple[str, ...]


def read(paths: Sequence[Path], namespace: str) -> Read:
    """Read files, and folders as `kubectl apply -f FOLDER` does: not what is below. Raises ConfigError."""
    found: dict[tuple[str, str], Manifest] = {}
    left_out: dict[str, list[str]] = {}
    elsewhere: dict[str, int] = {}
    for file in _files(paths):
        for item, where in _documents(file):
            word = item.get("kind")
            if not isinstance(word, str) or not word:
                raise ConfigError("is no Kubernetes object: it has no `kind`", where=where)
            metadata = item.get("metadata")
            name = metadata.get("name") if isinstance(metadata, dict) else None
            kind = KINDS.get(word)
            if kind is None:
                left_out.setdefault(word, []).append(str(name or ""))
                continue
            where = f"{where} ({word} {name})" if name else f"{where} ({word})"
            _check(kind, item, where)
            within = item["metadata"].get("namespace", namespace)
            if within != namespace:
                elsewhere[within] = elsewhere.get(within, 0) + 1
                continue
            manifest = Manifest(kind, completed(kind, item, where), where)
            found[kind.plural, manifest.name] = manifest  # as with apply: the last one stays
    notes = []
    if left_out:
        each = (f"{word} ({', '.join(filter(None, names))})" for word, names in sorted(left_out.items()))
        notes.append(f"the sandbox leaves out what it has no use for: {', '.join(each)}")
    for within, count in sorted(elsewhere.items()):
        hint = f'set namespace = "{within}" in [remote] to have these'
        notes.append(f"the sandbox leaves out {count} objects of namespace {within}: it has {namespace} alone; {hint}")
    return Read(tuple(found.values()), tuple(notes))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES and each.is_file())
            if not inside:
                raise ConfigError("there are no manifests (*.yaml, *.yml, *.json) in this folder", where=str(path))
            yield from inside
        else:
            yield path


def _documents(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each object of a file with where it stands; lists are taken apart."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    number = 0
    try:
        for number, document in enumerate(yaml.load_all(read_file(file, LARGE), Loader=loader), 1):
            where = f"{file}, document {number}"
            if document is None:
                continue
            if not isinstance(document, dict):
                raise ConfigError("is no Kubernetes object: it is no mapping", where=where)
            if not str(document.get("kind", "")).endswith("List") or "items" not in document:
                yield document, where
                continue
            for index, item in enumerate(document["items"] or [], 1):
                if not isinstance(item, dict):
                    raise ConfigError("is no Kubernetes object", where=f"{where}, item {index}")
                yield item, f"{where}, item {index}"
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror or error}", where=str(file)) from None
    except (yaml.YAMLError, UnicodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"is not YAML: {what}", where=f"{file}{line}, document {number + 1}") from None


def _check(kind: Kind, item: Mapping[str, Any], where: str) -> None:
    """What the API server would refuse, as far as what follows relies on it."""
    metadata = item.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise ConfigError("has no `metadata.name`", where=where)
    pattern = _LABEL if kind is kinds.SERVICE else _NAME
    if not pattern.fullmatch(metadata["name"]):
        raise ConfigError(f"{metadata['name']!r} is no name that Kubernetes takes", where=where)
    if kind in (kinds.CONFIG_MAP, kinds.SECRET):
        for field in ("data", "stringData", "binaryData"):
            _texts(item.get(field) or {}, field, where)
    if kind is kinds.SECRET:
        for key, value in (item.get("data") or {}).items():
            try:
                base64.b64decode(value, validate=False)
            except ValueError:
                hint = "plain text goes under `stringData`"
                raise ConfigError(f"data.{key} is not base64", where=where, hint=hint) from None
    if kind in kinds.WORKLOADS:
        template = _template(kind, item)
        if not isinstance(template, dict) or not isinstance(template.get("spec"), dict):
            raise ConfigError("has no pod template with a `spec`", where=where)
        containers = template["spec"].get("containers")
        if not isinstance(containers, list) or not containers:
            raise ConfigError("its pods have no `containers`", where=where)
        for each in (*containers, *(template["spec"].get("initContainers") or [])):
            _container(each, where)
        labels = (template.get("metadata") or {}).get("labels") or {}
        wanted = ((item.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
        if any(labels.get(key) != value for key, value in wanted.items()):
            raise ConfigError("`selector` does not match the template's labels", where=where)


def _template(kind: Kind, item: Mapping[str, Any]) -> Any:
    if kind is kinds.POD:
        return item
    spec = item.get("spec") or {}
    if kind is kinds.CRON_JOB:
        spec = (spec.get("jobTemplate") or {}).get("spec") or {}
    return spec.get("template")


def _container(item: Any, where: str) -> None:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ConfigError("a container has no `name`", where=where)
    name = item["name"]
    for field in ("command", "args"):
        words = item.get(field) or []
        if not isinstance(words, list) or not all(isinstance(each, str) for each in words):
            raise ConfigError(f"container {name}: `{field}` is no list of texts", where=where)
    for each in item.get("env") or []:
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise ConfigError(f"container {name}: an entry of `env` has no `name`", where=where)
        value = each.get("value")
        if value is not None and not isinstance(value, str):
            hint = f'put it in quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
            raise ConfigError(f"container {name}: env {each['name']} is not text", where=where, hint=hint)
    for each in item.get("volumeMounts") or []:
        if not isinstance(each, dict) or not str(each.get("mountPath", "")).startswith("/") or "name" not in each:
            raise ConfigError(f"container {name}: a mount needs a `name` and an absolute `mountPath`", where=where)


def _texts(values: Any, field: str, where: str) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"`{field}` is no mapping", where=where)
    for key, value in values.items():
        if not isinstance(value, str):
            raise ConfigError(f"{field}.{key} is not text", where=where, hint="put it in quotes")


def completed(kind: Kind, item: dict[str, Any], where: str) -> dict[str, Any]:
    """With what the API server fills in, as far as somebody here reads it."""
    if kind is kinds.SECRET:
        plain = item.get("stringData") or {}
        coded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
        rest = {key: value for key, value in item.items() if key != "stringData"}
        return {"type": "Opaque", **rest, "data": {**(item.get("data") or {}), **coded}}
    if kind is kinds.SERVICE:
        return {**item, "spec": _service(item.get("spec") or {}, where)}
    return item


def _service(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    made = {"type": "ClusterIP", **spec}
    if made["type"] == "ExternalName":
        if not isinstance(made.get("externalName"), str):
            raise ConfigError("has no `externalName`", where=where)
        return made
    ports = []
    for each in made.get("ports") or []:
        if not isinstance(each, dict) or not isinstance(each.get("port"), int):
            raise ConfigError("an entry of `ports` has no `port`", where=where)
        ports.append({"protocol": "TCP", "targetPort": each["port"], **each})
    if made.get("clusterIP") == "None":
        made["clusterIPs"] = ["None"]
    return {**made, "ports": ports}


def pod_template(kind: Kind, item: Object) -> Object:
    """The pod template of a workload that was read; a Pod is its own."""
    template: Object = _template(kind, item)
    return template
