"""How the remote is put into words: the parts that know no screen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.protocol import RemoteStatus, ServiceStatus, State, Variable
from devloop.testing import shop
from tui import connection, formats, origins
from tui.board import Board
from tui.states import MODES, next_mode, service_look, state_text
from tui.widgets.service_table import fit_columns, ports_text

SECOND = 1_000_000_000
REMOTE = RemoteStatus("kubernetes", "agent", "dev/shop", "connected", 0)
LOST = replace(REMOTE, phase="reconnecting", reason="it hung up", attempt=3, next_at=1_400_000_000)


def test_the_board_follows_the_remote() -> None:
    board = Board()
    board.apply(shop.snapshot(shop.fixed_clock))
    assert board.remote is not None
    assert not board.cut_off
    board.apply(LOST)
    assert board.remote is LOST
    assert board.cut_off
    board.apply(replace(shop.snapshot(shop.fixed_clock), remote=None))
    assert board.remote is None
    assert not board.cut_off


@pytest.mark.parametrize(
    ("remote", "width", "text"),
    [
        (REMOTE, 30, "● dev/shop · agent"),
        (replace(REMOTE, direct="10.244.0.7:2223"), 30, "● dev/shop · direct"),
        (REMOTE, 17, "● dev/shop"),
        (REMOTE, 7, "● …shop"),
        (replace(REMOTE, link="portforward", notes=("no agent",)), 40, "● dev/shop · port-forwards ▲"),
        (replace(REMOTE, link="portforward", notes=("no agent",)), 20, "● dev/shop ▲"),
        (replace(REMOTE, kind="sandbox", link="sandbox", where="sandbox"), 30, "● sandbox"),
        (replace(REMOTE, phase="connecting"), 30, "◌ dev/shop · connecting"),
        (LOST, 40, "↻ dev/shop · reconnecting (3) in 2 s"),
        (LOST, 30, "↻ reconnecting (3) in 2 s"),
        (LOST, 16, "↻ reconnecting"),
        (LOST, 3, "↻"),
        (replace(LOST, next_at=None), 20, "↻ reconnecting (3)"),
        (replace(REMOTE, phase="failed", reason="no"), 30, "✗ dev/shop · failed"),
        (replace(REMOTE, phase="dreaming"), 30, "◌ dev/shop · dreaming"),
    ],
)
def test_summaries(remote: RemoteStatus, width: int, text: str) -> None:
    assert connection.summary(remote, 0, width) == text


@given(st.text("abc/:-", min_size=1, max_size=60), st.sampled_from(sorted(connection.PHASES)), st.integers(1, 60))
def test_summaries_fit(where: str, phase: str, width: int) -> None:
    remote = replace(LOST, where=where, phase=phase, notes=("n",))
    assert len(connection.summary(remote, 0, width)) <= width


def test_a_countdown_ends_at_zero() -> None:
    moments = (0, 400_000_000, 500_000_000, 1_400_000_000, 9 * SECOND)
    assert [connection.countdown(LOST, now) for now in moments] == [
        " in 2 s",
        " in 1 s",
        " in 1 s",
        " in 0 s",
        " in 0 s",
    ]


def test_phases_differ_in_shape() -> None:
    assert len({look.glyph for look in connection.PHASES.values()}) == len(connection.PHASES)


def test_trouble_is_told_unless_it_is_a_blip() -> None:
    text, hint = connection.trouble(LOST, 0)
    assert text == "not connected: it hung up."
    assert "C tries now" in hint
    assert connection.trouble(replace(LOST, attempt=0), SECOND // 2) == ("", "")
    assert connection.trouble(replace(LOST, attempt=0), 2 * SECOND)[0]
    pulling = replace(REMOTE, phase="connecting", reason="pulling the agent's image")
    assert connection.trouble(pulling, 2 * SECOND)[0] == "connecting: pulling the agent's image."
    failed = replace(REMOTE, phase="failed", reason="it is forbidden")
    assert connection.trouble(failed, 0) == ("not connected: it is forbidden.", "C tries again.")
    for calm in (None, REMOTE, replace(REMOTE, phase="connecting"), replace(REMOTE, phase="closed")):
        assert connection.trouble(calm, 9 * SECOND) == ("", "")


def test_the_next_mode_is_the_engines_next() -> None:
    status = ServiceStatus("api", "local", State.READY, "", 0, modes=("local", "remote", "off"))
    seen = [next_mode(replace(status, mode=mode)) for mode in status.modes]
    assert seen == ["remote", "off", "local"]
    assert next_mode(replace(status, modes=("local",))) == ""
    assert next_mode(replace(status, modes=("remote", "off"))) == "remote"


def test_a_remote_service_looks_cut_off_without_a_connection() -> None:
    remote = ServiceStatus("db", "remote", State.REMOTE, "", 0, workload="statefulset/db")
    assert state_text(remote) == "remote: statefulset/db"
    assert state_text(remote, cut_off=True) == "cut off: statefulset/db"
    assert service_look(remote).glyph != service_look(remote, cut_off=True).glyph
    here = ServiceStatus("api", "local", State.READY, "", 0)
    assert state_text(here, cut_off=True) == "ready"
    assert service_look(here, cut_off=True) == service_look(here)


def test_each_mode_has_a_tone_and_a_column_at_any_width() -> None:
    assert len(set(MODES.values())) == len(MODES) == 3
    services = shop.snapshot(shop.fixed_clock).services
    for width in (40, 80, 120):
        assert "mode" in [column.key for column in fit_columns(width, services)]


def test_ports_are_those_of_localhost() -> None:
    ports, published = {"http": 8000, "debug": 5678}, {"http": 18000, "debug": 5678, "9090": 19090}
    status = ServiceStatus("api", "local", State.READY, "", 0, ports=ports, published=published)
    assert ports_text(status, 40) == "http:18000 debug:5678 19090"
    assert ports_text(status, 7) == "18000+2"
    assert ports_text(status, 6) == "18000+"


@pytest.mark.parametrize(
    ("origin", "group", "short"),
    [
        ("configmap settings key LEVEL", "configmap settings", "configmap settings"),
        ("configmap settings key level.yaml", "configmap settings", "configmap settings/level.yaml"),
        ("secret db key LEVEL", "secret db", "secret db"),
        ("the pod's spec", "pod spec", "pod spec"),
        ("field status.podIP, read from the running container", "pod fields", "field status.podIP"),
        ("resource limits.cpu of container web", "pod fields", "resource limits.cpu of container web"),
        ("service redis", "service links", "service redis"),
        ("the image or the container runtime, read from the running container", "image", "image"),
        ("devloop.toml", "devloop.toml", "devloop.toml"),
        ("host", "host", "host"),
    ],
)
def test_origins(origin: str, group: str, short: str) -> None:
    variable = Variable("LEVEL", "1", origin)
    assert (origins.group(variable), origins.short(variable)) == (group, short)


def test_what_one_looks_for_comes_first() -> None:
    variables = shop.environment()["api"]
    groups = list(origins.grouped(variables))
    assert groups == [
        *("devloop.toml", ".env.local", "devloop", "configmap api-settings", "secret api-tls"),
        *("secret db-credentials", "pod fields", "pod spec", "image", "service links", "host"),
    ]
    assert sum(origins.grouped(variables).values()) == len(variables)
    assert [each.name for each in origins.ordered(variables)][:3] == ["LOG_LEVEL", "STRIPE_API_KEY", "DEVLOOP_SERVICE"]
    theirs = {origins.group(each) for each in variables if origins.from_workload(each)}
    assert theirs == set(groups[3:-1])


def test_values_that_no_terminal_takes_are_made_printable() -> None:
    assert formats.one_line("a\r\nb\tc\udcff\x1b[31m") == "a⏎b    c��[31m"
    assert formats.printable("a\nb") == "a\nb"
