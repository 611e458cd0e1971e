"""A link whose resolver knows a few names."""

from __future__ import annotations

from typing import Any

import dns.message
import dns.rcode
import dns.rrset

SOA = "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"


class FakeLink:
    """Answers questions from a zone file's lines; remembers what it was asked."""

    def __init__(self, *records: str, rcode: int = dns.rcode.NXDOMAIN) -> None:
        self.records = [dns.rrset.from_text(*_split(each)) for each in records]
        self.asked: list[str] = []
        self._rcode = rcode

    async def query(self, message: bytes) -> bytes:
        question = dns.message.from_wire(message)
        asked = question.question[0]
        self.asked.append(f"{asked.name.to_text(omit_final_dot=True)} {dns.rdatatype.to_text(asked.rdtype)}")
        answer = dns.message.make_response(question)
        name = asked.name
        for rrset in self.records:
            if rrset.name == name and rrset.rdtype in (asked.rdtype, dns.rdatatype.CNAME):
                answer.answer.append(rrset)
                if rrset.rdtype == dns.rdatatype.CNAME:
                    name = rrset[0].target
        if not answer.answer:
            if not any(rrset.name == name for rrset in self.records):
                answer.set_rcode(self._rcode)
            answer.authority.append(dns.rrset.from_text("cluster.local.", 5, "IN", "SOA", SOA))
        return answer.to_wire()

    async def connect(self, factory: Any, host: str, port: int) -> Any:
        raise NotImplementedError


def _split(record: str) -> tuple[str, int, str, str, str]:
    name, ttl, kind, value = record.split(maxsplit=3)
    return f"{name}.", int(ttl), "IN", kind, value
