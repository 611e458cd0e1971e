"""Routes and ports as `devloop attach` takes them on the command line. Pure."""

from __future__ import annotations

import argparse
import re
from typing import Any

from devloop.config.model import SERVER_NAME
from devloop.errors import UsageError

_HEADER = re.compile(r"(?P<name>[!#$%&'*+.`|0-9A-Za-z_-]+)(?P<how>\^=|=|~)(?P<value>.*)", re.DOTALL)
"""A name of RFC 9110, 5.1, without the signs that part it from its value."""
_HOW = {"=": "exact", "^=": "prefix", "~": "regex"}


def routes(args: argparse.Namespace) -> str | list[dict[str, Any]] | None:
    """What is asked for: "all", "personal", one route of all conditions, or None. Raises UsageError."""
    conditions: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    for text in args.header or ():
        found = _HEADER.fullmatch(text)
        if found is None:
            raise UsageError(f"--header {text!r} is no header", hint="NAME=VALUE, as in --header x-user=ada")
        name = found["name"].lower()
        if name in headers:
            raise UsageError(f"--header names {name} twice, and a request has to fit both", hint="NAME~A|B fits either")
        headers[name] = {_HOW[found["how"]]: found["value"]}
    if headers:
        conditions["headers"] = headers
    if args.path is not None:
        conditions["path"] = _path(args.path)
    if args.method is not None:
        if not re.fullmatch(r"[A-Za-z]+", args.method):
            raise UsageError(f"--method {args.method!r} is no method", hint="as in --method GET")
        conditions["method"] = args.method.upper()
    if args.share is not None:
        conditions["share"] = _share(args.share)
    if args.sni is not None:
        conditions["sni"] = _server(args.sni)
        if len(conditions) > 1:
            raise UsageError("--sni takes whole connections, so no other condition can stand beside it")
    if not conditions:
        said: str | None = args.routes
        return said
    if args.routes == "personal" or (args.routes == "all" and set(conditions) != {"share"}):
        raise UsageError(
            f"--{args.routes} says which requests, and so do the conditions beside it", hint="leave one of them out"
        )
    return [conditions]


def _path(text: str) -> dict[str, str]:
    if text.startswith("~"):
        return {"regex": text[1:]}
    how, path = ("exact", text[1:]) if text.startswith("=") else ("prefix", text)
    if not path.startswith("/"):
        raise UsageError(f"--path {text!r} is no path", hint="a path starts with a slash, as in --path /v2")
    return {how: path}


def _server(text: str) -> str:
    if not re.fullmatch(SERVER_NAME, text):
        raise UsageError(f"--sni {text!r} is no name of a server", hint="as in --sni api.example.com, or *.example.com")
    return text.lower()


def _share(text: str) -> float:
    number = text.strip().removesuffix("%").strip()
    if not re.fullmatch(r"\d{1,3}(\.\d+)?", number) or not 0 < float(number) <= 100:
        raise UsageError(f"--share {text!r} is no share", hint="above 0 and up to 100 percent, as in --share 10")
    return float(number)


def ports(args: argparse.Namespace) -> dict[str, int | None] | None:
    """The Service's ports, and the local one of each. None: all of them. Raises UsageError."""
    found: dict[str, int | None] = {}
    for text in args.port or ():
        local, colon, remote = text.partition(":")
        if not colon:
            local, remote = "", text
        if not remote or (colon and not (local.isdecimal() and 0 < int(local) < 65536)):
            raise UsageError(
                f"--port {text!r} is neither LOCAL:REMOTE nor REMOTE", hint="as in --port 3000:http, or --port http"
            )
        if remote in found:
            raise UsageError(f"--port names {remote} of the Service twice")
        found[remote] = int(local) if colon else None
    return found or None
