"""Names as a pod would see them, with local services in between."""

from __future__ import annotations

import asyncio

import dns.rcode
import pytest

from devloop.engine.names import Names
from devloop.net.dns import NOT_OURS, Answer, Record
from devloop.remote.catalog import Catalog
from devloop.remote.link import NameLookupError
from devloop.remote.standing import Domain, Standings
from tests.unit.core.playbook import service

from .fakes import FakeLink

SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example")
API = "api.shop.svc.cluster.local"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def names(link: FakeLink, *, local: bool = False, domains: tuple[str, ...] = ()) -> tuple[Names, Clock, Standings]:
    standings = Standings([service("new")], {"shop": Catalog("shop")}, Domain.of("shop", SEARCH))
    clock = Clock()
    made = Names(link, lambda: standings, lambda _: local, domains, clock)  # type: ignore[arg-type]
    return made, clock, standings


async def test_the_clusters_names_are_asked_of_the_cluster_and_no_others() -> None:
    link = FakeLink(f"{API} 5 A 10.96.0.5", "db.rds.internal 60 A 10.20.0.9")
    found, _, _ = names(link, domains=("rds.internal",))
    assert await found.lookup(API, "A") == Answer((Record("A", "10.96.0.5", 5),))
    assert await found.lookup("db.rds.internal", "A") == Answer((Record("A", "10.20.0.9", 60),))
    assert await found.lookup("example.com", "A") is None
    assert await found.lookup("internal", "A") is None
    assert link.asked == [f"{API} A", "db.rds.internal A"]
    assert set(found.seen) == {"10.96.0.5", "10.20.0.9"}


async def test_answers_are_kept_for_their_time_and_age() -> None:
    link = FakeLink(f"{API} 5 A 10.96.0.5")
    found, clock, _ = names(link)
    await found.lookup(API, "A")
    clock.now += 3
    assert await found.lookup(API, "A") == Answer((Record("A", "10.96.0.5", 2),))
    clock.now += 2.5
    assert await found.lookup(API, "A") == Answer((Record("A", "10.96.0.5", 5),))
    assert len(link.asked) == 2
    found.forget()
    await found.lookup(API, "A")
    assert len(link.asked) == 3


async def test_an_old_answer_is_given_while_there_is_no_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    link = FakeLink(f"{API} 5 A 10.96.0.5")
    found, clock, _ = names(link)
    await found.lookup(API, "A")
    await found.lookup(API, "AAAA")
    gap = asyncio.Event()

    async def query(message: bytes) -> bytes:
        await gap.wait()
        return await whole(message)

    whole = link.query
    monkeypatch.setattr(link, "query", query)
    monkeypatch.setattr("devloop.engine.names.STALE_AFTER", 0)
    monkeypatch.setattr("devloop.engine.names.ANSWER_WITHIN", 0)
    clock.now += 60
    for _ in range(2):
        assert await found.lookup(API, "A") == Answer((Record("A", "10.96.0.5", 0),))
        assert await found.lookup(API, "AAAA") == Answer()
        found.forget()  # another gap, right after
    with pytest.raises(TimeoutError):  # the client is told to ask again, and not that there is nobody
        await found.lookup("nobody.shop.svc.cluster.local", "A")
    gap.set()
    monkeypatch.undo()
    assert await found.lookup(API, "A") == Answer((Record("A", "10.96.0.5", 5),))
    await found.close()


async def test_a_resolver_in_trouble_does_not_take_back_what_it_has_said() -> None:
    link = FakeLink(f"{API} 5 A 10.96.0.5")
    found, clock, _ = names(link)
    await found.lookup(API, "A")
    clock.now += 60
    link.records, link._rcode = [], dns.rcode.SERVFAIL
    assert await found.lookup(API, "A") == Answer((Record("A", "10.96.0.5", 0),))


async def test_a_no_is_kept_as_long_as_the_zone_says() -> None:
    link = FakeLink(f"{API} 5 A 10.96.0.5")
    found, clock, _ = names(link)
    for _ in range(2):
        assert await found.lookup("nobody.shop.svc.cluster.local", "A") == Answer(exists=False)
        assert await found.lookup(API, "AAAA") == Answer()
    assert len(link.asked) == 2
    clock.now += 5.1
    await found.lookup(API, "AAAA")
    assert len(link.asked) == 3


async def test_the_same_question_is_asked_once_for_all_who_wait() -> None:
    link = FakeLink(f"{API} 5 A 10.96.0.5")
    found, _, _ = names(link)
    answers = await asyncio.gather(*(found.lookup(API, "A") for _ in range(10)))
    assert {each.records[0].value for each in answers if each} == {"10.96.0.5"}
    assert link.asked == [f"{API} A"]


async def test_a_local_service_that_the_cluster_has_no_address_for_has_one_while_it_is_local() -> None:
    link = FakeLink()
    name = "new.shop.svc.cluster.local"
    here, _, standings = names(link, local=True)
    assert await here.lookup(name, "A") == Answer((Record("A", standings.by_service["new"].virtual, 0),))
    assert await here.lookup(name, "AAAA") == Answer(), "it exists, and has no such address"
    there, _, _ = names(link)
    assert await there.lookup(name, "A") == Answer(exists=False)


async def test_what_the_cluster_does_not_know_of_a_shared_search_domain_is_the_hosts() -> None:
    found, _, _ = names(FakeLink())
    assert await found.lookup("printer.corp.example", "A") is None
    assert await found.lookup("9.0.168.192.in-addr.arpa", "PTR") is None
    assert await found.lookup("8.8.8.8.in-addr.arpa", "PTR") is None


async def test_an_alias_keeps_its_chain_and_leads_no_public_address_through_the_link() -> None:
    link = FakeLink(
        "pay.shop.svc.cluster.local 5 CNAME pay.example.com.",
        "pay.example.com 30 A 93.184.216.34",
    )
    found, _, _ = names(link)
    answer = await found.lookup("pay.shop.svc.cluster.local", "A")
    assert answer == Answer(
        (Record("CNAME", "pay.example.com.", 5), Record("A", "93.184.216.34", 30, "pay.example.com")),
    )
    assert found.seen == {}


async def test_a_resolver_that_knows_only_services_leaves_the_rest_to_the_host() -> None:
    found, _, _ = names(FakeLink(rcode=dns.rcode.REFUSED), domains=("rds.internal",))
    assert await found.lookup("db.rds.internal", "A") is None


async def test_a_resolver_in_trouble_is_an_error_and_not_a_no() -> None:
    found, _, _ = names(FakeLink(rcode=dns.rcode.SERVFAIL))
    with pytest.raises(NameLookupError, match="SERVFAIL"):
        await found.lookup(API, "A")


async def test_what_the_cluster_names_is_reached_through_it_also_by_a_public_address() -> None:
    nodes, alias = "nodes.shop.svc.cluster.local", "db.shop.svc.cluster.local"
    link = FakeLink(
        f"{nodes} 5 AAAA 2600:1f14::7",
        f"{alias} 5 CNAME db.example.com.",
        "db.example.com 60 AAAA 2600:9000::9",
    )
    found, _, _ = names(link)
    await found.lookup(nodes, "AAAA")
    await found.lookup(alias, "AAAA")
    assert set(found.seen) == {"2600:1f14::7"}, "an alias may lead to the internet"


async def test_addresses_of_both_families_and_what_one_that_fails_costs() -> None:
    link = FakeLink(f"{API} 5 AAAA fd00::5", f"{API} 5 A 10.96.0.5")
    found, _, _ = names(link)
    assert await found.addresses(API) == ("10.96.0.5", "fd00::5")
    assert await found.addresses("nobody.shop.svc.cluster.local") == ()
    broken, _, _ = names(FakeLink(rcode=dns.rcode.SERVFAIL))
    with pytest.raises(NameLookupError):
        await broken.addresses(API)


async def test_what_is_kept_is_the_same_object_until_something_moves() -> None:
    link = FakeLink(f"{API} 5 A 10.96.0.5")
    local: set[str] = set()
    standings = Standings([service("new")], {"shop": Catalog("shop")}, Domain.of("shop", SEARCH))
    clock = Clock()
    found = Names(link, lambda: standings, local.__contains__, (), clock)  # type: ignore[arg-type]
    assert found.kept("example.com", "A") is NOT_OURS
    assert found.kept(API, "A") is None
    answer = await found.lookup(API, "A")
    kept = found.kept(API, "A")
    assert kept is not None and kept.answer is answer and found.kept(API, "A") is kept
    clock.now += 5
    assert found.kept(API, "A") is None
    # A service that the remote does not have: it is the remote's to say no, until it is here.
    new = "new.shop.svc.cluster.local"
    await found.lookup(new, "A")
    before = found.kept(new, "A")
    local.add("new")
    here = found.kept(new, "A")
    assert here is not before and here is not None and here is found.kept(new, "A")
    assert here.answer == await found.lookup(new, "A") == Answer((Record("A", standings.by_name[new].virtual),))
    standings = Standings([service("other"), service("new")], {"shop": Catalog("shop")}, standings.domain)
    moved = found.kept(new, "A")
    assert moved is not here and moved is not None
    assert moved.answer == Answer((Record("A", standings.by_name[new].virtual),))
    local.clear()
    assert found.kept(new, "A") is before
