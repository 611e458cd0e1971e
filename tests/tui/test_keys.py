"""Each key of the main screen, against a real control socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from devloop.errors import ServiceError, UsageError
from devloop.protocol import State
from tests.tui.conftest import Open
from tui.app import Outcome
from tui.preferences import Preferences

pytestmark = pytest.mark.slow


async def test_shows_what_the_engine_says(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.shows(
            *(
                "● api",
                "backoff: exit code 1, again in 4 s",
                "195ms",
                "205ms",
                "412ms",
                "18000 5678",
            ),
            *("ready 186ms", "changed: api/orders.py, api/models/order.py", "1 notice !"),
        )


async def test_follows_events(opened: Open) -> None:
    async with opened(on="worker") as screen:
        screen.engine.update("worker", state=State.FAILED, reason="exit code 3")
        await screen.shows("✗ worker", "failed: exit code 3")


async def test_a_new_configuration_replaces_the_services(opened: Open) -> None:
    async with opened() as screen:
        kept = [s for s in screen.engine.snapshot().services if s.name in ("web", "redis")]
        screen.engine.configure(kept)
        await screen.hides("mailer")
        await screen.until(lambda: screen.board.table.selected == "redis")


@pytest.mark.parametrize(
    ("keys", "service"),
    [
        (["j"], "worker"),
        (["down", "down"], "redis"),
        (["k"], "web"),
        (["up", "up", "up"], "web"),
        (["G"], "docs"),
        (["end", "home"], "web"),
        (["pagedown"], "docs"),
    ],
)
async def test_moves_the_cursor(opened: Open, keys: list[str], service: str) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.press(*keys)
        await screen.until(lambda: screen.board.table.selected == service)
        await screen.shows(f"logs {service}")


async def test_a_click_chooses_a_service(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.pilot.click("ServiceTable", offset=(5, 4))
        await screen.until(lambda: screen.board.table.selected == "redis")


async def test_the_cursor_stays_in_view(opened: Open) -> None:
    async with opened(size=(80, 16)) as screen:
        await screen.hides("○ docs")
        await screen.press("G")
        await screen.shows("○ docs")


@pytest.mark.parametrize(
    ("key", "method", "params"),
    [
        ("t", "toggle", {"service": "api", "mode": None}),
        ("r", "restart", {"services": ["api"]}),
        ("s", "stop", {"services": ["api"]}),
        ("R", "restart", {"services": ["web", "api", "worker", "redis", "search", "mailer"]}),
    ],
)
async def test_asks_the_engine(opened: Open, key: str, method: str, params: dict[str, object]) -> None:
    async with opened() as screen:
        await screen.press(key)
        await screen.asked(method, **params)


async def test_s_starts_what_is_stopped(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("s")
        await screen.shows("□ api", "s start")
        await screen.press("s")
        await screen.asked("start", services=["api"])
        await screen.shows("● api", "s stop")


async def test_b_builds_only_what_has_a_build(opened: Open) -> None:
    async with opened() as screen:
        assert "b build" not in screen.text
        await screen.press("b", "k")
        await screen.shows("b build")
        await screen.press("b")
        await screen.asked("build", services=["web"])
        assert ("build", {"services": ["api"]}) not in screen.engine.calls


async def test_what_makes_no_sense_is_not_offered(opened: Open) -> None:
    async with opened() as screen:
        screen.board.select("db")
        await screen.shows("● api", "logs db")
        await screen.hides("r restart")
        await screen.press("r", "s", "b")
        said = "db does not run here, it is remote: t brings it here, then b builds it"
        await screen.until(lambda: said in [n.message for n in screen.app._notifications])
        assert not screen.engine.calls
        await screen.shows("t local")


async def test_a_refusal_is_a_toast(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.failures["restart"] = ServiceError("the build failed", where="api", hint="see its log")
        await screen.press("r")
        await screen.until(lambda: len(screen.app._notifications) == 1)
        notice = next(iter(screen.app._notifications))
        assert (notice.title, notice.message, notice.severity) == (
            "api",
            "the build failed\nsee its log",
            "error",
        )


async def test_notices_come_as_toasts_but_not_in_a_flood(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.notify("info", "nothing to see")
        for n in range(10):
            screen.engine.notify("warning", f"trouble {n}", service="api")
        await screen.until(lambda: len(screen.app.session.board.notices) == 13)
        await screen.pilot.pause()
        assert sorted(n.message for n in screen.app._notifications) == ["trouble 0", "trouble 1", "trouble 2"]
        await screen.shows("11 notices !")
        await screen.press("exclamation_mark")
        await screen.shows("trouble 9", "nothing to see", "stop it, or give mailer another port")
        await screen.press("escape")
        await screen.hides("nothing to see")


async def test_a_long_notice_keeps_its_indent(opened: Open) -> None:
    async with opened(size=(60, 24)) as screen:
        screen.engine.notify("warning", "one " * 12 + "two", service="api", hint="see " * 12 + "it")
        await screen.press("exclamation_mark")
        await screen.shows("12:00:00  ▲ warning ")
        rows = screen.text.splitlines()
        first = next(n for n, row in enumerate(rows) if "api: one" in row)
        assert rows[first + 1].startswith(" " * 21 + "one"), rows[first + 1]
        assert rows[first + 2].startswith(" " * 21 + "see"), rows[first + 2]
        assert rows[first + 3].startswith(" " * 21 + "see"), rows[first + 3]


async def test_a_configuration_error_is_a_banner_until_it_is_mended(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.configure(error="devloop.toml:12:3: unknown key 'comand'")
        await screen.shows("✗ devloop.toml:12:3: unknown key 'comand'", "last good one")
        screen.engine.configure()
        await screen.hides("comand")


async def test_environment(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("e")
        await screen.shows("environment api", "4 secrets masked", "LOG_LEVEL", "devloop.toml", "••••••••")
        assert "s3cr3t" not in screen.text
        await screen.press("v")
        await screen.shows("s3cr3t", "4 secrets shown")
        await screen.press("v")
        await screen.hides("s3cr3t")
        await screen.press("G")
        await screen.shows("PATH=/home/dev/shop/.venv/bin:/usr/local/bin:/usr/bin:/bin")
        await screen.press("escape")
        await screen.shows("logs api")
    assert [call for call in screen.engine.calls if call[0] == "env"] == [
        ("env", {"service": "api", "reveal": reveal}) for reveal in (False, True, False)
    ]


async def test_loops(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.press("m")
        await screen.shows("loops api", "loop 41", "25m ago", "SyntaxError: api/orders.py:14")
        await screen.press("j")
        await screen.shows("loop 32")
        await screen.press("k")
        await screen.shows("loop 41")
        await screen.press("m")
        await screen.shows("logs api")


async def test_loops_come_from_status_where_the_engine_is_older(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        screen.engine.failures["loops"] = UsageError("no method 'loops'")
        await screen.press("m")
        await screen.asked("status")
        await screen.shows("loop 41", "ready     ")


async def test_a_loop_that_ends_is_shown(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.press("r")
        await screen.shows("manual", "✓ ok in 120ms")


async def test_help_has_every_key(opened: Open) -> None:
    async with opened(size=(140, 50)) as screen:
        await screen.press("question_mark")
        await screen.shows("the chosen service", "show only lines that match", "ctrl+p", "crash-loop")
        await screen.press("escape")
        await screen.shows("logs api")


async def test_palette_has_commands_for_every_service(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("colon")
        await screen.type("restart mailer")
        await screen.shows("restart this service")
        await screen.press("enter", "enter")
        await screen.asked("restart", services=["mailer"])


async def test_palette_toggles_to_a_mode(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("ctrl+p")
        await screen.type("toggle api remote")
        await screen.shows("it is local now")
        await screen.press("enter", "enter")
        await screen.asked("toggle", service="api", mode="remote")
        await screen.shows("⇄ api")


async def test_theme_is_chosen_and_kept(opened: Open, folder: Path) -> None:
    async with opened() as screen:
        await screen.press("T")
        await screen.type("nord")
        await screen.hides("dracula")
        await screen.press("enter", "enter")
        await screen.until(lambda: screen.app.theme == "nord")
        await screen.shows("● api")
        assert Preferences(folder / "tui.json").theme == "nord"


async def test_the_bottom_line_is_never_cut(opened: Open) -> None:
    for width in (40, 52, 64, 80, 100):
        async with opened(size=(width, 24)) as screen:
            last = screen.text.splitlines()[-1]
            assert last.rstrip().endswith("q quit")
            assert "? help" in last
            assert len(last) == width


async def test_a_click_on_the_bottom_line_presses_the_key(opened: Open) -> None:
    async with opened() as screen:
        column = screen.text.splitlines()[-1].index("restart")
        await screen.pilot.click("KeyBar", offset=(column, 0))
        await screen.asked("restart", services=["api"])


async def test_too_small_and_back(opened: Open) -> None:
    async with opened() as screen:
        await screen.pilot.resize_terminal(30, 8)
        await screen.shows("too small (needs 40", "it is 30")
        await screen.pilot.resize_terminal(80, 24)
        await screen.shows("● api", "q quit")


async def test_detach(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("d")
        assert await screen.left() is Outcome.DETACHED
    assert not screen.engine.calls


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
async def test_leaving_is_asked(opened: Open, key: str) -> None:
    async with opened() as screen:
        await screen.shows("d detach")
        await screen.press(key)
        await screen.shows("Leave shop?", "stop 6 services and the engine", "leave them running", "stay here")
        await screen.press("escape")
        await screen.hides("Leave shop?")
        assert not screen.engine.calls


@pytest.mark.parametrize("keys", [["s"], ["enter"], ["ctrl+c"], ["j", "k", "enter"]])
async def test_stop_names_who_is_alive_and_leaves_when_all_ended(opened: Open, keys: list[str]) -> None:
    async with opened() as screen:
        await screen.press("q")
        await screen.shows("Leave shop?")
        await screen.press(*keys)
        await screen.shows("stopping shop", "api", "search", "5 services still alive")
        assert "Leave shop?" not in screen.text
        screen.engine.progress(["redis"])
        await screen.shows("1 service still alive")
        screen.engine.progress([], done=True)
        assert await screen.left() is Outcome.STOPPED


@pytest.mark.parametrize("keys", [["d"], ["j", "enter"]])
async def test_services_are_left_running(opened: Open, keys: list[str]) -> None:
    async with opened() as screen:
        await screen.press("ctrl+c")
        await screen.shows("Leave shop?")
        await screen.press(*keys)
        assert await screen.left() is Outcome.DETACHED
    assert not screen.engine.calls


async def test_a_click_answers(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("q")
        await screen.shows("leave them running")
        row = next(n for n, line in enumerate(screen.text.splitlines()) if "leave them" in line)
        await screen.pilot.click(offset=(screen.text.splitlines()[row].index("leave"), row))
        assert await screen.left() is Outcome.DETACHED


@pytest.mark.parametrize("key", ["e", "m", "c", "exclamation_mark", "x"])
async def test_q_goes_back_from_a_view(opened: Open, key: str) -> None:
    async with opened() as screen:
        await screen.press(key)
        await screen.until(lambda: screen.app.screen is not screen.board)
        await screen.press("q")
        await screen.until(lambda: screen.app.screen is screen.board)
        await screen.press("z", "q")
        await screen.shows("mailer")
        await screen.press("q")
        await screen.shows("Leave shop?")


@pytest.mark.parametrize("key", ["e", "question_mark", "colon", "slash"])
async def test_quit_works_from_any_screen(opened: Open, key: str) -> None:
    async with opened() as screen:
        await screen.press(key, "ctrl+c")
        await screen.shows("Leave shop?")
        await screen.press("ctrl+c")
        await screen.shows("still alive")
        screen.engine.progress([], done=True)
        assert await screen.left() is Outcome.STOPPED


async def test_the_question_has_room_everywhere(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("q")
        await screen.pilot.resize_terminal(34, 9)
        await screen.shows("Leave shop?", "stay here")
        await screen.press("escape")
        await screen.shows("too small")
        await screen.press("ctrl+c")
        await screen.shows("Leave shop?")


async def test_control_c_copies_and_says_so_and_the_next_one_asks(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.log("api", "first words", "second words", "third words")
        await screen.shows("third words")
        view = screen.board.log_pane.view
        rows = screen.text.splitlines()
        y = next(n for n, row in enumerate(rows) if "first words" in row) - view.region.y
        await screen.pilot.mouse_down(view, offset=(1, y))
        await screen.pilot.hover(view, offset=(12, y + 2))
        await screen.pilot.mouse_up(view, offset=(12, y + 2))
        await screen.until(lambda: screen.app.screen.get_selected_text())
        await screen.press("ctrl+c")
        await screen.shows("copied 3 lines")
        assert screen.app.clipboard == "first words\nsecond words\nthird words"
        assert screen.app.screen.get_selected_text(), "it stays"
        await screen.press("ctrl+c")
        await screen.shows("Leave shop?")
        assert not screen.engine.calls
        await screen.press("escape", "l", "escape")
        await screen.until(lambda: not screen.app.screen.get_selected_text())


async def test_y_copies_a_line(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.log("api", "the last one")
        await screen.shows("the last one")
        await screen.press("y")
        await screen.shows("copied: the last one")
        assert screen.app.clipboard == "the last one"
        await screen.press("e")
        await screen.shows("DATABASE_URL")
        await screen.press("y")
        await screen.until(lambda: "=" in screen.app.clipboard)


async def test_survivors_stay_on_screen_until_a_key(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("q", "s")
        await screen.shows("still alive")
        screen.engine.progress([], {"redis": ("4242 redis-server",)}, done=True)
        await screen.engine.hang_up()
        await screen.shows("1 process would not die", "redis", "4242 redis-server")
        await screen.press("enter")
        assert await screen.left() is Outcome.STOPPED


@pytest.mark.parametrize("key", ["d", "ctrl+c"])
async def test_a_shutdown_can_be_left_to_the_engine(opened: Open, key: str) -> None:
    async with opened() as screen:
        await screen.press("q", "s")
        await screen.shows("still alive")
        await screen.press("q")  # nothing more
        await screen.press(key)
        assert await screen.left() is Outcome.DETACHED


async def test_a_shutdown_from_elsewhere_is_shown(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("q")
        await screen.shows("Leave shop?")
        await screen.engine.call("shutdown", {})
        await screen.shows("stopping shop", "still alive")
        assert "Leave shop?" not in screen.text


async def test_a_hang_up_is_said_and_what_was_there_stays(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("q")
        await screen.shows("Leave shop?")
        await screen.engine.hang_up()
        await screen.shows("The engine (pid 4000) ended unexpectedly", "● api", "basket 77 has no owner")
        await screen.hides("r restart", "Leave shop?")
        await screen.press("q")
        assert await screen.left() is Outcome.LOST


async def test_a_hang_up_in_a_shutdown_is_said(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("q", "s")
        await screen.shows("still alive")
        await screen.engine.hang_up()
        await screen.shows("hung up before")
        await screen.press("q")
        assert await screen.left() is Outcome.LOST


async def test_paints_no_more_than_it_can_show(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as screen:
        painted: list[None] = []
        monkeypatch.setattr(screen.board, "paint", lambda: painted.append(None))
        for n in range(200):
            screen.app._heard(screen.engine.snapshot().services[n % 9])
        await screen.until(lambda: painted)
        assert len(painted) <= 5
