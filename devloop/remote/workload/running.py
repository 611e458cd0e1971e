"""The environment that a running container really has: what only `pods/exec` tells.

An image's own ENV is in no API object. A command that is started in the container has it, as `kubectl exec`
would show it; there is no tool that every image has, so several are tried.
"""

from __future__ import annotations

from devloop.errors import RemoteError

from .cluster import AbsentError, Cluster
from .model import Absence, Note, Workload

# /proc/self is the command itself: what the container's spec gives to each process in it. /proc/1 would have
# in addition what an entry point's script has exported, and may belong to another user.
_WAYS = (
    ("cat", "/proc/self/environ"),
    ("env", "-0"),
    ("/bin/busybox", "env", "-0"),
    ("/busybox/busybox", "env", "-0"),
    ("sh", "-c", "while IFS= read -r line; do printf '%s\\n' \"$line\"; done </proc/self/environ"),
    (
        "python3",
        "-c",
        "import os,sys;sys.stdout.buffer.write(b'\\0'.join(map(b'='.join,os.environb.items())))",
    ),
    ("node", "-e", "process.stdout.write(Object.entries(process.env).map(e=>e.join('=')).join('\\0'))"),
)
SUBJECT = "the image's environment"
_OF_SHELLS = frozenset({"_", "OLDPWD", "PWD", "SHLVL"})


async def read(cluster: Cluster, workload: Workload) -> tuple[dict[str, str] | None, Note | None]:
    """The running container's environment; without it, a note that says why."""
    if not workload.running:
        return None, Note(
            SUBJECT, f"can't be read: container {workload.container['name']} of {workload.reference} does not run"
        )
    for way in _WAYS:
        try:
            ran = await cluster.run(workload.pod_name, str(workload.container["name"]), way)
        except AbsentError as absent:
            if absent.absence is Absence.FORBIDDEN:
                return None, Note(SUBJECT, "may not be read (the Role devloop-attach: create and get pods/exec)")
            return None, Note(SUBJECT, f"can't be read: {absent.what}")
        except RemoteError as problem:
            return None, Note(SUBJECT, f"can't be read: {problem.what}")
        if ran.code == 0 and ran.stdout:
            return parsed(ran.stdout, shell=way[0] == "sh"), None
    tools = ", ".join(dict.fromkeys(way[0] for way in _WAYS))
    return None, Note(SUBJECT, f"can't be read: the image has none of {tools}")


def parsed(environ: bytes, *, shell: bool = False) -> dict[str, str]:
    """NUL-separated NAME=VALUE pairs; a `shell` has added some of its own."""
    pairs = (each.partition("=") for each in environ.decode(errors="surrogateescape").split("\0"))
    found = {name: value for name, equals, value in pairs if equals and name}
    return {name: value for name, value in found.items() if not (shell and name in _OF_SHELLS)}
