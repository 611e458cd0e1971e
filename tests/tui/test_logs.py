"""The log pane: what is shown of what arrives."""

from __future__ import annotations

import re

import pytest
from textual.strip import Strip

from devloop.protocol import LogBatch, LogLine
from tests.tui.conftest import Open
from tui.widgets.log_view import LogView

pytestmark = pytest.mark.slow


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"line {n:05}" for n in range(start, start + count)]


async def test_only_the_chosen_service_is_asked_for(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.log("web", "not mine")
        screen.engine.log("api", "mine")
        await screen.shows("mine")
        assert "not mine" not in screen.text


async def test_all_services_interleaved_with_their_names(opened: Open) -> None:
    async with opened(size=(100, 40)) as screen:
        await screen.press("a")
        await screen.shows("logs all services", "redis   │ 4012:M", "web     │ GET /basket", "api     │ ERROR")
        await screen.press("W")
        await screen.shows("11:59:58 api     │ ERROR")
        await screen.press("a")
        await screen.hides("redis   │", "web     │")
        await screen.shows("logs api", "11:59:58 ERROR")


async def test_the_log_changes_with_the_cursor(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("j")
        await screen.shows("ModuleNotFoundError: No module named", "» exit code 1, again in 4 s")
        await screen.hides("basket 77")


async def test_follows_until_scrolled_and_again_at_the_end(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.log("api", *numbered(100))
        await screen.shows("line 00099", "▼ follow")
        await screen.press("enter", "k")
        await screen.shows("‖ paused", "line 00098")
        await screen.hides("line 00099")
        screen.engine.log("api", *numbered(50, 100))
        await screen.shows("‖ paused, 50 new", "line 00098")
        assert "line 00149" not in screen.text
        await screen.press("G")
        await screen.shows("line 00149", "▼ follow")
        await screen.press("g")
        await screen.shows("Started server process", "‖ paused")
        await screen.press("f")
        await screen.shows("line 00149", "▼ follow")
        await screen.press("f")
        await screen.shows("‖ paused")


async def test_paused_lines_stay_where_they_are_though_old_ones_go(opened: Open) -> None:
    async with opened() as screen:
        view = screen.board.log_pane.view
        view.buffer.capacity = 200
        screen.engine.log("api", *numbered(190))
        await screen.shows("line 00189")
        await screen.press("enter", "pageup")
        await screen.shows("‖ paused")
        top = view.buffer[view.scroll_offset.y].text
        screen.engine.log("api", *numbered(50, 190))
        await screen.shows("50 new")
        assert view.buffer[view.scroll_offset.y].text == top
        assert view.buffer.total == 200


async def test_filter_as_it_is_typed_and_kept(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("slash")
        await screen.type("warn|error")
        await screen.hides("Application startup")
        await screen.shows("/warn|error/ 2 of 8", "slow query", "basket 77")
        await screen.press("enter")
        screen.engine.log("api", "one more error", "of no interest")
        await screen.shows("one more error", "3 of 10")
        assert "of no interest" not in screen.text
        await screen.press("escape")
        await screen.shows("of no interest", "Application startup")


async def test_levels_are_chosen_and_taken_back(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.log("api", "INFO: fine", "WARNING: slow", "  of it", "ERROR: broken")
        await screen.shows("INFO: fine")
        await screen.press("enter", "v")
        await screen.shows("warning and above", "WARNING: slow", "  of it", "ERROR: broken")
        await screen.hides("INFO: fine")
        screen.engine.log("api", "INFO: later", "ERROR: again")
        await screen.shows("ERROR: again")
        await screen.hides("INFO: later")
        await screen.press("v")
        await screen.shows("error and above")
        await screen.hides("WARNING: slow", "  of it")
        await screen.press("escape")
        await screen.shows("INFO: fine", "INFO: later")
        await screen.hides("and above")


async def test_json_lines_are_taken_apart_or_as_they_are(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        raw = '{"level":50,"time":"2024-01-02T03:04:05.678Z","msg":"no\\u001b[2J order","id":7}'
        screen.engine.log("api", raw, '{"neither": "level nor message"}')
        await screen.shows("03:04:05.678 ERROR   no order id=7", '{"neither": "level nor message"}')
        await screen.press("J")
        await screen.shows('{"level":50,')
        await screen.press("J")
        await screen.hides('{"level":50,')


async def test_nothing_that_is_shown_is_obeyed(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.notify("error", "a file \x1b]0;title\x07 and \x9b2J of somebody")
        screen.engine.log("api", "\x1b[2Jlog \x1bc line", stream="devloop")
        await screen.shows("log  line")
        await screen.press("!")
        await screen.shows("of somebody")
        strips = screen.app.screen._compositor.render_strips()
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(segment.text for strip in strips for segment in strip))


async def test_a_bar_moves_in_its_place(opened: Open) -> None:
    async with opened() as screen:
        view = screen.board.log_pane.view
        await screen.shows("basket 77")
        for wrapped in (False, True):
            view.wrap = wrapped
            before = len(view.buffer)
            for state in (" 10%", " 20%"):
                view.append(LogBatch((LogLine("api", 0, "err", f"bar{state}", partial=True),)))
                view.flush()
                await screen.shows(f"bar{state}")
                assert len(view.buffer) == before + 1
            await screen.hides("bar 10%")
            view.append(LogBatch((LogLine("api", 0, "err", "bar 100%"), LogLine("api", 0, "out", "after"))))
            view.flush()
            await screen.shows("bar 100%", "after")
            await screen.hides("bar 20%")
            assert len(view.buffer) == before + 2


async def test_escape_leaves_the_filter_as_it_was(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("slash")
        await screen.type("slow")
        await screen.press("enter", "slash")
        await screen.type("er than")
        await screen.shows("0 of 8")
        await screen.press("escape")
        await screen.shows("/slow/ 1 of 8")


async def test_a_bad_pattern_is_said_and_changes_nothing(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("slash")
        await screen.type("(")
        await screen.shows("✗ missing ), unterminated subpattern at 1", "basket 77")
        await screen.press("enter")
        await screen.shows("✗ missing )")
        await screen.type("api)")
        await screen.hides("✗ missing")


async def test_a_capital_letter_makes_case_count(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("slash")
        await screen.type("info")
        await screen.shows("5 of 8")
        await screen.press("escape", "slash")
        await screen.type("Info")
        await screen.shows("0 of 8")


async def test_search_goes_from_match_to_match_and_around(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.log("api", *numbered(60), "needle one", *numbered(60), "needle two", *numbered(60))
        await screen.shows("line 00059")
        await screen.press("n")
        await screen.type("needle")
        await screen.press("enter")
        await screen.shows("needle two", "2 of 2", "‖ paused")
        await screen.press("N")
        await screen.shows("needle one", "1 of 2")
        await screen.press("n")
        await screen.shows("needle two", "2 of 2")
        await screen.press("n")
        await screen.shows("needle one", "1 of 2")
        await screen.press("ctrl+f")
        await screen.type("s in a haystack")
        await screen.press("enter")
        await screen.shows("not found")
        await screen.press("escape")
        await screen.hides("search needle")


async def test_sideways(opened: Open) -> None:
    async with opened(size=(60, 24)) as screen:
        screen.engine.log("api", "x" * 80 + " the end")
        await screen.shows("xxxx")
        assert "the end" not in screen.text
        await screen.press("enter", "right", "right", "right", "right", "right")
        await screen.shows("the end")
        await screen.press("left", "left", "left")
        await screen.hides("the end")


async def test_wrap(opened: Open) -> None:
    async with opened(size=(60, 30)) as screen:
        screen.engine.log("api", *(f"{n} " + "x" * 100 + f" end of {n}" for n in range(40)))
        await screen.until(lambda: screen.board.log_pane.view.buffer.total == 48)
        assert "end of 39" not in screen.text
        await screen.press("w")
        await screen.shows("end of 39", "▼ follow")
        await screen.pilot.resize_terminal(50, 30)
        await screen.shows("end of 39")
        await screen.press("n")
        await screen.type("end of 2\\b")
        await screen.press("enter")
        await screen.shows("2 xxx", "1 of 1")
        await screen.press("a")
        await screen.shows("api     │ 39 xxx")
        await screen.press("a", "w")
        await screen.hides("end of 39")


async def test_zoom_and_back(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("enter", "enter")
        await screen.hides("mailer")
        await screen.press("escape")
        await screen.shows("mailer")
        await screen.press("escape")
        await screen.until(lambda: screen.app.focused is screen.board.table)
        await screen.press("tab")
        await screen.until(lambda: isinstance(screen.app.focused, LogView))
        await screen.press("h", "z")
        await screen.hides("mailer")
        await screen.press("h", "h")
        await screen.until(lambda: screen.app.focused is screen.board.table)


async def test_colours_are_kept(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.log("api", "\x1b[38;2;1;2;3mdeep\x1b[0m and \x1b[1mbold\x1b[0m")
        await screen.shows("deep and bold")
        strips = screen.app.screen._compositor.render_strips(screen.app.size)
        styles = {s.text: s.style for strip in strips for s in strip}
        deep, bold = styles["deep"], styles["bold"]
        assert deep is not None and deep.color is not None and deep.color.triplet == (1, 2, 3)
        assert bold is not None and bold.bold


async def test_lines_passed_over_are_counted(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.log("api", *numbered(30_000))
        await screen.press("enter", "g")
        await screen.press("slash")
        await screen.type("passed")
        await screen.shows("lines passed over")


async def test_a_selection_is_copied(opened: Open) -> None:
    async with opened() as screen:
        view = screen.board.log_pane.view
        await screen.pilot.mouse_down(view, offset=(1, 1))
        await screen.pilot.hover(view, offset=(5, 1))
        await screen.pilot.mouse_up(view, offset=(5, 1))
        await screen.until(lambda: screen.app.screen.get_selected_text())
        await screen.press("ctrl+c")
        await screen.until(lambda: screen.app.clipboard)
        assert screen.app.clipboard in "INFO:     Started server process [4207]"
        assert not screen.app._exit


async def test_of_a_flood_only_what_is_seen_is_drawn(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty-five times what the engine sends at most in one go. (How long it takes is for the benchmarks.)"""
    async with opened(size=(120, 40)) as screen:
        view = screen.board.log_pane.view
        drawn = 0
        render = view.render_line

        def counted(y: int) -> Strip:
            nonlocal drawn
            drawn += 1
            return render(y)

        monkeypatch.setattr(view, "render_line", counted)
        lines = tuple(LogLine("api", 0, "out", f"\x1b[32mINFO\x1b[0m line {n}") for n in range(500))
        for _ in range(25):
            view.append(LogBatch(lines))
            view.flush()
            await screen.pilot.pause(0)
        assert view.buffer.total == 12_508
        await screen.shows("line 499")
        assert 0 < drawn <= 40 * 30, "some were drawn that nobody sees"
