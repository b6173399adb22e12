"""Which units make one array, and which arrays wait for which: a phase each, in waves where the disk is small."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from mechstudy.execution.graph import Graph

_PAYLOAD_READERS = ("train", "variant")  # phases that are in the wave of the capture they read


@dataclass
class Group:
    """Units of one phase that are submitted together. ``units`` are all of them in order, so that a unit keeps its
    index; ``after`` are the keys of groups whose units come before some of these."""

    key: str
    phase: str
    units: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def groups_of(graph: Graph, *, one_capture_at_a_time: bool = False, largest: int = 1001) -> list[Group]:
    """Every unit of a study in groups, those that come first before those that wait for them.

    Args:
        one_capture_at_a_time: captured rows that are to be deleted after use are captured only once those before
            are: where the disk does not hold them all at once.
        largest: a group has fewer units than that (Slurm's MaxArraySize).
    """
    waves = _waves(graph) if one_capture_at_a_time else {}
    groups: dict[tuple[str, int], list[Group]] = {}
    of_unit: dict[str, Group] = {}
    for name in graph.order:
        phase, wave = graph.units[name].phase, waves.get(name, 0)
        parts = groups.setdefault((phase, wave), [])
        if not parts or len(parts[-1].units) >= largest - 1:
            key = phase if wave == 0 else f"{phase}-wave{wave + 1}"
            parts.append(Group(key if not parts else f"{key}-part{len(parts) + 1}", phase))
        parts[-1].units.append(name)
        of_unit[name] = parts[-1]
    for (phase, wave), parts in groups.items():
        for group in parts:
            before = [of_unit[source].key for name in group.units for source in graph.upstream(name)]
            if phase == "capture" and wave:
                readers = [(reader, wave - 1) for reader in _PAYLOAD_READERS]
                before += [part.key for reader in readers for part in groups.get(reader, [])]
            group.after = [key for key in dict.fromkeys(before) if key != group.key]
    return _in_order([group for parts in groups.values() for group in parts])


def _waves(graph: Graph) -> dict[str, int]:
    """Captures whose rows are deleted after use, one after the other, each with those who read it."""
    waves: dict[str, int] = {}
    discarded = [n for n in graph.order if graph.units[n].phase == "capture" and graph.units[n].retention == "discard"]
    for wave, capture in enumerate(discarded):
        waves[capture] = wave
        for reader in graph.consumers[capture]:
            if graph.units[reader].phase in _PAYLOAD_READERS:
                waves[reader] = wave
    return waves


def _in_order(groups: Sequence[Group]) -> list[Group]:
    """Groups such that each comes after those it waits for."""
    left, placed, found = list(groups), set[str](), list[Group]()
    while left:
        ready = next((group for group in left if set(group.after) <= placed), None)
        assert ready is not None, f"phases wait for each other: {[group.key for group in left]}"
        left.remove(ready)
        placed.add(ready.key)
        found.append(ready)
    return found


def sparse(indices: Collection[int]) -> str:
    """``0-3,7`` of 0, 1, 2, 3, 7: as ``--array`` takes them."""
    parts: list[list[int]] = []
    for index in sorted(set(indices)):
        if parts and index == parts[-1][-1] + 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)
