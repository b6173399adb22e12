"""The units of a study: every phase declares its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mechstudy.behaviours.user import Outline
from mechstudy.models.shapes import ModelShapes
from mechstudy.study.dag import Graph
from mechstudy.study.phases import registry
from mechstudy.study.study import Study
from mechstudy.study.study_plan import StudyPlan
from mechstudy.study.unit import Unit


def build_units(
    study: Study, shapes: ModelShapes, fingerprint: str, base: Path, outlines: Mapping[str, Outline] | None = None
) -> list[Unit]:
    """Every unit of the study, inputs before their readers, wave by wave.

    Args:
        shapes: of the study's model.
        fingerprint: of the model's files, so that other weights under the same name are another study.
        base: the study file's folder; relative paths in the study start there.
        outlines: of the behaviours' own prompt files (`preflight.outlines`); only estimates use them.

    Raises:
        MechstudyError: a layer, a width or a file that does not exist; ``where`` is the field of the study.
    """
    assert study.dictionaries.source != "auto", "planning.source_choice comes first"
    plan = StudyPlan(study, shapes, fingerprint, base, outlines or {})
    for phase in registry.phases():
        plan.units.extend(phase.units(plan))
    graph = Graph(plan.units)
    return [graph.units[name] for name in graph.order]
