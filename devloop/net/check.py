"""Whether namespaces can be made on this machine, and what to do if not.

`check` makes one, in a process of its own, and lets it go again: no list of conditions is as right as a try.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from devloop.errors import EngineError, ServiceError
from devloop.net.inside import Inside, seqpacket_pair

HOLD = "import sys; sys.path.append(sys.argv[2]); from devloop.net.namespace import main; main()"
"""What a bare `python -I -S -c` runs, with the number of its socket and `PACKAGES`, to hold a namespace."""
PACKAGES = str(Path(__file__).parents[2])
_TIMEOUT = 10.0
_PORTABLE = 'or set `network = "ports"`, which needs nothing'


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a namespace can do here."""

    user_namespace: bool
    ipv6: bool
    low_ports: bool
    """Whether a service may listen on ports below 1024."""


async def check() -> Capabilities:
    """Try it. Raises ServiceError with what is missing and how to mend it."""
    if sys.platform != "linux":
        raise ServiceError(
            "network namespaces are a part of Linux", hint='set `network = "ports"`, which works everywhere'
        )
    ours, theirs = seqpacket_pair()
    inside = Inside("check", ours)
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", "-c", HOLD, str(theirs.fileno()), PACKAGES,
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        try:
            async with asyncio.timeout(_TIMEOUT):
                await inside.enter()
        except TimeoutError:
            process.kill()
            raise ServiceError(
                f"making a namespace took over {_TIMEOUT:g} s", hint=f"is the machine overloaded? {_PORTABLE}"
            ) from None
        except EngineError:
            raise ServiceError("the process that tries out a namespace died", hint=_PORTABLE) from None
        return Capabilities(inside.user_namespace, inside.ipv6, inside.low_ports)
    finally:
        inside.close()
        await process.wait()


def explain(step: str, number: int, text: str) -> ServiceError:
    """The error for a step of `enter` that the kernel refused with this errno."""
    what, hint = _reason(step, number, Path("/proc/sys"))
    name = errno.errorcode.get(number, str(number))
    return ServiceError(f"{what} ({step}: {name}, {text})", hint=f"{hint}; {_PORTABLE}")


def _reason(step: str, number: int, sysctl: Path) -> tuple[str, str]:
    """(what is missing, how to mend it)."""
    if step in ("unshare", "map", "mount", "network"):
        if _read(sysctl / "user/max_user_namespaces") == "0":
            return (
                "this machine allows no user namespaces",
                "`sudo sysctl user.max_user_namespaces=15000`, and the same line in /etc/sysctl.d/ to keep it",
            )
        if _read(sysctl / "kernel/unprivileged_userns_clone") == "0":
            return (
                "this machine allows user namespaces to root alone",
                "`sudo sysctl kernel.unprivileged_userns_clone=1`, and the same line in /etc/sysctl.d/",
            )
        if _read(sysctl / "kernel/apparmor_restrict_unprivileged_userns") == "1":
            # Ubuntu 23.10 and later: unshare works, but the capabilities in it are taken away.
            program = os.path.realpath(sys.executable)
            return (
                "AppArmor keeps programs without a profile from using user namespaces",
                f"allow it for this Python: {_apparmor_recipe(program)}, or for all programs: "
                "`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
            )
    if step == "unshare" and number == errno.ENOSPC:
        return (
            "the limit of namespaces is used up",
            "raise it: `sudo sysctl user.max_user_namespaces=15000 user.max_net_namespaces=15000`",
        )
    if step == "unshare" and number == errno.EINVAL:
        return "this kernel has no user or network namespaces", "use a kernel with CONFIG_USER_NS and CONFIG_NET_NS"
    if step in ("unshare", "map", "mount", "network"):
        return (
            "this process may not make namespaces",
            "in a container, start it with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined` "
            "or as privileged",
        )
    if step == "nftables":
        return (
            "this kernel lacks a part of nftables that the network of a service needs",
            "`sudo modprobe -a nf_tables nft_tproxy nft_socket`, "
            "and the names in /etc/modules-load.d/devloop.conf to keep them",
        )
    return "the namespace could not be made", "report it, with the output of `devloop doctor`"


def _apparmor_recipe(program: str) -> str:
    return (
        f"write `abi <abi/4.0>, profile devloop {program} flags=(unconfined) {{ userns, }}` to "
        "/etc/apparmor.d/devloop and run `sudo apparmor_parser -r /etc/apparmor.d/devloop`"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
