"""Attachments and requests on the screen, against a real control socket."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devloop.errors import RemoteError
from devloop.protocol import EarlierConnections, RequestRecord
from devloop.testing import shop, traffic
from tests.tui.conftest import Open, Screen
from tui.screens.requests import RequestsScreen
from tui.widgets.listing import Listing

pytestmark = pytest.mark.slow

NOW = shop.fixed_clock()
NEW = RequestRecord("web", NOW, "GET", "/new", 200, 4_000_000, "local", "HTTP/1.1")
NULLS = {"service": "api", "kind": None, "routes": None, "take_over": False}


def row(screen: Screen, service: str) -> str:
    return next(line for line in screen.text.splitlines() if f" {service} " in line)


def requests(screen: Screen) -> RequestsScreen:
    assert isinstance(screen.app.screen, RequestsScreen)
    return screen.app.screen


# Services


async def test_the_table_says_how_each_service_is_attached(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.shows("traffic")
        assert "● int 1.4+12/s" in row(screen, "web")
        assert "● replace" in row(screen, "worker")
        assert "✗ int refused" in row(screen, "search")
        screen.engine.attachment("web", "failed open", reason="the link is lost")
        await screen.shows("↯ int failed open")
        screen.engine.attachment("web", "attached", kind="wiretap", local_rate=0.0, original_rate=340.0)
        await screen.shows("● tap 340/s")


async def test_connections_from_before_are_shown_and_ended(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.shows("traffic")
        screen.engine.update("api", earlier=(EarlierConnections("web", 2, "local"),))
        await screen.shows("2 connections from before still lead to the process that was here: 2 from web")
        await screen.press("colon")
        await screen.type("move api")
        await screen.shows("end connections that still lead to where it was")
        await screen.press("enter", "enter")
        await screen.asked("move", service="api")
        await screen.hides("from before")


async def test_what_goes_past_an_attachment_is_shown(opened: Open) -> None:
    async with opened(size=(120, 40), on="web") as screen:
        await screen.shows("traffic")
        (held,) = screen.engine.status("web").attachments
        found = (EarlierConnections("front-y", 3, "original"),)
        screen.engine.update("web", attachments=(replace(held, earlier=found),))
        await screen.shows("3 connections from before still lead to the original: 3 from front-y")
        screen.engine.update("web", attachments=(replace(held, earlier=found, earlier_rate=12.3),))
        await screen.shows(
            "3 connections from before still lead to the original, with about 12 requests/s: 3 from front-y"
        )
        screen.engine.update("web", attachments=(replace(held, earlier=found, earlier_rate=0.0),))
        await screen.shows("still lead to the original and are idle: 3 from front-y")
        screen.engine.update("web", attachments=(replace(held, uncounted="no command may be run in pods"),))
        await screen.shows("not counted: no command may be run in pods")


async def test_i_attaches_and_leaves(opened: Open) -> None:
    async with opened(size=(80, 24)) as screen:
        await screen.shows(" i attach ")
        await screen.press("i")
        await screen.asked("attach", **NULLS)
        await screen.shows("● attached  intercept: baggage has devloop=ada", " i leave ", " x requests ")
        await screen.press("i")
        await screen.asked("leave", service="api")
        await screen.shows(" i attach ")
        await screen.hides("● attached")


async def test_an_attachment_goes_through_its_phases(opened: Open) -> None:
    async with opened(size=(80, 24)) as screen:
        screen.engine.on_attach = lambda service: None
        await screen.press("i")
        await screen.shows("◌ attaching  intercept", " i leave ")
        screen.engine.attachment("api", "attached", local_rate=2.0)
        await screen.shows("● attached", "2/s here, 0/s original")
        absent = "the local service does not run; the original answers"
        screen.engine.attachment("api", "failed open", reason=absent)
        await screen.shows("↯ failed open  intercept", absent)
        screen.engine.attachment("api", "attached", notes=("an autoscaler rests",))
        await screen.shows("● attached", "▲ an autoscaler rests")
        await screen.hides(absent)
        undone = "argocd has changed the Service again and again; devloop has given way"
        screen.engine.attachment("api", "contested", reason=undone)
        await screen.shows("⚑ contested  intercept", undone, " i attach ")


async def test_a_refusal_stays_with_who_what_and_since_when(opened: Open) -> None:
    async with opened(size=(80, 24), on="search") as screen:
        await screen.shows(
            "✗ refused  intercept: all requests", "bob@studio holds all requests of search", "2026-11-21T11"
        )
        await screen.shows("Take another route")
        hint = "Take another route: a header of your own, a path, a share."
        screen.engine.failures["attach"] = RemoteError("bob@studio holds it", where="dev/shop search", hint=hint)
        await screen.press("i")
        await screen.until(lambda: len(screen.app._notifications) == 1)
        toast = next(iter(screen.app._notifications))
        assert (toast.title, toast.message) == ("dev/shop search", f"bob@studio holds it\n{hint}")


async def test_what_can_not_be_attached_is_not_offered(opened: Open) -> None:
    async with opened(size=(80, 24), on="db") as screen:
        await screen.hides(" i attach ", " x requests ")
        await screen.press("i", "x")
        screen.board.select("redis")
        await screen.shows("stands for no workload")
        await screen.press("i")
        await screen.pilot.pause()
        assert not screen.engine.calls
        screen.engine.hear(replace(NEW, service="db"))  # from before it was moved there
        screen.board.select("db")
        await screen.shows(" x requests ")


async def test_without_a_cluster_there_is_nothing_of_it(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        assert screen.engine.snapshot().remote is not None
        remote = replace(screen.engine.snapshot().remote, kind="ssh", link="ssh")  # type: ignore[type-var]
        screen.engine._base = replace(screen.engine._base, remote=remote)
        screen.engine.configure([replace(each, attachments=()) for each in screen.engine.snapshot().services])
        await screen.hides("traffic", " i attach ", " x requests ")
        await screen.press("i", "x")
        await screen.pilot.pause()
        assert not screen.engine.calls


async def test_several_attachments_share_the_room(opened: Open) -> None:
    async with opened(size=(120, 40), on="web") as screen:
        held = screen.engine.status("web").attachments[0]
        screen.engine.update(
            "web", attachments=(held, replace(held, target="web-admin", routes=("10 % of all requests",)))
        )
        await screen.shows("● attached  intercept: baggage", "● attached  intercept web-admin: 10 % of all requests")
        many = tuple(replace(held, target=f"web-{n}", phase="contested" if n == 9 else "attached") for n in range(10))
        screen.engine.update("web", attachments=many)
        await screen.shows("intercept web-6", "… and 3 lines")
        await screen.pilot.resize_terminal(100, 18)
        await screen.shows("⚑ contested  intercept web-9")
        await screen.hides("intercept web-6")


@pytest.mark.parametrize(
    ("typed", "meaning", "kind", "routes", "take_over"),
    [
        ("intercept api mine", "the requests with my baggage", "intercept", "personal", False),
        ("intercept api all", "every request is answered here", "intercept", "all", False),
        ("replace api", "stop the workload", "replace", None, False),
        ("wiretap api", "a copy of its requests", "wiretap", None, False),
        ("take over api", "a dead devloop holds", None, None, True),
    ],
)
async def test_the_palette_attaches_in_every_way(
    opened: Open, typed: str, meaning: str, kind: str | None, routes: str | None, take_over: bool
) -> None:
    async with opened() as screen:
        await screen.press("colon")
        await screen.type(typed)
        await screen.shows(meaning)
        await screen.press("enter", "enter")
        await screen.asked("attach", service="api", kind=kind, routes=routes, take_over=take_over)
        assert [call[0] for call in screen.engine.calls] == ["attach"]


async def test_the_palette_leaves(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("colon")
        await screen.type("leave search")  # what was refused can be put away
        await screen.shows("its traffic to the original pods")
        await screen.press("enter", "enter")
        await screen.asked("leave", service="search")
        await screen.hides("int refused")


async def test_another_way_to_attach_is_the_engine_s_to_change(opened: Open) -> None:
    async with opened(on="web") as screen:
        await screen.press("colon")
        await screen.type("intercept web all")
        await screen.shows("every request is answered here")
        await screen.press("enter", "enter")
        await screen.asked("attach", service="web", kind="intercept", routes="all", take_over=False)
        assert [call[0] for call in screen.engine.calls] == ["attach"]
        await screen.shows("● attached  intercept: all requests")


# Requests


async def test_the_requests_that_went_through(opened: Open) -> None:
    async with opened(size=(80, 24), on="web") as screen:
        await screen.press("x")
        await screen.asked("requests", service="web", limit=500)
        await screen.shows("requests web  the last 13", "▼ follow", "● attached  intercept: baggage has devloop=ada")
        lines = {line.split()[1]: line.split() for line in screen.text.splitlines() if " /" in line and ":" in line}
        assert lines["DELETE"] == ["11:59:54", "DELETE", "/basket/items/2", "500", "21ms", "●", "local", "HTTP/1.1"]
        await screen.shows("✗ nobody", "↷ original", "1m01s", "none")
        await screen.press("k", "k")
        await screen.shows("GET /basket", "taken, but the original answered")
        await screen.press("k", "k")
        await screen.shows("GET /a/path/that/is/longer/than/a/screen/of/eighty/columns/can/show")
        await screen.press("escape")
        await screen.shows("logs web")


async def test_requests_follow_until_one_is_chosen(opened: Open) -> None:
    async with opened(size=(80, 24), on="web") as screen:
        await screen.press("x")
        await screen.shows("the last 13")
        screen.engine.hear(*(replace(NEW, at=NOW + n, path=f"/new/{n}") for n in range(30)))
        await screen.shows("the last 43", "GET /new/29", "▌12:00:00  GET     /new/29")
        await screen.press("k")
        await screen.shows("‖ paused, 1 after it", "GET /new/28")
        screen.engine.hear(replace(NEW, at=NOW + 31, path="/newest"))
        await screen.shows("‖ paused, 2 after it", "▌12:00:00  GET     /new/28")
        await screen.press("G")
        await screen.shows("▼ follow", "▌12:00:00  GET     /newest")
        await screen.press("f")
        await screen.shows("‖ paused")
        screen.engine.hear(replace(NEW, at=NOW + 32, path="/after"))
        await screen.shows("‖ paused, 1 after it", "▌12:00:00  GET     /newest")
        await screen.press("f")
        await screen.shows("▼ follow", "▌12:00:00  GET     /after")


async def test_requests_of_others_are_not_shown(opened: Open) -> None:
    async with opened(size=(80, 24)) as screen:
        await screen.press("x")
        await screen.shows("requests api", "nothing of the cluster's traffic comes here; i attaches it")
        screen.engine.hear(NEW, replace(NEW, service="api", path="/mine"))
        await screen.shows("/mine")
        assert "/new" not in screen.text


async def test_requests_are_filtered(opened: Open) -> None:
    async with opened(size=(80, 24), on="web") as screen:
        await screen.press("x")
        await screen.shows("the last 13")
        await screen.press("slash")
        await screen.type("basket.*local")
        await screen.press("enter")
        await screen.shows("/basket.*local/  4 of 13", "/basket/items")
        await screen.hides("/assets")
        screen.engine.hear(NEW, replace(NEW, path="/basket/9"))
        await screen.shows("5 of 15", "GET /basket/9")
        await screen.press("slash")
        await screen.type("zzz")
        await screen.shows("nothing matches")
        await screen.press("escape", "escape")
        await screen.shows("the last 15", "/assets")
        await screen.press("x")
        await screen.shows("logs web")


async def test_the_requests_view_attaches_and_leaves_too(opened: Open) -> None:
    async with opened(size=(80, 24)) as screen:
        await screen.press("x")
        await screen.shows(" i attach ")
        await screen.press("i")
        await screen.asked("attach", **NULLS)
        await screen.shows("● attached  intercept", " i leave ", "no request has gone through yet")
        await screen.press("i")
        await screen.asked("leave", service="api")
        await screen.shows(" i attach ")
        screen.engine.update("api", mode="remote")
        await screen.shows("it is remote: only what runs here")
        assert " i attach " not in screen.text


async def test_the_newest_stays_in_view_when_the_room_shrinks(opened: Open) -> None:
    async with opened(size=(80, 40), on="web") as screen:
        await screen.press("x")
        screen.engine.hear(*(replace(NEW, at=NOW + n, path=f"/new/{n}") for n in range(50)))
        await screen.shows("▌12:00:00  GET     /new/49")
        await screen.pilot.resize_terminal(60, 14)
        await screen.shows("▌12:00:00  GET     /new/49")
        assert requests(screen).query_one(Listing).cursor == 62


async def test_a_flood_of_requests_is_bounded(opened: Open) -> None:
    async with opened(size=(80, 24), on="web") as screen:
        await screen.press("x")
        for start in range(0, 3000, 500):
            screen.engine.hear(*(replace(NEW, at=NOW + start + n, path=f"/{start + n}") for n in range(500)))
        await screen.shows("the last 1000", "GET /2999")


async def test_the_palette_knows_requests(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("colon")
        await screen.type("requests web")
        await screen.shows("those that went through")
        await screen.press("enter", "enter")
        await screen.shows("requests web  the last 13")


async def test_w_shows_times_and_i_never_does(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("l", "W")
        await screen.until(lambda: screen.board.log_pane.view.timed)
        await screen.press("i")
        await screen.asked("attach", **NULLS)
        assert screen.board.log_pane.view.timed


# The fake itself


async def test_the_fake_attaches_as_an_engine(opened: Open) -> None:
    async with opened() as screen:
        engine = screen.engine
        await engine.call("attach", {"service": "web"})
        assert engine.status("web").attachments[0].kind == "intercept"  # what is attached stays
        await engine.call("attach", {"service": "web", "kind": "wiretap"})
        assert [each.kind for each in engine.status("web").attachments] == ["wiretap"]
        await engine.call("toggle", {"service": "web", "mode": "remote"})
        assert not engine.status("web").attachments
        answer = await engine.call("requests", {"service": "web", "limit": 2})
        assert [each["path"] for each in answer["requests"]] == [
            each.path for each in traffic.requests(shop.fixed_clock)[-2:]
        ]
