"""The registry of phases: complete, extended by a line, and units that survive JSON."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mechstudy.core.errors import MechstudyError
from mechstudy.models.known import known_config
from mechstudy.models.shapes import shapes_of
from mechstudy.store.manifest import artifact_id
from mechstudy.study import phases as package
from mechstudy.study.phases import registry
from mechstudy.study.phases.base import Phase
from mechstudy.study.study import load_study
from mechstudy.study.unit import Unit
from mechstudy.study.units import build_units, unit_as_json, unit_from_json

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = Path(package.__file__).parent
NOPHASES = {"__init__", "base", "registry"}
VARIED = ["dictionaries.variants=[{name: again}]"]
STREAMED = ["dictionaries.source=stream", *VARIED]

TOY = '''
"""Counts the behaviours of a study."""

from dataclasses import dataclass

from mechstudy.study.phases.base import Phase, Spec
from mechstudy.study.phases.model import ModelArtifact, ModelPhase


class CountSpec(Spec):
    behaviours: int


@dataclass(frozen=True)
class CountInputs:
    model: ModelArtifact


class CountPhase(Phase[CountSpec, CountInputs]):
    kind = name = "count"
    title = "Count"
    version = 1
    spec, inputs = CountSpec, CountInputs

    def units(self, plan):
        spec = CountSpec(behaviours=len(plan.study.behaviours))
        yield plan.unit(self, self.kind, spec, plan.inputs("model", ModelPhase))

    def run(self, spec, inputs, out, runtime):
        out.write_json("count.json", spec.behaviours)
'''


def demo(*overrides: str) -> list[Unit]:
    study, _ = load_study(EXAMPLES / "demo.yaml", overrides)
    config = known_config("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert config is not None
    return build_units(study, shapes_of(config), "f" * 64, EXAMPLES)


@pytest.fixture
def before():
    """The demo's units by name, without the new phase."""
    return {unit.name: unit for unit in demo()}


@pytest.fixture
def count_phase(before, tmp_path, monkeypatch):
    """One new file beside the phases, and one line in the registry."""
    (tmp_path / "count.py").write_text(TOY)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "PHASES", {**registry.PHASES, "count": "count:CountPhase"})
    registry.phase.cache_clear()
    yield registry.phase("count")
    sys.modules.pop("mechstudy.study.phases.count")
    registry.phase.cache_clear()


def test_every_file_of_phases_is_in_the_registry():
    registered = {type(phase) for phase in registry.phases()}
    for file in sorted(FOLDER.glob("*.py")):
        if file.stem in NOPHASES:
            continue
        module = importlib.import_module(f"{package.__name__}.{file.stem}")
        own = {
            item
            for item in vars(module).values()
            if inspect.isclass(item) and issubclass(item, Phase) and item.__module__ == module.__name__
        }
        assert own and own <= registered, file.name


def test_kinds_are_unique_and_find_their_phase():
    kinds = [phase.kind for phase in registry.phases()]
    assert len(set(kinds)) == len(kinds)
    assert all(registry.phase(phase.reference) is phase for phase in registry.phases())


def test_phases_that_share_a_name_share_its_version():
    versions = {}
    for phase in registry.phases():
        assert versions.setdefault(phase.name, phase.version) == phase.version


def test_an_artifact_is_attributed_to_the_phase_of_its_unit():
    for unit in (*demo(*VARIED), *demo(*STREAMED)):
        assert registry.phase_of(unit.phase.name, unit.canonical_spec) is unit.phase
    assert registry.phase_of("of another version", {}) is None


def test_every_input_fills_a_role_of_its_phase():
    for unit in (*demo(*VARIED), *demo(*STREAMED)):
        if not unit.phase.concludes:
            assert {item.role for item in unit.inputs} <= {field.name for field in fields(unit.phase.inputs)}, unit.name


def test_a_new_phase_needs_one_file_and_one_line(count_phase):
    units = {unit.name: unit for unit in demo()}
    assert units["count"].phase is count_phase and units["count"].sources == ("model",)
    assert units["count"].canonical_spec == {"behaviours": 2}
    assert registry.names()[-1] == "count" and "count" in registry.usage_profiles()
    assert unit_from_json(json.loads(json.dumps(unit_as_json(units["count"])))) == units["count"]


def test_a_new_phase_changes_no_unit_but_the_report(before, count_phase):
    after = {unit.name: unit for unit in demo()}
    assert after.keys() - before.keys() == {"count"}
    for name, unit in before.items():
        if not unit.phase.concludes:
            assert after[name].canonical_spec == unit.canonical_spec and after[name].inputs == unit.inputs


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(MechstudyError, match="there is no phase 'trian'") as error:
        registry.phase("trian")
    assert error.value.fix == "did you mean 'train'?"


@pytest.mark.parametrize("overrides", [VARIED, STREAMED], ids=["stored", "streamed"])
def test_a_spec_from_json_gives_the_same_id(overrides):
    for unit in demo(*overrides):
        values = json.loads(json.dumps(unit.canonical_spec))
        again = unit.phase.spec.model_validate(values)
        ids = [
            artifact_id(unit.phase.name, unit.phase.version, spec, {})
            for spec in (unit.canonical_spec, again.canonical())
        ]
        assert ids[0] == ids[1], unit.name


@pytest.mark.parametrize("overrides", [VARIED, STREAMED], ids=["stored", "streamed"])
def test_a_unit_survives_json(overrides):
    for unit in demo(*overrides):
        again = unit_from_json(json.loads(json.dumps(unit_as_json(unit))))
        assert again.phase is unit.phase and again.canonical_spec == unit.canonical_spec
        assert unit_as_json(again) == unit_as_json(unit), unit.name
        if not unit.phase.concludes:
            assert again == unit, unit.name
