"""What is wrong between services."""

from __future__ import annotations

import pytest

from .folder import Folder


def services(**keys: str) -> str:
    return "".join(f'[services.{name}]\ncommand = "x"\n{text}\n' for name, text in keys.items())


@pytest.mark.parametrize(
    ("store", "api", "said"),
    [
        (
            "",
            'depends_on = [§"stroe"]',
            'services.api.depends_on: there is no service "stroe" | did you mean "store"?',
        ),
        ("", 'depends_on = { §stroe = "started" }', 'there is no service "stroe" | did you mean "store"?'),
        ("", 'depends_on = §"zzz"', 'there is no service "zzz" | services: store'),
        ("", 'depends_on = ["store", §"api"]', "api depends on itself"),
        ("", 'depends_on = { store = §"completed" }', "store is not a task, so it is never completed"),
        (
            "task = true",
            'depends_on = { store = §"ready" }',
            "store is a task; tasks are completed, not ready",
        ),
        ("task = true", 'depends_on = [§"store"]', 'write depends_on = { store = "completed" }'),
    ],
)
def test_dependencies_that_can_not_be(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, store: str, api: str, said: str
) -> None:
    monkeypatch.chdir(folder.root)
    (message,) = folder.refuse(services(store=store, api=api))
    assert said in message


def test_dependencies_that_can(folder: Folder) -> None:
    folder.load(
        services(
            job="task = true",
            gone='mode = "off"',
            idle='mode = "off"\ndepends_on = "gone"',
            api='depends_on = { job = "completed" }',
            web='depends_on = { job = "started", api = "started", gone = "ready" }',
        )
    )


def test_a_cycle_names_its_members_in_order(folder: Folder) -> None:
    (said,) = folder.refuse(
        services(
            a='depends_on = ["d", §"b"]',
            b='depends_on = ["c"]',
            c='depends_on = ["a", "d"]',
            d="",
            e='depends_on = "a"',
        )
    )
    assert said.startswith("these services wait for each other: a → b → c → a | ")


def test_every_cycle_is_said(folder: Folder) -> None:
    said = folder.refuse(
        services(
            a='depends_on = { b = §"started" }',
            b='depends_on = { a = "started" }',
            x='depends_on = { y = §"started", x = §"started" }',
            y='depends_on = { x = "started", z = §"started" }',
            z='depends_on = { y = "started" }',
        )
    )
    found = [s.partition(": ")[2].partition(" |")[0] for s in said]
    assert found == ["a → b → a", "x → y → x", "x depends on itself", "y → z → y"]


def test_two_services_on_one_port_are_both_named(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.root)
    said = folder.refuse(services(a="ports = { http = 80, x = 81 }", b="ports = [90, §80]", c="ports = §81"))
    assert said[0].startswith("services.b.ports: a has 80 too (devloop.toml:3:18) | ")
    assert said[1].startswith("services.c.ports: a has 81 too (devloop.toml:3:26) | ")
    folder.load(services(a="ports = 80", b='ports = 80\nmode = "off"'))


@pytest.mark.parametrize(("network", "shared"), [("namespace", False), ("ports", True), ("hosts", True), ("", False)])
def test_with_a_remote_ports_are_shared_where_the_network_is_the_hosts(
    folder: Folder, network: str, shared: bool
) -> None:
    project = f'[project]\nnetwork = "{network}"\n' if network else ""
    text = f'{project}[remote]\nhost = "vm"\n'
    text += services(a="ports = 80", b="ports = §80")
    if shared:
        (said,) = folder.refuse(text)
        assert said.startswith("services.b.ports: a has 80 too")
    else:
        assert set(folder.load(text.replace("§", "")).services) == {"a", "b"}


def test_a_group_of_the_defaults_is_refused_where_it_is_written(folder: Folder) -> None:
    (said,) = folder.refuse('[defaults]\ngroups = [§"a"]\n' + services(a="", b=""))
    assert said.startswith('defaults.groups: "a" is the name of a service')
