"""The rule for names of services, groups and ports. Apart from `values`, which takes pydantic: a shell asks for names
at each TAB."""

from __future__ import annotations

import re

PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""A DNS label, as the names of Services are in Kubernetes (RFC 1123)."""
LABEL = re.compile(PATTERN)
