"""What is selected in the logs: that it can be read, and what is copied of it."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.style import Style
from textual.widget import Widget

from tests.tui.conftest import Open, Screen
from tui.widgets.log_view import LogView

pytestmark = pytest.mark.slow


async def shown_at(screen: Screen, text: str) -> tuple[LogView, tuple[int, int]]:
    """The log view, and where in it a text stands."""
    await screen.shows(text)
    view = screen.board.log_pane.view
    rows = screen.text.splitlines()
    y = next(n for n, row in enumerate(rows) if text in row)
    x = cell_len(rows[y][: rows[y].index(text)])
    return view, (x - view.region.x, y - view.region.y)


async def select(screen: Screen, widget: Widget, begin: tuple[int, int], end: tuple[int, int]) -> str:
    """Select with the mouse, from the first cell to the last; what is selected then."""
    await screen.pilot.mouse_down(widget, offset=begin)
    await screen.pilot.hover(widget, offset=end)
    await screen.pilot.mouse_up(widget, offset=end)
    await screen.until(lambda: screen.app.screen.get_selected_text())
    return screen.app.screen.get_selected_text() or ""


def style_of(screen: Screen, text: str) -> Style:
    strips = screen.app.screen._compositor.render_strips(screen.app.size)
    return next(s.style for strip in strips for s in strip if text in s.text and s.style is not None)


@pytest.mark.parametrize("printed", ["plain words", "\x1b[34mplain words\x1b[0m", "\x1b[2;7mplain words\x1b[0m"])
@pytest.mark.parametrize("theme", ["devloop-dark", "devloop-light", "nord"])
async def test_selected_text_can_be_read(opened: Open, printed: str, theme: str) -> None:
    async with opened() as screen:
        screen.app.theme = theme
        screen.engine.log("api", printed)
        view, (x, y) = await shown_at(screen, "plain words")
        before = style_of(screen, "plain words")
        assert await select(screen, view, (x, y), (x + 10, y)) == "plain words"
        after = style_of(screen, "plain words")
        assert after.bgcolor != before.bgcolor
        assert after.color is not None and after.bgcolor is not None and not after.reverse and not after.dim
        text, ground = after.color.get_truecolor(), after.bgcolor.get_truecolor()
        assert sum(abs(a - b) for a, b in zip(text, ground, strict=True)) > 200, f"{text} on {ground}"


async def test_a_double_click_selects_a_word_and_a_triple_one_the_line(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        screen.engine.log("api", "GET /orders/7 is slow")
        view, (x, y) = await shown_at(screen, "/orders/7")
        await screen.pilot.click(view, offset=(x + 2, y), times=2)
        await screen.until(lambda: screen.app.screen.get_selected_text() == "/orders/7")
        await screen.pilot.click(view, offset=(x + 2, y), times=3)
        await screen.until(lambda: screen.app.screen.get_selected_text() == "GET /orders/7 is slow")


async def test_a_double_click_in_a_wrapped_or_scrolled_line(opened: Open) -> None:
    async with opened(size=(60, 30)) as screen:
        screen.engine.log("api", "漢字 " * 20 + "target " + "x" * 40)
        await screen.press("w")
        view, (x, y) = await shown_at(screen, "target")
        await screen.pilot.click(view, offset=(x + 1, y), times=2)
        await screen.until(lambda: screen.app.screen.get_selected_text() == "target")
        await screen.press("w", "enter", "right", "right", "right", "right")
        view, (x, y) = await shown_at(screen, "target")
        await screen.pilot.click(view, offset=(x + 1, y), times=2)
        await screen.until(lambda: screen.app.screen.get_selected_text() == "target")


async def test_a_double_click_in_a_text_selects_a_word(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        await screen.press("exclamation_mark")
        await screen.shows("watching 214 files")
        rows = screen.text.splitlines()
        y = next(n for n, row in enumerate(rows) if "watching 214 files" in row)
        # On the text itself: a click that is given to the screen selects all of it, and no mouse can do that.
        text = screen.app.screen.query_one("#notices")
        offset = (rows[y].index("files") + 1 - text.region.x, y - text.region.y)
        await screen.pilot.click(text, offset=offset, times=2)
        await screen.until(lambda: screen.app.screen.get_selected_text() == "files")


async def test_a_selection_stays_with_its_text(opened: Open) -> None:
    async with opened() as screen:
        view = screen.board.log_pane.view
        view.buffer.capacity = 20
        screen.engine.log("api", *(f"line {n:02}" for n in range(15)))
        view, (x, y) = await shown_at(screen, "line 12")
        await screen.press("f")
        assert await select(screen, view, (x, y), (x + 6, y + 1)) == "line 12\nline 13"
        screen.engine.log("api", *(f"more {n}" for n in range(5)))
        await screen.until(lambda: view.buffer[-1].text == "more 4")
        assert screen.app.screen.get_selected_text() == "line 12\nline 13"


async def test_a_filter_takes_the_selection_away(opened: Open) -> None:
    async with opened() as screen:
        view, (x, y) = await shown_at(screen, "slow query")
        await select(screen, view, (x, y), (x + 3, y))
        await screen.press("slash")
        await screen.type("INFO")
        await screen.until(lambda: not screen.app.screen.get_selected_text())


@pytest.mark.parametrize("end", ["\x1b[39m", "\x1b[49m", "\x1b[0m"])
async def test_a_printed_reset_does_not_bring_the_terminals_colours(opened: Open, end: str) -> None:
    """They may be black on black: the theme is ours, the terminal's defaults are its own."""
    async with opened() as screen:
        screen.engine.log("api", "plain", f"\x1b[31;41mred{end}after")
        await screen.shows("redafter")
        strips = screen.app.screen._compositor.render_strips(screen.app.size)
        for strip in strips:
            for segment in strip:
                if segment.style is not None and segment.text.strip():
                    assert not any(c and c.is_default for c in (segment.style.color, segment.style.bgcolor))


async def test_wrapped_lines_keep_their_indent(opened: Open) -> None:
    async with opened(size=(60, 40)) as screen:
        screen.engine.log("api", "    deep " + "y" * 70)
        await screen.press("w", "l", "z")
        await screen.shows("     deep yyy")
        rows = screen.text.splitlines()
        after = next(n for n, row in enumerate(rows) if "deep yyy" in row) + 1
        assert rows[after].startswith(" " * 5 + "y"), rows[after]
        await screen.press("a")
        await screen.shows("api     │     deep yyy")
        rows = screen.text.splitlines()
        after = next(n for n, row in enumerate(rows) if "deep yyy" in row) + 1
        assert rows[after].startswith(" " * 9 + "│" + " " * 5 + "y"), rows[after]
