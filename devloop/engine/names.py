"""Names as a pod would see them: the remote's resolver for what is the remote's, and local services in between."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Callable
from dataclasses import replace

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename

from devloop.net.dns import NOT_OURS, Answer, Kept, Record
from devloop.remote.link import Link, NameLookupError
from devloop.remote.standing import Standing, Standings

CACHE = 4096
LONGEST = 30.0
"""Seconds that an answer is kept at most, as kubeadm's CoreDNS does: a Service may be made anew."""
STALE_AFTER = 1.8
"""Seconds for which a new answer is waited for before an old one is given (RFC 8767, 5): the link has a gap. Clients
give up after 5 to 10 s, and then many say that there is no such name, where connections wait for the link."""
_VERSIONS = {"A": 4, "AAAA": 6}
ANSWER_WITHIN = 4.0
"""Seconds until a client is told to ask again, where there is no old answer: before its own patience ends."""


class Names:
    """A `NameSource` for the namespaces of one project's services."""

    def __init__(
        self,
        link: Link,
        standings: Callable[[], Standings],
        is_local: Callable[[str], bool],
        domains: tuple[str, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_local` says of a service whether it is here; `domains` are those of `dns.remote`."""
        self._link = link
        self._standings = standings
        self._is_local = is_local
        self._domains = domains
        self._clock = clock
        self._kept: dict[tuple[str, str], Kept] = {}
        self._here: dict[tuple[str, str], tuple[Standing, Kept]] = {}
        """What is answered for services that are here, of the standing that it is made of."""
        self._asking: dict[tuple[str, str], asyncio.Task[Answer | None]] = {}
        self.seen: dict[str, str] = {}
        """Addresses that the remote's resolver has given, and the name that was asked for: they are reached
        through the link."""

    def forget(self) -> None:
        """The link is another one: so may be the answers. They are good for a gap until there are new ones."""
        self._kept = {key: replace(kept, ttl=0.0) for key, kept in self._kept.items()}

    async def lookup(self, name: str, type: str) -> Answer | None:
        """See `devloop.net.dns.NameSource`."""
        known = self.kept(name, type)
        if known is not None:
            return _aged(known.answer, int(self._clock() - known.at))
        key = (name, type)
        kept = self._kept.get(key)
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(name, type), name=f"dns {name}")
            task.add_done_callback(lambda done: self._asked(key, done))
        # Shielded: a client that gives up must not take the answer from the others.
        try:
            async with asyncio.timeout(ANSWER_WITHIN if kept is None else STALE_AFTER):
                return await asyncio.shield(task)
        except (TimeoutError, NameLookupError):
            if kept is not None:
                return _stale(kept.answer)
            raise

    def kept(self, name: str, type: str) -> Kept | None:
        """See `devloop.net.dns.NameSource`."""
        standing = self._standings().by_name.get(name)
        if standing is not None and self._is_local(standing.service):
            return self._of_here(standing, name, type)
        if not self._is_remotes(name):
            return NOT_OURS
        kept = self._kept.get((name, type))
        return kept if kept is not None and self._clock() - kept.at < kept.ttl else None

    def _of_here(self, standing: Standing, name: str, type: str) -> Kept:
        found = self._here.get((name, type))
        if found is None or found[0] is not standing:
            version = _VERSIONS.get(type)
            answer = Answer(tuple(Record(type, each) for each in standing.virtuals(version))) if version else Answer()
            while len(self._here) >= CACHE:
                self._here.pop(next(iter(self._here)))
            found = self._here[name, type] = (standing, Kept(0.0, 0.0, answer))
        return found[1]

    async def close(self) -> None:
        """End what is being asked."""
        tasks = tuple(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def addresses(self, name: str) -> tuple[str, ...]:
        """The addresses that the remote's resolver knows for a full name: those of IPv4, and then those of IPv6.

        Raises what `lookup` raises if neither can be had.
        """
        answers = await asyncio.gather(*(self._ask(name, each) for each in _VERSIONS), return_exceptions=True)
        known = [each for each in answers if not isinstance(each, BaseException)]
        if not known:
            raise next(each for each in answers if isinstance(each, BaseException))
        return tuple(each.value for found in known if found for each in found.records if each.type in _VERSIONS)

    def _asked(self, key: tuple[str, str], task: asyncio.Task[Answer | None]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()

    def _is_remotes(self, name: str) -> bool:
        domain = self._standings().domain
        if domain.cluster and _below(name, domain.cluster):
            return True
        if name.endswith((".in-addr.arpa", ".ip6.arpa")):
            return _is_private_reverse(name)
        return any(_below(name, each) for each in (*self._domains, *domain.search))

    async def _ask(self, name: str, type: str) -> Answer | None:
        query = dns.message.make_query(name, type, use_edns=0, payload=4096)
        message = dns.message.from_wire(await self._link.query(query.to_wire()), ignore_trailing=True)
        rcode = message.rcode()
        if rcode == dns.rcode.REFUSED:
            return None  # plain port-forwards know the cluster's names and no others
        if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise NameLookupError(f"the resolver says {dns.rcode.to_text(rcode)}", where=name)
        exists = rcode == dns.rcode.NOERROR
        answer: Answer | None = Answer(_records(message, name), exists, _additional(message))
        assert answer is not None
        ttl = _keep_for(message)
        whole = any(_below(name, each) for each in self._domains)
        if not exists and not whole and not self._is_clusters(name):
            answer = None  # the host may know it: a search domain that both have, an address of its own network
        else:
            self._remember(name, answer, whole=whole)
        while len(self._kept) >= CACHE:
            self._kept.pop(next(iter(self._kept)))
        self._kept.pop((name, type), None)  # to the end: the oldest go first
        self._kept[name, type] = Kept(self._clock(), min(ttl, LONGEST), answer)
        return answer

    def _is_clusters(self, name: str) -> bool:
        cluster = self._standings().domain.cluster
        return cluster is not None and _below(name, cluster)

    def _remember(self, name: str, answer: Answer, *, whole: bool) -> None:
        for each in (*answer.records, *answer.additional):
            if each.type not in _VERSIONS:
                continue
            # An alias may lead to the internet, which the host reaches by itself; not so what `dns.remote` names, and
            # what the cluster itself does: its pods may have public addresses (in IPv6 they often do).
            if whole or self._is_clusters(each.name or name) or ipaddress.ip_address(each.value).is_private:
                self.seen[each.value] = name


def _stale(answer: Answer | None) -> Answer | None:
    return answer and replace(answer, records=tuple(replace(each, ttl=0) for each in answer.records))


def _below(name: str, domain: str) -> bool:
    return name == domain or name.endswith(f".{domain}")


def _is_private_reverse(name: str) -> bool:
    try:
        address = dns.name.from_text(name)
        return ipaddress.ip_address(dns.reversename.to_address(address)).is_private
    except (ValueError, dns.exception.DNSException):
        return False


def _records(message: dns.message.Message, name: str) -> tuple[Record, ...]:
    return tuple(
        Record(
            dns.rdatatype.to_text(rrset.rdtype),
            rdata.to_text(),
            rrset.ttl,
            "" if (owner := rrset.name.canonicalize().to_text(omit_final_dot=True)) == name else owner,
        )
        for rrset in message.answer
        for rdata in rrset
    )


def _additional(message: dns.message.Message) -> tuple[Record, ...]:
    return tuple(
        Record(dns.rdatatype.to_text(rrset.rdtype), rdata.to_text(), rrset.ttl, rrset.name.to_text(omit_final_dot=True))
        for rrset in message.additional
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA)
        for rdata in rrset
    )


def _keep_for(message: dns.message.Message) -> float:
    """Seconds for which an answer holds; one that says no holds for its SOA's minimum (RFC 2308)."""
    ttls = [rrset.ttl for rrset in message.answer]
    if not ttls:
        ttls = [
            min(rrset.ttl, rrset[0].minimum) for rrset in message.authority if rrset.rdtype == dns.rdatatype.SOA
        ] or [5]
    return float(min(ttls))


def _aged(answer: Answer | None, seconds: int) -> Answer | None:
    if answer is None or not seconds:
        return answer
    records = tuple(replace(each, ttl=max(0, each.ttl - seconds)) for each in answer.records)
    return replace(answer, records=records)
