"""One thing that was looked at: how it is, what was found, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Check:
    """``warn``: it works, worse than it could; ``bad``: a study will fail here. ``fix`` says what to do about it."""

    name: str
    status: Status
    found: str
    fix: str = ""


def looked(checks: Iterable[Callable[[], list[Check]]]) -> Iterator[Check]:
    """Each check in turn; one that fails itself is a warning, and the others go on."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = check.__name__.strip("_").replace("_", " ")
            yield Check(name, "warn", f"could not be looked at: {type(error).__name__}: {error}")
