"""Statistics of the samples: paired effects, controls, intervals and adjusted p-values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechstudy.behaviours.metrics import metric_name
from mechstudy.circuits.donors import Replacement
from mechstudy.core.seeds import numpy_generator
from mechstudy.interventions.config import InterventionConfig
from mechstudy.interventions.edge_summary import summarise_edges
from mechstudy.interventions.features import FeatureGroup, rank_effect
from mechstudy.interventions.results import read_csv, write_csv
from mechstudy.interventions.samples import GRID, SHAM, Plan
from mechstudy.statistics.association import slopes
from mechstudy.statistics.bootstrap import Estimate, cluster_bootstrap
from mechstudy.statistics.clusters import ALL_EQUAL, Array
from mechstudy.statistics.false_discovery import benjamini_hochberg
from mechstudy.statistics.permutation import sign_flip_p

LABELS = {
    "ablation_zero": "zero-ablating the top {n} features",
    "ablation_mean": "mean-ablating the top {n} features",
    "resampling": "resampling the top {n} features from other prompts",
    "patching": "patching the top {n} features from the corrupted prompt",
    "steering": "steering along the top {n} features, per unit of alpha,",
}


@dataclass(frozen=True)
class Effects:
    """Effects by prompt: the mean change of the metric over draws (and over controls)."""

    prompts: tuple[str, ...]
    clusters: tuple[str, ...]
    values: Array

    def aligned(self, prompts: Sequence[str]) -> Array:
        """Values in the order of ``prompts``."""
        at = {p: i for i, p in enumerate(self.prompts)}
        return self.values[[at[p] for p in prompts]]


def summarise(
    plan: Plan, config: InterventionConfig, out: Path, contrast: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of summary.json, from ``results.csv`` and (where there) ``edges.csv`` in ``out``.

    Also writes dose_response.csv and patching.csv. ``tests`` are those of the first group; p-values (of the
    effect, and of its difference from the controls) are adjusted over all tests of the behaviour together.
    Steering's effect is the least-squares slope of the metric over alpha.

    Args:
        contrast: how the graphs' effects of replacement were predicted (aggregate.json's ``contrast``).
    """
    rows = read_csv(out / "results.csv")
    statistics = Statistics(config, plan.behaviour)
    groups = _groups(plan, config, rows, statistics)
    _adjust(groups)
    clean = {r["prompt_id"]: (float(r["clean"]), r["corrupted"]) for r in rows if r["kind"] != GRID}
    clean = clean or {r["prompt_id"]: (float(r["clean"]), r["corrupted"]) for r in rows}
    corrupted = [float(value) for _, value in clean.values() if value != ""]
    headline = plan.groups[0].name if plan.groups else ""
    size = len(plan.groups[0].members) if plan.groups else 0
    tests = {
        g["kind"]: {"label": LABELS[g["kind"]].format(n=size)}
        | {k: v for k, v in g.items() if k not in ("kind", "members")}
        for g in groups
        if g["name"] == headline
    }
    sham = [abs(float(r["value"])) for r in rows if r["kind"] == SHAM]
    edges = out / "edges.csv"
    return {
        "behaviour": plan.behaviour,
        "metric": metric_name(pair for suite in plan.suites for pair in suite.pairs),
        "n": len(clean),
        "n_samples": len(rows),
        "ranking": ranking(config, contrast),
        "clean_mean": _mean([c for c, _ in clean.values()]),
        "corrupted_mean": _mean(corrupted),
        "tests": tests,
        "groups": groups,
        "dose_response": _dose_response(rows, statistics, out),
        "patching": _patching(plan, config, rows, statistics, out),
        "edges": summarise_edges(edges, config, plan.behaviour, edges_replaced_by(config, contrast))
        if edges.exists()
        else None,
        "sham_max": max(sham, default=None),
    }


def ranking(config: InterventionConfig, contrast: Mapping[str, Any] | None) -> dict[str, Any]:
    """How the groups were ranked: ``rank_by``, ``by``, and for effects of replacement how they were predicted."""
    predicted = contrast if rank_effect(config.rank_by)[0] == "contrast_effect" else None
    return {"rank_by": config.rank_by, "by": config.by, **(predicted or {})}


def edges_replaced_by(config: InterventionConfig, contrast: Mapping[str, Any] | None) -> Replacement:
    """What edges' sources are replaced by: the same as in the ranking of features; zero where it asks what one adds."""
    replaced_by: Replacement = ranking(config, contrast).get("replace_by", "zero")
    return replaced_by


class Statistics:
    """Estimates and p-values whose random draws depend on their purpose only, not on the order of computing."""

    def __init__(self, config: InterventionConfig, behaviour: str) -> None:
        self.config, self.behaviour = config, behaviour

    def estimate(self, purpose: str, values: Array, clusters: Sequence[str], weights: Array | None = None) -> Estimate:
        """A mean, or a ratio to ``weights``, with its bootstrap interval."""
        rng = numpy_generator(self.config.seed, self.behaviour, f"bootstrap {purpose}")
        return cluster_bootstrap(
            values, clusters, rng, weights=weights, n_resamples=self.config.bootstrap, level=self.config.ci
        )

    def p(self, purpose: str, values: Array, clusters: Sequence[str]) -> float | None:
        """Sign-flip p-value of a mean of 0."""
        rng = numpy_generator(self.config.seed, self.behaviour, f"sign flips {purpose}")
        return sign_flip_p(values, clusters, rng, n_permutations=self.config.permutations)


def _groups(
    plan: Plan, config: InterventionConfig, rows: Sequence[Mapping[str, str]], statistics: Statistics
) -> list[dict[str, Any]]:
    """One entry per group and kind of intervention."""
    tables: dict[tuple[str, str, str], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        tables[row["group"], row["kind"], row["role"]].append(row)
    entries = []
    for group in plan.groups:
        for kind in LABELS:
            effect = _effects(kind, tables[group.name, kind, "effect"])
            control = _effects(kind, tables[group.name, kind, "control"])
            if effect is not None:
                entry = _test(kind, group, effect, control, statistics)
                entry["kl"] = _mean([float(r["kl"]) for r in tables[group.name, kind, "effect"]])
                entry["size"], entry["control_size"] = plan.sizes[group.name]
                entries.append(entry)
    return entries


@dataclass(frozen=True)
class PairedTest:
    """An effect over prompts, against no effect and (where there are controls) against theirs.

    ``p`` and ``p_difference`` are two-sided sign-flip p-values.
    """

    effect: Estimate
    p: float | None
    control: Estimate | None = None
    difference: Estimate | None = None
    p_difference: float | None = None


def paired_test(name: str, effect: Effects, control: Effects | None, statistics: Statistics) -> PairedTest:
    """Test an effect; ``name`` seeds its resamples and sign flips."""
    estimate = statistics.estimate(name, effect.values, effect.clusters)
    p = statistics.p(name, effect.values, effect.clusters)
    if control is None:
        return PairedTest(estimate, p)
    values = control.aligned(effect.prompts)
    return PairedTest(
        estimate,
        p,
        statistics.estimate(f"{name} control", values, effect.clusters),
        statistics.estimate(f"{name} difference", effect.values - values, effect.clusters),
        statistics.p(f"{name} difference", effect.values - values, effect.clusters),
    )


def _test(
    kind: str, group: FeatureGroup, effect: Effects, control: Effects | None, statistics: Statistics
) -> dict[str, Any]:
    test = paired_test(f"{kind} {group.name}", effect, control, statistics)
    return {
        "kind": kind,
        "name": group.name,
        "members": [m.as_json() for m in group.members],
        "n": test.effect.n,
        "n_clusters": test.effect.n_clusters,
        "effect": test.effect.value,
        "ci95": test.effect.ci,
        "control_effect": test.control and test.control.value,
        "control_ci95": test.control and test.control.ci,
        "difference": test.difference and test.difference.value,
        "difference_ci95": test.difference and test.difference.ci,
        "p": test.p,
        "p_difference": test.p_difference,
        **_missing(test),
    }


def _missing(test: PairedTest) -> dict[str, str]:
    """Why intervals of the test are null: ``ci95_missing``, ``control_ci95_missing``, ``difference_ci95_missing``."""
    named = {"ci95": test.effect, "control_ci95": test.control, "difference_ci95": test.difference}
    return {k: v for name, e in named.items() if e is not None for k, v in e.missing_fields(name).items()}


def _adjust(entries: Sequence[dict[str, Any]]) -> None:
    """Benjamini-Hochberg over every p-value of the behaviour at once."""
    adjusted = benjamini_hochberg([e["p"] for e in entries] + [e["p_difference"] for e in entries])
    for i, entry in enumerate(entries):
        entry["p_adjusted"], entry["p_difference_adjusted"] = adjusted[i], adjusted[len(entries) + i]


def _effects(kind: str, rows: Sequence[Mapping[str, str]]) -> Effects | None:
    """Per prompt: the mean over draws and items; for steering the slope over alpha."""
    if not rows:
        return None
    clusters = {r["prompt_id"]: r["cluster"] for r in rows}
    if kind != "steering":
        return _per_prompt(rows, clusters)
    alphas = sorted({float(r["alpha"]) for r in rows})
    if len(alphas) < 2:
        return None
    columns = [_per_prompt([r for r in rows if float(r["alpha"]) == a], clusters).values for a in alphas]
    return Effects(tuple(clusters), tuple(clusters.values()), slopes(alphas, np.stack(columns, 1)))


def _per_prompt(rows: Sequence[Mapping[str, str]], clusters: Mapping[str, str]) -> Effects:
    by_prompt: dict[str, list[float]] = {p: [] for p in clusters}
    for r in rows:
        by_prompt[r["prompt_id"]].append(float(r["value"]))
    return Effects(tuple(clusters), tuple(clusters.values()), np.array([np.mean(v) for v in by_prompt.values()]))


def _dose_response(rows: Sequence[Mapping[str, str]], statistics: Statistics, out: Path) -> list[dict[str, Any]]:
    tables: dict[tuple[str, float], list[Mapping[str, str]]] = defaultdict(list)
    for r in rows:
        if r["kind"] == "steering":
            tables[r["item"], float(r["alpha"])].append(r)
    entries: list[dict[str, Any]] = []
    for (direction, alpha), part in tables.items():
        effects = _effects("", part)
        assert effects is not None
        e = statistics.estimate(f"dose {direction} {alpha}", effects.values, effects.clusters)
        kl = _mean([float(r["kl"]) for r in part])
        entry = {"direction": direction, "alpha": alpha, "effect": e.value, "ci95": e.ci, "n": e.n, "kl": kl}
        if alpha:
            entry |= e.missing_fields("ci95")
        elif e.missing == ALL_EQUAL:  # steering by 0 changes nothing: its interval is the value
            entry["ci95"] = (e.value, e.value)
        entries.append(entry)
    columns = ("direction", "alpha", "effect", "ci_low", "ci_high", "n", "kl")
    table = [(e["direction"], e["alpha"], e["effect"], *_ends(e["ci95"]), e["n"], e["kl"]) for e in entries]
    write_csv(out / "dose_response.csv", columns, table)
    return entries


def _patching(
    plan: Plan,
    config: InterventionConfig,
    rows: Sequence[Mapping[str, str]],
    statistics: Statistics,
    out: Path,
) -> dict[str, Any] | None:
    """The share of the clean-corrupted gap each cell removes; None in a cell whose gap is about 0.

    A ratio of means over prompts. patching.csv also has the median of the prompts' own shares, over prompts
    whose gap is at least a tenth of the mean gap.
    """
    if not plan.layers or not plan.positions:
        return None
    site = config.patching.site
    cells: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for r in rows:
        if r["kind"] == GRID:
            cells[r["item"]].append(r)
    effect: list[list[float | None]] = []
    table = []
    for layer in plan.layers:
        line: list[float | None] = []
        for position in plan.positions:
            part = cells[f"{site}.{layer}@{position}"]
            removed = -np.array([float(r["value"]) for r in part])
            gap = np.array([float(r["clean"]) - float(r["corrupted"]) for r in part])
            e = statistics.estimate(f"grid {layer} {position}", removed, [r["cluster"] for r in part], gap)
            large = np.abs(gap) > 0.1 * np.abs(gap).mean() if len(gap) else np.zeros(0, dtype=bool)
            median = float(np.median(removed[large] / gap[large])) if large.any() else None
            kl = _mean([float(r["kl"]) for r in part])
            table.append((site, layer, position, e.value, *_ends(_cell_interval(e)), median, _mean(gap), kl, e.n))
            line.append(e.value)
        effect.append(line)
    columns = ("site", "layer", "position", "effect", "ci_low", "ci_high", "median", "mean_gap", "kl", "n")
    write_csv(out / "patching.csv", columns, table)
    n = len({r["prompt_id"] for part in cells.values() for r in part})
    return {"site": site, "layers": plan.layers, "positions": plan.positions, "effect": effect, "n": n}


def _mean(values: Sequence[float] | Array) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _cell_interval(e: Estimate) -> tuple[float, float] | None:
    """A cell's interval; where patching does the same to every prompt (mostly: nothing), both ends are the value."""
    return (e.value, e.value) if e.missing == ALL_EQUAL and e.value is not None else e.ci


def _ends(ci: tuple[float, float] | None) -> tuple[float | None, float | None]:
    return ci or (None, None)
