"""Edges of the graph against interventions: remove the source, see how far the target moves.

Frozen: attention patterns, norm scales, gates and MLP outputs held at the clean run, as the graph assumes; the
measured effect must equal the prediction. Live: nothing held, the model as it is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechstudy.behaviours.schema import PromptPair
from mechstudy.circuits.aggregate import node_id
from mechstudy.circuits.frozen import Delta, FrozenForward, FrozenOutput
from mechstudy.circuits.linearised import LinearisedPrompt, linearise
from mechstudy.core.errors import MechstudyError
from mechstudy.core.progress import NullProgress, Progress
from mechstudy.core.seeds import numpy_generator
from mechstudy.dictionaries.dictionary import Dictionary
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.engine import SetFeature, clean_run, edited_run
from mechstudy.interventions.features import FeatureAt, positions_named
from mechstudy.interventions.results import read_csv, write_csv
from mechstudy.machine.runtime import oom_backoff
from mechstudy.models.language_model import LanguageModel
from mechstudy.models.sites import Site
from mechstudy.statistics.paired_effects import cluster_bootstrap, spearman

LOGIT = node_id("logit")
EDGE_COLUMNS = ("source", "target", "prompt_id", "cluster", "predicted", "frozen", "live")
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
class _Job:
    """One instance, ready to run: numbers into the lists of checks and instances, and where it acts."""

    edge: int
    instance: int
    source: FeatureAt
    target: FeatureAt | None
    sources: tuple[int, ...]
    targets: tuple[int, ...]


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
        target = LOGIT if is_logit else FeatureAt.parse(edge["target"])
        checks.append(EdgeCheck(FeatureAt.parse(edge["source"]), target, instances))
    return checks


def measure_edges(
    model: LanguageModel,
    dictionaries: Mapping[int, Dictionary],
    checks: Sequence[EdgeCheck],
    config: InterventionConfig,
    out: Path,
    *,
    progress: Progress | None = None,
    batch_tokens: int = 4096,
) -> Path:
    """Measure the first ``config.n_edges`` edges on up to ``config.edge_prompts`` prompts each.

    Writes edges.csv: one row per edge and prompt; measured = value(clean) - value(source removed). The file is
    kept if it exists. The model must be fp32 or wider (as for the graph).
    """
    path = out / "edges.csv"
    if path.exists():
        return path
    checks = [EdgeCheck(c.source, c.target, c.instances[: config.edge_prompts]) for c in checks[: config.n_edges]]
    by_prompt: dict[str, list[_Job]] = defaultdict(list)
    pairs: dict[str, PromptPair] = {}
    for edge, check in enumerate(checks):
        for number, instance in enumerate(check.instances):
            pairs[instance.pair.id] = instance.pair
            by_prompt[instance.pair.id].append(_job(edge, number, check, instance))
    measured: dict[tuple[int, int], tuple[float, float]] = {}
    with (progress or NullProgress()).bar("edges", len(by_prompt), "prompts") as bar:
        for prompt_id, jobs in by_prompt.items():
            pair = pairs[prompt_id]
            frozen = frozen_effects(model, dictionaries, pair, jobs, batch_tokens, progress)
            live = live_effects(model, dictionaries, pair, jobs, batch_tokens, progress)
            for job, f, v in zip(jobs, frozen, live, strict=True):
                measured[job.edge, job.instance] = (f, v)
            bar.advance()
    rows = [
        (str(c.source), str(c.target), i.pair.id, i.pair.group, float(i.predicted), *measured[e, n])
        for e, c in enumerate(checks)
        for n, i in enumerate(c.instances)
    ]
    write_csv(path, EDGE_COLUMNS, rows)
    return path


def frozen_effects(
    model: LanguageModel,
    dictionaries: Mapping[int, Dictionary],
    pair: PromptPair,
    jobs: Sequence[_Job],
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[float]:
    """Change of each job's target in the linearised prompt: value(clean) - value(without the source).

    Fewer removals at a time where memory runs out.
    """
    prompt = linearise(model, dictionaries, torch.tensor(pair.clean_tokens))
    runner = FrozenForward(model, prompt)
    clean = runner.run([])
    clean_logits = runner.logits(clean)
    # Frozen, the model is affine: removing several positions is the sum of removing each.
    deltas = [(n, _removal(prompt, job.source, at)) for n, job in enumerate(jobs) for at in job.sources]

    def totals(size: int) -> list[float]:
        found = [0.0] * len(jobs)
        for start in range(0, len(deltas), size):
            part = deltas[start : start + size]
            run = runner.run([delta for _, delta in part])
            logits = runner.logits(run)
            for row, (n, _) in enumerate(part):
                if jobs[n].target is None:
                    found[n] += _of_answers(clean_logits[0], logits[row], pair)
                else:
                    found[n] += _moved(dictionaries, jobs[n], clean, run, row)
        return found

    size = max(1, batch_tokens // prompt.n_positions)
    return oom_backoff(totals, size, progress or NullProgress(), item_tokens=prompt.n_positions)


def live_effects(
    model: LanguageModel,
    dictionaries: Mapping[int, Dictionary],
    pair: PromptPair,
    jobs: Sequence[_Job],
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[float]:
    """The same change in the model as it is, the source set to zero at its positions.

    Fewer edges at a time where memory runs out.
    """
    starts = {job.source.layer for job in jobs}
    sites = [Site("mlp_in", layer) for layer in sorted({job.target.layer for job in jobs if job.target is not None})]

    def totals(size: int) -> list[float]:
        tokens = torch.tensor(pair.clean_tokens).expand(size, -1)
        clean = clean_run(model, tokens, starts)
        unedited = edited_run(model, dictionaries, clean, [()] * size, capture=sites)
        found = []
        for start in range(0, len(jobs), size):
            part = jobs[start : start + size]
            rows = [[SetFeature(j.source.layer, j.source.feature, at) for at in j.sources] for j in part]
            edited = edited_run(model, dictionaries, clean, rows + [[]] * (size - len(part)), capture=sites)
            assert edited.logits is not None
            for row, job in enumerate(part):
                if job.target is None:
                    found.append(_of_answers(clean.logits_BV[row], edited.logits[row], pair))
                    continue
                site = Site("mlp_in", job.target.layer)
                change = (unedited.activations[site][row] - edited.activations[site][row])[list(job.targets)]
                found.append(float((change @ _direction(dictionaries, job.target).to(change)).sum()))
        return found

    n_tokens = len(pair.clean_tokens)
    size = max(1, min(len(jobs), batch_tokens // n_tokens))
    return oom_backoff(totals, size, progress or NullProgress(), item_tokens=n_tokens)


def _of_answers(clean_V: Tensor, edited_V: Tensor, pair: PromptPair) -> float:
    """Change of the logit difference."""
    moved = clean_V.double() - edited_V.double()
    return float(moved[pair.answer_tokens[0]] - moved[pair.wrong_tokens[0]])


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


def _job(edge: int, number: int, check: EdgeCheck, instance: EdgeInstance) -> _Job:
    target = check.target if isinstance(check.target, FeatureAt) else None
    if target is None and check.target != LOGIT:
        raise MechstudyError(f"an edge's target is a feature or {LOGIT!r}, not {check.target!r}")
    sources = instance.source_positions or tuple(positions_named(instance.pair, check.source.position))
    targets = instance.target_positions
    if target is not None and not targets:
        targets = tuple(positions_named(instance.pair, target.position))
    return _Job(edge, number, check.source, target, sources, targets)


def _removal(prompt: LinearisedPrompt, source: FeatureAt, position: int) -> Delta:
    """Minus what the source writes at the position (zero where it is not active)."""
    features = prompt.layers[source.layer].features
    assert features is not None, f"layer {source.layer} has no dictionary"
    here = (features.position_M == position) & (features.feature_M == source.feature)
    return source.layer, position, -features.vector_MD[here].sum(0)


def _moved(
    dictionaries: Mapping[int, Dictionary], job: _Job, clean: FrozenOutput, run: FrozenOutput, row: int
) -> float:
    assert job.target is not None
    layer, places = job.target.layer, list(job.targets)
    change = clean.mlp_in[layer][0, places] - run.mlp_in[layer][row, places]
    return float((change @ _direction(dictionaries, job.target).to(change)).sum())


def _direction(dictionaries: Mapping[int, Dictionary], target: FeatureAt) -> Tensor:
    return dictionaries[target.layer].W_enc[:, target.feature]
