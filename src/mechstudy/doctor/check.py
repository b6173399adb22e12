"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Check:
    """``found`` is the finding; ``warn``: works, but worse than it could; ``bad``: a study will fail here."""

    name: str
    status: Status
    found: str
    fix: str = ""
