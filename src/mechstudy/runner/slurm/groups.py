"""The arrays of a study's units, and their dependencies.

An array per phase, and one per behaviour for units about a behaviour, so that nothing else waits for it or fails with
it; in waves where the disk is small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from mechstudy.store.manifest import slug
from mechstudy.study.dag import Graph

TOGETHER = "behaviours"


@dataclass
class Group:
    """Units of one phase that are submitted together.

    ``units`` are all of them in order, so that a unit keeps its index; ``after`` are the keys of groups that some of
    them depend on. ``takes_what_is_there``: it starts once those have ended, whether well or not.
    """

    key: str
    phase: str
    units: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    takes_what_is_there: bool = False


def groups_of(
    graph: Graph,
    *,
    one_capture_at_a_time: bool = False,
    largest: int = 1001,
    concurrent: Callable[[str], int | None] = lambda _: None,
) -> list[Group]:
    """Every unit of a study in groups, each group after those it depends on.

    Args:
        one_capture_at_a_time: captured rows that are deleted after use are captured once the rows before them are
            deleted: where the disk does not hold all at once.
        largest: a group has fewer units than that (Slurm's MaxArraySize).
        concurrent: how many of a phase's units may run at once. Where there are more behaviours than that, theirs stay
            in one array, as only an array's elements can be limited.
    """
    waves = _waves(graph) if one_capture_at_a_time else {}
    n_behaviours = len({unit.behaviour for unit in graph.units.values() if unit.behaviour is not None})
    groups: dict[tuple[str, int, str], list[Group]] = {}
    of_unit: dict[str, Group] = {}
    for name in graph.order:
        unit, wave = graph.units[name], waves.get(name, 0)
        phase, behaviour = unit.phase.name, slug(unit.behaviour) if unit.behaviour else ""
        if behaviour and n_behaviours > (concurrent(phase) or n_behaviours):
            behaviour = TOGETHER
        parts = groups.setdefault((phase, wave, behaviour), [])
        if not parts or len(parts[-1].units) >= largest - 1:
            key = ".".join(filter(None, (phase, behaviour))) + (f"-wave{wave + 1}" if wave else "")
            key = key if not parts else f"{key}-part{len(parts) + 1}"
            parts.append(Group(key, phase, takes_what_is_there=unit.phase.optional_inputs))
        parts[-1].units.append(name)
        of_unit[name] = parts[-1]
    for group in {group.key: group for group in of_unit.values()}.values():
        before = [of_unit[source].key for name in group.units for source in graph.upstream(name)]
        for name in group.units:  # rows of the wave before are deleted once they were read
            if graph.units[name].retention == "discard" and waves.get(name):
                wave_before = (reader for reader, wave in waves.items() if wave == waves[name] - 1)
                before += [of_unit[n].key for n in wave_before if graph.units[n].retention != "discard"]
        group.after = [key for key in dict.fromkeys(before) if key != group.key]
    return _in_order(list({group.key: group for group in of_unit.values()}.values()))


def dependency(before: Sequence[str], *, takes_what_is_there: bool) -> str:
    """The dependency on other jobs, for sbatch (ids of arrays or elements); empty without any."""
    kind = "afterany" if takes_what_is_there else "afterok"
    return f"{kind}:{':'.join(before)}" if before else ""


def _waves(graph: Graph) -> dict[str, int]:
    """Unit -> its wave: units whose payload is deleted after use, one after another, each with its readers."""
    waves: dict[str, int] = {}
    discarded = [name for name in graph.order if graph.units[name].retention == "discard"]
    for wave, source in enumerate(discarded):
        waves[source] = wave
        for reader in graph.consumers[source]:
            if graph.units[reader].phase.reads_payload:
                waves[reader] = wave
    return waves


def _in_order(groups: Sequence[Group]) -> list[Group]:
    """The groups, each after those it depends on."""
    left, placed, ordered = list(groups), set[str](), list[Group]()
    while left:
        ready = next((group for group in left if set(group.after) <= placed), None)
        assert ready is not None, f"phases wait for each other: {[group.key for group in left]}"
        left.remove(ready)
        placed.add(ready.key)
        ordered.append(ready)
    return ordered


def sparse(indices: Collection[int]) -> str:
    """``0-3,7`` of 0, 1, 2, 3, 7: as ``--array`` takes them."""
    parts: list[list[int]] = []
    for index in sorted(set(indices)):
        if parts and index == parts[-1][-1] + 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)
