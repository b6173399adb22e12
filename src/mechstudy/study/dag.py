"""The DAG of units, and its evaluation against the artifacts on disk: ids, gates, and the units that must run.

A unit must run if it is a target without an artifact, or if another unit that must run needs files of it that were
discarded. Ids follow from specs and input ids; only a unit with optional inputs has an id that depends on which of
them exist.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.store.artifacts import Artifact, ArtifactStore, artifact_id
from mechstudy.study.unit import Unit


class Graph:
    """Units by name, in topological order, with their consumers.

    Raises:
        MechstudyError: two units share a name, an input is not a unit, or there is a cycle.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units: dict[str, Unit] = {}
        for unit in units:
            if unit.name in self.units:
                raise MechstudyError(f"two units are called {unit.name}")
            self.units[unit.name] = unit
        for unit in units:
            for name in (*unit.sources, *unit.gates):
                if name not in self.units:
                    raise MechstudyError(f"{unit.name} needs {name}, which is not a unit of this study")
        self.order = _topological(self.units)
        self.consumers: dict[str, list[str]] = {name: [] for name in self.order}
        for name in self.order:
            for source in self.units[name].sources:
                self.consumers[source].append(name)

    def required(self, name: str) -> tuple[str, ...]:
        """The units that this unit cannot run without: its inputs unless optional, and its gates."""
        unit = self.units[name]
        return tuple(dict.fromkeys([*(() if unit.phase.optional_inputs else unit.sources), *unit.gates]))

    def upstream(self, name: str) -> tuple[str, ...]:
        """The units that run before this one: all inputs, and gates."""
        unit = self.units[name]
        return tuple(dict.fromkeys([*unit.sources, *unit.gates]))

    def closure(self, targets: Iterable[str]) -> set[str]:
        """The targets and everything they require, directly or not."""
        result = set(targets)
        assert result <= self.units.keys(), f"no such units: {result - self.units.keys()}"
        for name in reversed(self.order):
            if name in result:
                result.update(self.required(name))
        return result

    def of_phase(self, phase: str) -> list[str]:
        """The names of a phase's units."""
        return [name for name in self.order if self.units[name].phase.name == phase]

    def check(self, names: Iterable[str]) -> None:
        """Refuses names that are not units.

        Raises:
            MechstudyError: with the nearest name, or the units of the phase that has the name.
        """
        for name in names:
            if name not in self.units:
                if units := self.of_phase(name):
                    raise MechstudyError(
                        f"{name} is a phase, not a unit", facts={"units": ", ".join(units)}, fix="name one of them"
                    )
                guess = nearest(name, self.units)
                raise MechstudyError(
                    f"the study has no unit {name}",
                    facts={"units": ", ".join(self.order)},
                    fix=f"did you mean {guess}?" if guess else None,
                )


def _topological(units: Mapping[str, Unit]) -> list[str]:
    """Inputs and gates first, then lower waves, then the order of the mapping."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for unit in units.values():
        sorter.add(unit.name, *unit.sources, *unit.gates)
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise MechstudyError(f"units need each other in a circle: {circle}") from None
    place = {unit.name: (unit.wave, number) for number, unit in enumerate(units.values())}
    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order


@dataclass
class Node:
    """The state of one unit: its id, its artifact if complete, and the reason if a gate stops it."""

    unit: Unit
    id: str | None = None
    artifact: Artifact | None = None
    stopped: str | None = None
    must_run: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """Phase, unit and id: the artifact's key in the store."""
        assert self.id is not None, f"{self.unit.name} has no id yet"
        return (self.unit.phase.name, self.unit.name, self.id)


class Evaluation:
    """The state of every unit in the store, for a set of targets.

    ``nodes`` follow the graph's order. ``refresh`` updates one unit after its inputs have run.
    """

    def __init__(
        self, graph: Graph, store: ArtifactStore, targets: Iterable[str] | None = None, force: Collection[str] = ()
    ) -> None:
        self.graph = graph
        self.store = store
        self.targets = set(graph.order if targets is None else targets)
        self.force = set(force)
        self.absent: set[str] = set()  # units that will not exist after this run
        self.nodes: dict[str, Node] = {}
        demanded = graph.closure(self.targets)
        for name in graph.order:
            self.nodes[name] = Node(graph.units[name])
            self.refresh(name, expected=demanded)
        self._decide()

    def refresh(self, name: str, *, expected: Collection[str] = ()) -> Node:
        """Computes a unit's gate, id and artifact from its inputs, counting ``expected`` units as done."""
        node = self.nodes[name]
        node.stopped = self._stopped(name)
        node.id = node.artifact = None
        inputs = self.inputs_present(name, expected)
        if node.stopped is None and inputs is not None:
            unit = node.unit
            ids = {source: self.nodes[source].id or "" for source in inputs}
            node.id = artifact_id(unit.phase.name, unit.phase.version, unit.canonical_spec, ids)
            node.artifact = self.store.find(*node.key)
        return node

    def inputs_present(self, name: str, expected: Collection[str] = ()) -> list[str] | None:
        """Its inputs that exist or will exist; None if a required one has no id."""
        unit = self.graph.units[name]
        if not unit.phase.optional_inputs:
            return list(unit.sources) if all(self.nodes[source].id for source in unit.sources) else None
        return [source for source in unit.sources if self._will_exist(source, expected)]

    def input_keys(self, name: str) -> dict[str, tuple[str, str, str]]:
        """The key of each input that a unit has."""
        return {source: self.nodes[source].key for source in self.inputs_present(name) or ()}

    def _will_exist(self, name: str, expected: Collection[str]) -> bool:
        node = self.nodes[name]
        if node.stopped is not None or node.id is None:
            return False
        return node.artifact is not None or (name in expected and name not in self.absent)

    def _stopped(self, name: str) -> str | None:
        """Why a gate stops the unit; None if none does."""
        unit = self.graph.units[name]
        for gate in unit.gates:
            artifact = self.nodes[gate].artifact
            if artifact is not None and (reason := self.graph.units[gate].phase.gate(artifact)) is not None:
                return reason
        for source in self.graph.required(name):
            if (reason := self.nodes[source].stopped) is not None:
                return reason
        return None

    def _decide(self) -> None:
        """Sets ``must_run``, consumers before their inputs."""
        wanted = set(self.targets)
        payload: set[str] = set()
        for name in reversed(self.graph.order):
            node = self.nodes[name]
            if node.stopped is not None or name not in wanted:
                continue
            missing = node.artifact is None or (name in payload and node.artifact.is_discarded)
            node.must_run = missing or name in self.force
            if node.must_run:
                wanted.update(self.graph.required(name))
                if node.unit.phase.reads_payload:
                    payload.update(node.unit.sources)
                    wanted.update(source for source in node.unit.sources if self._is_discarded(source))

    def _is_discarded(self, name: str) -> bool:
        artifact = self.nodes[name].artifact
        return artifact is not None and artifact.is_discarded

    @property
    def to_run(self) -> list[str]:
        """Units that must run, in order."""
        return [name for name, node in self.nodes.items() if node.must_run]

    def disposable(self, still_to_run: Collection[str]) -> list[str]:
        """Complete units whose retention is ``discard`` and whose payload no unit needs any more."""
        discarded = (name for name, node in self.nodes.items() if node.unit.retention == "discard")
        return [name for name in discarded if self.is_idle(name, still_to_run) and self.readers(name)]

    def readers(self, name: str) -> list[str]:
        """The units that read a unit's payload."""
        return [c for c in self.graph.consumers[name] if self.graph.units[c].phase.reads_payload]

    def is_idle(self, name: str, still_to_run: Collection[str]) -> bool:
        """Whether a unit is complete and every reader of its payload is complete or stopped by a gate."""
        readers = self.readers(name)
        settled = [self.nodes[c].artifact is not None or self.nodes[c].stopped is not None for c in readers]
        return self.nodes[name].artifact is not None and all(settled) and not {name, *readers} & set(still_to_run)
