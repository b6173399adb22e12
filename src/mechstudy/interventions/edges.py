"""Edges of a behaviour's graph, and their measurement: value edges, and edges through attention patterns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.config import Elsewhere
from mechstudy.circuits.donors import Replacement
from mechstudy.circuits.node_names import node_id
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import Progress
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edge_effects import ROWS, EdgeEffects, SourceChange
from mechstudy.interventions.features import FeatureAt, NamedActivations, feature_at, positions_named
from mechstudy.interventions.results import EDGES_MEASURED, Cell, PartialTable, write_csv
from mechstudy.interventions.runner import Suite, save_samples
from mechstudy.interventions.samples import replacement_policies
from mechstudy.models.language_model import LanguageModel

LOGIT = node_id("logit")
Kind = Literal["value", "qk"]
KINDS: tuple[Kind, ...] = ("value", "qk")
EDGE_COLUMNS = (
    "kind", "source", "target", "prompt_id", "cluster", "removed", "predicted", "predicted_qk", *EDGES_MEASURED,
)  # fmt: skip
_LEAST = 1e-5  # of the largest predicted change: smaller ones are rounding
_PART_COLUMNS = ("sample", "edge", "instance", "value", "qk_value", *EDGES_MEASURED)


@dataclass(frozen=True)
class EdgeInstance:
    """One edge on one prompt, with the graph's weight.

    ``source_positions`` and ``target_positions`` are token indices; empty means those of the ends' names. With
    several, ``weight`` is the sum over all pairs of them.
    """

    pair: PromptPair
    weight: float
    source_positions: tuple[int, ...] = ()
    target_positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class EdgeCheck:
    """An edge of the aggregated graph and the prompts it occurs on.

    ``target`` is a feature (its pre-activation moves, or what a neuron holds) or ``"logit"`` (the logit difference
    moves). ``kind``: ``value``, or ``qk`` for an edge through attention patterns.
    """

    source: FeatureAt
    target: FeatureAt | str
    instances: tuple[EdgeInstance, ...]
    kind: Kind = "value"


def edge_checks(aggregate: Mapping[str, Any], pairs: Sequence[PromptPair]) -> list[EdgeCheck]:
    """The edges of aggregate.json that carry per-prompt ``instances``: of each kind, strongest first.

    Edges to the target are left out unless the graph explains the logit difference: nothing else is measured.

    Raises:
        MechstudyError: an instance's prompt is not among ``pairs`` (the prompts the graphs were made of).
    """
    by_id = {pair.id: pair for pair in pairs}
    checks = []
    listed: list[tuple[Kind, Any]] = [("value", e) for e in aggregate["edges"]]
    listed += [("qk", e) for e in aggregate.get("qk_edges", ())]
    for kind, edge in listed:
        is_logit = edge["target"] == LOGIT
        if "instances" not in edge or (is_logit and aggregate["target"] != "logit_difference"):
            continue
        if missing := [name for name, _ in edge["instances"] if name not in by_id]:
            raise MechstudyError(f"the graph's prompt {missing[0]} is not among the prompts")
        instances = tuple(EdgeInstance(by_id[name], float(weight)) for name, weight in edge["instances"])
        target = LOGIT if is_logit else feature_at(edge["target"])
        checks.append(EdgeCheck(feature_at(edge["source"]), target, instances, kind))
    return checks


def measure_edges(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    checks: Sequence[EdgeCheck],
    config: InterventionConfig,
    out: Path,
    *,
    replace_by: Replacement = "zero",
    discovery: Sequence[PromptPair] = (),
    elsewhere: Elsewhere = "errors",
    progress: Progress | None = None,
    batch_tokens: int = 4096,
) -> Path:
    """Measure ``config.n_edges`` edges of each kind on up to ``config.edge_prompts`` prompts each.

    They are the edges of the largest predicted changes where their source is replaced. Writes edges.csv: one row per
    edge and prompt (`edge_effects`); every number is value(clean) - value(source replaced). An existing file is kept.
    While it runs, finished instances are saved in ``edges_partial_N.csv``, from which a killed run resumes.

    Args:
        model: weights in fp32 or wider.
        replace_by: what the source's activation is replaced by: zero, the mean of the discovery prompts at the named
            position, or that of the corrupted prompt.
        discovery: the prompts that give means.
        elsewhere: what MLPs of layers without nodes are, as for the graph.
    """
    path, table = out / "edges.csv", PartialTable(out, "edges", _PART_COLUMNS, config.save_every)
    if not path.exists():
        sources = _Replaced(model, dictionaries, checks, replace_by, discovery, batch_tokens)
        checks = _strongest(checks, sources, config)
        changes = [
            [sources.change(edge, number, check, instance) for number, instance in enumerate(check.instances)]
            for edge, check in enumerate(checks)
        ]
        suites = _suites(checks, changes)
        longest = max((len(suite.pairs[0].clean_tokens) for suite in suites), default=1)
        save_samples(
            model,
            dictionaries,
            suites,
            lambda chunk: EdgeEffects(model, dictionaries, chunk.suite, elsewhere, batch_tokens, progress),
            table,
            label="edges",
            progress=progress,
            batch_tokens=min(batch_tokens, ROWS * longest),  # sources of near layers together
        )
        write_csv(path, EDGE_COLUMNS, list(_rows(checks, changes, table.rows())))
    table.delete_parts()
    return path


class _Replaced:
    """What the sources of edges are replaced by."""

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[int, Basis],
        checks: Sequence[EdgeCheck],
        replace_by: Replacement,
        discovery: Sequence[PromptPair],
        batch_tokens: int,
    ) -> None:
        pairs = list({i.pair.id: i.pair for check in checks for i in check.instances}.values())
        features = list(dict.fromkeys(check.source for check in checks))
        self._number = {pair.id: n for n, pair in enumerate(pairs)}
        self._own: Mapping[FeatureAt, Mapping[int, Mapping[int, float]]] | None = None
        if replace_by != "zero":
            own = NamedActivations(model, dictionaries, pairs, batch_tokens=batch_tokens)
            self._own = own.values(features)
        donors = NamedActivations(model, dictionaries, discovery, batch_tokens=batch_tokens)
        [policy] = replacement_policies(
            "edges", replace_by, model, dictionaries, donors, pairs, features, batch_tokens=batch_tokens
        )
        self._values = policy.values

    def change(self, edge: int, number: int, check: EdgeCheck, instance: EdgeInstance) -> SourceChange:
        """The change of one edge's source on one prompt."""
        target = check.target if isinstance(check.target, FeatureAt) else None
        if target is None and check.target != LOGIT:
            raise MechstudyError(f"an edge's target is a feature or {LOGIT!r}, not {check.target!r}")
        places = instance.source_positions or tuple(positions_named(instance.pair, check.source.position))
        targets = instance.target_positions
        if target is not None and not targets:
            targets = tuple(positions_named(instance.pair, target.position))
        set_to = [self._value(check.source, instance.pair, at) for at in places]
        removed = tuple(self._removed(check.source, instance.pair, at, v) for at, v in zip(places, set_to, strict=True))
        return SourceChange(edge, number, check.source, target, places, tuple(set_to), removed, targets)

    def _value(self, source: FeatureAt, pair: PromptPair, at: int) -> float | None:
        value = self._values(source, self._number[pair.id])
        return value.get(at) if isinstance(value, Mapping) else value

    def _removed(self, source: FeatureAt, pair: PromptPair, at: int, value: float | None) -> float:
        """The share of the source's activation that is taken away: 1 where it becomes zero, negative where it grows."""
        if self._own is None:
            return 1.0
        own = self._own[source].get(self._number[pair.id], {}).get(at, 0.0)
        return 0.0 if value is None or own == 0 else (own - value) / own


def _strongest(checks: Sequence[EdgeCheck], sources: _Replaced, config: InterventionConfig) -> list[EdgeCheck]:
    """The edges of the largest predicted changes, with as many prompts as are measured.

    Where a source is what it is replaced by, up to rounding, nothing is to be measured.
    """

    def size(check: EdgeCheck) -> float:
        changes = [(i.weight, sources.change(0, 0, check, i).removed) for i in check.instances]
        return sum(abs(weight) * max(map(abs, removed), default=0.0) for weight, removed in changes)

    chosen: list[EdgeCheck] = []
    for kind in KINDS:
        of_kind = sorted(((size(c), n) for n, c in enumerate(checks) if c.kind == kind), key=lambda x: (-x[0], x[1]))
        chosen += [checks[n] for s, n in of_kind[: config.n_edges] if s > _LEAST * of_kind[0][0]]
    return [EdgeCheck(c.source, c.target, c.instances[: config.edge_prompts], c.kind) for c in chosen]


def _suites(checks: Sequence[EdgeCheck], changes: Sequence[Sequence[SourceChange]]) -> list[Suite[SourceChange]]:
    """One suite per prompt, with all that is replaced on it, from the lowest layer up."""
    by_prompt: dict[str, list[SourceChange]] = defaultdict(list)
    pairs: dict[str, PromptPair] = {}
    for check, of_edge in zip(checks, changes, strict=True):
        for instance, change in zip(check.instances, of_edge, strict=True):
            pairs[instance.pair.id] = instance.pair
            by_prompt[instance.pair.id].append(change)
    return [
        Suite("edges", (pairs[prompt_id],), tuple(sorted(some, key=lambda change: change.start)))
        for prompt_id, some in by_prompt.items()
    ]


def _rows(
    checks: Sequence[EdgeCheck], changes: Sequence[Sequence[SourceChange]], measured: Sequence[Mapping[str, str]]
) -> Iterator[tuple[Cell, ...]]:
    """Rows of edges.csv. The prediction of the edge's own kind is the graph's weight times the share removed."""
    by_instance = {(int(row["edge"]), int(row["instance"])): row for row in measured}
    for edge, check in enumerate(checks):
        for number, instance in enumerate(check.instances):
            row, removed = by_instance[edge, number], changes[edge][number].removed
            predicted = {"value": float(row["value"]), "qk": float(row["qk_value"])}
            if len(set(removed)) <= 1:
                predicted[check.kind] = instance.weight * next(iter(removed), 0.0)
            yield (
                check.kind,
                str(check.source),
                str(check.target),
                instance.pair.id,
                instance.pair.group,
                max(removed, key=abs, default=0.0),
                predicted["value"],
                predicted["qk"],
                *(float(row[name]) for name in EDGES_MEASURED),
            )
