"""What `attach`, `leave`, `requests` and `status` print and ask for, with an engine that is a script."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devloop import cli
from devloop.agent.spec import Spec
from devloop.attach import HeldError, Holding
from devloop.commands import common
from devloop.commands.attach import put_back
from devloop.control import client, wire
from devloop.engine.attaching import gone_in_words
from devloop.errors import DevloopError
from devloop.protocol import EarlierConnections
from devloop.testing import shop
from devloop.testing.fake_engine import FakeEngine
from tests.unit.attach.fake_api import FakeApi, service

Run = Callable[..., int]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = shop.engine(shop.fixed_clock)

    def call(path: Path, method: str, **params: Any) -> dict[str, Any]:
        try:
            return asyncio.run(fake.call(method, params))
        except DevloopError as error:  # as the socket brings it
            raise wire.decode_error(wire.encode_error(error)) from None

    monkeypatch.setattr(client, "call", call)
    monkeypatch.setattr(common, "socket_of", lambda state: state.socket)
    return fake


@pytest.fixture
def devloop(tmp_path: Path, engine: FakeEngine) -> Run:
    (tmp_path / "devloop.toml").write_text("[services.api]\ncommand = 'true'\n")
    return lambda *args: cli.main(["-f", str(tmp_path / "devloop.toml"), *args])


def asked(engine: FakeEngine) -> list[tuple[str, dict[str, Any]]]:
    return [call for call in engine.calls if call[0] != "status"]


@pytest.mark.parametrize(
    ("args", "kind", "routes", "take_over", "words"),
    [
        ([], None, None, False, "intercept of api: baggage:devloop=ada, attached"),
        (["--all"], None, "all", False, "intercept of api: all requests, attached"),
        (["--kind", "wiretap"], "wiretap", None, False, "wiretap of api: all requests, attached"),
        (["--kind", "replace", "--personal", "--take-over"], "replace", "personal", True, "replace of api"),
    ],
)
def test_attach_asks_for_it_and_says_what_is_held_then(
    devloop: Run,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    kind: str | None,
    routes: str | None,
    take_over: bool,
    words: str,
) -> None:
    assert devloop("attach", "api", *args) == 0
    params = {"service": "api", "kind": kind, "routes": routes, "ports": None, "way": None, "take_over": take_over}
    assert asked(engine) == [("attach", params)]
    assert f"api: {words}" in capsys.readouterr().out


ADA = {"x-user": {"exact": "ada"}}


@pytest.mark.parametrize(
    ("args", "routes"),
    [
        (["--header", "X-User=ada"], [{"headers": ADA}]),
        (["--header", "x-user=a=b~c"], [{"headers": {"x-user": {"exact": "a=b~c"}}}]),
        (["--header", "x-user^=ad"], [{"headers": {"x-user": {"prefix": "ad"}}}]),
        (["--header", "x-user~ad.", "--header", "x-team="], [
            {"headers": {"x-user": {"regex": "ad."}, "x-team": {"exact": ""}}}
        ]),
        (["--header", "x-user=ada", "--path", "/v2", "--method", "get", "--share", "10%"], [
            {"headers": ADA, "path": {"prefix": "/v2"}, "method": "GET", "share": 10.0}
        ]),
        (["--path", "=/v2"], [{"path": {"exact": "/v2"}}]),
        (["--path", "~/v[0-9]+"], [{"path": {"regex": "/v[0-9]+"}}]),
        (["--all", "--share", "12.5"], [{"share": 12.5}]),
    ],
)  # fmt: skip
def test_routes_on_the_command_line(devloop: Run, engine: FakeEngine, args: list[str], routes: Any) -> None:
    assert devloop("attach", "api", *args) == 0
    ((_, params),) = asked(engine)
    assert params["routes"] == routes


def test_ports_and_the_way_on_the_command_line(devloop: Run, engine: FakeEngine) -> None:
    assert devloop("attach", "api", "--port", "3000:http", "--port", "81", "--way", "pods") == 0
    ((_, params),) = asked(engine)
    assert (params["ports"], params["way"]) == ({"http": 3000, "81": None}, "pods")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--header", "x-user"], "is no header"),
        (["--header", "x user=ada"], "is no header"),
        (["--header", "x-user=ada", "--header", "X-User=ben"], "names x-user twice"),
        (["--path", "v2"], "a path starts with a slash"),
        (["--method", "G T"], "is no method"),
        (["--share", "0"], "above 0 and up to 100 percent"),
        (["--share", "101%"], "above 0 and up to 100 percent"),
        (["--all", "--header", "x-user=ada"], "--all says which requests"),
        (["--personal", "--share", "10"], "--personal says which requests"),
        (["--port", "http:3000"], "neither LOCAL:REMOTE nor REMOTE"),
        (["--port", "1:http", "--port", "2:http"], "twice"),
    ],
)
def test_what_is_no_route_or_port_is_a_mistake(
    devloop: Run, engine: FakeEngine, capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    assert devloop("attach", "api", *args) == 2
    assert words in capsys.readouterr().err
    assert asked(engine) == []


def test_taking_over_says_whose_it_was(
    devloop: Run, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = gone_in_words(Holding(spec("api-ben"), 95.0, mine=False))
    assert line.startswith("put back what bob@studio held since ") and "have not been there for 95 s" in line
    call = client.call

    def answer(path: Path, method: str, **params: Any) -> dict[str, Any]:
        found = call(path, method, **params)
        return {"taken_over": [line]} if method == "attach" else found

    monkeypatch.setattr(client, "call", answer)
    assert devloop("attach", "api", "--take-over") == 0
    assert f"api: {line}\n" in capsys.readouterr().out


def test_attach_in_another_way_is_the_engine_s_to_change(
    devloop: Run, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert devloop("attach", "web") == 0
    assert [call[0] for call in asked(engine)] == ["attach"]
    assert devloop("attach", "web", "--all") == 0
    # A `leave` of its own would stop what stands in for a workload.
    assert [call[0] for call in asked(engine)] == ["attach", "attach"]
    assert capsys.readouterr().out.endswith("web: intercept of web: all requests, attached\n")


def test_what_is_held_by_others_is_exit_code_3_with_who_what_and_since_when(
    devloop: Run, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    what = "bob@studio holds all requests of api (intercept) since 2026-11-21T11:12:00Z"
    engine.failures["attach"] = HeldError(
        what, where="dev/shop api", hint="Take another route.", holders=(), dead=False
    )
    assert devloop("attach", "api") == 3
    assert capsys.readouterr().err == f"devloop: dev/shop api: {what}\n  Take another route.\n"


def test_an_unknown_service_is_a_mistake(devloop: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert devloop("attach", "apy") == 2
    assert "there is no service 'apy'" in capsys.readouterr().err


def test_leave_is_for_those_that_are_named_or_all_that_hold_something(
    devloop: Run, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert devloop("leave", "web") == 0
    assert asked(engine) == [("leave", {"service": "web"})]
    assert devloop("leave") == 0
    assert [params["service"] for _, params in asked(engine)] == ["web", "worker", "search"]
    out = capsys.readouterr().out
    assert "search: the original has all of its traffic again" in out
    assert "worker: stopped here, and what it replaced runs again" in out
    assert devloop("leave") == 0
    assert capsys.readouterr().out == "nothing is attached\n"
    assert devloop("leave", "search") == 0
    assert capsys.readouterr().out == "search: nothing was attached\n"


def test_connections_from_before_are_told_and_ended(
    devloop: Run, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert devloop("move", "web") == 0
    assert capsys.readouterr().out == "web: no connection leads to where it was\n"
    found = (EarlierConnections("localhost", 1, "remote"), EarlierConnections("api", 2, "remote"))
    engine.update("web", earlier=found)
    devloop("status")
    text = "web: 3 connections from before still lead to the remote: 2 from api, 1 from localhost. `devloop move web`"
    assert text in capsys.readouterr().out
    assert devloop("move", "web") == 0
    assert asked(engine)[-1] == ("move", {"service": "web", "force": False})
    assert capsys.readouterr().out == "web: 3 connections moved: what is asked next is asked on new ones\n"
    devloop("status")
    assert "from before" not in capsys.readouterr().out


def test_attach_says_what_goes_past_it(devloop: Run, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    (held,) = engine.status("web").attachments
    found = (EarlierConnections("cart-x", 1, "original"), EarlierConnections("front-y", 3, "original"))
    engine.update("web", attachments=(replace(held, earlier=found),))
    text = (
        "4 connections from before still lead to the original: 3 from front-y, 1 from cart-x. `devloop move web` moves"
    )
    devloop("status")
    assert f"web: {text}" in capsys.readouterr().out
    devloop("attach", "web")
    assert f"  {text}" in capsys.readouterr().out
    for rate, words in (
        (12.3, "lead to the original, with about 12 requests/s: 3 from front-y"),
        (1.02, "lead to the original, with about 1 request/s: 3 from front-y"),
        (0.01, "lead to the original, with fewer than 0.1 requests/s: 3 from front-y"),
        (0.0, "lead to the original and are idle: 3 from front-y"),
    ):
        engine.update("web", attachments=(replace(held, earlier=found, earlier_rate=rate),))
        devloop("status")
        assert words in capsys.readouterr().out
        devloop("attach", "web")
        assert words in capsys.readouterr().out
    devloop("status", "--json")
    (service,) = [each for each in json.loads(capsys.readouterr().out)["services"] if each["name"] == "web"]
    assert service["attachments"][0]["earlier_rate"] == 0.0
    engine.update("web", attachments=(replace(held, uncounted="no command may be run in pods"),))
    devloop("status")
    words = "may still lead to the original of web; not counted: no command may be run in pods"
    assert words in capsys.readouterr().out


def test_requests_come_as_a_table_or_as_json(
    devloop: Run, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert devloop("requests", "web", "-n", "4") == 0
    assert ("requests", {"service": "web", "limit": 4}) in asked(engine)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["TIME", "METHOD", "STATUS", "TOOK", "ANSWERED", "PROTOCOL", "PATH"]
    words = [row.split() for row in rows]
    assert [row[1] for row in words] == ["GET", "GET", "GET", "TCP"]
    assert words[1][2:] == ["200", "214", "ms", "original,", "late", "HTTP/1.1", "/basket"]
    assert words[2][2] == "-"
    assert devloop("requests", "web", "--json") == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert documents == [each.to_json() for each in engine.requests["web"]]


def test_no_requests_say_why(devloop: Run, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert devloop("requests", "api") == 0
    assert "api is not attached: `devloop attach` does it" in capsys.readouterr().out
    engine.attachment("api", "attached")
    assert devloop("requests", "api") == 0
    assert capsys.readouterr().out == "no request has gone through yet\n"
    assert devloop("requests", "api", "--json") == 0
    assert capsys.readouterr().out == ""


def test_status_has_a_table_of_what_is_held(
    devloop: Run, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert devloop("status", "web", "search") == 0
    _, table = capsys.readouterr().out.split("\n\n")
    head, web, search = table.splitlines()
    assert head.split() == ["SERVICE", "HOLDS", "BY", "PHASE", "REQUESTS", "HERE/S", "ORIGINAL/S"]
    assert web.split() == ["web", "web", "intercept", "attached", "baggage:devloop=ada", "1.4", "12.2"]
    assert "refused" in search and "bob@studio holds all requests of search" in search
    assert devloop("status", "api") == 0
    assert "HOLDS" not in capsys.readouterr().out
    assert devloop("status", "web", "--json") == 0
    [found] = json.loads(capsys.readouterr().out)["services"]
    assert found["attachments"][0]["routes"] == ["baggage:devloop=ada"]


# `leave --take-over`: at the API server


def spec(id: str, name: str = "api", user: str = "bob", **more: Any) -> Spec:
    return Spec(id, user, "studio", "intercept", "2026-11-21T11:12:00Z", name, {80: 8080}, **more)


async def taken(api: FakeApi, *specs: Spec, dead: tuple[str, ...] = ()) -> Any:
    from devloop.attach.claims import Claims

    claims = Claims(api)  # type: ignore[arg-type]
    for each in specs:
        await claims.acquire(each)
        found = await claims.service(each.service)
        assert found is not None
        await claims.shadow(found)
        await claims.lead(each, {80: 20000, 81: 20001})
        if each.id in dead:
            path = next(path for path in api.objects if path.endswith(f"/leases/devloop-{each.id}"))
            api.objects[path]["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z"
    return claims


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds pass whenever it is looked how late it is."""
    from devloop.attach import silent

    monkeypatch.setattr(silent, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(silent, "time", SimpleNamespace(monotonic=itertools.count(0.0, 10.0).__next__))


@pytest.mark.usefixtures("quick")
async def test_what_a_dead_one_holds_is_put_back_and_the_living_keep_theirs() -> None:
    api = FakeApi(service(), service("web"))
    before = api.plain()
    claims = await taken(api, spec("one"), spec("two", "web", user="eve"), dead=("one",))
    said: list[str] = []
    [line] = await put_back(claims, set(), said.append)
    assert said == ["whether anybody renews what they hold is watched for 30 s"]
    assert line.startswith("api: put back; bob@studio holds all requests of api (intercept) since 2026-11-21T11:12:00Z")
    assert [each["metadata"]["name"] for each in await claims.leases()] == ["devloop-two"]
    path = "/api/v1/namespaces/space/services/api"
    assert api.plain()[path] == before[path]
    assert await put_back(claims, set()) == []


async def test_what_is_alive_is_not_taken_over() -> None:
    api = FakeApi(service())
    claims = await taken(api, spec("one"))
    before = api.plain()
    with pytest.raises(HeldError) as caught:
        await put_back(claims, {"api"})
    assert caught.value.exit_code == 3
    assert "bob@studio holds all requests of api (intercept) since 2026-11-21T11:12:00Z" in str(caught.value)
    assert api.plain() == before


@pytest.mark.parametrize("names", [set(), {"api"}])
@pytest.mark.usefixtures("quick")
async def test_who_renews_by_a_clock_that_is_behind_is_alive(names: set[str]) -> None:
    """A minute: by this machine's clock its lease is over whenever it is renewed."""
    api = FakeApi(service())
    claims = await taken(api, spec("one"), dead=("one",))
    moments = itertools.count(1)

    def renews(method: str, path: str) -> None:
        if method == "GET" and path.endswith("/leases"):
            [lease] = [each for key, each in api.objects.items() if "/leases/" in key]
            lease["spec"]["renewTime"] = f"2026-01-01T00:00:{next(moments):02}.000000Z"

    before = set(api.objects)
    api.before = renews
    if names:
        with pytest.raises(HeldError):
            await put_back(claims, names)
    else:
        assert await put_back(claims, names) == []
    assert set(api.objects) == before


@pytest.mark.usefixtures("quick")
async def test_who_comes_back_at_the_last_moment_keeps_theirs() -> None:
    api = FakeApi(service())
    claims = await taken(api, spec("one"), dead=("one",))
    restore = claims.restore

    async def late(*args: Any) -> bool:
        [lease] = [each for key, each in api.objects.items() if "/leases/" in key]
        lease["spec"]["renewTime"] = "2026-01-01T00:00:01.000000Z"
        return bool(await restore(*args))

    claims.restore = late
    [line] = await put_back(claims, set())
    assert line.startswith("api: not put back")
    assert len(await claims.leases()) == 1


@pytest.mark.usefixtures("quick")
async def test_only_what_is_named_is_put_back() -> None:
    api = FakeApi(service(), service("web"))
    claims = await taken(api, spec("one"), spec("two", "web"), dead=("one", "two"))
    assert [line.partition(":")[0] for line in await put_back(claims, {"web"})] == ["web"]
    assert [each["metadata"]["name"] for each in await claims.leases()] == ["devloop-one"]
