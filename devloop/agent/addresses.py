"""Addresses as text."""

from __future__ import annotations


def bracketed(host: str) -> str:
    """A host as a URL has it: an IPv6 address stands in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def host_port(host: str, port: int) -> str:
    """Both as a URL has them: `api:80`, `10.0.0.1:80`, `[fd00::1]:80`."""
    return f"{bracketed(host)}:{port}"
