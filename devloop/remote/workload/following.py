"""Keeps a view's files up to date, and says what else has changed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from devloop.errors import DevloopError, RemoteError

from . import environment, gather, materialise, payload
from . import references as kinds
from .cluster import AbsentError, Cluster, Token
from .downward import service_account
from .find import find, is_running
from .follow import follow
from .model import Absence, Change, Environment, Note, Object, Problem, Sources, Workload
from .payload import TokenSource
from .references import Kind

RENEW_AT = 0.8
"""A token is renewed after this part of its life, as the kubelet does …"""
RENEW_SECONDS = 24 * 3600.0
"""… and at the latest then."""
RETRY_SECONDS = (2.0, 60.0)
LOOK_SECONDS = 2.0
"""Between looks for a new pod when the one that was followed has gone."""


class Follower:
    """The files of a view's volumes, and what they are made from."""

    def __init__(
        self,
        cluster: Cluster,
        workload: Workload,
        sources: Sources,
        folder: Path,
        on_change: Callable[[Change], None],
    ) -> None:
        self._cluster = cluster
        self._workload = workload
        self._maps = dict(sources.config_maps)
        self._secrets = dict(sources.secrets)
        self._sources = replace(sources, config_maps=self._maps, secrets=self._secrets)
        self._folder = folder
        self._on_change = on_change
        self._volumes = {
            name: volume
            for name, volume in payload.volumes_of(workload).items()
            if payload.kind_of(volume) in payload.MATERIALISED
        }
        self._tokens: dict[TokenSource, Token | Absence] = {}
        self._asked_at: dict[TokenSource, float] = {}
        self._bundles: dict[str, str | Absence] = {}
        self._environment: dict[str, str] = {}

    async def fetch(self) -> None:
        """What the volumes hold beside ConfigMaps and Secrets. Raises RemoteError."""
        for source in gather.tokens(self._workload):
            try:
                await self._renew(source)
            except AbsentError:
                self._tokens[source] = Absence.FORBIDDEN
        self._bundles = await gather.bundles(self._cluster, self._workload)

    def write(self, notes: list[Note]) -> list[Problem]:
        """Write all volumes for the first time: adds to `notes`, gives the problems. Raises RemoteError."""
        problems: list[Problem] = []
        for name in self._volumes:
            _, more, wrong = self._one(name)
            notes += more
            problems += wrong
        return problems

    async def run(self, known: Environment) -> None:
        """Follow all of it until this is cancelled; `known` is what the process was started with."""
        self._environment = known.mapping(image=False)
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in self._maps:
                    tasks.create_task(self._source(kinds.CONFIG_MAP, name, self._maps))
                for name in self._secrets:
                    tasks.create_task(self._source(kinds.SECRET, name, self._secrets))
                for source, token in self._tokens.items():
                    if isinstance(token, Token):
                        tasks.create_task(self._token(source))
                if is_running(self._workload.pod):
                    tasks.create_task(self._pod())
        except* Exception as group:
            # None is expected. What an exception says may hold a value, so its kind has to do.
            kinds_of = ", ".join(sorted({type(each).__name__ for each in group.exceptions}))
            self._on_change(Change("trouble", f"changes are no longer followed ({kinds_of})"))

    async def _source(self, kind: Kind, name: str, states: dict[str, Object | Absence]) -> None:
        word = kind.name.lower()
        volumes = [each for each, volume in self._volumes.items() if (word, name) in payload.references(volume)]
        async with aclosing(follow(self._cluster, kind, name)) as followed:
            async for state in followed:
                come = "has come" if states[name] is Absence.MISSING else "has changed"
                states[name] = state
                self._refresh(volumes, f"{word} {name} {come}")
                self._compare(f"{word} {name}")

    async def _token(self, source: TokenSource) -> None:
        wait = RETRY_SECONDS[0]
        while True:
            token, asked = self._tokens[source], self._asked_at[source]
            assert isinstance(token, Token)
            life = min((token.expires_at - asked) * RENEW_AT, RENEW_SECONDS)
            await asyncio.sleep(max(0.0, asked + life - time.time()))
            try:
                await self._renew(source)
            except RemoteError:
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))
                wait = min(wait * 2, RETRY_SECONDS[1])
                continue
            wait = RETRY_SECONDS[0]
            volumes = [each for each, volume in self._volumes.items() if source in payload.tokens_of(volume)]
            self._refresh(volumes, "the service account's token is renewed")

    async def _renew(self, source: TokenSource) -> None:
        account = service_account(self._workload.pod)
        asked = time.time()
        token = await self._cluster.token(account, audience=source.audience, seconds=source.seconds)
        self._tokens[source], self._asked_at[source] = token, asked

    async def _pod(self) -> None:
        """Labels and annotations change; the pod itself may be replaced by another."""
        while True:
            uid = self._workload.pod["metadata"]["uid"]
            async with aclosing(follow(self._cluster, kinds.POD, self._workload.pod_name)) as states:
                async for state in states:
                    if isinstance(state, Absence) or state["metadata"]["uid"] != uid or not is_running(state):
                        break
                    self._workload = replace(self._workload, pod=state)
                    self._refresh(self._downward(), f"pod {self._workload.pod_name} has changed")
            await self._next_pod(str(uid))

    async def _next_pod(self, gone: str) -> None:
        """Wait until another pod of the workload runs; until then the files stay."""
        container = str(self._workload.container["name"])
        told = ""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                found = await find(self._cluster, self._workload.reference, container)
            except DevloopError as problem:  # the workload itself, or the way to it, may be away for a while
                if problem.what != told:
                    told = problem.what
                    self._on_change(Change("trouble", f"there is no pod to follow: {told}; devloop goes on looking"))
                continue
            if found.running and found.pod["metadata"]["uid"] != gone:
                break
        old, self._workload = self._workload, found
        before = old.pod_name
        self._on_change(Change("pod", f"{found.pod_name} runs in place of {before}"))
        if not payload.same_volumes(old, found):
            text = f"pod {found.pod_name} has other volumes; a restart gets them"
            self._on_change(Change("environment", text))
        self._refresh(self._downward(), f"pod {found.pod_name} runs in place of {before}")
        self._compare(f"pod {found.pod_name}")

    def _downward(self) -> list[str]:
        return [
            name
            for name, volume in self._volumes.items()
            if "downwardAPI" in volume
            or any("downwardAPI" in each for each in (volume.get("projected") or {}).get("sources") or [])
        ]

    def _refresh(self, volumes: Iterable[str], why: str) -> None:
        changed: list[str] = []
        for name in volumes:
            try:
                different, _, problems = self._one(name)
            except RemoteError as problem:
                self._on_change(Change("trouble", f"volume {name} keeps its files: {problem.what}", (name,)))
                continue
            if different:
                changed.append(name)
            if problems:
                text = "; ".join(str(each) for each in problems)
                self._on_change(Change("trouble", f"its old files stay: {text}", (name,)))
        if changed:
            self._on_change(Change("files", why, tuple(changed)))

    def _one(self, name: str) -> tuple[bool, tuple[Note, ...], tuple[Problem, ...]]:
        tokens = {source: token.value if isinstance(token, Token) else token for source, token in self._tokens.items()}
        target = self._folder / name
        volume = self._volumes[name]
        try:
            return materialise.write(target, volume, self._workload, self._sources, tokens, self._bundles)
        except OSError as problem:
            raise RemoteError(f"{target} can't be written: {problem.strerror or problem}") from problem

    def _compare(self, why: str) -> None:
        """Tell when a process that is started now would get other values than the one that runs."""
        made = environment.make(self._workload, self._sources)
        if made.problems:
            return
        now, before = made.mapping(), self._environment
        names = {name for name in now if name not in made.stand_ins and now[name] != before.get(name)}
        names |= before.keys() - now.keys()
        if names:
            self._environment = now
            text = f"{why} has changed {', '.join(sorted(names))}; a restart gets the new values"
            self._on_change(Change("environment", text))
