"""A pod's resolv.conf, from what another pod's says and the pod's own spec.

As the kubelet makes it (`pkg/kubelet/network/dns/dns.go`): the cluster's name server and search domains, begun with the
pod's own namespace, then what `dnsConfig` adds; `dnsPolicy: None` has nothing but that. `Default`, the node's own file,
can't be known from outside: it gets the cluster's, so that more names resolve and none fewer.
"""

from __future__ import annotations

from dataclasses import replace

from devloop.remote.link import Resolver

from .model import Object

_NDOTS = "ndots"


def of_pod(found: Resolver, pod: Object, namespace: str) -> Resolver:
    """`found` is what a pod of the cluster's has, which has no `dnsConfig` and may be of another namespace."""
    spec = pod["spec"]
    config = spec.get("dnsConfig") or {}
    if spec.get("dnsPolicy") == "None":
        found = Resolver(())
    else:
        found = replace(found, search=_in_namespace(found.search, namespace))
    options = dict(_split(each) for each in found.options)
    if found.ndots != 1 or _NDOTS in options:
        options[_NDOTS] = str(found.ndots)
    options |= {each["name"]: each.get("value") or "" for each in config.get("options") or []}
    return Resolver(
        tuple(dict.fromkeys((*found.nameservers, *(config.get("nameservers") or ())))),
        tuple(dict.fromkeys((*found.search, *(config.get("searches") or ())))),
        int(options.get(_NDOTS) or 1),
        tuple(f"{name}:{value}" if value else name for name, value in options.items()),
    )


def _in_namespace(search: tuple[str, ...], namespace: str) -> tuple[str, ...]:
    services = next((each for each in search if each.startswith("svc.")), None)
    if services is None:
        return search
    return tuple(f"{namespace}.{services}" if each.endswith(f".{services}") else each for each in search)


def _split(option: str) -> tuple[str, str]:
    name, _, value = option.partition(":")
    return name, value
