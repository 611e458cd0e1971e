"""Commands about the cluster's traffic: attach, leave, requests."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from sys import stderr
from typing import TYPE_CHECKING

from devloop.commands.common import check_names, engine_socket, print_json
from devloop.commands.routes import ports, routes
from devloop.control import client
from devloop.escapes import name as one_line
from devloop.protocol import (
    AttachmentStatus,
    EarlierConnections,
    RequestBatch,
    RequestRecord,
    ServiceStatus,
    Snapshot,
    earlier_in_words,
)

if TYPE_CHECKING:
    from devloop.attach.claims import Claims

OVER = ("refused", "contested", "left")
"""Phases in which nothing is held (`devloop.attach.Phase`)."""


def attach(args: argparse.Namespace) -> int:
    """`devloop attach`. RemoteError (exit code 3) if somebody else holds it: who, what and since when."""
    socket = engine_socket(args)
    chosen = {"routes": routes(args), "ports": ports(args), "way": args.way}
    _service(socket, args.service)
    answer = client.call(socket, "attach", service=args.service, kind=args.kind, take_over=args.take_over, **chosen)
    for line in answer.get("taken_over") or ():
        print(f"{args.service}: {line}")
    if args.take_over and not answer.get("taken_over"):
        print(f"{args.service}: nobody who has gone held anything of it")
    for each in _held(_service(socket, args.service)):
        print(f"{args.service}: {in_words(each)}")
        for line in past(args.service, each):
            print(f"  {line}")
    return 0


def leave(args: argparse.Namespace) -> int:
    """`devloop leave`."""
    if args.take_over:
        return _put_back(args)
    socket = engine_socket(args)
    found = Snapshot.from_json(client.call(socket, "status")).services
    services = args.services or [each.name for each in found if each.attachments]
    held = {each.name: each.attachments for each in found}
    if not services:
        print("nothing is attached")
    for name in services:
        replaced = [each for each in held.get(name, ()) if each.kind == "replace" and each.phase not in OVER]
        client.call(socket, "leave", service=name)
        if replaced:
            print(f"{name}: stopped here, and what it replaced runs again")
        elif held.get(name):
            print(f"{name}: the original has all of its traffic again")
        else:
            print(f"{name}: nothing was attached")
    return 0


def move(args: argparse.Namespace) -> int:
    """`devloop move`."""
    answer = client.call(engine_socket(args), "move", service=args.service, force=args.force)
    number, left = answer["ended"], [EarlierConnections.from_json(each) for each in answer["left"]]
    if number:
        what = "1 connection" if number == 1 else f"{number} connections"
        print(f"{args.service}: {what} moved: what is asked next is asked on new ones")
    elif not left:
        print(f"{args.service}: no connection leads to where it was")
    for text in earlier_in_words(left):
        print(f"{args.service}: {text}; not moved. `devloop move {args.service} --force` ends them at once")
    for text in answer.get("notes", ()):
        print(f"{args.service}: {text}")
    return 0


def requests(args: argparse.Namespace) -> int:
    """`devloop requests`."""
    printer = RequestPrinter(json=args.json)
    socket = engine_socket(args)
    if args.follow:
        asyncio.run(_follow(socket, args.service, args.tail, printer))
        return 0
    answer = client.call(socket, "requests", service=args.service, limit=args.tail)
    found = [RequestRecord.from_json(each) for each in answer["requests"]]
    printer.print(found)
    if not found and not args.json:
        held = _held(_service(socket, args.service))
        print(
            "no request has gone through yet" if held else f"{args.service} is not attached: `devloop attach` does it"
        )
    return 0


def in_words(attachment: AttachmentStatus) -> str:
    """One attachment in a line: how, of what, which requests, and how it fares."""
    which = f": {' or '.join(attachment.routes)}" if attachment.routes else ""
    why = f" ({attachment.reason})" if attachment.reason else ""
    return f"{attachment.kind} of {attachment.target}{which}, {attachment.phase}{why}"


def past(service: str, attachment: AttachmentStatus) -> list[str]:
    """What may go past an attachment: connections from before it, a line each, with what moves them."""
    said = earlier_in_words(attachment.earlier, attachment.earlier_rate)
    found = [f"{text}. `devloop move {service}` moves them" for text in said]
    if attachment.uncounted:
        found.append(f"connections from before may still lead to the original; not counted: {attachment.uncounted}")
    return found


class RequestPrinter:
    """Prints requests in columns of fixed width, with the path last; or a JSON object a line."""

    def __init__(self, *, json: bool = False) -> None:
        self._json = json
        self._headed = json

    def print(self, found: Iterable[RequestRecord]) -> None:
        """Print them, oldest first."""
        from devloop.metrics.table import duration

        for each in found:
            if self._json:
                print_json(each.to_json())
                continue
            if not self._headed:
                self._headed = True
                print(f"{'TIME':12}  {'METHOD':7}  {'STATUS':11}  {'TOOK':>10}  {'ANSWERED':11}  {'PROTOCOL':8}  PATH")
            moment = time.strftime("%H:%M:%S", time.localtime(each.at / 1e9)) + f".{each.at // 1_000_000 % 1000:03}"
            answered = f"{each.answered}, late" if each.failed_over else each.by or each.answered
            took = duration(each.duration)
            columns = f"{moment}  {one_line(each.method):7}  {each.outcome or '-':11}  {took:>10}  {answered:11}"
            print(f"{columns}  {each.protocol or '-':8}  {one_line(each.path)}".rstrip(), flush=True)


async def _follow(socket: Path, service: str, tail: int, printer: RequestPrinter) -> None:
    async with await client.ControlClient.connect(socket) as connection:
        # First the events, then what was before: so none is lost, and the few that come twice are known.
        await connection.subscribe()
        answer = await connection.call("requests", service=service, limit=tail)
        before = [RequestRecord.from_json(each) for each in answer["requests"]]
        printer.print(before)
        told = set(before)
        async for event in connection.events():
            if isinstance(event, RequestBatch):
                mine = [each for each in event.requests if each.service == service]
                printer.print(each for each in mine if each not in told)
                told.difference_update(mine)


def _service(socket: Path, name: str) -> ServiceStatus:
    services = Snapshot.from_json(client.call(socket, "status")).services
    found = {each.name: each for each in services}
    check_names([name], found)
    return found[name]


def _held(status: ServiceStatus) -> list[AttachmentStatus]:
    return [each for each in status.attachments if each.phase not in OVER]


# --- What dead ones hold ----------------------------------------------------------------------------------------------


def _put_back(args: argparse.Namespace) -> int:
    """`devloop leave --take-over`: at the cluster itself, without an engine."""
    from devloop.attach.claims import Claims
    from devloop.commands.remote import at, cluster, project

    of = project(args)
    names: set[str] = set(args.services)
    for name in args.services:
        service = of.services.get(name) if of else None
        if service is not None:
            names |= {*service.place.names, *([service.place.workload] if service.place.workload else [])}
    where, done = at(cluster(args, of), lambda api: put_back(Claims(api), names, lambda text: print(text, file=stderr)))
    for line in done:
        print(line)
    if not done:
        print(f"{where}: nobody who has gone holds {' or '.join(args.services) or 'anything'}")
    return 0


async def put_back(claims: Claims, names: Collection[str], say: Callable[[str], None] = lambda text: None) -> list[str]:
    """Put back what dead ones hold of these Services and workloads (none: of all), and what nobody holds at all.

    What was put back, a line each. HeldError if one that is named is held by somebody who is there. `say` is told that
    it takes a while.
    """
    from devloop.agent import objects
    from devloop.attach import HeldError, silent
    from devloop.commands.holdings import Holding, holdings, nobodys

    found = await claims.snapshot()
    meant = [each for each in holdings(found.leases) if not names or each.is_of(names)]
    leases = {objects.lease_name(each.spec) for each in meant}
    if takes := silent.seconds([each for each in found.leases if each["metadata"]["name"] in leases]):
        say(f"whether anybody renews what they hold is watched for {takes:g} s")
    looked = await silent.watched(claims, leases, enough=bool(names))
    alive = [each for each in meant if objects.lease_name(each.spec) in looked.alive]
    dead = [each for each in meant if each not in alive]
    if names and alive:
        raise HeldError(
            "; ".join(map(Holding.sentence, alive)),
            where=claims.api.where,
            hint="What is alive can't be taken over: `devloop leave` at their place gives it back.",
            holders=tuple(each.spec for each in alive),
            dead=False,
        )
    await claims.restore(looked.silent)
    left = {each["metadata"]["name"] for each in await claims.leases()}  # one whose size may not be read stays
    lost = nobodys(found.services, found.leases)
    words = ["not put back" if objects.lease_name(each.spec) in left else "put back" for each in dead]
    return [f"{each.target}: {word}; {each.sentence()}" for each, word in zip(dead, words, strict=True)] + [
        f"{name}: put back; nobody held it any more" for name, known in lost.items() if known
    ]
