"""Where a variable comes from, sorted into groups that a person filters by. Knows no screen.

The engine's words name a key or a field ("configmap settings key LOG_LEVEL"); a group is what they come from
("configmap settings").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from devloop.protocol import Variable

FIRST = ("devloop.toml", "file", "devloop", "configmap", "secret", "pod", "image", "links", "host")
"""What one looks for comes first; links to Services and the host's own are many, and seldom it."""

GROUPS = {
    "the pod's spec": "pod spec",
    "field": "pod fields",
    "resource": "pod fields",
    "service": "service links",
    "the image or the container runtime": "image",
}
READ = ", read from the running container"


def group(variable: Variable) -> str:
    """What it comes from: configmap settings, secret db, pod spec, pod fields, service links, image, devloop.toml, …"""
    origin = variable.origin.removesuffix(READ)
    if origin in GROUPS:
        return GROUPS[origin]
    head, _, rest = origin.partition(" ")
    if head in ("configmap", "secret") and rest:
        return f"{head} {rest.partition(' key ')[0]}"
    return GROUPS.get(head, origin) if rest else origin


def short(variable: Variable) -> str:
    """The origin without what the variable's name says already."""
    origin = variable.origin.removesuffix(READ)
    if origin in GROUPS:
        return GROUPS[origin]
    source, _, key = origin.partition(" key ")
    return source if key in ("", variable.name) else f"{source}/{key}"


def from_workload(variable: Variable) -> bool:
    """Whether it is the remote's, rather than this machine's or the project's."""
    return rank(group(variable))[0] >= FIRST.index("configmap") and variable.origin != "host"


def rank(name: str) -> tuple[int, str]:
    """Of a group: by `FIRST`, then by name."""
    head = name.partition(" ")[0]
    kind = "links" if name == "service links" else head
    # What is none of these is a file of variables.
    return FIRST.index(kind if kind in FIRST else "file"), name


def grouped(variables: Iterable[Variable]) -> dict[str, int]:
    """Group → how many variables, in order of rank."""
    counts = Counter(group(variable) for variable in variables)
    return {name: counts[name] for name in sorted(counts, key=rank)}


def ordered(variables: Iterable[Variable]) -> list[Variable]:
    """By group, then by name."""
    return sorted(variables, key=lambda variable: (rank(group(variable)), variable.name))
