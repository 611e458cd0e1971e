"""The market under load while developers and the cluster do to it what they do in a day: see `tests/cluster/trial`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import kit
from .conftest import Namespace, Target
from .kit import ApiClient
from .kube.gate import Gate
from .project import a_project
from .trial.events import DRAINS, Trial, second_project, write
from .trial.figures import Row, by_kind, table, tabulate
from .trial.floors import above
from .trial.market import CLIENTS, Market
from .trial.schedule import Step, schedule

CI_SEEDS = (13,)
"""Of a short run each."""
KEPT = (
    "attach checkout, apply checkout, apply checkout, apply checkout",
    "attach checkout, attach web, agent-killed, leave web",
)
"""Of runs by hand that have failed: seed 101, new connections that were refused."""
CI_SECONDS = 190.0
"""How long events go on in CI; the last one may end later."""
FAULTS = (Exception, pytest.fail.Exception)
AGENTS_OWN = "devloop-agent"
LINGER = 200.0
"""Seconds until an agent that nobody uses has gone."""


@pytest.fixture
async def market(cluster: Target, admin: ApiClient, open_namespace: Namespace, tmp_path: Path) -> AsyncIterator[Market]:
    """The application, deployed and ready; nobody asks it yet."""
    made = Market(cluster, admin, open_namespace.name, tmp_path)
    await made.deploy()
    yield made
    made.close()


@pytest.fixture
def trial(
    market: Market, open_namespace: Namespace, gate: Gate, behind_gate: Callable[[Path], Path], tmp_path: Path
) -> Iterator[Trial]:
    """The market with a developer at it, who has started nothing yet."""
    with a_project(tmp_path / "ada", behind_gate(open_namespace.developer), market.namespace) as project:
        write(project, "ada")
        others = second_project(tmp_path, open_namespace.other_developer, market.namespace)
        yield Trial(market, project, others, gate)


def figures(trial: Trial) -> list[Row]:
    return tabulate(trial.events, trial.claims, trial.market.lines(), CLIENTS)


def changes(was: Any, now: Any, at: str = "") -> str:
    """Where two objects differ, and how."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = (changes(was.get(key), now.get(key), f"{at}.{key}") for key in sorted(was.keys() | now.keys()))
        return "; ".join(each for each in found if each)
    return "" if was == now else f"{at}: {json.dumps(was)[:200]} is now {json.dumps(now)[:200]}"


async def run(trial: Trial, steps: Iterable[Step], seconds: float, *, patient: bool = False) -> list[Row]:
    """Do what the steps say, for so long; prints the figures, and fails for what is above its floor or left behind.

    `patient` waits until the agent has gone, too.
    """
    market = trial.market
    before = await market.objects()
    began = time.monotonic()
    await market.ask()
    problem = ""
    async with trial.event("start"):
        await trial.start()
    for step in steps:
        if time.monotonic() - began > seconds:
            break
        try:
            await trial.do(step)
        except FAULTS as error:
            problem = f"{step.name}: {type(error).__name__}: {error}"
            trial.events[-1].note = problem[:300]
        rows = figures(trial)
        print(table(rows[-1:], heads=len(rows) == 2), flush=True)
        if problem:
            break
    trial.held.clear()
    try:
        async with trial.event("end", settle=DRAINS):
            await trial.end()
    except FAULTS as error:
        problem = problem or f"end: {type(error).__name__}: {error}"
    rows = figures(trial)
    print(f"\nthe whole of it, {time.monotonic() - began:.0f} s:\n{table(rows)}")
    print(json.dumps(by_kind(rows)))
    await market.end()

    async def difference() -> list[str]:
        now = await market.objects()
        found = {each: changes(before.get(each), now.get(each)) for each in now.keys() | before.keys()}
        return sorted(f"{each}: {how}" for each, how in found.items() if how and (patient or AGENTS_OWN not in each))

    await kit.eventually(difference, [], LINGER if patient else 20)
    assert not problem, problem
    assert not (found := above(rows)), "\n".join(["above the floor:", *found])
    return rows


def steps_of(text: str) -> list[Step]:
    """From words: `attach web, rollout web, leave web`."""
    return [Step(*each.split()) for each in text.split(",")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", CI_SEEDS)
async def test_the_market_goes_on_whatever_happens(trial: Trial, seed: int) -> None:
    print(f"seed {seed}")
    await run(trial, schedule(seed), CI_SECONDS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("steps", KEPT)
async def test_what_has_failed_before(trial: Trial, steps: str) -> None:
    await run(trial, steps_of(steps), 300)


@pytest.mark.skipif("DEVLOOP_TRIAL_SEED" not in os.environ, reason="by hand: python -m tests.cluster.trial")
@pytest.mark.timeout(8 * 3600)
async def test_a_trial_by_hand(trial: Trial) -> None:
    seed, minutes = int(os.environ["DEVLOOP_TRIAL_SEED"]), float(os.environ["DEVLOOP_TRIAL_MINUTES"])
    given = os.environ.get("DEVLOOP_TRIAL_STEPS")
    print(f"seed {seed}: python -m tests.cluster.trial --seed {seed} --minutes {minutes:g}")
    await run(trial, steps_of(given) if given else schedule(seed, long=True), minutes * 60, patient=not given)
