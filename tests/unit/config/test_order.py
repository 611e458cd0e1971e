"""What depends on what and when tasks run, as devloop.toml says it."""

from __future__ import annotations

import pytest

from devloop.config.diff import diff
from devloop.config.model import SECOND, Condition, Schedule
from tests.unit.config.folder import Folder

OTHER = '\n[services.y]\ncommand = "y"\n[services.t]\ncommand = "t"\ntask = true\n'


def test_a_dependency_that_takes_its_dependent_along(folder: Folder) -> None:
    keys = 'depends_on = { y = { condition = "started", restart = true }, t = { condition = "completed" } }'
    service = folder.load(f'[services.x]\ncommand = "x"\n{keys}{OTHER}').services["x"]
    assert service.depends_on == {"y": Condition.STARTED, "t": Condition.COMPLETED}
    assert service.restarts_with == ("y",)


def test_ready_is_the_condition_if_none_is_given(folder: Folder) -> None:
    service = folder.load(f'[services.x]\ncommand = "x"\ndepends_on = {{ y = {{ restart = true }} }}{OTHER}').services[
        "x"
    ]
    assert (service.depends_on, service.restarts_with) == ({"y": Condition.READY}, ("y",))


def test_a_change_of_that_alone_is_a_difference(folder: Folder) -> None:
    text = f'[services.x]\ncommand = "x"\ndepends_on = {{ y = {{ restart = true }} }}{OTHER}'
    old, new = folder.load(text), folder.load(text.replace("true }", "false }"))
    assert diff(old, new).changed == {"x": ("restarts_with",)}


@pytest.mark.parametrize(
    ("depends_on", "problem"),
    [
        (
            '{ y = { condition = §"up" } }',
            'depends_on.y.condition: expected "started", "ready" or "completed", not "up" | ',
        ),
        ('{ y = { restart = §"yes" } }', 'depends_on.y.restart: expected true or false, not "yes" | '),
        ("{ y = { §restrat = true } }", 'unknown key "restrat" in services.x.depends_on.y | did you mean "restart"?'),
        (
            '{ y = §"redy" }',
            'depends_on.y: expected "started", "ready" or "completed", not "redy" | did you mean "ready"?',
        ),
    ],
)
def test_a_wrong_dependency(folder: Folder, depends_on: str, problem: str) -> None:
    (said,) = folder.refuse(f'[services.x]\ncommand = "x"\ndepends_on = {depends_on}{OTHER}')
    assert said.removeprefix("services.x.") == problem


@pytest.mark.parametrize(
    ("depends_on", "problem"),
    [
        ('{ §yy = §"redy" }', 'depends_on.yy: expected "started", "ready" or "completed", not "redy"'),
        ('{ §yy = { condition = §"redy", restart = true } }', "depends_on.yy.condition: expected"),
        ("{ §yy = { restart = §1 } }", "depends_on.yy.restart: expected true or false"),
        ("{ §yy = { §restrat = true } }", 'unknown key "restrat" in services.x.depends_on.yy'),
        ("[§'yy', §3]", "depends_on[1]: expected a string"),
    ],
)
def test_a_wrong_name_is_said_beside_what_else_is_wrong(folder: Folder, depends_on: str, problem: str) -> None:
    name, other = folder.refuse(f'[services.x]\ncommand = "x"\ndepends_on = {depends_on}{OTHER}')
    assert name == 'services.x.depends_on: there is no service "yy" | did you mean "y"?'
    assert problem in other


@pytest.mark.parametrize("written", ['§"complete"', '{ condition = §"reddy" }'])
@pytest.mark.parametrize("name", ["y", "t"])
def test_a_wrong_condition_is_one_fault(folder: Folder, name: str, written: str) -> None:
    folder.refuse(f'[services.x]\ncommand = "x"\ndepends_on = {{ {name} = {written} }}{OTHER}')


@pytest.mark.parametrize(
    ("keys", "schedule"),
    [
        ('schedule = "every 10m"', Schedule(every=600 * SECOND)),
        ('schedule = "@every 1m30s"', Schedule(every=90 * SECOND)),
        ('every = "5m"', Schedule(every=300 * SECOND)),
        ('schedule = "*/5 * * * *"', Schedule(cron="*/5 * * * *")),
        ('schedule = " 0  9 * * mon-fri "', Schedule(cron="0 9 * * MON-FRI")),
        ('schedule = "@hourly"', Schedule(cron="0 * * * *")),
        ('schedule = "@Daily"', Schedule(cron="0 0 * * *")),
        ('schedule = "0 0 29 2 *"', Schedule(cron="0 0 29 2 *")),
    ],
)
def test_schedules(folder: Folder, keys: str, schedule: Schedule) -> None:
    assert folder.service(f"task = true\n{keys}").schedule == schedule
