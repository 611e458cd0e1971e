"""DNS answers made from the API's objects, for a link that can't reach the cluster's resolver.

After Kubernetes' DNS specification 1.1: A and AAAA of Services, headless Services and pods, SRV of named ports, PTR,
CNAME of an ExternalName. A name under the cluster's domain that is not there is NXDOMAIN. Any other name is REFUSED:
this is not the one to ask, and the caller has the host's resolvers.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from .api import ApiError

if TYPE_CHECKING:
    import dns.message

    from .names import ClusterNames, Namespace

TTL_SECONDS = 5
"""CoreDNS' own default for Kubernetes' names."""


async def respond(names: ClusterNames, wire: bytes) -> bytes:
    """Answer one question. Raises ApiUnreachableError."""
    import dns.flags
    import dns.message
    import dns.rcode

    question = dns.message.from_wire(wire)
    response = dns.message.make_response(question, recursion_available=True)
    if len(question.question) != 1:
        response.set_rcode(dns.rcode.FORMERR)
        return response.to_wire()
    asked = question.question[0]
    name = asked.name.to_text(omit_final_dot=True).lower()
    reverse = name.endswith((".in-addr.arpa", ".ip6.arpa"))
    if not reverse and not name.endswith(f".{names.domain}"):
        response.set_rcode(dns.rcode.REFUSED)
        return response.to_wire()
    response.flags |= dns.flags.AA
    kind = dns.rdatatype.to_text(asked.rdtype)
    try:
        if reverse:
            known = await _backward(names, asked.name, response, kind)
            if not known:
                response.flags &= ~dns.flags.AA
                response.set_rcode(dns.rcode.REFUSED)
                return response.to_wire()
        else:
            known = await _forward(names, name.removesuffix(f".{names.domain}"), asked.name, response, kind)
    except ApiError:
        # A namespace that this user may not look into: for them, nothing is there.
        known = False
    if not known:
        response.set_rcode(dns.rcode.NXDOMAIN)
    if not response.answer:
        soa = f"ns.dns.{names.domain}. hostmaster.{names.domain}. 1 7200 1800 86400 {TTL_SECONDS}"
        _add(response.authority, f"{names.domain}.", "SOA", soa)
    return response.to_wire()


def _add(section: list[Any], owner: Any, kind: str, *values: str) -> None:
    import dns.rrset

    if values:
        section.append(dns.rrset.from_text(owner, TTL_SECONDS, "IN", kind, *values))


def _of_label(label: str) -> str | None:
    """The address that a pod's name is: `10-244-0-7`, `fd00-10-244--7`. None: it is none."""
    for separator in (".", ":"):
        try:
            return str(ipaddress.ip_address(label.replace("-", separator)))
        except ValueError:
            continue
    return None


def _of_family(addresses: list[str], kind: str) -> list[str]:
    version = {"A": 4, "AAAA": 6}.get(kind)
    return [each for each in addresses if ipaddress.ip_address(each).version == version]


async def _forward(names: ClusterNames, name: str, owner: Any, response: dns.message.Message, kind: str) -> bool:
    """Fill in the answer; False if there is no such name. `name` is without the cluster's domain."""
    from .names import addresses

    labels = name.split(".")
    if labels[-1] == "pod" and len(labels) == 3:
        address = _of_label(labels[0])
        if address is None:
            return False
        found = await names.namespace(labels[1])
        if found.at(address)[1] is None:
            return False
        _add(response.answer, owner, kind, *_of_family([address], kind))
        return True
    if labels[-1] != "svc" or len(labels) not in (3, 4, 5):
        # `svc.cluster.local` itself exists, with nothing in it.
        return labels in (["svc"], ["pod"])
    found = await names.namespace(labels[-2])
    service = found.services.get(labels[-3])
    if service is None:
        return False
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        if len(labels) == 3:
            _add(response.answer, owner, "CNAME", f"{spec['externalName'].rstrip('.')}.")
        return len(labels) == 3
    if len(labels) == 5:
        return _service_records(names, found, service, labels, owner, response, kind)
    own = addresses(service)
    if len(labels) == 4:
        hosts = [each for each, _ in found.endpoints(labels[1]) if _hostname(each) == labels[0]]
        if own or not hosts:
            return False
        _add(response.answer, owner, kind, *_of_family([a for e in hosts for a in e["addresses"]], kind))
        return True
    if not own:
        own = [address for each, _ in found.endpoints(labels[0]) for address in each["addresses"]]
        if not own:
            return False
    _add(response.answer, owner, kind, *_of_family(sorted(set(own)), kind))
    return True


def _hostname(endpoint: dict[str, Any]) -> str:
    """An endpoint's label: its hostname, or its address with dashes, as CoreDNS has it."""
    return str(endpoint.get("hostname") or endpoint["addresses"][0].replace(".", "-").replace(":", "-"))


def _service_records(
    names: ClusterNames,
    found: Namespace,
    service: dict[str, Any],
    labels: list[str],
    owner: Any,
    response: dns.message.Message,
    kind: str,
) -> bool:
    """`_PORT._PROTOCOL.SERVICE.NAMESPACE.svc`: SRV records (RFC 2782)."""
    from .names import addresses

    port_name, protocol = labels[0].removeprefix("_"), labels[1].removeprefix("_")
    base = f"{service['metadata']['name']}.{found.name}.svc.{names.domain}."

    def asked_for(port: dict[str, Any]) -> bool:
        return port.get("name") == port_name and port.get("protocol", "TCP").lower() == protocol

    if addresses(service):
        records = [f"0 100 {port['port']} {base}" for port in service["spec"].get("ports") or [] if asked_for(port)]
    else:
        records = [
            f"0 100 {port['port']} {_hostname(endpoint)}.{base}"
            for endpoint, each in found.endpoints(service["metadata"]["name"])
            for port in each.get("ports") or []
            if asked_for(port)
        ]
    if records and kind == "SRV":
        _add(response.answer, owner, "SRV", *records)
    return bool(records)


async def _backward(names: ClusterNames, owner: Any, response: dns.message.Message, kind: str) -> bool:
    """PTR of Services' addresses and of their endpoints."""
    import dns.exception
    import dns.reversename

    try:
        address = dns.reversename.to_address(owner)
    except (dns.exception.DNSException, ValueError):
        return False
    found = await names.namespace(names.api.namespace)
    suffix = f"{found.name}.svc.{names.domain}."
    service, pod = found.at(address)
    values = []
    if service is not None:
        values = [f"{service['metadata']['name']}.{suffix}"]
    elif pod is not None:
        # As CoreDNS: behind whatever Service, headless or not.
        values = [
            f"{_hostname(endpoint)}.{name}.{suffix}"
            for name in found.services
            for endpoint, _ in found.endpoints(name)
            if address in endpoint["addresses"]
        ]
    if kind == "PTR":
        _add(response.answer, owner, "PTR", *values)
    return bool(values)
