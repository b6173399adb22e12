"""The DAG of units against what is on disk: ids, gates, and which units have to run.

A unit has to run when it is asked for and its artifact is missing, or when a unit that has to run needs files
of it that were discarded. Ids are static: they follow from specs and input ids. Only a unit with optional
inputs has an id that depends on which of its inputs came to be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mechstudy.core.errors import MechstudyError, nearest
from mechstudy.store.artifacts import Artifact, ArtifactStore, artifact_id
from mechstudy.study.unit import Unit

BASELINE_SUMMARY = "summary.json"


class Graph:
    """Units by name, in topological order, with who consumes whom.

    Raises:
        MechstudyError: two units of one name, an input that is no unit, or a cycle.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units: dict[str, Unit] = {}
        for unit in units:
            if unit.name in self.units:
                raise MechstudyError(f"two units are called {unit.name}")
            self.units[unit.name] = unit
        for unit in units:
            for name in (*unit.inputs.values(), *unit.gates):
                if name not in self.units:
                    raise MechstudyError(f"{unit.name} needs {name}, which is no unit of this study")
        self.order = _topological(self.units)
        self.consumers: dict[str, list[str]] = {name: [] for name in self.order}
        for name in self.order:
            for source in dict.fromkeys(self.units[name].inputs.values()):
                self.consumers[source].append(name)

    def required(self, name: str) -> tuple[str, ...]:
        """The units whose artifacts this unit cannot do without: its inputs unless optional, and its gates."""
        unit = self.units[name]
        return tuple(dict.fromkeys([*(() if unit.optional_inputs else unit.inputs.values()), *unit.gates]))

    def upstream(self, name: str) -> tuple[str, ...]:
        """Everything that comes before this unit when both run: inputs of any kind, and gates."""
        unit = self.units[name]
        return tuple(dict.fromkeys([*unit.inputs.values(), *unit.gates]))

    def closure(self, targets: Iterable[str]) -> set[str]:
        """The targets and everything they require, directly or not."""
        found: set[str] = set()
        stack = list(targets)
        while stack:
            name = stack.pop()
            if name not in found:
                found.add(name)
                stack.extend(self.required(name))
        return found

    def of_phase(self, phase: str) -> list[str]:
        """The names of a phase's units."""
        return [name for name in self.order if self.units[name].phase == phase]

    def check(self, names: Iterable[str]) -> None:
        """Refuses a name that is no unit, with the nearest one."""
        for name in names:
            if name not in self.units:
                if found := self.of_phase(name):
                    raise MechstudyError(
                        f"{name} is a phase, and no unit", facts={"units": ", ".join(found)}, fix="name one of them"
                    )
                guess = nearest(name, self.units)
                raise MechstudyError(
                    f"the study has no unit {name}",
                    facts={"units": ", ".join(self.order)},
                    fix=f"did you mean {guess}?" if guess else None,
                )


def _topological(units: Mapping[str, Unit]) -> list[str]:
    """The given order where it already is topological, else the nearest one to it."""
    order: list[str] = []
    placed: set[str] = set()
    visiting: set[str] = set()

    def place(name: str) -> None:
        if name in placed:
            return
        if name in visiting:
            raise MechstudyError(f"{name} needs itself, through {', '.join(sorted(visiting - {name})) or 'its inputs'}")
        visiting.add(name)
        for source in (*units[name].inputs.values(), *units[name].gates):
            place(source)
        visiting.discard(name)
        placed.add(name)
        order.append(name)

    for name in units:
        place(name)
    return order


@dataclass
class Node:
    """What is known of one unit: its id, its artifact where complete, and why it is stopped where a gate says so."""

    unit: Unit
    id: str | None = None
    artifact: Artifact | None = None
    stopped: str | None = None
    must_run: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """Phase, unit and id: where the store has its artifact."""
        assert self.id is not None, f"{self.unit.name} has no id yet"
        return (self.unit.phase, self.unit.name, self.id)


class Evaluation:
    """Every unit against the store, for a set of targets.

    ``nodes`` follow the graph's order. ``refresh`` looks at one unit again once its inputs are settled.
    """

    def __init__(
        self,
        graph: Graph,
        store: ArtifactStore,
        targets: Iterable[str] | None = None,
        force: Collection[str] = (),
    ) -> None:
        self.graph = graph
        self.store = store
        self.targets = set(graph.order if targets is None else targets)
        self.force = set(force)
        self.absent: set[str] = set()  # units that will not come to be in this run
        self.nodes: dict[str, Node] = {}
        demanded = graph.closure(self.targets)
        for name in graph.order:
            self.nodes[name] = Node(graph.units[name])
            self.refresh(name, expected=demanded)
        self._decide()

    def refresh(self, name: str, *, expected: Collection[str] = ()) -> Node:
        """Computes a unit's gate, id and artifact from its inputs as they are, or as ``expected`` to become."""
        node = self.nodes[name]
        node.stopped = self._stopped(name)
        node.id = node.artifact = None
        inputs = self.inputs_present(name, expected)
        if node.stopped is None and inputs is not None:
            unit = node.unit
            ids = {label: self.nodes[source].id or "" for label, source in inputs.items()}
            node.id = artifact_id(unit.phase, unit.version, unit.spec, ids)
            node.artifact = self.store.find(unit.phase, unit.name, node.id)
        return node

    def inputs_present(self, name: str, expected: Collection[str] = ()) -> dict[str, str] | None:
        """label -> unit of the inputs it has or will have; None when a required one has no id."""
        unit = self.graph.units[name]
        if not unit.optional_inputs:
            return dict(unit.inputs) if all(self.nodes[s].id for s in unit.inputs.values()) else None
        return {label: s for label, s in unit.inputs.items() if self._comes_to_be(s, expected)}

    def input_keys(self, name: str) -> dict[str, tuple[str, str, str]]:
        """label -> key of the inputs that a unit has."""
        return {label: self.nodes[source].key for label, source in (self.inputs_present(name) or {}).items()}

    def _comes_to_be(self, name: str, expected: Collection[str]) -> bool:
        node = self.nodes[name]
        if node.stopped is not None or node.id is None:
            return False
        return node.artifact is not None or (name in expected and name not in self.absent)

    def _stopped(self, name: str) -> str | None:
        """Why a gate stops this unit, or None."""
        unit = self.graph.units[name]
        for gate in unit.gates:
            if (reason := gate_closed(gate, self.nodes[gate].artifact)) is not None:
                return reason
        for source in self.graph.required(name):
            if (reason := self.nodes[source].stopped) is not None:
                return reason
        return None

    def _decide(self) -> None:
        """Sets ``must_run``, consumers before what they consume."""
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
                if node.unit.reads_payload:
                    payload.update(node.unit.inputs.values())
                    wanted.update(source for source in node.unit.inputs.values() if self._is_discarded(source))

    def _is_discarded(self, name: str) -> bool:
        artifact = self.nodes[name].artifact
        return artifact is not None and artifact.is_discarded

    @property
    def to_run(self) -> list[str]:
        """Units that have to run, in order."""
        return [name for name, node in self.nodes.items() if node.must_run]

    def disposable(self, still_to_run: Collection[str]) -> list[str]:
        """Complete units whose payload nobody needs any more and whose retention is to discard it."""
        discarded = (name for name, node in self.nodes.items() if node.unit.retention == "discard")
        return [name for name in discarded if self.is_idle(name, still_to_run) and self.readers(name)]

    def readers(self, name: str) -> list[str]:
        """The units that read a unit's payload."""
        return [c for c in self.graph.consumers[name] if self.graph.units[c].reads_payload]

    def is_idle(self, name: str, still_to_run: Collection[str]) -> bool:
        """Whether a unit is complete and every reader of its payload has its artifact, or is stopped by a gate."""
        readers = self.readers(name)
        settled = [self.nodes[c].artifact is not None or self.nodes[c].stopped is not None for c in readers]
        return self.nodes[name].artifact is not None and all(settled) and not {name, *readers} & set(still_to_run)


def gate_closed(gate: str, artifact: Artifact | None) -> str | None:
    """Why a baseline's gate is closed, in one line; None when it is open or not known yet."""
    if artifact is None:
        return None
    summary = artifact.read_json(BASELINE_SUMMARY)
    verdict = summary.get("gate") or {}
    if verdict.get("passed") is not False or verdict.get("on_fail") == "continue":
        return None
    splits = {name: split.get("accuracy") for name, split in (summary.get("splits") or {}).items()}
    accuracy = ", ".join(f"{value:.0%} on {name}" for name, value in splits.items() if value is not None)
    asked = verdict.get("min_accuracy")
    facts = [f"accuracy {accuracy}" if accuracy else "", f"the gate asks for {asked:.0%}" if asked is not None else ""]
    detail = "; ".join(fact for fact in facts if fact)
    return f"{gate} did not pass" + (f" ({detail})" if detail else "")
