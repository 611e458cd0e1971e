"""How people name a workload, with kubectl's words: read here for devloop.toml, for the command line, for all."""

from __future__ import annotations

import re
from typing import NamedTuple

from devloop.errors import UsageError

KINDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "deployment": ("deployments", "apps", ("deploy",)),
    "statefulset": ("statefulsets", "apps", ("sts",)),
    "daemonset": ("daemonsets", "apps", ("ds",)),
    "replicaset": ("replicasets", "apps", ("rs",)),
    "job": ("jobs", "batch", ()),
    "cronjob": ("cronjobs", "batch", ("cj",)),
    "pod": ("pods", "", ("po",)),
    "rollout": ("rollouts", "argoproj.io", ("ro",)),
}
"""Each kind's plural, its API group and its short names (`kubectl api-resources`)."""
_WORDS = {word: kind for kind, (plural, _, short) in KINDS.items() for word in (kind, plural, *short)}
_KNOWN = ", ".join(f"{kind}/NAME" + "".join(f" ({each}/NAME)" for each in KINDS[kind][2]) for kind in KINDS)
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # RFC 1123, as the API server wants names
_LEADING = ("service", "services", "svc", "ingress", "ingresses", "ing", "endpoints", "ep", "endpointslice")


class Reference(NamedTuple):
    """A workload as somebody has named it."""

    kind: str
    """In the singular and lower case; empty: the one of that name, whatever it is."""
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.kind else self.name


def read(text: str, *, where: str | None = None) -> Reference:
    """What "deployment/web", "deploy/web", "deployments.apps/web" or "web" means.

    Raises UsageError that lists what is known; its `where` is the one given: the option or the place in a file.
    """
    word, slash, name = text.partition("/")
    if not slash:
        word, name = "", text
    if not name or "/" in name or (slash and not word):
        hint = f"write KIND/NAME, as in deployment/web; known are {_KNOWN}"
        raise UsageError(f"{text!r} is no workload", where=where, hint=hint)
    kind = _kind(word.lower()) if word else ""
    if kind is None:
        raise _unknown(word, name, where)
    if _NAME.fullmatch(name) is None:
        hint = "names have lower-case letters, digits, dots and hyphens; `devloop list` shows what is there"
        raise UsageError(f"no workload can be called {name!r}", where=where, hint=hint)
    return Reference(kind, name)


def _kind(word: str) -> str | None:
    """A kind by kubectl's words, with its group or without ("deployments.apps", "deployments.v1.apps")."""
    resource, _, group = word.partition(".")
    kind = _WORDS.get(resource)
    if kind is None or group in ("", KINDS[kind][1]) or re.fullmatch(rf"v[0-9a-z]+\.{KINDS[kind][1]}", group):
        return kind
    return None


def _unknown(word: str, name: str, where: str | None) -> UsageError:
    if word.lower().split(".")[0] in _LEADING:
        what = f"'{word}/{name}' leads to workloads and is none itself"
        hint = f"name the workload behind it, as in deployment/{name}: `devloop list` shows which one that is"
        return UsageError(what, where=where, hint=f"{hint}; known are {_KNOWN}")
    from difflib import get_close_matches

    close = next(iter(get_close_matches(word.lower(), _WORDS, 1)), None)
    meant = f"did you mean {close}/{name}? " if close else ""
    return UsageError(f"{word!r} is no kind of workload", where=where, hint=f"{meant}known are {_KNOWN}")
