"""The tables `[remote]` and `[dns]` → `model.Remote`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devloop.config.explain import shaped
from devloop.config.model import SERVER_NAME, LinkWay, Remote, RemoteKind
from devloop.config.problems import Findings, Place
from devloop.config.schema import DnsTable, RemoteTable
from devloop.config.words import dotted, quoted


def remote(main: Mapping[str, Any], place: Place, environ: Mapping[str, str], findings: Findings) -> Remote | None:
    """The remote of a project file, None if it has none; what is wrong becomes a finding."""
    dns, _ = shaped(DnsTable, main.get("dns", {}), place.at("dns"), findings)
    if "remote" not in main:
        if dns.remote:
            what = "dns.remote: this project has no remote whose resolver could be asked"
            findings.add(place.at("dns", "remote"), what, "add a [remote] table, or remove this")
        return None
    here = place.at("remote")
    table, broken = shaped(RemoteTable, main["remote"], here, findings)
    kind = RemoteKind(table.kind or ("ssh" if table.host else "kubernetes"))
    if kind is RemoteKind.SSH and not table.host and "host" not in broken:
        findings.add(here.key(), "remote: of kind ssh, and no host is named", 'add host = "…", as `ssh` takes it')
    if kind is RemoteKind.SANDBOX and not table.manifests and "manifests" not in broken:
        what = "remote: a sandbox has what its manifests say, and none are named"
        findings.add(here.key(), what, 'add manifests = "k8s": a folder or file of Kubernetes manifests')
    for index, network in enumerate(table.networks or ()):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            at = here.at("networks", index)
            findings.add(at, f"{dotted(at.path)}: {quoted(network)} is no network: {error}", 'write "10.20.0.0/16"')
    for index, name in enumerate(table.allowed_hosts or ()):
        if name != "*" and not re.fullmatch(SERVER_NAME, name) and not _is_address(name):
            at = here.at("allowed_hosts", index)
            what = f"{dotted(at.path)}: {quoted(name)} is no name of a host"
            findings.add(at, what, 'write "shop.example.com", or "*.example.com"; no scheme, no port')
    direct = _direct(table.direct or "auto")
    if direct is None:
        what = f"remote.direct: {quoted(table.direct or '')} is neither auto, off nor an address"
        findings.add(here.at("direct"), what, 'write "10.0.0.7:30223", or "[fd00::7]:30223"')
    folder = place.file.parent

    def path(text: str, *key: str | int) -> Path:
        if text == "~" or text.startswith("~/"):
            text = environ.get("HOME", "~") + text[1:]
        found = (folder / text).resolve()
        # A kubeconfig may be made later; without manifests there is no sandbox.
        if kind is RemoteKind.SANDBOX and key[0] != "kubeconfig" and not found.exists():
            at = here.at(*key)
            findings.add(at, f"{dotted(at.path)}: {quoted(text)} does not exist", f"it is looked for in {folder}")
        return found

    return Remote(
        kind=kind,
        context=table.context,
        kubeconfig=path(table.kubeconfig, "kubeconfig") if table.kubeconfig else None,
        namespace=table.namespace,
        link=LinkWay(table.link or "auto"),
        agent_image=table.agent_image,
        secrets_on_disk=bool(table.secrets_on_disk),
        mesh=table.mesh == "join",
        direct=True if direct is None else direct,
        host=table.host,
        forward=table.forward or (),
        allowed_hosts=table.allowed_hosts or (),
        networks=table.networks or (),
        names=tuple(name.strip(".").lower() for name in dns.remote or ()),
        manifests=tuple(path(text, "manifests", index) for index, text in enumerate(table.manifests or ())),
        images={name: path(text, "images", name) for name, text in (table.images or {}).items()},
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _direct(text: str) -> bool | tuple[str, int] | None:
    """None: it can't be read."""
    if text in ("auto", "off"):
        return text == "auto"
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or not port.isdecimal() or not 0 < int(port) < 65536 or (":" in bare and bare == host):
        return None
    return bare, int(port)
