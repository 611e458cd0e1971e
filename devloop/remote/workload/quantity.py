"""Kubernetes resource quantities ("500m", "64Mi") and the whole numbers that the downward API makes of them.

Source of the rules: `k8s.io/apimachinery/pkg/api/resource.Quantity`, and `ExtractContainerResourceValue` in
the kubelet's `pkg/api/v1/resource/helpers.go`.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)")
_SUFFIXES = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    **{suffix: Fraction(1000 ** (power + 1)) for power, suffix in enumerate("kMGTPE")},
    **{f"{suffix}i": Fraction(1024 ** (power + 1)) for power, suffix in enumerate("KMGTPE")},
}


def parse(text: str) -> Fraction:
    """The exact value of a quantity. Raises ValueError if it is none."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
    number, exponent, suffix = match.groups()
    if exponent:
        return Fraction(number) * Fraction(10) ** int(exponent[1:])
    return Fraction(number) * _SUFFIXES[suffix or ""]


def divided(text: str, divisor: str, *, milli: bool) -> str:
    """A quantity in units of `divisor`, rounded up, as the downward API prints it.

    CPU is counted in thousandths (`milli`), everything else in ones, and both sides are rounded up to that
    first. A divisor of nothing or zero is one.
    """
    scale = 1000 if milli else 1
    unit = math.ceil(parse(divisor or "0") * scale) or scale
    return str(math.ceil(Fraction(math.ceil(parse(text or "0") * scale), unit)))
