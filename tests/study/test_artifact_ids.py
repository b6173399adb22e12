"""Artifact ids of six studies against those of an earlier version: finished runs stay finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechstudy.models.known import known_config
from mechstudy.models.shapes import shapes_of
from mechstudy.planning.source_choice import with_source
from mechstudy.store.manifest import artifact_id
from mechstudy.study.study import load_study
from mechstudy.study.unit import Unit
from mechstudy.study.units import build_units

ROOT = Path(__file__).parents[2]
GOLDEN: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "golden" / "artifact_ids.json").read_text())
MODELS = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "qwen": "Qwen/Qwen2.5-3B-Instruct"}


def units_of(case: dict[str, Any]) -> list[Unit]:
    study, _ = load_study(ROOT / case["file"], case["overrides"])
    if study.dictionaries.source == "auto":
        study = with_source(study, "store")
    config = known_config(MODELS[case["model"]])
    assert config is not None
    return build_units(study, shapes_of(config), "f" * 64, ROOT / "examples")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_studys_units_keep_their_ids(name: str) -> None:
    ids: dict[str, str] = {}
    for unit in units_of(GOLDEN[name]):
        inputs = {source: ids[source] for source in unit.sources}
        ids[unit.name] = artifact_id(unit.phase.name, unit.phase.version, unit.canonical_spec, inputs)
    assert ids == GOLDEN[name]["ids"]
