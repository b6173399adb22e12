"""The units of a study, declared by its phases; and units as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mechstudy.behaviours.user import Outline
from mechstudy.core.config import Config
from mechstudy.core.seeds import seed_for
from mechstudy.core.work import Estimate
from mechstudy.models.shapes import ModelShapes
from mechstudy.store.artifacts import ArtifactStore
from mechstudy.study.costs import Costs
from mechstudy.study.dag import Graph
from mechstudy.study.phases import registry
from mechstudy.study.phases.base import Phase, made_by
from mechstudy.study.published import Published, layers_of, published_dictionaries
from mechstudy.study.study import BehaviourConfig, Study
from mechstudy.study.unit import Input, Unit


class StudyPlan:
    """A study while its phases declare their units: the model's shapes and costs, and the units so far.

    Args:
        fingerprint: of the model's files, so that other weights under the same name are another study.
        base: the study file's folder; relative paths start there.
        outlines: of the behaviours' own prompt files; only estimates use them.
        sha256: of what the fingerprint does not read (`fingerprints.Content`).
        published: the study's published dictionaries, if they have been read.
    """

    def __init__(
        self,
        study: Study,
        shapes: ModelShapes,
        fingerprint: str,
        base: Path,
        outlines: Mapping[str, Outline],
        sha256: str | None = None,
        published: Sequence[Published] | None = None,
    ) -> None:
        self.study, self.shapes, self.base = study, shapes, base
        self.fingerprint, self.sha256 = fingerprint, sha256
        d = study.dictionaries
        if published is None:
            published = () if d.published is None else published_dictionaries(d, shapes, base)
        self.published = tuple(published)
        basis = study.attribution.basis
        self.costs = Costs(study, shapes, outlines, self.published)
        layers = layers_of(d.layers, shapes.n_layers, "dictionaries.layers")
        self.layers: tuple[int, ...] = () if basis == "neurons" else layers
        """Layers that have a dictionary."""
        free = range(shapes.n_layers) if basis in ("neurons", "mixed") and not shapes.n_idle_parameters else ()
        self.neuron_layers = tuple(layer for layer in free if layer not in self.layers)
        """Layers whose neurons are nodes of graphs."""
        self.units: list[Unit] = []

    @property
    def layer_groups(self) -> list[tuple[int, ...]]:
        """Layers that are captured, or streamed, in one pass; a group's index is its wave."""
        size = self.study.dictionaries.layers_per_pass
        return [self.layers[start : start + size] for start in range(0, len(self.layers), size)]

    def made_by(self, phase: type[Phase[Any, Any]], **about: Any) -> list[Unit]:
        """Units of a phase declared so far."""
        return made_by(self.units, phase, **about)

    def inputs(self, role: str, phase: type[Phase[Any, Any]], key: str | None = None, **about: Any) -> list[Input]:
        """The phase's units as inputs of a role, distinguished by their attribute ``key``."""
        units = self.made_by(phase, **about)
        return [Input(role, unit.name, None if key is None else getattr(unit, key)) for unit in units]

    def dictionaries(self) -> list[Input]:
        """Every layer's own dictionary, trained or published, as inputs distinguished by their layer."""
        own = [unit for unit in self.units if unit.phase.report_field == "dictionaries"]
        return [Input("dictionaries", unit.name, unit.layer) for unit in own]

    def gates(self, phase: type[Phase[Any, Any]], behaviour: BehaviourConfig) -> tuple[str, ...]:
        """The names of the phase's units of a behaviour, as gates of another of its units."""
        return tuple(unit.name for unit in self.made_by(phase, behaviour=behaviour.name))

    def seed(self, unit: str, purpose: str) -> int:
        """The seed of a unit for one purpose."""
        return seed_for(self.study.seed, unit, purpose)

    def unit(self, phase: Phase[Any, Any], name: str, spec: Any, inputs: Sequence[Input] = (), **fields: Any) -> Unit:
        """A unit with the retention that the study gives its kind."""
        retention = self.study.storage.retain.get(phase.kind, phase.retention)
        return Unit(name, phase, spec, tuple(inputs), retention=retention, **fields)


def span(layers: Sequence[int]) -> str:
    """``0-9`` for consecutive layers, ``2,5,8`` otherwise."""
    first, last = layers[0], layers[-1]
    if first == last:
        return str(first)
    return f"{first}-{last}" if last - first + 1 == len(layers) else ",".join(map(str, layers))


def build_units(
    study: Study,
    shapes: ModelShapes,
    fingerprint: str,
    base: Path,
    outlines: Mapping[str, Outline] | None = None,
    sha256: str | None = None,
    published: Sequence[Published] | None = None,
) -> list[Unit]:
    """Every unit of the study, inputs before their readers, wave by wave.

    Args:
        shapes: of the study's model.
        fingerprint: of the model's files, so that other weights under the same name are another study.
        base: the study file's folder; relative paths in the study start there.
        outlines: of the behaviours' own prompt files (`preflight.outlines`); only estimates use them.
        sha256: of what the model's fingerprint does not read (`fingerprints.Content`).
        published: the study's published dictionaries, if they have been read.

    Raises:
        MechstudyError: a layer, a width or a file that does not exist; ``where`` is the field of the study.
    """
    assert study.dictionaries.source != "auto", "planning.source_choice comes first"
    plan = StudyPlan(study, shapes, fingerprint, base, outlines or {}, sha256, published)
    for phase in registry.phases():
        plan.units.extend(phase.units(plan))
    graph = Graph(plan.units)
    return [graph.units[name] for name in graph.order]


def with_earlier_specs(units: Sequence[Unit], store: ArtifactStore, base: Path) -> list[Unit]:
    """The units; each whose artifact an earlier version made from the same files keeps that artifact's spec and id."""
    return [replace(unit, spec=spec) if (spec := _earlier(unit, store, base)) is not None else unit for unit in units]


def _earlier(unit: Unit, store: ArtifactStore, base: Path) -> Config | None:
    if type(unit.phase).earlier_spec is Phase.earlier_spec:
        return None
    artifacts = store.others(unit.phase.name, unit.name, "")
    specs = (unit.phase.earlier_spec(unit.spec, artifact, base) for artifact in artifacts)
    return next((spec for spec in specs if spec is not None), None)


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
            "inputs": tuple(
                Input(**(item | {"key": tuple(item["key"])} if isinstance(item["key"], list) else item))
                for item in values["inputs"]
            ),
            "gates": tuple(values["gates"]),
            "estimate": Estimate(**values["estimate"]),
        }
    )
