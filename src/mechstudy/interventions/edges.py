"""Edges of the graph compared with interventions: the source removed, the change of the target measured.

Frozen: attention patterns, norm scales, gates and MLP outputs are those of the clean run, as the graph assumes; the
measured effect must equal the prediction. Live: nothing is frozen. Where the target is a log-sum-exp, frozen has its
weights within each set frozen too, as the graph has them; likewise the softmax of whole answers' log-probabilities.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechstudy.behaviours.contrast import Contrast, WholeAnswers
from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.active_nodes import ActiveNeurons
from mechstudy.circuits.bases import site_read
from mechstudy.circuits.config import Elsewhere
from mechstudy.circuits.frozen import Delta, FrozenForward
from mechstudy.circuits.linear_prompt import LinearisedPrompt
from mechstudy.circuits.linearised import linearise
from mechstudy.circuits.prompt_record import node_id
from mechstudy.circuits.question import Question
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.core.seeds import numpy_generator
from mechstudy.dictionaries.neurons import Basis
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.engine import RowEdit, SetFeature
from mechstudy.interventions.features import FeatureAt, feature_at, positions_named
from mechstudy.interventions.results import Cell, PartialTable, read_csv, write_csv
from mechstudy.interventions.runner import EditedRows, Suite, Values, save_samples
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.language_model import LanguageModel
from mechstudy.statistics.association import spearman
from mechstudy.statistics.bootstrap import cluster_bootstrap

LOGIT = node_id("logit")
EDGE_COLUMNS = ("source", "target", "prompt_id", "cluster", "predicted", "frozen", "live")
_PART_COLUMNS = ("sample", "edge", "instance", "frozen", "live")
_FLOOR = 1e-3  # of the largest prediction: below it, the relative error of one instance says nothing


@dataclass(frozen=True)
class EdgeInstance:
    """One edge on one prompt, with the graph's weight.

    ``source_positions`` and ``target_positions`` are token indices; empty means those of the ends' names. With
    several, ``predicted`` is the sum over all pairs of them.
    """

    pair: PromptPair
    predicted: float
    source_positions: tuple[int, ...] = ()
    target_positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class EdgeCheck:
    """An edge of the aggregated graph and the prompts it occurs on.

    ``target`` is a feature (its pre-activation moves) or ``"logit"`` (the logit difference moves).
    """

    source: FeatureAt
    target: FeatureAt | str
    instances: tuple[EdgeInstance, ...]


@dataclass(frozen=True)
class SourceRemoval:
    """An intervention of the runner: one edge's source set to zero on one prompt.

    ``edge`` and ``instance`` number it in the lists of checks and instances; ``sources`` and ``targets`` are the token
    positions at which it acts. ``target`` None is the logit difference.
    """

    edge: int
    instance: int
    source: FeatureAt
    target: FeatureAt | None
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    only_where_edited: bool = False

    @property
    def start(self) -> int:
        """The layer of the source."""
        return self.source.layer

    @property
    def edits(self) -> Callable[[int], Sequence[RowEdit]]:
        """The source set to zero at each of its positions."""
        edits = [SetFeature(self.source.layer, self.source.feature, at) for at in self.sources]
        return lambda _: edits


def edge_checks(aggregate: Mapping[str, Any], pairs: Sequence[PromptPair]) -> list[EdgeCheck]:
    """The edges of aggregate.json that carry per-prompt ``instances``, strongest first.

    Edges to the target are left out unless the graph explains the logit difference: nothing else is measured.

    Raises:
        MechstudyError: an instance's prompt is not among ``pairs`` (the prompts the graphs were made of).
    """
    by_id = {pair.id: pair for pair in pairs}
    checks = []
    for edge in aggregate["edges"]:
        is_logit = edge["target"] == LOGIT
        if "instances" not in edge or (is_logit and aggregate["target"] != "logit_difference"):
            continue
        if missing := [name for name, _ in edge["instances"] if name not in by_id]:
            raise MechstudyError(f"the graph's prompt {missing[0]} is not among the prompts")
        instances = tuple(EdgeInstance(by_id[name], float(weight)) for name, weight in edge["instances"])
        target = LOGIT if is_logit else feature_at(edge["target"])
        checks.append(EdgeCheck(feature_at(edge["source"]), target, instances))
    return checks


def measure_edges(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    checks: Sequence[EdgeCheck],
    config: InterventionConfig,
    out: Path,
    *,
    elsewhere: Elsewhere = "errors",
    progress: Progress | None = None,
    batch_tokens: int = 4096,
) -> Path:
    """Measure the first ``config.n_edges`` edges on up to ``config.edge_prompts`` prompts each.

    Writes edges.csv: one row per edge and prompt; measured = value(clean) - value(source removed). An existing file
    is kept. While it runs, finished instances are saved in ``edges_partial_N.csv``, from which a killed run resumes.
    The model must be fp32 or wider, and ``elsewhere`` what MLPs of layers without nodes are (as for the graph).
    """
    path, table = out / "edges.csv", PartialTable(out, "edges", _PART_COLUMNS, config.save_every)
    if not path.exists():
        checks = [EdgeCheck(c.source, c.target, c.instances[: config.edge_prompts]) for c in checks[: config.n_edges]]
        save_samples(
            model,
            dictionaries,
            _removals(checks),
            lambda chunk: EdgeEffects(model, dictionaries, chunk.suite, elsewhere, batch_tokens, progress),
            table,
            label="edges",
            progress=progress,
            batch_tokens=batch_tokens,
        )
        measured = {(int(r["edge"]), int(r["instance"])): (float(r["frozen"]), float(r["live"])) for r in table.rows()}
        rows = [
            (str(c.source), str(c.target), i.pair.id, i.pair.group, float(i.predicted), *measured[e, n])
            for e, c in enumerate(checks)
            for n, i in enumerate(c.instances)
        ]
        write_csv(path, EDGE_COLUMNS, rows)
    table.delete_parts()
    return path


def _removals(checks: Sequence[EdgeCheck]) -> list[Suite[SourceRemoval]]:
    """One suite per prompt, with all that is removed on it."""
    by_prompt: dict[str, list[SourceRemoval]] = defaultdict(list)
    pairs: dict[str, PromptPair] = {}
    for edge, check in enumerate(checks):
        for number, instance in enumerate(check.instances):
            pairs[instance.pair.id] = instance.pair
            by_prompt[instance.pair.id].append(_removal(edge, number, check, instance))
    return [Suite("edges", (pairs[prompt_id],), tuple(removals)) for prompt_id, removals in by_prompt.items()]


class EdgeEffects:
    """Records, for the removals on one prompt, the change of each target: frozen and live.

    A change is value(clean) - value(without the source).
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Mapping[int, Basis],
        suite: Suite[SourceRemoval],
        elsewhere: Elsewhere = "errors",
        batch_tokens: int = 4096,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.dictionaries, self.removals = model, dictionaries, suite.variants
        [self.pair] = suite.pairs
        self.elsewhere, self.batch_tokens, self.progress = elsewhere, batch_tokens, progress
        layers = sorted({r.target.layer for r in self.removals if r.target is not None})
        self.capture = [site_read(dictionaries[layer], layer) for layer in layers]
        self._frozen: dict[SourceRemoval, float] = {}

    def prepare(self) -> None:
        """Measure the frozen changes."""
        effects = frozen_effects(
            self.model,
            self.dictionaries,
            self.pair,
            self.removals,
            self.elsewhere,
            self.batch_tokens,
            self.progress,
        )
        self._frozen = dict(zip(self.removals, effects, strict=True))

    def measure(self, rows: EditedRows[SourceRemoval]) -> list[Values]:
        """The live change of every row's target; 0 for rows that fill the batch up."""
        return [
            (0.0 if removal is None else self._live(rows, row, removal),) for row, removal in enumerate(rows.variants)
        ]

    def cells(self, variant: SourceRemoval, pair_number: int, n_edits: int, values: Values) -> tuple[Cell, ...]:
        """The removal's numbers, its frozen change and its live one."""
        return variant.edge, variant.instance, self._frozen[variant], *values

    def _live(self, rows: EditedRows[SourceRemoval], row: int, removal: SourceRemoval) -> float:
        if removal.target is None and rows.answers is not None:
            departure = WholeAnswers(self.pair.answer_tokens, self.pair.wrong_tokens).departure
            before, after = (x.to_departure(row, departure) for x in rows.answers)
            return before - after
        if removal.target is None:
            return Contrast.of_pair(self.pair).change(rows.clean.logits_BV[row], rows.logits_BV[row])
        site = site_read(self.dictionaries[removal.target.layer], removal.target.layer)
        change_TD = (rows.unedited[site][row] - rows.edited[site][row])[list(removal.targets)]
        direction_D = self.dictionaries[removal.target.layer].encoder_rows([removal.target.feature])[0]
        return float((change_TD @ direction_D.to(change_TD)).sum())


def frozen_effects(
    model: LanguageModel,
    dictionaries: Mapping[int, Basis],
    pair: PromptPair,
    removals: Sequence[SourceRemoval],
    elsewhere: Elsewhere = "errors",
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[float]:
    """Change of each removal's target in the linearised prompt: value(clean) - value(without the source).

    The unembedding is linear too, so it is applied to the difference of the normed residuals: the difference of two
    logits would keep the rounding of both. Fewer removals at a time where memory runs out.
    """
    question = Question.of_pair(pair)
    prompt = linearise(model, dictionaries, torch.tensor(question.tokens), elsewhere=elsewhere)
    runner = FrozenForward(model, prompt)
    clean = runner.run([])
    forms = question.explained.forms(model, prompt) if question.explained is not None else []
    # Frozen, the model is affine: removing several positions is the sum of removing each.
    deltas = [(n, _minus_written(prompt, r.source, at)) for n, r in enumerate(removals) for at in r.sources]

    def totals(size: int) -> list[float]:
        changes = [0.0] * len(removals)
        for start in range(0, len(deltas), size):
            part = deltas[start : start + size]
            run = runner.run([delta for _, delta in part])
            for row, (n, _) in enumerate(part):
                target, places = removals[n].target, list(removals[n].targets)
                if target is None:
                    moved_TD = clean.final_BTD[0] - run.final_BTD[row]
                    changes[n] += sum(form.change(moved_TD) for form in forms)
                else:
                    change_TD = clean.read[target.layer][0, places] - run.read[target.layer][row, places]
                    directions_TD = _directions(prompt, dictionaries, target, places).to(change_TD)
                    changes[n] += float((change_TD * directions_TD).sum())
        return changes

    size = max(1, batch_tokens // prompt.n_positions)
    return oom_backoff(totals, size, progress or NullProgress(), item_tokens=prompt.n_positions)


def summarise_edges(path: Path, config: InterventionConfig, behaviour: str) -> dict[str, Any] | None:
    """The ``edges`` entry of summary.json from edges.csv; None without edges.

    ``max_relative_error_frozen``: largest |frozen - predicted| / |predicted| of an edge, Euclidean norms over its
    prompts (an edge's mean may cancel between prompts, its norm does not);
    ``max_relative_error_frozen_instance``: of one edge on one prompt, with the prediction's size taken as at
    least 0.001 x the largest prediction (weights near 0 have no meaningful relative error).
    """
    by_edge: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in read_csv(path):
        by_edge[row["source"], row["target"]].append(row)
    if not by_edge:
        return None
    rows, worst = [], 0.0
    largest = max(abs(float(r["predicted"])) for group in by_edge.values() for r in group)
    for (source, target), group in by_edge.items():
        clusters = [r["cluster"] for r in group]
        entry: dict[str, Any] = {"source": source, "target": target, "n": len(group)}
        entry["predicted"] = sum(float(r["predicted"]) for r in group) / len(group)
        for name in ("frozen", "live"):
            rng = numpy_generator(config.seed, behaviour, f"edge {source} {target} {name}")
            values = [float(r[name]) for r in group]
            estimate = cluster_bootstrap(values, clusters, rng, n_resamples=config.bootstrap, level=config.ci)
            entry[name], entry[f"{name}_ci95"] = estimate.value, estimate.ci
            entry |= estimate.missing_fields(f"{name}_ci95")
        rows.append(entry)
        for r in group:
            size = max(abs(float(r["predicted"])), _FLOOR * largest)
            worst = max(worst, abs(float(r["frozen"]) - float(r["predicted"])) / size if size else 0.0)
    predicted = [r["predicted"] for r in rows]
    errors = [_relative_error(group) for group in by_edge.values() if any(float(r["predicted"]) for r in group)]
    return {
        "n": len(rows),
        "n_instances": sum(r["n"] for r in rows),
        "spearman_frozen": spearman(predicted, [r["frozen"] for r in rows]),
        "max_relative_error_frozen": max(errors, default=None),
        "max_relative_error_frozen_instance": worst,
        "spearman_live": spearman(predicted, [r["live"] for r in rows]),
        "rows": rows,
    }


def _relative_error(group: Sequence[Mapping[str, str]]) -> float:
    """Of one edge: the norm of what was measured minus what was predicted, over the norm of the prediction."""
    predicted = [float(r["predicted"]) for r in group]
    return math.dist([float(r["frozen"]) for r in group], predicted) / math.hypot(*predicted)


def _removal(edge: int, number: int, check: EdgeCheck, instance: EdgeInstance) -> SourceRemoval:
    target = check.target if isinstance(check.target, FeatureAt) else None
    if target is None and check.target != LOGIT:
        raise MechstudyError(f"an edge's target is a feature or {LOGIT!r}, not {check.target!r}")
    sources = instance.source_positions or tuple(positions_named(instance.pair, check.source.position))
    targets = instance.target_positions
    if target is not None and not targets:
        targets = tuple(positions_named(instance.pair, target.position))
    return SourceRemoval(edge, number, check.source, target, sources, targets)


def _minus_written(prompt: LinearisedPrompt, source: FeatureAt, position: int) -> Delta:
    """Minus what the source writes at the position (zero where it is not active)."""
    nodes = prompt.layers[source.layer].nodes
    assert nodes is not None, f"layer {source.layer} has no dictionary"
    here = ((nodes.position_M == position) & (nodes.feature_M == source.feature)).nonzero()[:, 0]
    written = [nodes.written(ahead)[here].sum(0) for ahead in range(nodes.n_written)]
    return source.layer, position, -torch.stack(written)


def _directions(
    prompt: LinearisedPrompt, bases: Mapping[int, Basis], target: FeatureAt, places: Sequence[int]
) -> Tensor:
    """What the target reads at each place of the linearised prompt, [places, D]."""
    nodes = prompt.layers[target.layer].nodes
    if isinstance(nodes, ActiveNeurons):
        position_M = torch.tensor(list(places), device=nodes.position_M.device)
        return nodes.mlp.readers(position_M, torch.full_like(position_M, target.feature))[0]
    basis = bases[target.layer]
    return basis.encoder_rows([target.feature]).expand(len(places), -1)
