"""Units as JSON, for processes that do not open the study themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from mechstudy.core.work import Estimate
from mechstudy.study.phases import registry
from mechstudy.study.unit import Input, Unit


def unit_as_json(unit: Unit) -> dict[str, Any]:
    """Everything of a unit; its phase by reference and version."""
    values = {item.name: getattr(unit, item.name) for item in fields(unit)}
    return values | {
        "phase": unit.phase.reference,
        "version": unit.phase.version,
        "spec": unit.canonical_spec,
        "inputs": [asdict(item) for item in unit.inputs],
        "estimate": asdict(unit.estimate),
    }


def unit_from_json(values: Mapping[str, Any]) -> Unit:
    """The unit, of this version of its phase."""
    phase = registry.phase(values["phase"])
    return Unit(
        **{
            **{item.name: values[item.name] for item in fields(Unit)},
            "phase": phase,
            "spec": phase.spec.model_validate(values["spec"]),
            "inputs": tuple(_input(item) for item in values["inputs"]),
            "gates": tuple(values["gates"]),
            "estimate": Estimate(**values["estimate"]),
        }
    )


def _input(item: Mapping[str, Any]) -> Input:
    key = item["key"]
    return Input(item["role"], item["unit"], tuple(key) if isinstance(key, list) else key)
