"""The resolver: who is asked, what is kept, what fits."""

from __future__ import annotations

import asyncio

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from devloop.net.dns import NOT_OURS, Answer, Kept, Record, Resolver
from devloop.net.upstream import parse_resolv_conf
from tests.unit.net.fakes import FakeUpstream, Zone

API = "api.shop.svc.cluster.local"


class Bench:
    def __init__(self) -> None:
        self.zone = Zone()
        self.upstream = FakeUpstream()
        self.now = 1000.0
        self.resolver = Resolver(self.zone, self.upstream, lambda: self.now)

    async def ask(
        self, name: str, type: str = "A", *, tcp: bool = False, edns: int = -1, payload: int = 1232
    ) -> dns.message.Message:
        query = dns.message.make_query(name, type, use_edns=edns if edns >= 0 else False, payload=payload)
        wire = await self.resolver.answer(query.to_wire(), tcp=tcp)
        assert wire is not None
        response = dns.message.from_wire(wire)
        assert query.is_response(response)
        return response


@pytest.fixture
def bench() -> Bench:
    return Bench()


def values(response: dns.message.Message) -> list[str]:
    return [f"{rrset.ttl} {item}" for rrset in response.answer for item in rrset]


async def test_cluster_names_come_from_the_source(bench: Bench) -> None:
    bench.zone.set(API, Record("A", "10.96.0.7"), Record("AAAA", "fd00::7", 5))
    response = await bench.ask(API.upper() + ".")
    assert values(response) == ["0 10.96.0.7"]
    assert response.flags & dns.flags.AA
    assert response.flags & dns.flags.RA
    assert values(await bench.ask(API, "AAAA")) == ["5 fd00::7"]
    assert bench.zone.asked[0] == (API, "A")
    assert bench.upstream.asked == []


async def test_a_toggle_changes_the_next_answer(bench: Bench) -> None:
    bench.zone.set(API, Record("A", "10.96.0.7"))
    assert values(await bench.ask(API)) == ["0 10.96.0.7"]
    bench.zone.set(API, Record("A", "198.18.0.2"))
    assert values(await bench.ask(API)) == ["0 198.18.0.2"]


async def test_a_name_that_the_cluster_does_not_have(bench: Bench) -> None:
    response = await bench.ask("github.com.shop.svc.cluster.local")
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert bench.upstream.asked == []


async def test_a_name_without_such_a_record(bench: Bench) -> None:
    bench.zone.set(API, Record("A", "10.96.0.7"))
    response = await bench.ask(API, "AAAA")
    assert response.rcode() == dns.rcode.NOERROR
    assert response.answer == []


async def test_srv_with_the_addresses_of_its_targets(bench: Bench) -> None:
    name = f"_http._tcp.{API}"
    bench.zone.answers[name, "SRV"] = Answer(
        (Record("SRV", f"0 50 8080 pod-0.{API}.", 5), Record("SRV", f"0 50 8080 pod-1.{API}.", 5)),
        additional=(Record("A", "10.1.0.1", 5, f"pod-0.{API}"), Record("A", "10.1.0.2", 5, f"pod-1.{API}")),
    )
    response = await bench.ask(name, "SRV")
    assert len(response.answer[0]) == 2
    assert [str(rrset.name) for rrset in response.additional] == [f"pod-0.{API}.", f"pod-1.{API}."]


async def test_ptr(bench: Bench) -> None:
    bench.zone.set("7.0.96.10.in-addr.arpa", Record("PTR", f"{API}."))
    assert values(await bench.ask("7.0.96.10.in-addr.arpa", "PTR")) == [f"0 {API}."]


async def test_external_name_is_followed_to_the_host(bench: Bench) -> None:
    bench.zone.set(API, Record("CNAME", "example.com.", 5))
    bench.upstream.set("example.com.", 60, "A", "192.0.2.80")
    assert values(await bench.ask(API)) == ["5 example.com.", "60 192.0.2.80"]


async def test_aliases_that_go_round_end(bench: Bench) -> None:
    bench.zone.set("a.cluster.local", Record("CNAME", "b.cluster.local."))
    bench.zone.set("b.cluster.local", Record("CNAME", "a.cluster.local."))
    assert len(values(await bench.ask("a.cluster.local"))) == 2


async def test_host_answers_are_kept_for_their_ttl(bench: Bench) -> None:
    bench.upstream.set("example.com.", 60, "A", "192.0.2.80")
    assert values(await bench.ask("example.com")) == ["60 192.0.2.80"]
    bench.now += 45
    assert values(await bench.ask("example.com")) == ["15 192.0.2.80"]
    assert len(bench.upstream.asked) == 1
    bench.now += 15
    assert values(await bench.ask("example.com")) == ["60 192.0.2.80"]
    assert len(bench.upstream.asked) == 2
    bench.resolver.forget()
    await bench.ask("example.com")
    assert len(bench.upstream.asked) == 3


async def test_no_is_kept_too(bench: Bench) -> None:
    soa = dns.rrset.from_text("com.", 900, "IN", "SOA", "a. b. 1 2 3 4 30")
    bench.upstream.authority = [soa]
    assert (await bench.ask("nope.com")).rcode() == dns.rcode.NXDOMAIN
    bench.now += 29
    await bench.ask("nope.com")
    assert len(bench.upstream.asked) == 1
    bench.now += 1
    await bench.ask("nope.com")
    assert len(bench.upstream.asked) == 2


async def test_the_same_question_is_asked_once(bench: Bench) -> None:
    bench.upstream.set("example.com.", 60, "A", "192.0.2.80")
    bench.upstream.release = asyncio.Event()
    asking = [asyncio.create_task(bench.ask("example.com")) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    bench.upstream.release.set()
    answers = await asyncio.gather(*asking[1:])
    assert all(values(answer) == ["60 192.0.2.80"] for answer in answers)
    assert len(bench.upstream.asked) == 1


async def test_failures_are_answered_at_once_and_not_kept(bench: Bench) -> None:
    bench.upstream.error = TimeoutError()
    assert (await bench.ask("example.com")).rcode() == dns.rcode.SERVFAIL
    bench.upstream.error = None
    bench.upstream.set("example.com.", 60, "A", "192.0.2.80")
    assert values(await bench.ask("example.com")) == ["60 192.0.2.80"]
    bench.zone.error = OSError("the link is down")
    assert (await bench.ask(API)).rcode() == dns.rcode.SERVFAIL


async def test_localhost_is_known(bench: Bench) -> None:
    assert values(await bench.ask("localhost")) == ["300 127.0.0.1"]
    assert values(await bench.ask("api.localhost", "AAAA")) == ["300 ::1"]
    assert bench.zone.asked == []


async def test_what_does_not_fit_is_cut_and_comes_over_tcp(bench: Bench) -> None:
    records = [Record("A", f"10.1.{n // 250}.{n % 250}") for n in range(200)]
    bench.zone.set(API, *records)
    cut = await bench.ask(API)
    assert cut.flags & dns.flags.TC
    assert cut.answer == []
    assert len((await bench.ask(API, edns=0, payload=4096)).answer[0]) == 200
    assert (await bench.ask(API, edns=0, payload=1232)).flags & dns.flags.TC
    whole = await bench.ask(API, tcp=True)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 200


async def test_what_is_no_query_gets_no_answer(bench: Bench) -> None:
    response = dns.message.make_response(dns.message.make_query("a.", "A"))
    assert await bench.resolver.answer(response.to_wire()) is None
    assert await bench.resolver.answer(b"short") is None
    broken = dns.message.make_query("a.b.", "A").to_wire()[:-3]
    answer = await bench.resolver.answer(broken)
    assert answer is not None
    assert dns.message.from_wire(answer).rcode() == dns.rcode.FORMERR
    update = dns.message.make_query("a.", "SOA")
    update.set_opcode(5)
    answer = await bench.resolver.answer(update.to_wire())
    assert answer is not None
    assert dns.message.from_wire(answer).rcode() == dns.rcode.NOTIMP


async def test_unknown_edns_versions_are_refused(bench: Bench) -> None:
    assert (await bench.ask(API, edns=1)).rcode() == dns.rcode.BADVERS


def test_resolv_conf() -> None:
    text = "# c\nsearch a b\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\noptions edns0\nnameserver\n"
    assert parse_resolv_conf(text) == [("127.0.0.53", 53), ("fe80::1%eth0", 53)]


async def test_ipv6_addresses_that_the_host_has_no_way_to_are_left_out() -> None:
    """A connection to them would be accepted and then reset, and clients try IPv4 only where they are refused."""
    bench = Bench()
    bench.resolver = Resolver(bench.zone, bench.upstream, lambda: bench.now, lambda each: each == "2001:db8::2")
    bench.upstream.set("example.com.", 60, "AAAA", "2001:db8::1", "2001:db8::2")
    bench.upstream.set("example.com.", 60, "A", "93.184.216.34")
    bench.upstream.set("six.example.com.", 60, "AAAA", "2001:db8::1")
    assert [each.split()[1] for each in values(await bench.ask("example.com", "AAAA"))] == ["2001:db8::2"]
    assert [each.split()[1] for each in values(await bench.ask("example.com"))] == ["93.184.216.34"]
    response = await bench.ask("six.example.com", "AAAA")
    assert response.rcode() == dns.rcode.NOERROR and values(response) == []
    # What the cluster says of its own is left as it is.
    bench.zone.set(API, Record("AAAA", "fd00::7", 5))
    assert values(await bench.ask(API, "AAAA")) == ["5 fd00::7"]


def wire_of(name: str, type: str = "A", number: int = 7) -> bytes:
    query = dns.message.make_query(name, type)
    query.id = number
    return query.to_wire()


async def test_what_was_answered_is_answered_again_as_long_as_what_it_is_made_of_is_kept(bench: Bench) -> None:
    record = Record("A", "10.96.0.7", 5)
    bench.zone.set(API, record)
    kept = bench.zone.keeps[API, "A"] = Kept(bench.now, 5, bench.zone.answers[API, "A"])
    assert bench.resolver.known(wire_of(API)) is None
    await bench.resolver.answer(wire_of(API))
    for age in (0, 1, 3):
        bench.now = kept.at + age
        again = bench.resolver.known(wire_of(API, number=4000 + age))
        assert again is not None
        message = dns.message.from_wire(again)
        assert message.id == 4000 + age and message.flags & dns.flags.AA
        assert values(message) == [f"{5 - age} 10.96.0.7"]
    assert len(bench.zone.asked) == 1
    assert bench.resolver.known(wire_of(API, "AAAA")) is None
    # It has moved, or is asked for anew: another object.
    bench.zone.keeps[API, "A"] = Kept(bench.now, 5, Answer((Record("A", "198.19.0.1"),)))
    assert bench.resolver.known(wire_of(API)) is None
    del bench.zone.keeps[API, "A"]
    await bench.resolver.answer(wire_of(API))
    assert bench.resolver.known(wire_of(API)) is None


async def test_the_hosts_answers_too_as_long_as_they_and_the_source_say_so(bench: Bench) -> None:
    bench.upstream.set("example.com.", 60, "AAAA", "2001:db8::1")
    bench.zone.keeps["example.com", "AAAA"] = NOT_OURS
    await bench.resolver.answer(wire_of("example.com", "AAAA"))
    bench.now += 45
    again = bench.resolver.known(wire_of("example.com", "AAAA"))
    assert again is not None and values(dns.message.from_wire(again)) == ["15 2001:db8::1"]
    # The source has it now.
    bench.zone.keeps["example.com", "AAAA"] = Kept(bench.now, 5, Answer((Record("AAAA", "fd00::1", 5),)))
    assert bench.resolver.known(wire_of("example.com", "AAAA")) is None
    bench.zone.keeps["example.com", "AAAA"] = NOT_OURS
    await bench.resolver.answer(wire_of("example.com", "AAAA"))
    assert bench.resolver.known(wire_of("example.com", "AAAA")) is not None
    bench.now += 15
    assert bench.resolver.known(wire_of("example.com", "AAAA")) is None
    await bench.resolver.answer(wire_of("example.com", "AAAA"))
    bench.resolver.forget()
    assert bench.resolver.known(wire_of("example.com", "AAAA")) is None


async def test_an_answer_of_two_lookups_is_made_anew_each_time(bench: Bench) -> None:
    bench.zone.set(API, Record("CNAME", "example.com.", 5))
    bench.upstream.set("example.com.", 60, "A", "192.0.2.80")
    bench.zone.keeps[API, "A"] = Kept(bench.now, 5, bench.zone.answers[API, "CNAME"])
    bench.zone.keeps["example.com", "A"] = NOT_OURS
    await bench.resolver.answer(wire_of(API))
    assert bench.resolver.known(wire_of(API)) is None
    assert bench.resolver.known(b"") is None
