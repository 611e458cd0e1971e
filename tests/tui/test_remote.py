"""The remote half of the screen, against a real control socket: connection, modes, environment, files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from devloop.errors import RemoteError, UsageError
from devloop.protocol import State
from devloop.testing import shop
from tests.tui.conftest import Open, Screen

pytestmark = pytest.mark.slow

SECOND = 1_000_000_000
NOW = shop.fixed_clock()
REASON = "the API server can't be reached"
MASK = "••••••••"


def lose(screen: Screen, **changes: object) -> None:
    """The connection is gone, for the third time."""
    fields = {"reason": REASON, "attempt": 3, "next_at": NOW + 3 * SECOND, **changes}
    screen.engine.connection("reconnecting", **fields)


# The connection


async def test_the_header_follows_the_connection(opened: Open) -> None:
    async with opened() as screen:
        await screen.shows("● dev/shop · agent")
        screen.engine.connection("connecting")
        await screen.shows("◌ dev/shop · connecting")
        screen.engine.connection("failed", reason="the namespace shop does not exist")
        await screen.shows("✗ dev/shop · failed", "not connected: the namespace shop does not exist.")
        screen.engine.connection("connected", link="portforward", notes=(shop.NO_AGENT,))
        await screen.shows("● dev/shop · port-forwards ▲")
        await screen.hides("not connected")


async def test_a_countdown_counts_down_without_a_word_of_the_engine(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(size=(80, 24)) as screen:
        lose(screen)
        await screen.shows("↻ reconnecting (3) in 3 s", f"{REASON}.", "C tries now")
        monkeypatch.setattr(screen.board, "paint", lambda: None)  # which comes but once a second by itself
        screen.app.session.clock = lambda: NOW + 2 * SECOND
        await screen.shows("↻ reconnecting (3) in 1 s")


async def test_a_project_without_a_remote_has_nothing_of_it(opened: Open) -> None:
    async with opened(size=(80, 24)) as screen:
        screen.engine._base = replace(screen.engine.snapshot(), remote=None)
        screen.engine.configure()
        await screen.hides("dev/shop")
        await screen.press("c", "C")
        await screen.pilot.pause()
        assert not screen.engine.calls
        await screen.press("e")
        await screen.shows("16 variables", "LOG_LEVEL")
        assert "differences" not in screen.text
        assert [call[0] for call in screen.engine.calls] == ["env"]


async def test_reconnect_works_and_is_offered_first_when_it_is_needed(opened: Open) -> None:
    async with opened(size=(80, 24)) as screen:
        assert "C reconnect" not in screen.text
        lose(screen)
        await screen.shows(" C reconnect  t ")
        await screen.press("C")
        await screen.asked("reconnect")
        await screen.shows("● dev/shop · agent")
        await screen.hides("C reconnect")


async def test_reconnect_asks_also_while_it_seems_to_be_well(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("C")
        await screen.asked("reconnect")


async def test_a_hang_up_of_the_engine_hides_what_it_said_of_the_remote(opened: Open) -> None:
    async with opened() as screen:
        lose(screen)
        await screen.shows(REASON)
        await screen.engine.hang_up()
        await screen.shows("ended unexpectedly", "disconnected")
        await screen.hides(REASON, "reconnecting")


async def test_the_connection_screen_says_what_carries_it_and_what_is_special(opened: Open) -> None:
    async with opened(size=(80, 24)) as screen:
        await screen.press("c")
        await screen.shows("connection dev/shop", "● connected", "for 11m", "devloop's agent pod", "1 service of this")
        await screen.shows("a network namespace for each local service", "through one port-forward")
        screen.engine.connection("connected", direct="10.244.0.7:2223")
        await screen.shows("SSH straight to devloop's agent, at 10.244.0.7:2223")
        screen.engine.connection("connected", direct="")
        screen.engine.connection("connected", link="portforward", notes=(shop.NO_AGENT,))
        await screen.shows("nothing is installed in the cluster", "▲ plain port-forwards, as the agent can't be used")
        lose(screen)
        await screen.shows("↻ reconnecting (3) in 3 s", REASON, "3 attempts failed", "services here go on")
        await screen.press("C")
        await screen.asked("reconnect")
        await screen.shows("● connected")
        await screen.press("escape")
        await screen.shows("logs api")


@pytest.mark.parametrize(("command", "method"), [("reconnect", "reconnect"), ("connection", "")])
async def test_the_palette_knows_the_connection(opened: Open, command: str, method: str) -> None:
    async with opened() as screen:
        await screen.press("colon")
        await screen.type(command)
        await screen.shows("how the remote" if not method else "look whether the connection lives")
        await screen.press("enter", "enter")
        if method:
            await screen.asked(method)
        else:
            await screen.shows("connection dev/shop", "● connected")


# Services


async def test_a_remote_service_is_known_at_a_glance(opened: Open) -> None:
    async with opened(size=(80, 24)) as screen:
        row = next(line for line in screen.text.splitlines() if "⇄ db" in line)
        assert row.split()[:5] == ["⇄", "db", "statefulset/db", "remote", "5432"]
        lose(screen)
        await screen.shows("⊘ db", "cut off: ", "⊘ 1")


async def test_t_goes_through_the_modes_that_the_service_can_have(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.update("api", modes=("local", "remote", "off"))
        for following, shown in (("remote", "⇄ api"), ("off", "○ api"), ("local", "● api")):
            await screen.shows(f" t {following} ")
            await screen.press("t")
            await screen.shows(shown)
        assert screen.engine.calls.count(("toggle", {"service": "api", "mode": None})) == 3
        screen.engine.update("api", modes=("local",))
        await screen.hides(" t ")
        await screen.press("t")
        await screen.pilot.pause()
        assert len([call for call in screen.engine.calls if call[0] == "toggle"]) == 3


async def test_the_palette_offers_the_modes_that_a_service_can_have(opened: Open) -> None:
    async with opened(on="mailer") as screen:
        await screen.press("colon")
        await screen.type("toggle mailer")
        await screen.shows("toggle mailer off")
        assert "toggle mailer remote" not in screen.text
        assert "toggle mailer local" not in screen.text  # it is


async def test_what_a_remote_service_is_and_where_localhost_leads(opened: Open) -> None:
    async with opened(on="db") as screen:
        await screen.shows(
            *("db  ⇄ remote: statefulset/db", "for 11m", "statefulset/db in dev/shop answers"),
            *("localhost:5432 → postgres", "t brings it here", "it is remote: nothing of it is logged here"),
        )
        lose(screen)
        await screen.shows("statefulset/db in dev/shop can't be reached now", "cut off")
        screen.engine.update("db", modes=("local", "remote", "off"))
        await screen.shows("t turns it off; : toggle db local brings it here")
        screen.engine.update("db", modes=("remote",))
        await screen.shows("it has no other mode")


async def test_what_a_local_service_stands_for(opened: Open) -> None:
    async with opened() as screen:
        await screen.shows("as deployment/api · localhost:18000 → http (8000) · ▲ 3 differences, see e")
        assert "localhost:5678" not in screen.text  # as declared
        screen.board.select("redis")
        await screen.shows("stands for no workload")
        await screen.hides("as deployment/api")


async def test_little_room_keeps_the_place_of_what_is_away(opened: Open) -> None:
    async with opened(size=(60, 16), on="db") as screen:
        await screen.shows("statefulset/db in dev/shop answers · localhost:5432")
        screen.board.select("api")
        await screen.shows("ready 186ms")
        assert "as deployment/api" not in screen.text


# Environment, files, differences


async def test_origins_of_variables(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.press("e")
        await screen.shows(
            *("environment api  as deployment/api", "▸variables 16", "configmap api-settings/currencies"),
            *(
                "secret db-credentials/password",
                "field status.podIP",
                "pod spec",
                "image",
                "service redis",
                ".env.local",
            ),
            *("from devloop.toml", "LOG_LEVEL=debug", "4 secrets masked"),
        )
        await screen.press("j", "j", "j", "j")
        await screen.shows("from configmap api-settings key currencies", "CURRENCIES=EUR,CHF,USD")


async def test_o_shows_one_origin_after_the_other(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.press("e")
        await screen.shows("LOG_LEVEL=debug")
        await screen.press("o")
        await screen.shows("from devloop.toml  1 of 16", "LOG_LEVEL")
        await screen.hides("REDIS_URL", "as deployment/api")
        await screen.press("o", "o", "o")
        await screen.shows("from configmap api-settings  3 of 16", "CACHE_TTL=30")
        await screen.press("O", "O", "O", "O", "O")
        await screen.shows("from host  2 of 16", "HOME=/home/dev")
        await screen.press("o")
        await screen.shows("LOG_LEVEL", "HOME")
        await screen.press("o", "escape")
        await screen.shows("environment api  as deployment/api", "HOME")
        await screen.press("escape")
        await screen.shows("logs api")


async def test_secrets_are_masked_until_asked_for_in_every_view(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.press("e")
        await screen.shows(MASK, "4 secrets masked")
        await screen.press("o", "o", "o", "o", "o")
        await screen.shows("from secret api-tls  1 of 16", f"TLS_CERTIFICATE={MASK}")
        assert "MIIB" not in screen.text
        await screen.press("slash")
        await screen.type("MIIB")
        await screen.shows("0 of 16", "nothing matches")  # a filter finds nothing out
        await screen.press("escape", "v")
        await screen.shows("⏎MIIBhTCCASugAwIBAgIQIRi6⏎", "4 secrets shown")
        await screen.press("v")
        await screen.hides("MIIB")
        await screen.shows("from secret api-tls  1 of 16")


async def test_a_filter_in_the_environment(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.press("e")
        await screen.shows("LOG_LEVEL=debug")
        await screen.press("slash")
        await screen.type("redis")
        await screen.press("enter")
        await screen.shows("/redis/  3 of 16", "REDIS_URL")
        await screen.hides("LOG_LEVEL")
        await screen.press("tab")
        await screen.shows("/redis/  0 of 5", "nothing matches")
        await screen.press("escape")
        await screen.shows("/etc/tls")
        await screen.press("e")
        await screen.shows("logs api")


async def test_files_and_differences(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.press("e")
        await screen.shows("files 5", "differences 3")
        await screen.press("tab")
        await screen.shows(
            *("▸files 5", "/etc/tls", "secret tls", "read-only", "follows", "PVC uploads", "writable", "fixed"),
            *("configmap settings", "on this machine: /run/user/1000/devloop/shop/api/volumes/settings"),
        )
        await screen.press("j")
        await screen.shows("does not change when the cluster's does", "subpaths/1")
        await screen.press("v")
        await screen.press("tab")
        await screen.shows("▸differences 3", "volume scratch", "left out, as the configuration says (ignore)")
        await screen.press("shift+tab")
        await screen.shows("▸files 5", "subpaths/1")  # where the cursor was
        await screen.press("left")
        await screen.shows("▸variables 16", "LOG_LEVEL=debug")
        await screen.pilot.click("TabLine", offset=(36, 0))
        await screen.shows("▸differences 3")
        assert ("env", {"service": "api", "reveal": True}) not in screen.engine.calls
    assert [call for call in screen.engine.calls if call[0] == "world"] == [("world", {"service": "api"})]


async def test_what_refuses_the_files_is_said_where_they_would_be(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        hint = "create it"
        screen.engine.failures["world"] = RemoteError("secret api-tls does not exist", where="api", hint=hint)
        await screen.press("e")
        await screen.shows("LOG_LEVEL=debug")
        await screen.press("tab")
        await screen.shows("secret api-tls does not exist  create it")
        assert not screen.app._notifications


# The fake itself


async def test_the_fake_answers_as_an_engine(opened: Open) -> None:
    async with opened() as screen:
        engine = screen.engine
        world = await engine.call("world", {"service": "api"})
        assert (world["workload"], len(world["mounts"]), len(world["notes"])) == ("deployment/api", 5, 3)
        assert (await engine.call("world", {"service": "db"}))["mounts"] == []
        with pytest.raises(UsageError, match="can't be remote"):
            await engine.call("toggle", {"service": "mailer", "mode": "remote"})
        asked: list[str] = []
        engine.on_reconnect = lambda: asked.append("again")
        engine.connection("failed", reason="no")
        await engine.call("reconnect", {})
        assert asked
        remote = engine.snapshot().remote
        assert remote is not None
        assert remote.phase == "failed"
        engine._base = replace(engine._base, remote=None)
        with pytest.raises(UsageError, match="no remote"):
            await engine.call("reconnect", {})
        assert engine.status("db").state is State.REMOTE
