"""The parts that know no screen."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style

from devloop.protocol import LogBatch, LogLine, Notice, Outcome, ServiceStatus, State, StopProgress
from devloop.testing import shop
from tui import ansi, formats, refusals, wrapping
from tui.board import LOOPS_KEPT, Board
from tui.logbuffer import GAP, LogBuffer
from tui.preferences import Preferences
from tui.rowmap import RowMap
from tui.states import LOOKS, ORDER, state_text
from tui.widgets.prompt import compile_pattern
from tui.widgets.service_table import fit_columns, ports_text

MILLI, SECOND = 1_000_000, 1_000_000_000


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (None, ""),
        (0, "0.0ms"),
        (400_000, "0.4ms"),
        (9_949_999, "9.9ms"),
        (9_950_000, "10ms"),
        (212 * MILLI, "212ms"),
        (999_600_000, "1.00s"),
        (1240 * MILLI, "1.24s"),
        (9_996 * MILLI, "10.0s"),
        (59_960 * MILLI, "1m00s"),
        (125 * SECOND, "2m05s"),
        (3 * 3600 * SECOND + 7 * 60 * SECOND, "3h07m"),
        (200 * 3600 * SECOND, "8d"),
    ],
)
def test_durations(nanoseconds: int | None, text: str) -> None:
    assert formats.duration(nanoseconds) == text


@given(st.integers(0, 10**18))
def test_durations_fit_their_column(nanoseconds: int) -> None:
    assert len(formats.duration(nanoseconds)) <= 6


def test_ages() -> None:
    seconds = (-5, 0, 59, 60, 3599, 3600, 86_399, 86_400 * 9)
    texts = ["0s", "0s", "59s", "1m", "59m", "1h", "23h", "9d"]
    assert [formats.age(s * SECOND) for s in seconds] == texts


def test_sparkline_puts_the_median_in_the_middle() -> None:
    assert formats.sparkline([100, 100, 101, 99], 8) == "▄▄▄▃"
    assert formats.sparkline([100, 100, 1000, 0], 8) == "▄▄█▁"
    assert formats.sparkline([1, 2, 3], 0) == formats.sparkline([], 8) == ""
    assert formats.sparkline([0, 0], 8) == "▁▁"
    assert formats.sparkline([5, 100, 100], 2) == "▄▄"


@pytest.mark.parametrize(
    ("files", "width", "text"),
    [
        ((), 20, ""),
        (("a.py",), 20, "a.py"),
        (("a.py", "b.py"), 20, "a.py, b.py"),
        (("a.py", "b.py", "c.py"), 14, "a.py +2 more"),
        (("a/very/long/path.py", "b.py"), 16, "a/very/… +1 more"),
    ],
)
def test_path_lists(files: tuple[str, ...], width: int, text: str) -> None:
    assert formats.path_list(files, width) == text


@given(st.lists(st.text("abc/.", min_size=1, max_size=30), max_size=6), st.integers(12, 60))
def test_path_lists_fit(files: list[str], width: int) -> None:
    assert len(formats.path_list(files, width)) <= width


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\tb", "a       b"),
        ("\x1b[32mab\x1b[0m\tc", "ab      c"),
        ("10 %\r50 %\r100 %", "100 %"),
        ("done\r", "done"),
        ("50 %\r\x1b[K60 %", "60 %"),
        ("done\r\x1b[0m", "done"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;https://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[3;4Hmoved", "moved"),
        ("\x1bcreset \x9b31mred", "reset red"),
        ("bell\x07 null\x00 esc\x1b", "bell null esc"),
        ("\ufffd broken", "\ufffd broken"),
    ],
)
def test_plain_text(raw: str, text: str) -> None:
    assert ansi.plain(raw) == text
    assert "".join(piece for piece, _ in ansi.runs(raw)) == text


@given(st.text(st.sampled_from("ab\t\r\x1b[]0;13m8\x07\x00é…K\\"), max_size=40))
def test_runs_are_the_plain_text(raw: str) -> None:
    assert "".join(piece for piece, _ in ansi.runs(raw)) == ansi.plain(raw)


def test_styles() -> None:
    raw = "\x1b[1;31mA\x1b[22mB\x1b[38;5;208mC\x1b[48;2;1;2;3mD\x1b[39;49mE\x1b[mF\x1b[4;97;103mG"
    styles = dict(ansi.runs(raw))
    assert styles["A"] == Style.parse("bold color(1)")
    assert styles["B"] == Style.parse("not bold not dim color(1)")
    assert styles["C"] == styles["B"] + Style.parse("color(208)")
    assert styles["D"] == styles["C"] + Style.parse("on #010203")
    # Not the terminal's default colours, which may be those of the pane: black on black.
    assert styles["E"] == styles["B"].without_color
    assert styles["F"] == Style.null()
    assert styles["G"] == Style.parse("underline color(15) on color(11)")


def lines(*texts: str) -> list[LogLine]:
    return [LogLine("api", 0, "out", text) for text in texts]


def texts(buffer: LogBuffer) -> list[str]:
    return [buffer[n].text for n in range(len(buffer))]


def test_the_buffer_is_bounded_and_numbers_last() -> None:
    buffer = LogBuffer(capacity=3)
    buffer.extend(lines("a", "b"))
    change = buffer.extend(lines("c", "d"))
    assert (change.added, change.removed, buffer.first, len(buffer)) == (2, 1, 1, 3)
    assert [buffer[n].text for n in range(3)] == ["b", "c", "d"]


def test_a_filtered_buffer_is_bounded_by_all_its_lines() -> None:
    buffer = LogBuffer(capacity=4)
    buffer.set_filter(re.compile("x"))
    buffer.extend(lines("x1", "y", "x2", "y"))
    change = buffer.extend(lines("x3", "y"))
    assert [buffer[n].text for n in range(len(buffer))] == ["x2", "x3"]
    assert (change.added, change.removed, buffer.first, buffer.total) == (1, 1, 1, 4)
    buffer.set_filter(None)
    assert [buffer[n].text for n in range(len(buffer))] == ["x2", "y", "x3", "y"]
    buffer.clear()
    assert len(buffer) == buffer.total == 0


def test_what_was_dropped_is_a_line_of_its_own() -> None:
    buffer = LogBuffer()
    buffer.extend(lines("a"), dropped=12_345)
    assert [(buffer[n].stream, buffer[n].text) for n in range(2)] == [
        (GAP, "12,345 lines passed over"),
        ("out", "a"),
    ]


def test_a_line_without_an_end_stays_last_and_is_replaced() -> None:
    buffer = LogBuffer(capacity=4)
    bar = LogLine("web", 0, "err", "10%", partial=True)
    buffer.extend([*lines("a"), bar])
    change = buffer.extend([*lines("b"), replace(bar, text="20%")])
    assert (change.added, change.removed, change.replaced) == (2, 0, 1)
    assert texts(buffer) == ["a", "b", "20%"]
    assert buffer.extend([]).replaced == 1
    buffer.set_filter(re.compile("[0-9]"))
    assert texts(buffer) == ["20%"]
    change = buffer.extend([replace(bar, text="30%"), *lines("c")])
    assert (change.added, change.replaced) == (1, 1)
    buffer.set_filter(None)
    buffer.extend([*lines("d", "e"), replace(bar, text="100%", partial=False), *lines("f")])
    assert texts(buffer) == ["d", "e", "100%", "f"]
    assert buffer.extend(lines("g")).replaced == 0


def test_search_goes_around() -> None:
    buffer = LogBuffer()
    buffer.extend(lines("x", "y", "\x1b[1mx\x1b[0m", "y"))
    pattern = re.compile("x")
    assert buffer.find(pattern, 1, 1) == 2
    assert buffer.find(pattern, 3, 1) == 0
    assert buffer.find(pattern, 1, -1) == 0
    assert buffer.find(re.compile("z"), 0, 1) is None
    assert buffer.matches(pattern) == [0, 2]


@given(st.lists(st.tuples(st.lists(st.integers(1, 5), max_size=6), st.integers(0, 4)), max_size=8))
def test_rows_of_wrapped_lines(steps: list[tuple[list[int], int]]) -> None:
    rows, heights = RowMap(), list[int]()
    rows.reset(True, (), 0)
    for added, pruned in steps:
        rows.extend(added, len(added))
        heights += added
        pruned = min(pruned, len(heights))
        rows.prune(pruned)
        del heights[:pruned]
        rows.extend([2, 3], 2)
        rows.drop(2)
        expected = [(n, part) for n, height in enumerate(heights) for part in range(height)]
        assert [rows.locate(row) for row in range(rows.rows)] == expected
        assert [rows.row_of(n) for n in range(len(heights))] == [expected.index((n, 0)) for n in range(len(heights))]


@given(st.text("ab é漢", max_size=40), st.integers(2, 12), st.integers(0, 6))
def test_a_wrapped_line_loses_nothing(text: str, width: int, indent: int) -> None:
    indent = min(indent, width // 2 - 1)
    rows = wrapping.spans(text, width, indent)
    assert "".join(text[begin:end] for begin, end in rows) == text
    assert wrapping.height(text, width, indent) == len(rows)
    rooms = [width] + [width - indent] * (len(rows) - 1)
    assert all(cell_len(text[begin:end]) <= room for (begin, end), room in zip(rows, rooms, strict=True))


def test_further_rows_stand_below_what_they_continue() -> None:
    assert wrapping.indent_of("api │ GET /", 6, 40) == 6
    assert wrapping.indent_of("api │   at orders.py", 6, 40) == 8
    assert wrapping.indent_of("api │ GET /", 6, 8) == 4, "half of it stays for words"
    assert wrapping.indent_of("    ", 0, 40) == 0
    assert wrapping.spans("api │ abcdef", 8, 6) == [(0, 8), (8, 10), (10, 12)]


def test_rows_of_cut_lines() -> None:
    rows = RowMap()
    rows.extend((), 5)
    assert (rows.prune(2), rows.rows, rows.locate(1), rows.row_of(2)) == (2, 3, (1, 0), 2)


def test_patterns() -> None:
    ignoring = compile_pattern("error")
    strict = compile_pattern(r"\wError")
    assert ignoring is not None and ignoring.search("ERROR")
    assert strict is not None and not strict.search("an error")
    assert compile_pattern(r"\W") == re.compile(r"\W", re.IGNORECASE)
    assert compile_pattern("") is None
    assert compile_pattern("[[a]") is not None


@pytest.mark.parametrize(
    ("text", "at", "word"),
    [
        ("GET /orders/7?page=2 200", 8, "/orders/7?page=2"),
        ("at api/orders.py:14: no such", 5, "api/orders.py:14"),
        ("LOG_LEVEL=debug", 0, "LOG_LEVEL=debug"),
        ("naïve 漢字 x", 7, "漢字"),
        ("(done)", 0, "("),
        ("a  b", 1, ""),
        ("a", 9, ""),
    ],
)
def test_words(text: str, at: int, word: str) -> None:
    begin, end = wrapping.word_at(text, at)
    assert text[begin:end] == word


def test_cells_and_characters() -> None:
    assert [wrapping.index_at("a漢b", cells) for cells in (0, 1, 3, 4, 9)] == [0, 1, 2, 3, 8]


def test_the_board_is_a_fold_of_events() -> None:
    board = Board()
    board.apply(shop.snapshot(shop.fixed_clock))
    assert list(board.services)[:3] == ["web", "api", "worker"]
    assert board.opened
    board.apply(ServiceStatus("search", "local", State.READY, "", 0))
    assert not board.opened
    board.apply(Notice("warning", "look", 0))
    assert board.notices[-1].text == "look"
    board.apply(LogBatch(()))
    assert not board.stopping
    board.apply(StopProgress(("api",)))
    assert board.stopping
    board.apply(shop.snapshot(shop.fixed_clock))
    assert board.stopping


def test_loops_are_known_once_in_order_and_not_for_ever() -> None:
    board = Board()
    old = shop.history(shop.fixed_clock)
    board.apply(old[5])
    board.remember(old)
    board.apply(old[5])
    assert [loop.id for loop in board.loops_of("api")] == [loop.id for loop in old]
    for n in range(LOOPS_KEPT + 50):
        board.apply(shop.loop(1000 + n, "api", 0, ("ready", 5)))
    assert len(board.loops_of("api")) == LOOPS_KEPT
    assert board.loops_of("web") == []


def test_a_loop_that_gets_its_last_stamp_later_is_replaced() -> None:
    board = Board()
    board.apply(shop.loop(1, "api", 0, ("ready", 5)))
    board.apply(shop.loop(2, "api", 0, ("ready", 5)))
    board.apply(shop.loop(1, "api", 0, ("ready", 5), ("served", 1)))
    assert [list(loop.stamps) for loop in board.loops_of("api")] == [
        ["edited", "ready", "served"],
        ["edited", "ready"],
    ]


def test_every_state_has_a_look_of_its_own() -> None:
    assert set(LOOKS) == set(ORDER) == set(State)
    assert len({look.glyph for look in LOOKS.values()}) == len(State)
    stale = ServiceStatus("api", "local", State.READY, "", 0, stale=True)
    assert state_text(stale) == "ready, stale"


@given(st.integers(20, 250))
def test_columns_fit_any_width(width: int) -> None:
    services = shop.snapshot(shop.fixed_clock).services
    columns = fit_columns(width, services)
    assert {"name", "state"} <= {column.key for column in columns}
    if width >= 40:
        assert sum(column.width + 1 for column in columns) + 2 <= width


def test_columns_do_not_depend_on_states() -> None:
    services = shop.snapshot(shop.fixed_clock).services
    calm = [ServiceStatus.from_json({**s.to_json(), "state": "ready", "reason": ""}) for s in services]
    assert fit_columns(80, services) == fit_columns(80, calm)
    local = [replace(s, ports=s.published) for s in services]
    assert fit_columns(120, local) == fit_columns(120, [replace(s, published={}) for s in local])


def test_ports() -> None:
    ports = {"http": 8000, "debug": 5678}
    status = ServiceStatus("api", "local", State.READY, "", 0, ports=ports, published=ports)
    assert ports_text(status, 30) == "http:8000 debug:5678"
    assert ports_text(status, 10) == "8000 5678"
    assert ports_text(status, 6) == "8000+1"
    assert ports_text(replace(status, published={"debug": 5678}), 30) == "debug:5678", "8000 is declared alone"


def test_preferences_that_can_not_be_read_are_none(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "tui.json"
    chosen = Preferences(path)
    assert chosen.theme == ""
    chosen.theme = "nord"
    assert Preferences(path).theme == "nord"
    for text in ("{", "[]", '{"theme": 3}'):
        path.write_text(text)
        assert Preferences(path).theme == ""
    Preferences(tmp_path / "folder" / "tui.json" / "no").theme = "nord"
    Preferences(None).theme = "nord"


def test_loop_outcomes_round_trip() -> None:
    failed = shop.history(shop.fixed_clock)[4]
    assert failed.outcome is Outcome.FAILED
    assert type(failed).from_json(failed.to_json()) == failed


@pytest.mark.slow
def test_the_engine_never_imports_textual() -> None:
    code = (
        "import pkgutil, sys, importlib, devloop\n"
        "for m in pkgutil.walk_packages(devloop.__path__, 'devloop.'):\n"
        "    if not m.name.endswith('__main__'):\n"
        "        try: importlib.import_module(m.name)\n"
        "        except ImportError as e: assert 'textual' not in str(e) and 'rich' not in str(e), e\n"
        "bad = {m.partition('.')[0] for m in sys.modules} & {'textual', 'rich', 'tui'}\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_key_that_can_do_nothing_says_why() -> None:
    services = {status.name: status for status in shop.snapshot(shop.fixed_clock).services}
    remote = shop.snapshot(shop.fixed_clock).remote
    assert remote is not None
    why = refusals.why
    assert why("build", services["api"], remote) == "api has no build; `build` in devloop.toml gives it one"
    assert (
        why("restart", services["docs"], remote)
        == "docs does not run here, it is off: t brings it here, then r restarts it"
    )
    assert why("attach", services["redis"], remote).startswith("redis stands for no workload there")
    assert why("attach", services["db"], remote).startswith("db is remote")
    assert why("attach", services["api"], None) == "nothing to attach here: this project has no remote"
    assert "is a sandbox" in why("attach", services["api"], replace(remote, kind="sandbox"))
    assert why("toggle_mode", replace(services["api"], modes=("local",)), remote) == "api has no other mode than local"
    assert why("stop", replace(services["api"], state=State.STOPPING), remote) == "api is stopping"
    assert why("stop", None, None) == "there is no service"
