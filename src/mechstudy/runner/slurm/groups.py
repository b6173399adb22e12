"""Which units make one array, and which arrays wait for which.

An array per phase; what is made from a behaviour's prompts is one of its own, so that neither another behaviour nor the
dictionaries wait for it, or fail with it. In waves where the disk is small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from mechstudy.store.manifest import slug
from mechstudy.study.dag import Graph

_PAYLOAD_READERS = ("train", "variant")  # phases that are in the wave of the capture they read
TOGETHER = "behaviours"


@dataclass
class Group:
    """Units of one phase that are submitted together. ``units`` are all of them in order, so that a unit keeps its
    index; ``after`` are the keys of groups whose units come before some of these. ``takes_what_is_there``: it begins
    once those have ended, whether well or not."""

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
    """Every unit of a study in groups, those that come first before those that wait for them.

    Args:
        one_capture_at_a_time: captured rows that are to be deleted after use are captured only once those before
            are: where the disk does not hold them all at once.
        largest: a group has fewer units than that (Slurm's MaxArraySize).
        concurrent: how many of a phase's units may run at once. Where there are more behaviours than that, theirs stay
            in one array, as only an array's elements can be limited.
    """
    waves = _waves(graph) if one_capture_at_a_time else {}
    behaviours, n_behaviours = _behaviours(graph), len(graph.of_phase("prompts"))
    groups: dict[tuple[str, int, str], list[Group]] = {}
    of_unit: dict[str, Group] = {}
    for name in graph.order:
        unit, wave, behaviour = graph.units[name], waves.get(name, 0), behaviours[name]
        phase = unit.phase
        if behaviour and n_behaviours > (concurrent(phase) or n_behaviours):
            behaviour = TOGETHER
        parts = groups.setdefault((phase, wave, behaviour), [])
        if not parts or len(parts[-1].units) >= largest - 1:
            key = ".".join(filter(None, (phase, behaviour))) + (f"-wave{wave + 1}" if wave else "")
            key = key if not parts else f"{key}-part{len(parts) + 1}"
            parts.append(Group(key, phase, takes_what_is_there=unit.optional_inputs))
        parts[-1].units.append(name)
        of_unit[name] = parts[-1]
    for (phase, wave, _), parts in groups.items():
        for group in parts:
            before = [of_unit[source].key for name in group.units for source in graph.upstream(name)]
            if phase == "capture" and wave:
                readers = [(reader, wave - 1, "") for reader in _PAYLOAD_READERS]
                before += [part.key for reader in readers for part in groups.get(reader, [])]
            group.after = [key for key in dict.fromkeys(before) if key != group.key]
    return _in_order([group for parts in groups.values() for group in parts])


def dependency(before: Sequence[str], *, takes_what_is_there: bool) -> str:
    """What jobs that wait for others (ids of arrays or elements) depend on, in sbatch's words; nothing without any."""
    kind = "afterany" if takes_what_is_there else "afterok"
    return f"{kind}:{':'.join(before)}" if before else ""


def _behaviours(graph: Graph) -> dict[str, str]:
    """unit -> the behaviour from whose prompts it is made; "" of those that are made from none, or from all."""
    roots: dict[str, frozenset[str]] = {}
    for name in graph.order:
        own = frozenset({name} if graph.units[name].phase == "prompts" else ())
        roots[name] = own.union(*(roots[source] for source in graph.upstream(name)))
    return {
        name: slug(next(iter(found))).removeprefix("prompts-")
        if len(found) == 1 and not graph.units[name].optional_inputs
        else ""
        for name, found in roots.items()
    }


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
