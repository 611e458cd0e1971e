"""The environment of a local service, and where each variable comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from devloop.config.model import Service
from devloop.local.left_out import taken
from devloop.protocol import Variable

_SECRET = re.compile(
    r"(?i)(secret|passw(or)?d|passphrase|token|api_?key|private_?key|access_?key|credential|auth|dsn|cookie)"
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
MASK = "••••••"


DEFAULTS = {"PYTHONUNBUFFERED": "1"}
"""What devloop sets where nobody else does, an empty value included: Python shows at once what it prints into a pipe
(`python -u`, "Command line and environment" in Python's manual). Other programs pass over it."""
TERMINAL = {"TERM": "xterm-256color"}
"""The same for a service with a terminal, in place of the host's: its output goes to many terminals, and xterm's
sequences are what all of them understand."""
_OF_ANOTHER_TERMINAL = ("COLUMNS", "LINES", "TERMCAP", "TERM_PROGRAM", "TERM_PROGRAM_VERSION")


def resolve(
    service: Service, host: Mapping[str, str], own: Mapping[str, str], workload: Iterable[Variable] = ()
) -> list[Variable]:
    """The variables, by name; each says where its value comes from.

    `DEFAULTS`, then the host's environment, then its workload's but for what is `left_out`, then the env files in
    their order, then `env`, then devloop's `own`: the later wins.
    """
    found = {name: Variable(name, value, "devloop") for name, value in DEFAULTS.items()}
    found |= {name: Variable(name, value, "host", is_secret(name, value)) for name, value in host.items()}
    if service.tty:
        for name in _OF_ANOTHER_TERMINAL:
            found.pop(name, None)
        found |= {name: Variable(name, value, "devloop") for name, value in TERMINAL.items()}
    for each in workload:
        if taken(each, service.env_from_workload):
            found[each.name] = replace(each, secret=each.secret or is_secret(each.name, each.value))
    sources = {str(f): service.file_env.get(f, {}) for f in service.env_files}
    sources |= {"devloop.toml": service.env, "devloop": own}
    for origin, values in sources.items():
        for name, value in values.items():
            found[name] = Variable(name, value, origin, is_secret(name, value))
    return [found[name] for name in sorted(found)]


def own(project: str, service: str) -> dict[str, str]:
    """What devloop itself adds, so that a process can tell whose it is."""
    return {"DEVLOOP_PROJECT": project, "DEVLOOP_SERVICE": service}


def is_secret(name: str, value: str) -> bool:
    """Whether a variable looks as if it held a secret: by its name, or a password in a URL."""
    return bool(_SECRET.search(name) or _URL_PASSWORD.search(value))


def masked(variable: Variable) -> Variable:
    """The same with nothing of the secret in it."""
    return Variable(variable.name, MASK, variable.origin, True) if variable.secret else variable
