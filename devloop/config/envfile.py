"""Env files, as python-dotenv reads them, with the given variables instead of the process's own."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from devloop.config.problems import Findings, Spot


def read_env_file(file: Path, environ: Mapping[str, str], findings: Findings) -> dict[str, str]:
    """The variables that the file sets; `${VAR}` in a value is looked up in `environ`, then in the file.

    A line that can't be read is a finding. A name without `=` sets nothing. Raises OSError.
    """
    # 20 ms to import, and most projects have no env file.
    from dotenv.parser import parse_stream
    from dotenv.variables import parse_variables

    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        findings.add(Spot(file, line, 1), "this is not UTF-8 text")
        return {}
    values: dict[str, str] = {}
    known = ChainMap(dict(environ), values)
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            blank = len(binding.original.string) - len(binding.original.string.lstrip())
            line = binding.original.line + binding.original.string[:blank].count("\n")
            findings.add(Spot(file, line, 1), "expected NAME=value", "quotes must be closed")
        elif binding.key is not None and binding.value is not None:
            values[binding.key] = "".join(a.resolve(known) for a in parse_variables(binding.value))
    return values
