"""A service's terminal in the log pane: what it shows, where keys go, and how they come back."""

from __future__ import annotations

import pytest
from textual import events

from devloop.errors import ServiceError
from devloop.protocol import State
from devloop.testing.fake_engine import FakeEngine, FakeTerminal
from tests.tui.conftest import Open, Screen
from tui.widgets.keybar import KeyBar

pytestmark = pytest.mark.slow

BACK = "ctrl+p ctrl+q takes them back"


def at_a_breakpoint(engine: FakeEngine) -> FakeTerminal:
    engine.update("api", tty=True)
    engine.print_raw("api", b"> /shop/app.py(3)half()\r\n-> found = n // 2\r\n\x1b[1;32m(Pdb)\x1b[0m ")
    return engine.terminal("api")


async def typing(screen: Screen) -> None:
    await screen.until(lambda: screen.board.session.board.services["api"].tty)
    await screen.press("p")
    await screen.shows("(Pdb)", f"keys go to api · {BACK}", "terminal api")
    await screen.until(lambda: screen.board.log_pane.terminal.has_focus)


async def test_keys_go_to_the_service_and_come_back(opened: Open, engine: FakeEngine) -> None:
    async with opened(size=(80, 24)) as screen:
        terminal = at_a_breakpoint(engine)
        await typing(screen)
        await screen.press(
            "q", "question_mark", "ctrl+c", "ctrl+q", "up", "tab", "ctrl+z", "colon", "backspace", "enter"
        )
        await screen.until(lambda: terminal.typed == b"q?\x03\x11\x1b[A\t\x1a:\x7f\r")
        assert not any(method in ("shutdown", "stop") for method, _ in engine.calls)
        await screen.press("ctrl+p", "ctrl+q")
        await screen.hides(BACK)
        await screen.shows("logs api")
        await screen.until(lambda: not terminal.clients)
        assert screen.board.table.has_focus
        await screen.press("r")
        await screen.asked("restart", services=["api"])


async def test_what_is_printed_is_drawn_with_its_colours_and_cursor(opened: Open, engine: FakeEngine) -> None:
    async with opened(size=(80, 24)) as screen:
        terminal = at_a_breakpoint(engine)
        terminal.on_typed = lambda data: engine.print_raw("api", data)  # the echo
        await typing(screen)
        await screen.press("p", "space", "n")
        await screen.shows("(Pdb) p n")
        view = screen.board.log_pane.terminal
        line = view.render_line(2)
        green = next(segment for segment in line if "(Pdb)" in segment.text)
        assert green.style is not None and green.style.bold and str(green.style.color.name) == "green"  # type: ignore[union-attr]
        assert any(segment.style.reverse for segment in line if segment.style), "the cursor"
        engine.print_raw("api", b"\x1b[2J\x1b[Hall new")
        await screen.shows("all new")
        await screen.hides("(Pdb)")


async def test_the_terminal_is_as_large_as_its_pane(opened: Open, engine: FakeEngine) -> None:
    async with opened(size=(100, 30)) as screen:
        terminal = at_a_breakpoint(engine)
        log = screen.board.log_pane.view
        await screen.until(lambda: terminal.size == tuple(log.content_size))
        assert not terminal.clients, "who looks on does not type"
        await typing(screen)
        view = screen.board.log_pane.terminal
        await screen.until(lambda: terminal.size == tuple(view.content_size))
        assert view.size.height > log.size.height, "the last loop makes room"
        await screen.pilot.resize_terminal(90, 26)
        await screen.until(lambda: terminal.size == tuple(view.content_size) and view.size.width < 90)


async def test_a_service_with_pipes_gets_whole_lines(opened: Open, engine: FakeEngine) -> None:
    async with opened(size=(80, 24)) as screen:
        engine.print_raw("api", b"> app.py(3)\n-> x = 1\n(Pdb) ")
        await screen.press("p")
        await screen.shows("(Pdb)", "a line at a time")
        await screen.until(lambda: screen.board.log_pane.terminal.has_focus)
        await screen.press("n", "x", "backspace")
        await screen.shows("(Pdb) n")
        assert engine.terminal("api").typed == b""
        await screen.press("enter")
        await screen.until(lambda: engine.terminal("api").typed == b"n\n")
        await screen.press("ctrl+c")
        await screen.until(lambda: engine.terminal("api").interrupts == 1)


async def test_pasted_text_arrives_whole_and_marked_if_that_is_asked_for(opened: Open, engine: FakeEngine) -> None:
    async with opened() as screen:
        terminal = at_a_breakpoint(engine)
        await typing(screen)
        screen.app.post_message(events.Paste("one\ntwo"))
        await screen.until(lambda: terminal.typed == b"one\rtwo")
        engine.print_raw("api", b"\x1b[?2004hmarked")
        await screen.shows("marked")
        screen.app.post_message(events.Paste("x"))
        await screen.until(lambda: terminal.typed.endswith(b"\x1b[200~x\x1b[201~"))


async def test_another_service_or_pane_takes_the_keyboard_back(opened: Open, engine: FakeEngine) -> None:
    async with opened(size=(120, 40)) as screen:
        at_a_breakpoint(engine)
        await typing(screen)
        await screen.pilot.click("ServiceTable", offset=(5, 4))
        await screen.hides(BACK)
        await screen.until(lambda: screen.board.table.selected == "redis")
        await screen.shows("logs redis")


async def test_it_stays_over_a_reload_and_not_over_the_engines_end(opened: Open, engine: FakeEngine) -> None:
    async with opened() as screen:
        at_a_breakpoint(engine)
        await typing(screen)
        engine.update("api", state=State.STOPPING, pid=None)
        engine.update("api", state=State.STARTING, pid=77)
        engine.print_raw("api", b"\r\nstarted anew")
        await screen.shows("started anew", BACK)
        await engine.hang_up()
        await screen.hides(BACK)


async def test_what_does_not_arrive_is_told(opened: Open, engine: FakeEngine) -> None:
    async with opened() as screen:
        terminal = at_a_breakpoint(engine)
        await typing(screen)

        def refuse(_: bytes) -> None:
            raise ServiceError("api does not run")

        terminal.on_typed = refuse
        await screen.press("n")
        await screen.shows("api does not run", BACK)


async def test_nothing_to_type_into(opened: Open, engine: FakeEngine) -> None:
    async with opened() as screen:
        engine.update("api", state=State.STOPPED)
        await screen.until(lambda: screen.board.session.board.services["api"].state is State.STOPPED)
        await screen.press("p")
        assert not screen.board.typing
        engine.update("api", state=State.READY, task=True)
        await screen.until(lambda: screen.board.session.board.services["api"].task)
        await screen.press("p")
        assert not screen.board.typing
        assert not screen.app.screen.query_one(KeyBar).notice


async def test_one_that_waits_at_a_prompt_is_shown_so_and_offers_the_key_first(
    opened: Open, engine: FakeEngine
) -> None:
    async with opened(size=(80, 24)) as screen:
        engine.update("api", prompt="(Pdb)")
        await screen.shows("▷ api", "at prompt (Pdb)")
        await screen.until(lambda: screen.text.splitlines()[-1].startswith(" p type"))
        engine.update("api", prompt="waits for a debugger")
        await screen.shows("waits for a debugger")
        engine.update("api", prompt="")
        await screen.shows("● api", "ready")
