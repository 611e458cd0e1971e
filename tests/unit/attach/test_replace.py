from __future__ import annotations

from typing import Any

import pytest

from devloop.attach.attachment import Attachment, identifier
from devloop.attach.draft import fitting
from devloop.attach.scalers import budget, selects
from devloop.attach.seam import AttachError, Wanted

from .fake_api import service


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"minAvailable": 1}, "1 of its pods available"),
        ({"minAvailable": "50%"}, "50% of its pods available"),
        ({"minAvailable": 0}, ""),
        ({"maxUnavailable": 1}, "no more than 1 of its pods unavailable"),
        ({"maxUnavailable": 3}, ""),
        ({"maxUnavailable": "100%"}, ""),
        ({}, ""),
    ],
)
def test_what_a_budget_wants_of_three_pods(spec: dict[str, Any], said: str) -> None:
    assert budget({"spec": spec}, 3) == said


def test_a_selector_takes_what_it_says() -> None:
    labels = {"app": "api", "tier": "web"}
    assert selects({}, labels) and not selects(None, labels)
    assert selects({"matchLabels": {"app": "api"}}, labels)
    assert not selects({"matchLabels": {"app": "web"}}, labels)
    for operator, values, fits in (
        ("In", ["web"], True),
        ("NotIn", ["web"], False),
        ("Exists", None, True),
        ("DoesNotExist", None, False),
        ("Other", None, False),
    ):
        expression = {"key": "tier", "operator": operator, "values": values}
        assert selects({"matchExpressions": [expression]}, labels) is fits


def test_the_same_engine_has_the_same_ids_and_others_have_others() -> None:
    wanted = Wanted("intercept", "api", {80: 1})
    one = identifier("ada", "laptop", "project", wanted)
    assert one == identifier("ada", "laptop", "project", wanted)
    assert one.startswith("api-")
    others = {
        identifier("ben", "laptop", "project", wanted),
        identifier("ada", "other", "project", wanted),
        identifier("ada", "laptop", "elsewhere", wanted),
        identifier("ada", "laptop", "project", Wanted("wiretap", "api", {80: 1})),
        # Of one engine's services, each may have ports of the same Service.
        identifier("ada", "laptop", "project", Wanted("intercept", "api", {80: 1}, local="web")),
        identifier("ada", "laptop", "project", Wanted("intercept", "x" * 63, {80: 1})),
    }
    assert len(others | {one}) == 7
    assert all(len(each) <= 50 for each in others)


def test_ports_by_name_and_number() -> None:
    assert fitting(service(), Wanted("intercept", "api", {"http": 1, 81: 2})) == ({80: 1, 81: 2}, {}, "service")
    with pytest.raises(AttachError, match="it has no port grpc; it has 80, http, 81, admin"):
        fitting(service(), Wanted("intercept", "api", {"grpc": 1}))
    with pytest.raises(AttachError, match="no port"):
        fitting(service(), Wanted("intercept", "api"))


def test_devloop_gives_way_to_who_undoes_it_often() -> None:
    found = Attachment.__new__(Attachment)
    found.reverts = []
    assert [found.reverted(now) for now in (0.0, 10.0, 20.0, 30.0)] == [False, False, False, True]
    # Now and then is no fight.
    assert not found.reverted(200.0)
