"""The environment of a local service, and where each variable comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping

from devloop.config.envfile import read_env_file
from devloop.config.model import Service
from devloop.config.problems import Findings
from devloop.errors import ServiceError
from devloop.protocol import Variable

_SECRET = re.compile(
    r"(?i)(secret|passw(or)?d|passphrase|token|api_?key|private_?key|access_?key|credential|auth|dsn|cookie)"
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
MASK = "••••••"


def resolve(service: Service, host: Mapping[str, str], own: Mapping[str, str]) -> list[Variable]:
    """The variables, by name; each says where its value comes from.

    The host's environment, then the env files in their order, then `env`, then devloop's `own`: the later
    wins. Env files are read anew each time. Raises ServiceError if one is gone or can't be read.
    """
    values: dict[str, tuple[str, str]] = {name: (value, "host") for name, value in host.items()}
    for file in service.env_files:
        findings = Findings()
        known = {name: value for name, (value, _) in values.items()}
        try:
            found = read_env_file(file, known, findings)
        except OSError as error:
            raise ServiceError(
                f"can't read its env file: {error.strerror}", where=str(file), hint="mend `env_file`"
            ) from None
        if findings:
            problem = findings.problems({})[0]
            raise ServiceError(problem.message, where=f"{file}:{problem.line}", hint=problem.hint)
        values.update({name: (value, str(file)) for name, value in found.items()})
    values.update({name: (value, "devloop.toml") for name, value in service.env.items()})
    values.update({name: (value, "devloop") for name, value in own.items()})
    return [
        Variable(name, value, origin, is_secret(name, value))
        for name, (value, origin) in sorted(values.items())
    ]


def is_secret(name: str, value: str) -> bool:
    """Whether a variable looks as if it held a secret: by its name, or a password in a URL."""
    return bool(_SECRET.search(name) or _URL_PASSWORD.search(value))


def masked(variable: Variable) -> Variable:
    """The same with nothing of the secret in it."""
    return Variable(variable.name, MASK, variable.origin, True) if variable.secret else variable
