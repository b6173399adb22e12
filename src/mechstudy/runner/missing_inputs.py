"""What a unit that takes whatever came to be, the report, is told of the rest: failed, stopped or waiting, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mechstudy.runner.unit_state import UnitState, read_states
from mechstudy.study.run_folder import RunFolder
from mechstudy.study.unit import Unit


def absent_inputs(run: Path, unit: Unit, present: Collection[str]) -> list[dict[str, Any]]:
    """``{name, status, reason}`` of each input without an artifact, as the run's own files say.

    Args:
        present: labels of the inputs that are there.
    """
    names = [name for label, name in unit.inputs.items() if label not in present]
    if not names:
        return []
    told, states = RunFolder(run).read_progress().get("units", {}), read_states(run)
    return [{"name": name, **_state(told.get(name, {}), states.get(name))} for name in names]


def _state(told: Mapping[str, Any], state: UnitState | None) -> dict[str, Any]:
    """Of a unit that is not done: what its job said, or else the run."""
    if state is not None and state.state in ("failed", "stopped"):
        return {"status": state.state, "reason": state.reason}
    status = told.get("status")
    return {"status": status if status in ("failed", "stopped") else "pending", "reason": told.get("reason")}
