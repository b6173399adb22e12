"""The machine-readable summary of a run, and the few findings the command line prints at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import formatting
from .claims import claims
from .numbers import Address
from .source import Source

_DICTIONARY_FIELDS = (
    "kind", "activation", "d_in", "d_sae", "k", "l0", "fvu", "r2", "dead_share", "ce_loss_recovered",
    "train_rows", "rows_per_second",
)  # fmt: skip
_GRAPH_FIELDS = (
    "n_prompts", "nodes", "edges", "replacement", "completeness", "replacement_pruned", "completeness_pruned",
    "conservation_residual_max",
)  # fmt: skip
_TEST_FIELDS = ("n", "effect", "ci95", "control_effect", "control_ci95", "p_adjusted")


def build_summary(
    study: Mapping[str, Any],
    inputs: Mapping[str, Path],
    units: Sequence[Mapping[str, Any]],
    wall_seconds: float,
    peak_rss_bytes: int,
) -> dict[str, Any]:
    """The content of summary.json; what did not run has no key.

    Args:
        study: the study's configuration.
        inputs: unit name -> artifact folder.
        units: what ran, as given to `build_report`.
        wall_seconds: of the whole run.
        peak_rss_bytes: the largest resident set of any unit.

    Returns:
        `model`, `wall_seconds`, `peak_rss_bytes`, `baseline`, `dictionaries`, `graphs`, `interventions`,
        `edges`, `units`, `findings`, as docs/artifacts describes; no NaN.
    """
    source = Source(study, inputs, units)
    model = source.json("model", "model.json") or {}
    result: dict[str, Any] = {
        "model": model.get("name") or model_name(study),
        "wall_seconds": wall_seconds,
        "peak_rss_bytes": peak_rss_bytes,
        "baseline": {},
        "dictionaries": {},
        "graphs": {},
        "interventions": {},
        "edges": {},
        "units": {},
    }
    for behaviour in source.behaviours:
        _summarise_behaviour(source, behaviour, result)
    for layer in source.layers:
        evaluation = source.evaluation(layer)
        if evaluation:
            result["dictionaries"][str(layer)] = {f: evaluation.get(f) for f in _DICTIONARY_FIELDS}
    for unit in source.units:
        result["units"][unit["name"]] = {
            "seconds": unit.get("seconds"),
            "status": unit.get("status"),
            "artifact": unit.get("artifact"),
        }
    result["findings"] = [{"text": f.text, "number": f.number} for f in numbered_findings(result, inputs)]
    return formatting.jsonable(result)


def _summarise_behaviour(source: Source, behaviour: str, result: dict[str, Any]) -> None:
    baseline = source.json(f"baseline[{behaviour}]", "summary.json")
    if baseline:
        result["baseline"][behaviour] = {
            split: {
                "n": s.get("n"),
                "accuracy": s.get("accuracy"),
                "mean_logit_difference": s.get("mean_logit_difference"),
                "ci95": s.get("ci95"),
                "passed": s.get("passed"),
            }
            for split, s in (baseline.get("splits") or {}).items()
        }
    scores = source.json(f"attribute[{behaviour}]", "scores.json")
    if scores:
        result["graphs"][behaviour] = {f: scores.get(f) for f in _GRAPH_FIELDS}
    intervene = source.json(f"intervene[{behaviour}]", "summary.json")
    if intervene:
        tests = intervene.get("tests") or {}
        result["interventions"][behaviour] = {
            kind: {f: test.get(f) for f in _TEST_FIELDS} for kind, test in tests.items()
        }
        edges = intervene.get("edges")
        if edges:
            result["edges"][behaviour] = {k: edges.get(k) for k in ("n", "spearman_frozen", "spearman_live")}


@dataclass(frozen=True)
class Finding:
    """A line, and the handle of the number it tells (numbers.py)."""

    text: str
    number: str

    def __str__(self) -> str:
        return f"{self.text} [{self.number}]"


def findings(summary: Mapping[str, Any], inputs: Mapping[str, Path]) -> list[str]:
    """`numbered_findings` as text, each with its handle at the end."""
    return [str(finding) for finding in numbered_findings(summary, inputs)]


def numbered_findings(summary: Mapping[str, Any], inputs: Mapping[str, Path]) -> list[Finding]:
    """The findings in plain words: per behaviour its baseline, strongest claims, circuit and edges.

    Args:
        summary: from `build_summary`.
        inputs: unit name -> artifact folder.

    Returns:
        At most five lines per behaviour and one about the dictionaries; a claim that does not hold says so.
    """
    behaviours = list(dict.fromkeys([*summary.get("baseline", {}), *summary.get("interventions", {})]))
    source = Source({"behaviours": behaviours}, inputs)
    found: list[tuple[str, Address]] = []
    for behaviour in behaviours:
        gate = (source.json(f"baseline[{behaviour}]", "summary.json") or {}).get("gate") or {}
        studied = behaviour in (summary.get("interventions") or {})
        after = ", studied all the same" if studied else ", so it was not studied further"
        if not studied and gate.get("on_fail") == "continue":
            after = ""  # something else kept it from being studied
        baseline = Address(f"baseline[{behaviour}]", "summary.json", "/splits")
        lines = _baseline_finding(behaviour, summary["baseline"].get(behaviour) or {}, after)
        found += [(line, baseline) for line in lines]
        for claim in claims(source, behaviour)[:3]:
            hedge = claim.words.lower()
            if claim.verdict == "caveat":
                hedge += f": {claim.caveats[0][:1].lower()}{claim.caveats[0][1:].rstrip('.')}"
            hedge = "" if claim.verdict == "supported" else f" ({hedge})"
            found.append((f"{behaviour}: {claim.sentence}{hedge}", claim.number))
        scores = Address(f"attribute[{behaviour}]", "scores.json")
        found += [(line, scores) for line in _graph_finding(behaviour, summary)]
    found += _dictionary_finding(summary.get("dictionaries") or {})
    return [Finding(formatting.plain(line), address.handle) for line, address in found]


def _baseline_finding(behaviour: str, splits: Mapping[str, Any], below: str) -> list[str]:
    """``below``: what came of a gate that was not passed."""
    split = splits.get("test") or next(iter(splits.values()), None)
    if not split:
        return []
    line = (
        f"{behaviour}: the model is right on {formatting.percent(split['accuracy'], 0)} of {split['n']} prompts, "
        f"mean logit difference {formatting.number(split['mean_logit_difference'])} "
        f"{formatting.interval(split['ci95'])}"
    )
    if any(s.get("passed") is False for s in splits.values()):
        line += f"; below the gate{below}"
    return [line]


def _graph_finding(behaviour: str, summary: Mapping[str, Any]) -> list[str]:
    graph = summary.get("graphs", {}).get(behaviour)
    if not graph:
        return []
    line = (
        f"{behaviour}: {graph['n_prompts']} graphs, completeness {formatting.number(graph['completeness'])}, "
        f"replacement {formatting.number(graph['replacement'])}"
    )
    edges = summary.get("edges", {}).get(behaviour)
    if edges:
        line += (
            f"; {edges['n']} edges checked by intervention, "
            f"Spearman {formatting.number(edges['spearman_frozen'])} with attention and norms frozen, "
            f"{formatting.number(edges['spearman_live'])} in the live model"
        )
    return [line]


def _dictionary_finding(dictionaries: Mapping[str, Any]) -> list[tuple[str, Address]]:
    by_layer = {layer: d["r2"] for layer, d in dictionaries.items() if d.get("r2") is not None}
    r2 = list(by_layer.values())
    recovered = [d["ce_loss_recovered"] for d in dictionaries.values() if d.get("ce_loss_recovered") is not None]
    if not r2:
        return []
    line = f"{len(dictionaries)} dictionaries: held-out R2 {formatting.number(min(r2))} to {formatting.number(max(r2))}"
    if recovered:
        line += f", CE loss recovered {formatting.number(min(recovered))} to {formatting.number(max(recovered))}"
    worst = min(by_layer, key=by_layer.__getitem__)
    return [(line, Address(f"train[{worst}]", "evaluation.json", "/r2"))]


def model_name(study: Mapping[str, Any]) -> str:
    """The model as the study names it, for when its artifact is absent."""
    model = study.get("model")
    if isinstance(model, dict):
        return str(model.get("source") or model.get("name") or model.get("path") or "unknown model")
    return str(model or "unknown model")
