"""`mechstudy status`: every unit's state, from the files of the run alone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mechstudy.core.errors import MechstudyError
from mechstudy.core.jsonio import read_json
from mechstudy.core.lock import RunLock
from mechstudy.core.progress import duration
from mechstudy.execution.engine import Run
from mechstudy.execution.graph import Node


@dataclass(frozen=True)
class UnitStatus:
    """``status``: done, running, failed, stopped or pending; ``detail``: progress, or the reason."""

    name: str
    phase: str
    status: str
    seconds: float | None = None
    artifact: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Status:
    """The units, and the process that runs them now: ``{pid, host, since}`` or None."""

    units: list[UnitStatus]
    holder: dict[str, Any] | None

    def counts(self) -> dict[str, int]:
        """status -> how many units."""
        found: dict[str, int] = {}
        for unit in self.units:
            found[unit.status] = found.get(unit.status, 0) + 1
        return found


def read_status(run: Run) -> Status:
    """Every unit as the files say; the running ones with their progress."""
    holder = RunLock.holder(run.folder.path)
    told = run.folder.read_progress().get("units", {})
    evaluation = run.evaluate()
    return Status([_unit(run, node, told.get(name, {}), holder) for name, node in evaluation.nodes.items()], holder)


def _unit(run: Run, node: Node, told: dict[str, Any], holder: dict[str, Any] | None) -> UnitStatus:
    name, phase = node.unit.name, node.unit.phase
    if node.stopped is not None:
        return UnitStatus(name, phase, "stopped", detail=node.stopped)
    if told.get("status") == "running" and holder is not None:
        detail, seconds = _live(run, told.get("artifact", ""))
        return UnitStatus(name, phase, "running", seconds, detail=detail)
    if node.artifact is not None:
        detail = "payload discarded" if node.artifact.is_discarded else ""
        seconds = node.artifact.manifest.get("seconds")
        return UnitStatus(name, phase, "done", seconds, run.folder.relative(node.artifact.path), detail)
    if told.get("status") == "failed":
        reason = str(told.get("reason") or "see log.txt")
        return UnitStatus(name, phase, "failed", told.get("seconds"), detail=reason)
    if node.id is not None and not told.get("reason") and run.folder.store.others(phase, name, node.id):
        return UnitStatus(name, phase, "pending", detail="done for another version of the study; will run again")
    begun = node.id is not None and run.folder.store.partial(phase, name, node.id) is not None
    detail = str(told.get("reason") or "")
    return UnitStatus(name, phase, "pending", detail=detail or ("begun; will be resumed" if begun else ""))


def _live(run: Run, artifact: str) -> tuple[str, float | None]:
    """The unit's own progress file as a line, and the seconds since it began."""
    scratch = run.folder.path / f"{artifact}.partial" / ".scratch"
    with suppress(MechstudyError, TypeError, ValueError):
        found = read_json(scratch / "progress.json")
        total = f"/{found['total']:,}" if found.get("total") else ""
        parts = [f"{found['label']} {found['done']:,}{total} {found['counts']}".strip()]
        if found.get("rate"):
            parts.append(f"{found['rate']:,.3g} {found['counts']}/s")
        if found.get("eta") is not None and found["done"] < (found.get("total") or 0):
            parts.append(f"{duration(found['eta'])} left")
        return ", ".join([*parts, *found.get("info", [])]), _since(scratch)
    return "", _since(scratch)


def _since(scratch: Any) -> float | None:
    from datetime import UTC, datetime

    with suppress(MechstudyError, TypeError, ValueError, IndexError):
        began = datetime.fromisoformat(read_json(scratch / "sessions.json")[-1])
        return (datetime.now(UTC) - began).total_seconds()
    return None
