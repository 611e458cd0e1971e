"""What the cluster's own commands report: what went wrong, and what to do next."""

from __future__ import annotations


class ClusterError(Exception):
    """The test cluster can't be built, started, reached or taken away.

    `what` says what happened and where; `hint` what to do about it. Shown without a traceback.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  {self.hint}" if self.hint else self.what
